"""Sampling: each filter equals a plain NumPy reading of its paper, and temperature 0 is greedy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_llm.errors import UsageError
from mini_llm.inference.sampling import (
    SamplingParams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
    shape_logits,
)

logit_lists = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax(logits: list[float]) -> np.ndarray:
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


@given(logit_lists, seeds)
def test_temperature_zero_is_argmax_and_draws_nothing(values: list[float], seed: int) -> None:
    rng = generator(seed)
    before = rng.get_state()
    params = SamplingParams(temperature=0, top_k=3, top_p=0.5, min_p=0.2)
    assert sample(torch.tensor(values), params, rng) == int(np.argmax(np.array(values, dtype=np.float32)))
    assert torch.equal(rng.get_state(), before)


def test_temperature_zero_comes_after_the_repetition_penalty() -> None:
    logits, seen = torch.tensor([2.0, 1.5, -1.0]), torch.tensor([True, False, False])
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert sample(logits, params, generator(), seen) == 1
    assert sample(logits, params, generator()) == 0


@given(logit_lists, seeds, st.floats(0.01, 3), st.integers(0, 50), st.floats(0.01, 1), st.floats(0, 1))
def test_only_tokens_that_passed_every_filter_are_sampled(
    values: list[float], seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor(values)
    allowed = kept(shape_logits(logits, params))
    assert allowed
    rng = generator(seed)
    assert {int(sample(logits, params, rng)) for _ in range(5)} <= allowed


def test_frequencies_are_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, -math.inf, 2.0])
    params = SamplingParams(temperature=0.7, top_p=1.0)
    draws = sample(logits.expand(40_000, -1), params, generator())
    frequencies = torch.bincount(draws, minlength=5) / len(draws)
    # The standard error of a frequency is at most 0.5 / sqrt(40000) = 0.0025.
    torch.testing.assert_close(frequencies, (logits / 0.7).softmax(-1), atol=0.01, rtol=0)
    assert frequencies[3] == 0


@given(st.lists(logit_lists.filter(lambda v: len(v) >= 5).map(lambda v: v[:5]), min_size=1, max_size=4))
def test_a_batch_is_filtered_row_by_row(rows: list[list[float]]) -> None:
    params = SamplingParams(temperature=0.9, top_k=4, top_p=0.9, min_p=0.05)
    batch = shape_logits(torch.tensor(rows), params)
    for row, filtered in zip(rows, batch, strict=True):
        torch.testing.assert_close(filtered, shape_logits(torch.tensor(row), params))


@given(logit_lists, seeds)
def test_the_same_seed_picks_the_same_tokens(values: list[float], seed: int) -> None:
    logits = torch.tensor(values)
    first, second = generator(seed), generator(seed)
    for _ in range(3):
        assert sample(logits, SamplingParams(), first) == sample(logits, SamplingParams(), second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_sampled_in_float32(dtype: torch.dtype) -> None:
    # In bfloat16 the sum over 32,000 equal tokens would stop growing at 1/256 of the way.
    draws = sample(torch.zeros(200, 32_000, dtype=dtype), SamplingParams(temperature=1, top_p=1.0), generator())
    assert 13_000 < draws.float().mean() < 19_000


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-3, 1e9])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([30.0, -30.0, 29.0])
    token = int(sample(logits, SamplingParams(temperature=temperature), generator()))
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
    ],
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name}={value} must be"):
        SamplingParams(**{name: value})


def test_a_token_of_probability_zero_is_never_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([-math.inf, 1.0, -math.inf])
    for draw in (0.0, 1 - 2**-53):  # the lowest and the highest number that can be drawn
        monkeypatch.setattr(torch, "rand", lambda shape, draw=draw, **_: torch.full(shape, draw, dtype=torch.float64))
        assert sample(logits, SamplingParams(temperature=1, top_p=1.0), generator()) == 1
