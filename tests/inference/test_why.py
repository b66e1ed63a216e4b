"""Why a token came: both probabilities by NumPy in float64, and a line on which the dart falls where it fell."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.inference.sampling.history import History
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import pick_one
from mini_llm.inference.sampling.sampling import shape_logits
from mini_llm.inference.sampling.why import explain

KNOBS = {
    "temperature": st.sampled_from([0.3, 0.8, 1.0, 3.0]),
    "top_p": st.sampled_from([0.5, 0.95, 1.0]),
    "top_k": st.sampled_from([0, 1, 7, 300]),
    "min_p": st.sampled_from([0.0, 0.03, 0.4]),
    "typical_p": st.sampled_from([1.0, 0.3, 0.9]),
}


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries(KNOBS), st.integers(0, 2**32), st.sampled_from([2, 50, 3000]), st.booleans())
def test_the_dart_falls_into_the_chosen_tokens_stretch(
    knobs: dict[str, float], seed: int, n: int, penalised: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=rng) * 3
    sampling = SamplingParams(**knobs, **({"repetition_penalty": 1.3, "banned_ids": (0,)} if penalised else {}))
    adjusted = History(sampling, [1], n, torch.device("cpu")).adjust(logits)
    probabilities = shape_logits(adjusted, sampling).double().softmax(-1)
    for dart in torch.rand(3, generator=rng, dtype=torch.float64).tolist():
        chosen = pick_one(adjusted, sampling, dart)
        why = explain(logits, chosen, sampling, dart, adjusted_V=adjusted, n_likeliest=n)
        assert why.chosen.start <= dart < why.chosen.end
        assert why.dart == dart
        assert why.chosen.kept
        assert why.n_kept == sum(candidate.kept for candidate in why.likeliest)
        line = sorted(why.likeliest, key=lambda candidate: candidate.token_id)
        assert line[0].start == 0
        assert line[-1].end == 1
        assert all(left.end == right.start for left, right in itertools.pairwise(line))
        for candidate in line:
            assert candidate.p_sampled == pytest.approx(float(probabilities[candidate.token_id]), abs=1e-5)


def test_the_models_own_numbers_are_those_of_float64() -> None:
    logits = torch.randn(700, generator=torch.Generator().manual_seed(1)) * 4
    exact = np.exp(logits.double().numpy() - logits.double().logsumexp(0).item())
    why = explain(logits, 13, SamplingParams(temperature=2.0, top_p=0.5), 0.5, n_likeliest=5)
    assert why.chosen.p == pytest.approx(exact[13], rel=1e-9)
    assert why.rank == 1 + (exact > exact[13]).sum()
    assert why.entropy == pytest.approx(-(exact * np.log(exact)).sum(), rel=1e-9)
    assert [candidate.token_id for candidate in why.likeliest] == np.argsort(-exact)[:5].tolist()


def test_a_token_that_a_filter_rules_out_has_no_stretch() -> None:
    why = explain(torch.tensor([3.0, 2.0, 1.0, -5.0]), 0, SamplingParams(temperature=1, top_k=2), 0.1)
    assert why.n_kept == 2
    assert [candidate.kept for candidate in why.likeliest] == [True, True, False, False]
    assert why.likeliest[2].start == why.likeliest[2].end == 1
    assert why.likeliest[2].p > 0


def test_temperature_0_throws_no_dart() -> None:
    why = explain(torch.tensor([1.0, 2.0, 2.0]), 1, SamplingParams(temperature=0), 0.7)
    assert why.dart is None
    assert why.chosen.p_sampled == 1
    assert why.rank == 1
    assert why.n_kept == 1


def test_a_banned_token_and_a_flat_row() -> None:
    sampling = SamplingParams(temperature=1, banned_ids=(2,))
    logits = torch.zeros(4)
    adjusted = History(sampling, [], 4, torch.device("cpu")).adjust(logits)
    why = explain(logits, 3, sampling, 0.9, adjusted_V=adjusted)
    assert why.entropy == pytest.approx(math.log(4))
    assert why.chosen.p == pytest.approx(0.25)
    assert why.chosen.p_sampled == pytest.approx(1 / 3)
    assert why.rank == 4
