"""Cached decoding equals the full forward pass: any split, any padding, after any rewind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.model.config import ModelConfig
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.transformer import Transformer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, max_seq_len=64)
splits = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.3)
    return model


def ids_of(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_pad(ids: torch.Tensor, padding: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn the first tokens of each row into padding; return junk-filled ids and the positions."""
    steps = torch.arange(ids.shape[1]).expand_as(ids)
    positions = (steps - torch.tensor(padding)[:, None]).clamp(min=-1)
    return torch.where(positions < 0, torch.full_like(ids, 5), ids), positions


@settings(deadline=None, max_examples=50)
@given(splits, st.integers(1, 3))
def test_cached_equals_full_for_any_split(model: Transformer, split: list[int], batch: int) -> None:
    ids = ids_of(batch, sum(split))
    cache = KVCache(CONFIG, batch, ids.shape[1])
    pieces = [model(piece, cache=cache) for piece in ids.split(split, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=1e-4, rtol=1e-4)
    assert cache.length == ids.shape[1]


@settings(deadline=None, max_examples=50)
@given(splits, st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 5))
def test_left_padded_and_cached_rows_equal_each_row_alone(
    model: Transformer, split: list[int], padding: list[int], steps: int
) -> None:
    prompt_length = 9
    ids, positions = left_pad(ids_of(len(padding), prompt_length), padding)
    extra = ids_of(len(padding), sum(split) + steps, seed=1)
    cache = KVCache(CONFIG, len(padding), prompt_length + extra.shape[1])
    pieces = [model(ids, cache=cache, positions_BT=positions)]
    pieces += [model(piece, cache=cache) for piece in extra.split([*split, *[1] * steps], dim=1)]
    together = torch.cat(pieces, dim=1)
    assert torch.isfinite(together).all(), "padding must not make NaN"
    for row, skipped in enumerate(padding):
        alone = model(torch.cat((ids[row, skipped:], extra[row]))[None])
        torch.testing.assert_close(together[row : row + 1, skipped:], alone, atol=1e-4, rtol=1e-4)


def test_what_stands_in_the_padding_changes_nothing(model: Transformer) -> None:
    ids, positions = left_pad(ids_of(2, 8), [3, 0])
    other = torch.where(positions < 0, 17, ids)
    real = positions >= 0
    assert torch.equal(model(ids, positions_BT=positions)[real], model(other, positions_BT=positions)[real])


def test_a_rewound_cache_goes_on_as_if_the_rest_had_never_been(model: Transformer) -> None:
    cache, ids, other = KVCache(CONFIG, 1, 20), ids_of(1, 10), ids_of(1, 6, seed=2)
    model(ids, cache=cache)
    cache.rewind(4)
    expected = model(torch.cat((ids[:, :4], other), dim=1))[:, 4:]
    torch.testing.assert_close(model(other, cache=cache), expected, atol=1e-4, rtol=1e-4)


def test_a_cache_rewound_to_zero_is_new(model: Transformer) -> None:
    cache = KVCache(CONFIG, 2, 20)
    ids, positions = left_pad(ids_of(2, 8), [3, 0])
    model(ids, cache=cache, positions_BT=positions)
    cache.rewind(0)
    assert not cache.padded, "the fast paths are open again"
    fresh = ids_of(2, 11, seed=3)
    torch.testing.assert_close(model(fresh, cache=cache), model(fresh), atol=1e-4, rtol=1e-4)


def test_a_full_cache_says_how_many_slots_it_has(model: Transformer) -> None:
    cache = KVCache(CONFIG, 1, 8)
    model(ids_of(1, 8), cache=cache)
    with pytest.raises(ValueError, match="8 slots, 9 are needed"):
        model(ids_of(1, 1), cache=cache)
    with pytest.raises(AssertionError, match="cannot rewind 8 slots to 9"):
        cache.rewind(9)


def test_bfloat16_cache_follows_the_full_pass() -> None:
    model = Transformer(CONFIG)
    model.init_weights(seed=0)
    model.to(torch.bfloat16).eval().requires_grad_(False)
    ids = ids_of(1, 12)
    cache = KVCache(CONFIG, 1, 12, dtype=torch.bfloat16)
    pieces = torch.cat([model(piece, cache=cache) for piece in ids.split([7, 1, 1, 3], dim=1)], dim=1)
    torch.testing.assert_close(pieces, model(ids), atol=0.02, rtol=0.02)
