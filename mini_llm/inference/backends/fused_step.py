"""The step of a GPU in few kernels: one new token for each of B slots, fixed shapes, nothing decided on the host.

What is launched costs more than what is computed there. So weights that read the same input are one matrix, sums are
part of the products before them, and what all layers need (the mask, the angles) is made once. A layer is 14 kernels.
Letters: B slots, D width, F inner width, H query heads, J key/value heads, G = H/J, M = H + J, N = H + 2J, K head
width, S places, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_llm.inference.backends.eager import blocks_of
from mini_llm.inference.backends.slot_cache import SlotCache
from mini_llm.model.rmsnorm import RMSNorm
from mini_llm.model.rope import rope_tables
from mini_llm.model.transformer import Transformer


class FusedWeights:
    """The matrices that read the same input, one below the other: one product instead of three, and of two.

    The model's own weights become views of these, so that nothing is held twice.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.qkv, self.gate_up = [], []
        for layer in blocks_of(model):
            attention, mlp = layer.self_attn, layer.mlp
            self.qkv.append(_fuse(attention.q_proj, attention.k_proj, attention.v_proj))
            self.gate_up.append(_fuse(mlp.gate_proj, mlp.up_proj))


@torch.no_grad()
def _fuse(*parts: nn.Linear) -> Tensor:
    whole = torch.cat([part.weight for part in parts])
    for part, rows in zip(parts, whole.split([len(part.weight) for part in parts]), strict=True):
        part.weight.data = rows
    return whole


def decode_logits(weights: FusedWeights, cache: SlotCache, ids_B: Tensor, positions_B: Tensor, n_places: int) -> Tensor:
    """Read one token of each of the first B slots; return the scores (B, V) of each slot's next one, float32.

    Keys and values go to each slot's place `positions_B`; the first `n_places` places are looked at.
    """
    model, c = weights.model, weights.model.config
    B, H, J, K = len(ids_B), c.n_heads, c.n_kv_heads, c.head_dim
    slots_B = torch.arange(B, device=ids_B.device)
    x_BD = model.model.embed_tokens(ids_B)
    future_BS = torch.arange(n_places, device=ids_B.device) > positions_B[:, None]
    mask_B11S = torch.zeros_like(future_BS, dtype=x_BD.dtype).masked_fill(future_BS, -torch.inf)[:, None, None]
    cos_B1K, sin_B1K = (table[:, 0] for table in rope_tables(positions_B[:, None], c, x_BD.dtype))
    cos_B1K, sin_B1K = torch.cat((cos_B1K, cos_B1K), dim=-1), torch.cat((-sin_B1K, sin_B1K), dim=-1)
    for number, layer in enumerate(blocks_of(model)):
        attention, mlp = layer.self_attn, layer.mlp
        heads_BNK = F.linear(norm(x_BD, layer.input_layernorm), weights.qkv[number]).view(B, -1, K)
        qk_BMK, v_BJK = heads_BNK.split([H + J, J], dim=1)
        if c.qk_norm:
            q_BHK, k_BJK = qk_BMK.split([H, J], dim=1)
            qk_BMK = torch.cat((norm(q_BHK, attention.q_norm), norm(k_BJK, attention.k_norm)), dim=1)
        qk_BMK = torch.addcmul(qk_BMK * cos_B1K, qk_BMK.roll(K // 2, dims=-1), sin_B1K)  # the model's `apply_rope`
        q_BHK, k_BJK = qk_BMK.split([H, J], dim=1)
        keys_BJSK, values_BJSK = cache.keys_LBJSK[number], cache.values_LBJSK[number]
        keys_BJSK[slots_B, :, positions_B] = k_BJK
        values_BJSK[slots_B, :, positions_B] = v_BJK
        mixed_BJGK = F.scaled_dot_product_attention(  # a group's queries stand where a text's tokens would
            q_BHK.view(B, J, H // J, K),
            keys_BJSK[:B, :, :n_places],
            values_BJSK[:B, :, :n_places],
            attn_mask=mask_B11S,
        )
        x_BD.addmm_(mixed_BJGK.reshape(B, H * K), attention.o_proj.weight.T)
        gate_BF, up_BF = F.linear(norm(x_BD, layer.post_attention_layernorm), weights.gate_up[number]).chunk(2, dim=-1)
        x_BD.addmm_(F.silu(gate_BF) * up_BF, mlp.down_proj.weight.T)
    return model.lm_head(norm(x_BD, model.model.norm)).float()


def norm(x: Tensor, module: RMSNorm | nn.Identity) -> Tensor:
    """Apply RMSNorm as one kernel where the model's own lines are eight."""
    assert isinstance(module, RMSNorm)
    return F.rms_norm(x, module.weight.shape, module.weight, module.eps)
