"""RoPE: distance alone counts, positions stay apart in half precision, Llama 3's stretching is transformers'."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mini_llm.model.config import ModelConfig, RopeScaling
from mini_llm.model.rope import apply_rope, rope_frequencies, rope_tables

CONFIG = ModelConfig(dim=128, n_heads=2)


def turned(x_BHTK: torch.Tensor, start: int) -> torch.Tensor:
    return apply_rope(x_BHTK, *rope_tables(torch.arange(start, start + x_BHTK.shape[2])[None], CONFIG, torch.float32))


def test_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, 64)
    near = turned(q, 0) @ turned(k, 0).transpose(-2, -1)
    far = turned(q, 500) @ turned(k, 500).transpose(-2, -1)
    torch.testing.assert_close(near, far, atol=2e-3, rtol=1e-3)


def test_turning_keeps_lengths_and_position_zero_turns_nothing() -> None:
    x = torch.randn(1, 1, 4, 64)
    torch.testing.assert_close(turned(x, 9).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned(x, 0)[:, :, 0], x[:, :, 0])


def test_high_positions_stay_apart_in_bfloat16() -> None:
    positions = torch.arange(1000, 2048)[None]
    cos, sin = rope_tables(positions, CONFIG, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    rows = torch.cat((cos, sin), dim=-1)[0, 0]
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=8.0, original_max_position_embeddings=256)])
def test_tables_equal_transformers(scaling: RopeScaling | None) -> None:
    config = ModelConfig(dim=256, n_heads=4, rope_theta=500_000.0, rope_scaling=scaling)
    reference = LlamaRotaryEmbedding(LlamaConfig(**config.to_hf(bos_id=1, eos_id=2, pad_id=3, dtype="float32")))
    positions = torch.tensor([[0, 1, 255, 256, 2047, 8191]])
    for ours, theirs in zip(
        rope_tables(positions, config, torch.float32), reference(torch.zeros(1), positions), strict=True
    ):
        # Theirs says everything twice, once for each number of a pair.
        torch.testing.assert_close(ours[:, 0].repeat(1, 1, 2), theirs, atol=1e-4, rtol=1e-4)


def test_stretching_slows_long_waves_only() -> None:
    plain = ModelConfig(dim=256, n_heads=4)
    scaling = RopeScaling(factor=8.0, original_max_position_embeddings=512)
    ratio = rope_frequencies(plain.model_copy(update={"rope_scaling": scaling})) / rope_frequencies(plain)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(1 / 8)
    assert (ratio.diff() <= 1e-6).all()
