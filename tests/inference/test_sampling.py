"""Sampling: each filter equals a plain NumPy reading of its paper, and temperature 0 is greedy."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_llm.errors import UsageError
from mini_llm.inference.sampling.darts import dart
from mini_llm.inference.sampling.history import History
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import pick_each
from mini_llm.inference.sampling.sampling import (
    RowParams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize_repetition,
    penalize_written,
    sample,
    shape_logits,
)

logit_lists = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)
seeds = st.integers(0, 2**31)


def draw(logits: torch.Tensor, params: SamplingParams, seed: int = 0, n: int = 1) -> torch.Tensor:
    """Return n tokens picked from the scores (V,)."""
    thrown = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sample(logits.expand(n, -1), RowParams.of([params] * n), thrown)


def softmax(logits: list[float] | np.ndarray) -> np.ndarray:
    weights = np.exp(np.array(logits, dtype=np.float64) - max(logits))
    return weights / weights.sum()


def kept(logits: torch.Tensor) -> set[int]:
    return set(torch.isfinite(logits).nonzero().flatten().tolist())


@given(logit_lists, st.integers(1, 60))
def test_top_k_keeps_the_k_highest_and_ties_with_the_last(values: list[float], k: int) -> None:
    threshold = sorted(values, reverse=True)[min(k, len(values)) - 1]
    assert kept(keep_top_k(torch.tensor(values), k)) == {i for i, value in enumerate(values) if value >= threshold}


@given(logit_lists, st.floats(1e-6, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(values: list[float], p: float) -> None:
    probabilities = softmax(values)
    ids = kept(keep_top_p(torch.tensor(values), p))
    inside = sorted(probabilities[list(ids)])
    assert ids, "never empty"
    assert sum(inside) >= p - 1e-5
    assert sum(inside[1:]) < p + 1e-5, "without its least likely member it would not reach p"
    assert min(inside) >= max(np.delete(probabilities, list(ids)), default=0) - 1e-6, "nobody outside is likelier"


@given(logit_lists, st.floats(1e-6, 1))
def test_min_p_keeps_tokens_near_the_likeliest(values: list[float], p: float) -> None:
    ratios = softmax(values) / softmax(values).max()
    ids = kept(keep_min_p(torch.tensor(values), p))
    assert {i for i, ratio in enumerate(ratios) if ratio > p * (1 + 1e-4)} <= ids
    assert ids <= {i for i, ratio in enumerate(ratios) if ratio >= p * (1 - 1e-4)}


@given(logit_lists, st.floats(0.1, 5), st.data())
def test_repetition_penalty_lowers_seen_tokens_of_both_signs(
    values: list[float], penalty: float, data: st.DataObject
) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    expected = [(v / penalty if v > 0 else v * penalty) if s else v for v, s in zip(values, seen, strict=True)]
    result = penalize_repetition(torch.tensor(values), torch.tensor(seen), penalty)
    np.testing.assert_allclose(result.numpy(), np.array(expected, dtype=np.float32), rtol=1e-5)


@given(logit_lists, st.floats(-2, 2), st.floats(-2, 2), st.data())
def test_presence_and_frequency_count_what_was_written(
    values: list[float], presence: float, frequency: float, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    expected = [v - (presence if c else 0) - frequency * c for v, c in zip(values, counts, strict=True)]
    result = penalize_written(torch.tensor(values), torch.tensor(counts), presence, frequency)
    np.testing.assert_allclose(result.numpy(), np.array(expected, dtype=np.float32), rtol=1e-5, atol=1e-4)


@given(logit_lists, st.floats(1e-3, 0.999))
def test_typical_keeps_those_nearest_to_the_expected_surprise(values: list[float], p: float) -> None:
    probabilities = softmax(values)
    surprise = -np.log(probabilities)
    distance = abs(surprise - (probabilities * surprise).sum())
    ids = kept(keep_typical(torch.tensor(values), p))
    assert ids
    assert probabilities[list(ids)].sum() >= p - 1e-5
    outside = np.delete(distance, list(ids))
    assert max(distance[list(ids)]) <= min(outside, default=math.inf) + 1e-3, "nobody outside is more typical"
    farthest = max(ids, key=lambda i: distance[i])
    ties = [i for i in ids if abs(distance[i] - distance[farthest]) < 1e-3]
    assert probabilities[list(ids)].sum() - max(probabilities[ties]) < p + 1e-5, "it stops as soon as p is reached"


@given(seeds, st.floats(0.01, 0.9999), st.sampled_from([0.5, 2.0, 6.0]), st.booleans())
def test_a_large_vocabulary_has_the_nucleus_that_numpy_finds(seed: int, p: float, spread: float, ties: bool) -> None:
    logits = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(seed)) * spread
    logits = logits.round() if ties else logits
    for filtered, row in zip(keep_top_p(logits, p), logits, strict=True):
        probabilities = row.softmax(-1)
        order = np.lexsort((np.arange(len(row)), -probabilities.numpy()))  # of equals, the lower id first
        mass_before = np.cumsum(probabilities.numpy()[order], dtype=np.float64) - probabilities.numpy()[order]
        expected = order[mass_before < p * probabilities.sum(dtype=torch.float64).item()]
        assert len(kept(filtered) ^ set(expected.tolist())) <= 1, "one may differ by rounding at the edge"
    alone = torch.stack([keep_top_p(row, p) for row in logits])
    assert torch.equal(keep_top_p(logits, p), alone)


@given(logit_lists, seeds)
def test_temperature_zero_is_argmax(values: list[float], seed: int) -> None:
    params = SamplingParams(temperature=0, top_k=3, top_p=0.5, min_p=0.2)
    assert draw(torch.tensor(values), params, seed) == int(np.argmax(np.array(values, dtype=np.float32)))


@given(logit_lists, seeds, st.floats(0.01, 3), st.integers(0, 50), st.floats(0.01, 1), st.floats(0, 1))
def test_only_tokens_that_passed_every_filter_are_sampled(
    values: list[float], seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor(values)
    allowed = kept(shape_logits(logits, params))
    assert allowed
    assert set(draw(logits, params, seed, n=5).tolist()) <= allowed


def by_the_papers(logits: list[float], params: SamplingParams) -> np.ndarray:
    """Return each token's probability, every filter read from its paper, one token after the other."""
    scores = np.array(logits) / params.temperature
    if params.top_k:
        scores[scores < np.sort(scores)[-params.top_k]] = -np.inf
    if params.top_p < 1:
        drop_after(scores, params.top_p, -softmax(scores))
    if params.min_p:
        scores[softmax(scores) < params.min_p * softmax(scores).max()] = -np.inf
    if params.typical_p < 1:
        chances = softmax(scores)
        surprise = -np.log(np.where(chances > 0, chances, 1e-300))
        drop_after(scores, params.typical_p, abs(surprise - (chances * surprise).sum()))
    return softmax(scores)


def drop_after(scores: np.ndarray, p: float, rank: np.ndarray) -> None:
    """Rule out the tokens that come after those of the lowest ranks that together reach `p`."""
    chances, mass = softmax(scores), 0.0
    for token_id in np.argsort(rank, kind="stable"):
        if mass >= p:
            scores[token_id] = -np.inf
        mass += chances[token_id]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7, top_p=1.0),
        SamplingParams(temperature=1.3, top_p=0.9, top_k=6),
        SamplingParams(temperature=1.0, top_p=1.0, min_p=0.1),
        SamplingParams(temperature=1.0, top_p=1.0, typical_p=0.7),
        SamplingParams(temperature=1.5, top_k=6, top_p=0.95, min_p=0.1, typical_p=0.9),
    ],
    ids=["softmax", "top-k, top-p", "min-p", "typical", "all"],
)
def test_the_drawn_frequencies_pass_a_chi_square_test(params: SamplingParams) -> None:
    logits = [1.0, 0.0, -1.0, -math.inf, 2.0, 1.2, 0.3, -2.0]
    n = 40_000
    drawn = sample(
        torch.tensor(logits).expand(n, -1),
        RowParams.of([params] * n),
        torch.tensor([dart(7, i) for i in range(n)], dtype=torch.float64),
    )
    expected = by_the_papers(logits, params) * n
    found = np.bincount(drawn.numpy(), minlength=len(logits))
    possible = expected > 0
    assert not found[~possible].any()
    chi_square = float(((found - expected)[possible] ** 2 / expected[possible]).sum())
    # 99.9 % of chi-square values with 1 to 6 degrees of freedom are below these.
    assert chi_square < [0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46][int(possible.sum()) - 1]


@given(st.lists(logit_lists.filter(lambda v: len(v) >= 5).map(lambda v: v[:5]), min_size=1, max_size=4))
def test_a_batch_is_filtered_row_by_row(rows: list[list[float]]) -> None:
    params = SamplingParams(temperature=0.9, top_k=4, top_p=0.9, min_p=0.05)
    batch = shape_logits(torch.tensor(rows), params)
    for row, filtered in zip(rows, batch, strict=True):
        torch.testing.assert_close(filtered, shape_logits(torch.tensor(row), params))


SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0),
    SamplingParams(top_p=1.0, top_k=3),
    SamplingParams(top_p=0.5, min_p=0.2),
    SamplingParams(top_p=1.0, typical_p=0.6, temperature=2),
]


@given(seeds, st.lists(st.sampled_from(SETTINGS), min_size=2, max_size=6))
def test_rows_with_other_settings_change_nothing(seed: int, settings: list[SamplingParams]) -> None:
    logits = 3 * torch.randn(len(settings), 700, generator=torch.Generator().manual_seed(seed))
    thrown = torch.tensor([dart(seed, n) for n in range(len(settings))], dtype=torch.float64)
    together = sample(logits, RowParams.of(settings), thrown)
    alone = [sample(logits[n : n + 1], RowParams.of([params]), thrown[n : n + 1]) for n, params in enumerate(settings)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(
        shape_logits(logits, RowParams.of(settings))[0], shape_logits(logits[:1], RowParams.of(settings[:1]))[0]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_sampled_in_float32(dtype: torch.dtype) -> None:
    # In bfloat16 the sum over 32,000 equal tokens would stop growing at 1/256 of the way.
    draws = draw(torch.zeros(32_000, dtype=dtype), SamplingParams(temperature=1, top_p=1.0), n=200)
    assert 13_000 < draws.float().mean() < 19_000


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-3, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([30.0, -30.0, 29.0])
    token = int(draw(logits, SamplingParams(temperature=temperature)))
    assert token in ({0} if temperature < 1 else {0, 1, 2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("typical_p", 0.0),
        ("presence_penalty", math.inf),
        ("presence_penalty", 1e39),
        ("frequency_penalty", math.nan),
        ("frequency_penalty", -1e39),
        ("repetition_penalty", 1e39),
        ("temperature", 1e300),
    ],
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name}={value} must be")):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("bias", [math.nan, 1e36])
def test_a_wrong_bias_is_named(bias: float) -> None:
    with pytest.raises(UsageError, match=f"logit_bias=3={re.escape(str(bias))}"):
        SamplingParams(logit_bias={3: bias})


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 1.0, 1e6])
def test_the_largest_numbers_that_are_allowed_stay_finite(temperature: float) -> None:
    for sign in (1, -1):
        params = SamplingParams(
            temperature=temperature, top_p=1.0, repetition_penalty=1e6**sign, presence_penalty=sign * 1e6,
            frequency_penalty=sign * 1e6, logit_bias={1: sign * 1e6}, banned_ids=(2,),
        )  # fmt: skip
        history = History(params, [0, 1], 4, torch.device("cpu"))
        for _ in range(100):
            history.add(0)
        scores = history.adjust(torch.tensor([50.0, -50.0, 3.0, 0.0]))
        chances = shape_logits(scores, params).softmax(-1)
        assert chances.isfinite().all()
        expected = sample(scores[None], RowParams.of([params]), torch.tensor([0.5]))
        assert pick_each(scores[None], [params], [0.5]) == expected.tolist()


def test_a_token_of_probability_zero_is_never_picked() -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf]])
    params = RowParams.of([SamplingParams(temperature=1, top_p=1.0)])
    for lowest_or_highest in (0.0, 1 - 2**-53):
        assert sample(logits, params, torch.tensor([lowest_or_highest], dtype=torch.float64)) == 1
