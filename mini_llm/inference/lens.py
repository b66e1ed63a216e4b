"""Inside one prediction: what each layer would have said, and where each head looked.

The logit lens (nostalgebraist, 2020): the final norm and the head, put on every block's output. Computed by the plain
model, for one text; the last layer's word is the model's own answer.
Letters: T tokens, D width, L layers, H query heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm.inference.backends.eager import blocks_of
from mini_llm.model.rope import apply_rope, rope_tables
from mini_llm.model.transformer import Transformer
from mini_llm.model.transformer_block import TransformerBlock


@dataclass(frozen=True)
class Lens:
    """What happens at a text's last token, layer by layer."""

    logits: Tensor  # (L, V), float32: each layer's scores of the next token
    attention: Tensor  # (L, H, T), float32: each head's attention from the last token to all; sums are 1


@torch.inference_mode()
def look_inside(model: Transformer, ids: Sequence[int]) -> Lens:
    """Return the lens on the token after `ids`, which fit the context."""
    backbone = model.model
    ids_1T = torch.tensor([list(ids)], device=model.lm_head.weight.device)
    positions_1T = torch.arange(len(ids), device=ids_1T.device)[None]
    x_1TD = backbone.embed_tokens(ids_1T)
    rope = rope_tables(positions_1T, model.config, x_1TD.dtype)
    logits, attention = [], []
    for block in blocks_of(model):
        attention.append(_last_attention(block, x_1TD, rope))
        x_1TD = block(x_1TD, rope, None, len(ids) > 1, None)
        logits.append(model.lm_head(backbone.norm(x_1TD[:, -1]))[0].float())
    return Lens(torch.stack(logits).cpu(), torch.stack(attention).cpu())


def _last_attention(block: TransformerBlock, x_1TD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Return the attention (H, T) of the last token in one block."""
    attention, T = block.self_attn, x_1TD.shape[1]
    normed_1TD = block.input_layernorm(x_1TD)
    q_1HTK = attention.q_norm(attention.q_proj(normed_1TD).view(1, T, -1, attention.head_dim)).transpose(1, 2)
    k_1JTK = attention.k_norm(attention.k_proj(normed_1TD).view(1, T, -1, attention.head_dim)).transpose(1, 2)
    q_HK = apply_rope(q_1HTK, *rope)[0, :, -1].float()
    k_HTK = apply_rope(k_1JTK, *rope)[0].float().repeat_interleave(q_1HTK.shape[1] // k_1JTK.shape[1], dim=0)
    return torch.einsum("hk,htk->ht", q_HK, k_HTK).mul(attention.head_dim**-0.5).softmax(-1)
