"""One text's token on a CPU is what the plain rules pick."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import nucleus, pick_one
from mini_llm.inference.sampling.sampling import RowParams, sample

KNOBS = {
    "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.0, 3.0]),
    "top_p": st.sampled_from([0.05, 0.5123, 0.95, 0.9999, 1.0]),
    "top_k": st.sampled_from([0, 0, 1, 7, 300]),
    "min_p": st.sampled_from([0.0, 0.0, 0.03, 0.4]),
    "typical_p": st.sampled_from([1.0, 1.0, 0.3, 0.9]),
}


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(KNOBS), st.integers(0, 2**32), st.sampled_from([2, 50, 5000, 32_000]),
    st.sampled_from([0.1, 3, 12]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_it_picks_what_the_plain_rules_pick(
    knobs: dict[str, float], seed: int, n: int, sharpness: float, ties: bool, banned: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=rng) * sharpness
    if ties:
        logits = logits.round()
    if banned:
        logits[logits.argsort()[: n // 2]] = -torch.inf
    params = SamplingParams(**knobs)
    for dart in torch.rand(5, generator=rng, dtype=torch.float64).tolist():
        expected = sample(logits[None], RowParams.of([params]), torch.tensor([dart], dtype=torch.float64))
        assert pick_one(logits.numpy(), params, dart) == int(expected)


@pytest.mark.parametrize("p", [0.01, 0.6, 0.95, 0.9999])
def test_the_nucleus_of_a_flat_row_is_looked_for_among_all(p: float) -> None:
    weights = np.linspace(1, 1e-9, 1000, dtype=np.float32) ** 4
    order = np.argsort(-weights, kind="stable")
    before = weights[order].cumsum(dtype=np.float64) - weights[order]
    expected = order[before < p * weights.sum(dtype=np.float64)]
    assert nucleus(weights, p).tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("dart", [0.0, 1 - 2**-53])
def test_the_ends_of_the_line_are_tokens_that_may_come(dart: float) -> None:
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf])
    assert pick_one(logits.numpy(), SamplingParams(temperature=1, top_p=0.9999), dart) == (1 if dart == 0 else 2)
