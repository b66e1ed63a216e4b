"""One block: gather from other tokens, then think alone; each adds to the stream, none replaces it.

L of these make the model. Normalising before each sublayer keeps the stream itself untouched (arXiv 2002.04745).
Letters: B batch, T tokens, S all keys, D width.
"""

from torch import Tensor, nn

from mini_llm.model.attention import Attention
from mini_llm.model.config import ModelConfig
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.mlp import MLP
from mini_llm.model.rmsnorm import RMSNorm


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        is_causal: bool,
        cache: KVCache | None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D); see `Attention.forward` for who is seen."""
        gathered_BTD = self.self_attn(self.input_layernorm(x_BTD), rope, mask_B1TS, is_causal, cache, documents_BT)
        x_BTD = x_BTD + self.dropout(gathered_BTD)
        return x_BTD + self.dropout(self.mlp(self.post_attention_layernorm(x_BTD)))
