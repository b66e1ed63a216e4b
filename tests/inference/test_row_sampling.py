"""Each text's token on a CPU is what the plain rules pick, whoever else is there."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import AT_ONCE, nucleus, pick_each, weigh
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
        assert pick_each(logits[None], [params], [dart]) == [int(expected)]


def test_a_text_gets_its_token_whoever_else_is_there() -> None:
    rng = torch.Generator().manual_seed(0)
    kinds = [{"temperature": 0.0}, {}, {"top_k": 7}, {"top_p": 1.0, "min_p": 0.03}, {"temperature": 2.0}]
    params = [SamplingParams(**kinds[row % len(kinds)]) for row in range(3 * AT_ONCE - 1)]
    logits = torch.randn(len(params), 8192, generator=rng) * 4
    darts = torch.rand(len(params), generator=rng, dtype=torch.float64).tolist()
    alone = [pick_each(logits[row : row + 1], [params[row]], [darts[row]])[0] for row in range(len(params))]
    for n in (2, AT_ONCE, len(params)):
        assert pick_each(logits[:n], params[:n], darts[:n]) == alone[:n]
        together = weigh(logits[:n], params[:n])
        assert all((together[row] == weigh(logits[row : row + 1], [params[row]])[0]).all() for row in range(n))


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
    assert pick_each(logits[None], [SamplingParams(temperature=1, top_p=0.9999)], [dart]) == [1 if dart == 0 else 2]
