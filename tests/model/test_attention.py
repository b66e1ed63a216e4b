"""Attention: one masking rule, and its fast forms equal it."""

import pytest
import torch

from mini_llm.model.attention import Attention, causal_mask
from mini_llm.model.config import ModelConfig
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.rope import rope_tables

CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=16, max_seq_len=64)


def test_the_rule_drawn_by_hand() -> None:
    # One padded row: its first slot is padding; two new tokens at positions 1 and 2.
    mask = causal_mask(torch.tensor([[1, 2]]), torch.tensor([[-1, 0, 1, 2]]))
    assert mask.shape == (1, 1, 2, 4)
    assert mask[0, 0].tolist() == [[False, True, True, False], [False, True, True, True]]


def test_padding_sees_everything_so_that_no_row_is_empty() -> None:
    mask = causal_mask(torch.tensor([[-1, -1, 0]]), torch.tensor([[-1, -1, 0]]))
    assert mask[0, 0].tolist() == [[True, True, True], [True, True, True], [False, False, True]]


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(CONFIG, layer=0).eval().requires_grad_(False)


def rope_of(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_tables(positions, CONFIG, torch.float32)


def test_is_causal_equals_the_rule(attention: Attention) -> None:
    x, positions = torch.randn(2, 7, 32), torch.arange(7).expand(2, 7)
    mask = causal_mask(positions, positions)
    fast = attention(x, rope_of(positions), None, True, None)
    torch.testing.assert_close(fast, attention(x, rope_of(positions), mask, False, None))


def test_no_mask_for_one_new_token_equals_the_rule(attention: Attention) -> None:
    outputs = []
    for masked in (False, True):
        torch.manual_seed(1)
        cache = KVCache(CONFIG, 2, 8)
        for step in range(5):
            positions = torch.full((2, 1), step)
            mask = causal_mask(positions, cache.extend(positions))
            out = attention(torch.randn(2, 1, 32), rope_of(positions), mask if masked else None, False, cache)
        outputs.append(out)
    torch.testing.assert_close(outputs[0], outputs[1])


def test_grouped_queries_equal_repeated_keys() -> None:
    torch.manual_seed(0)
    grouped = Attention(CONFIG, layer=0)
    full = Attention(CONFIG.model_copy(update={"n_kv_heads": 4}), layer=0)
    weights = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = weights[name].view(2, CONFIG.head_dim, 32)
        weights[name] = heads.repeat_interleave(2, dim=0).reshape(-1, 32)
    full.load_state_dict(weights)
    x, rope = torch.randn(1, 6, 32), rope_of(torch.arange(6)[None])
    torch.testing.assert_close(grouped(x, rope, None, True, None), full(x, rope, None, True, None))
