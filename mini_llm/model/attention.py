"""Grouped-query attention: every token asks, earlier tokens answer.

Between rope.py (where am I?) and mlp.py (what do I make of it?). Papers: arXiv 1706.03762, 2305.13245.
Letters: B batch, T new tokens, S all keys, D width, H query heads, J key/value heads, K head width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mini_llm.model.causal_attention import blocks, causal_attention
from mini_llm.model.config import ModelConfig
from mini_llm.model.document_attention import document_attention
from mini_llm.model.joined import products
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.rmsnorm import RMSNorm
from mini_llm.model.rope import apply_rope


def causal_mask(query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor:
    """Return who sees whom, (B, 1, T, S) of bool: a query sees the keys at its own position and before.

    The one rule for training, prefill and cached decoding. Padding has position -1: no token sees it, and
    it sees everything itself, because a row without any key would be 0/0.
    """
    q_BT1, k_B1S = query_positions_BT[:, :, None], key_positions_BS[:, None, :]
    return (((k_B1S >= 0) & (k_B1S <= q_BT1)) | (q_BT1 < 0))[:, None]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(K)) v for H query heads that share J key/value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        blocks()  # see there
        self.layer, self.head_dim = layer, config.head_dim
        self.grouped = config.n_kv_heads != config.n_heads
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        is_causal: bool,
        cache: KVCache | None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D). With `documents_BT`, no token sees another document.

        `mask_B1TS` (see `causal_mask`) decides who is seen; None with `is_causal` is its fast form for T = S
        without padding, None without it is its form for a single new token, which sees every key.
        """
        B, T, _ = x_BTD.shape
        q, k, v = (y.view(B, T, -1, self.head_dim) for y in products(x_BTD, self.q_proj, self.k_proj, self.v_proj))
        q_BHTK, k_BJTK, v_BJTK = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        q_BHTK, k_BJTK = apply_rope(q_BHTK, *rope), apply_rope(k_BJTK, *rope)
        k_BJSK, v_BJSK = (k_BJTK, v_BJTK) if cache is None else cache.store(self.layer, k_BJTK, v_BJTK)
        if documents_BT is not None:
            out_BHTK = document_attention(q_BHTK, k_BJSK, v_BJSK, documents_BT)
        elif is_causal:
            out_BHTK = causal_attention(q_BHTK, k_BJSK, v_BJSK)
        else:
            out_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BJSK, v_BJSK, attn_mask=mask_B1TS, enable_gqa=self.grouped
            )
        return self.o_proj(out_BHTK.transpose(1, 2).reshape(B, T, -1))
