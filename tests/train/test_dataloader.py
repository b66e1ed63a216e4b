"""Batches are a pure function of (seed, step): every row once an epoch, in constant memory, at any size."""

import itertools
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.data.token_store import TokenSplit, TokenStore
from mini_llm.errors import UserError
from mini_llm.train.rows.dataloader import TrainLoader, permute, shorten
from mini_llm.train.rows.row_length import check_length

KEYS = np.array([1, 2**63, 2**64 - 1, 12345], dtype=np.uint64)


class Counting:
    """A split whose token at i is i: rows tell where they come from."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def read(self, start: int, count: int) -> np.ndarray:
        assert 0 <= start <= start + count <= self.n_tokens
        return np.arange(start, start + count)


def loader(n_tokens: int, *, block_size: int = 8, rows_per_step: int = 4, seed: int = 1) -> TrainLoader:
    split: TokenSplit = Counting(n_tokens)  # type: ignore[assignment]
    return TrainLoader(split, block_size=block_size, rows_per_step=rows_per_step, seed=seed)


@given(n=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection_and_the_same_each_time(n: int, keys: list[int]) -> None:
    words = np.array(keys, dtype=np.uint64)
    result = permute(np.arange(n), n, words)
    assert sorted(result.tolist()) == list(range(n))
    np.testing.assert_array_equal(result, permute(np.arange(n), n, words))
    if n > 2:  # one index alone goes where it goes among all
        assert permute(np.array([n - 2]), n, words)[0] == result[n - 2]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 4095, 4096, 4097, 100_003])
def test_permute_at_the_borders(n: int) -> None:
    assert len(set(permute(np.arange(n), n, KEYS).tolist())) == n


def test_permute_mixes_well() -> None:
    """Like a random order: hardly any index stays, neighbours part, each quarter gets a quarter of the early ones."""
    n = 100_000
    result = permute(np.arange(n), n, KEYS)
    assert (result == np.arange(n)).sum() < 10  # 1 expected
    assert (np.abs(np.diff(result)) < n // 100).mean() < 0.03  # 2 % expected
    quarters = np.bincount(result[: n // 4] * 4 // n, minlength=4) / (n // 4)
    np.testing.assert_allclose(quarters, 0.25, atol=0.02)
    assert abs(np.corrcoef(np.arange(n), result)[0, 1]) < 0.02


@given(n_tokens=st.integers(9, 2000), seed=st.integers(0, 2**32 - 1), rows_per_step=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_each_row_comes_once_an_epoch_and_is_real_text(n_tokens: int, seed: int, rows_per_step: int) -> None:
    batches = loader(n_tokens, rows_per_step=rows_per_step, seed=seed)
    per_epoch = batches.rows_per_epoch
    n_steps = -(-2 * per_epoch // rows_per_step)
    rows = torch.cat([batches.rows(step) for step in range(n_steps)])
    assert rows.dtype == torch.int64
    assert rows.shape[1] == 9
    assert (rows.diff(dim=1) == 1).all()  # consecutive tokens
    for epoch in (rows[:per_epoch], rows[per_epoch : 2 * per_epoch]):
        starts = sorted(epoch[:, 0].tolist())
        assert len(set(starts)) == per_epoch
        assert all(b - a == 8 for a, b in itertools.pairwise(starts))  # side by side, none twice
    assert batches.epoch(n_steps) >= 2


def test_the_next_epoch_has_another_order_and_cuts_elsewhere() -> None:
    batches = loader(8_000, rows_per_step=999)
    first, second = batches.rows(0)[:, 0], batches.rows(1)[:, 0]
    assert len(first) == batches.rows_per_epoch == 999
    assert first[0] % 8 != second[0] % 8
    assert ((first // 8) != (second // 8)).float().mean() > 0.9


def test_another_seed_gives_other_rows_and_the_same_seed_the_same() -> None:
    torch.testing.assert_close(loader(8_000, seed=1).rows(5), loader(8_000, seed=1).rows(5))
    assert not torch.equal(loader(8_000, seed=1).rows(5), loader(8_000, seed=2).rows(5))


@given(step=st.integers(0, 10**6), split=st.sampled_from([(1, 12), (2, 6), (3, 4), (12, 1)]))
@settings(max_examples=30, deadline=None)
def test_rows_depend_on_the_step_alone_not_on_its_micro_batches(step: int, split: tuple[int, int]) -> None:
    """One step of 12 rows equals 12 steps of one row."""
    whole = loader(5_000, rows_per_step=12).rows(step)
    parts = [loader(5_000, rows_per_step=1).rows(12 * step + i) for i in range(12)]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert [len(part) for part in whole.split(split[0])] == [split[0]] * split[1]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shorter_rows_have_the_same_targets_each_once(parts: int) -> None:
    rows = loader(8_000).rows(3)
    short = shorten(rows, parts)
    assert short.shape == (4 * parts, 8 // parts + 1)
    assert torch.equal(short[:, :-1].reshape(4, 8), rows[:, :-1])
    assert torch.equal(short[:, 1:].reshape(4, 8), rows[:, 1:])


def test_rows_are_what_the_store_holds(tiny_store: Path) -> None:
    split = TokenStore.open(tiny_store).split("train")
    everything = split.read(0, split.n_tokens)
    batches = TrainLoader(split, block_size=32, rows_per_step=8, seed=3)
    windows = {everything[i : i + 33].tobytes() for i in range(split.n_tokens - 32)}
    assert all(row.numpy().tobytes() in windows for step in range(5) for row in batches.rows(step))


@pytest.mark.parametrize("n_tokens", [0, 1, 8])
def test_too_little_text_is_refused_with_both_numbers(n_tokens: int) -> None:
    with pytest.raises(UserError, match=rf"has {n_tokens} tokens, one row needs block_size \+ 1 = 9") as problem:
        loader(n_tokens)
    assert f"block_size={max(1, n_tokens - 1)}" in (problem.value.hint or "")


def test_too_little_held_out_text_is_told_how_to_hold_out_more() -> None:
    split: TokenSplit = Counting(27)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"val split has 27 tokens, one row needs block_size \+ 1 = 1,025") as problem:
        check_length(split, 1024, "val")
    assert "--val-fraction 38 times as large, or with 38 times as much text" in (problem.value.hint or "")
    assert "block_size=" not in (problem.value.hint or "")


def test_half_a_trillion_tokens_cost_what_a_million_cost() -> None:
    tracemalloc.start()
    batches = loader(5 * 10**11, block_size=1024, rows_per_step=256)
    assert batches.rows_per_epoch == 5 * 10**11 // 1024 - 1
    seen = torch.cat([batches.rows(step)[:, 0] for step in (0, 1_000_000, 10**9)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.min() >= 0
    assert seen.max() > 4 * 10**11  # no 32-bit arithmetic anywhere
    assert len(set(seen.tolist())) == len(seen)
    assert peak < 20e6


@pytest.mark.skipif(os.name == "nt", reason="needs sparse files and getrusage")
def test_a_terabyte_trains_in_a_few_hundred_megabytes(tiny_store, settings, tmp_path, run_cli) -> None:  # type: ignore[no-untyped-def]
    """A store of 500 billion tokens, sparse on the disk, through the real command: 3 steps of 64 random rows."""
    store = tmp_path / "terabyte"
    shutil.copytree(tiny_store, store)
    manifest = json.loads((store / "manifest.json").read_text())
    tokens = 5 * 10**11
    shard = manifest["splits"]["train"]["shards"][0]
    os.truncate(store / shard["name"], 2 * tokens)
    shard |= {"tokens": tokens, "bytes": 2 * tokens}
    manifest["splits"]["train"] |= {"tokens": tokens, "shards": [shard]}
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert (store / shard["name"]).stat().st_blocks * 512 < 10**7
    assert TokenStore.open(store).split("train").read(tokens - 5, 5).tolist() == [0] * 5

    words = settings(data_dir=store, batch_size=64, max_iters=3, eval_interval=3)
    result = run_cli("train", *words, env={"OMP_NUM_THREADS": "1"}, fresh=True)
    assert result.returncode == 0, result.stderr
    assert "before all 1,000 GB of its tokens were checked" in result.stderr  # nobody waits half an hour for that
    timing = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert len(timing) == 3
    assert timing[-1]["memory_gb"] < 0.9  # the process's peak; torch alone takes 0.3


@given(before=st.integers(1, 9), after=st.integers(1, 9), steps=st.integers(0, 40), more=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_steps_of_another_size_go_on_at_the_very_next_row(before: int, after: int, steps: int, more: int) -> None:
    first, second = loader(500, rows_per_step=before), loader(500, rows_per_step=after)
    second.continue_at(steps, first.epoch(steps))
    seen = [first.rows(step) for step in range(steps)] + [second.rows(step) for step in range(steps, steps + more)]
    one_by_one = loader(500, rows_per_step=1)
    n_rows = steps * before + more * after
    assert torch.equal(torch.cat(seen), torch.cat([one_by_one.rows(i) for i in range(n_rows)]))
    assert second.epoch(steps + more) == pytest.approx(n_rows / second.rows_per_epoch)


def test_the_same_size_goes_on_as_if_nothing_had_been() -> None:
    unbroken, resumed = loader(500), loader(500)
    for step in (0, 1, 30, 1000):
        resumed.continue_at(step, unbroken.epoch(step))
        assert resumed.first_row == 0
