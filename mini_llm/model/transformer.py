"""The whole model: embed, L blocks, normalise, score every token of the vocabulary.

Parameters carry the names of Hugging Face's Llama, so that a checkpoint loads there as it is.
Letters: B batch, T new tokens, S all keys, D width, V vocabulary, L layers.
"""

import math

import torch
from torch import Tensor, nn

from mini_llm.model.attention import causal_mask
from mini_llm.model.config import ModelConfig
from mini_llm.model.embedding import TokenEmbedding
from mini_llm.model.kv_cache import KVCache
from mini_llm.model.rmsnorm import RMSNorm
from mini_llm.model.rope import rope_tables
from mini_llm.model.transformer_block import TransformerBlock


class Backbone(nn.Module):
    """All but the head: ids to the last hidden states. Its name in a checkpoint is `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        ids_BT: Tensor,
        cache: KVCache | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, D) of ids (B, T); see `Transformer.forward`."""
        T = ids_BT.shape[1]
        padded = positions_BT is not None
        if positions_BT is None:
            positions_BT = cache.next_positions(T) if cache else torch.arange(T, device=ids_BT.device)[None]
        key_positions_BS = positions_BT
        if cache is not None:
            cache.padded |= padded
            padded = cache.padded
            key_positions_BS = cache.extend(positions_BT)
        is_causal = not padded and key_positions_BS.shape[1] == T > 1
        sees_all = not padded and T == 1
        mask_B1TS = None if is_causal or sees_all else causal_mask(positions_BT, key_positions_BS)

        x_BTD = self.dropout(self.embed_tokens(ids_BT))
        rope = rope_tables(positions_BT, self.config, x_BTD.dtype)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rope, mask_B1TS, is_causal, cache, documents_BT)
        return self.norm(x_BTD)


class Transformer(nn.Module):
    """A Llama: `model` (the backbone) and `lm_head`, which is the embedding again when tied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids_BT: Tensor,
        *,
        cache: KVCache | None = None,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the scores (B, T, V) of each next token; (B, 1, V) with `last_only`.

        Args:
            ids_BT: token ids.
            cache: where earlier tokens are remembered; the new ones are added to it.
            positions_BT: each token's position in its own sequence, -1 for left padding. Without it, tokens go on
                from the cache, or from 0.
            documents_BT: the number of each token's document, for rows that hold several (no cache): none sees another.
            last_only: score only the last token's successor: all that generation needs.
        """
        x_BTD = self.model(ids_BT, cache, positions_BT, documents_BT)
        return self.lm_head(x_BTD[:, -1:] if last_only else x_BTD)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw all weights from N(0, 0.02); norms are 1. The same seed gives the same weights on every device.

        The 2L matrices that write into the residual stream get 0.02 / sqrt(2L), so that the stream's variance does
        not grow with depth (GPT-2). The first loss is then near ln V, a uniform guess.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
                continue
            writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * self.config.n_layers) if writes_residual else 0.02
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
