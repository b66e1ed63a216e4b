"""Chance by counting: even, without memory, and the same on the host and as tensors."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_llm.inference.sampling.darts import as_int64, dart, darts, new_seed

seeds = st.integers(-(2**63), 2**64 - 1)


@given(st.lists(st.tuples(seeds, st.integers(0, 10**6)), min_size=1, max_size=8))
def test_tensors_give_the_same_numbers(pairs: list[tuple[int, int]]) -> None:
    seeds_B = torch.tensor([as_int64(seed) for seed, _ in pairs])
    numbers = darts(seeds_B, torch.tensor([n for _, n in pairs]))
    assert numbers.tolist() == [dart(seed, n) for seed, n in pairs]
    assert all(0 <= number < 1 for number in numbers.tolist())


def test_the_numbers_of_one_seed_and_of_neighbouring_seeds_are_even() -> None:
    for numbers in ([dart(1, n) for n in range(20_000)], [dart(seed, 0) for seed in range(20_000)]):
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45.3  # 99.9 % of chi-square with 19 degrees of freedom
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_a_new_seed_is_new() -> None:
    assert len({new_seed() for _ in range(100)}) == 100
