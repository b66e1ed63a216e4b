"""Rotary position embedding: turn each query and key by an angle that grows with its position.

Their dot product then depends on the distance between two tokens alone. Paper: arXiv 2104.09864.
Layout: Hugging Face's, which pairs number i with number i + K/2 ("half split"), so weights load there as they are.
Letters: B batch, T tokens, H heads, K head width.
"""

import math

import torch
from torch import Tensor

from mini_llm.model.config import ModelConfig, RopeScaling
from mini_llm.model.joined import halves


def rope_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Return the K/2 angles (radians per position, float32), fast first: theta^(-2i/K)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    return _stretch(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow the long waves down by `factor`, keep the short ones, blend in between (Llama 3.1)."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns in the old context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return frequencies * (blend + (1 - blend) / scaling.factor)


def rope_tables(positions_BT: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (B, 1, T, K/2), for integer positions (B, T).

    Angles are float32: in bfloat16, with 8 bits of mantissa, positions above 256 would share an angle.
    """
    angles_BTK = positions_BT[..., None].float() * rope_frequencies(config, positions_BT.device)
    angles_B1TK = angles_BTK[:, None]
    if torch.compiler.is_compiling():
        cos_B1TK, sin_B1TK = _cos_and_sin(angles_B1TK)
    else:  # the first call of an operation of one's own imports the compiler: two seconds
        cos_B1TK, sin_B1TK = angles_B1TK.cos(), angles_B1TK.sin()
    return cos_B1TK.to(dtype), sin_B1TK.to(dtype)


# An operation of our own, because torch.compile would work cosines out anew for each head of each layer, forward and
# backward: a tenth of a training step of a small model on a CPU.
@torch.library.custom_op("mini_llm::cos_and_sin", mutates_args=())
def _cos_and_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    return angles.cos(), angles.sin()


@_cos_and_sin.register_fake
def _(angles: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(angles), torch.empty_like(angles)


def apply_rope(x_BHTK: Tensor, cos_B1TK: Tensor, sin_B1TK: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) by its angle; shape (B, H, T, K) in and out, tables as of `rope_tables`."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return halves(first * cos_B1TK - second * sin_B1TK, second * cos_B1TK + first * sin_B1TK)
