"""The seed's arithmetic, written out from its tensors alone: what an imported checkpoint is held against.

It shares no code with `mini_llm/model`: interleaved RoPE by complex numbers, heads repeated, softmax written out.
Letters: B batch, T tokens, S all keys, D width, H query heads, K head width, C = K/2 complex numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_logits(weights: Mapping[str, Tensor], ids_BT: Tensor, *, n_heads: int, theta: float, eps: float) -> Tensor:
    """Return the scores (B, T, V) of the seed's model, in float64, for weights under the seed's names.

    The angles are those that the checkpoint holds, so that another base of RoPE would show.
    """

    def matrix(name: str) -> Tensor:
        return weights[f"{name}.weight"].double()

    def normalise(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * matrix(name)

    embedding = matrix("tok_embeddings.emb" if "tok_embeddings.emb.weight" in weights else "tok_embeddings")
    x_BTD = embedding[ids_BT]
    B, T, D = x_BTD.shape
    angles_TC = _angles(weights.get("rope.freqs_cis"), T, D // n_heads, theta)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    layer = 0
    while f"layers.{layer}.attention.wq.weight" in weights:
        block = f"layers.{layer}"
        h_BTD = normalise(x_BTD, f"{block}.attention_norm")
        q, k, v = (
            (h_BTD @ matrix(f"{block}.attention.{n}").T).view(B, T, -1, D // n_heads) for n in ("wq", "wk", "wv")
        )
        q, k = _turn(q, angles_TC), _turn(k, angles_TC)
        k, v = (x.repeat_interleave(n_heads // x.shape[2], dim=2) for x in (k, v))
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q, k) / (D // n_heads) ** 0.5
        probabilities = scores_BHTS.masked_fill(hidden, -torch.inf).softmax(-1)
        seen_BTD = torch.einsum("bhts,bshk->bthk", probabilities, v).reshape(B, T, D)
        x_BTD = x_BTD + seen_BTD @ matrix(f"{block}.attention.wo").T
        h_BTD = normalise(x_BTD, f"{block}.ffn_norm")
        gate, value = (h_BTD @ matrix(f"{block}.feed_forward.{n}").T for n in ("w1", "w3"))
        x_BTD = x_BTD + (F.silu(gate) * value) @ matrix(f"{block}.feed_forward.w2").T
        layer += 1
    head = matrix("output") if "output.weight" in weights else embedding
    return normalise(x_BTD, "norm") @ head.T


def _angles(stored: Tensor | None, T: int, K: int, theta: float) -> Tensor:
    """Return e^(i * position * frequency), (T, K/2); computed in float32, as the seed does, where none are stored."""
    if stored is not None:
        return stored[:T].to(torch.complex128)
    frequencies = 1.0 / (theta ** (torch.arange(0, K, 2).float() / K))
    angles = torch.outer(torch.arange(T, dtype=torch.float32), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex128)


def _turn(x_BTHK: Tensor, angles_TC: Tensor) -> Tensor:
    pairs_BTHC = torch.view_as_complex(x_BTHK.reshape(*x_BTHK.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs_BTHC * angles_TC[:, None]).flatten(3)
