"""What a shape costs, by formula: parameters, and floating-point operations for each trained token.

The tests hold these against the real model. Letters: V vocabulary, D width, L layers, T context.
"""

from mini_llm.model.config import ModelConfig


def count_parameters(config: ModelConfig) -> int:
    """Return the number of trainable numbers; a tied head counts once."""
    attention = config.dim * config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    qk_norms = 2 * config.head_dim if config.qk_norm else 0
    block = attention + qk_norms + 3 * config.dim * config.hidden_dim + 2 * config.dim
    embeddings = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    return embeddings + config.n_layers * block + config.dim


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Return the operations of forward and backward for one token in rows of `context` tokens.

    6 for each weight of a matrix product (2 forward, 4 backward), and 6 * L * H * K * T for attention: causal, so a
    token meets half of the row on average. nanoGPT counts 12 there, as if every token met the whole row.
    """
    matrices = count_parameters(config) - (2 * config.n_layers + 1) * config.dim
    if config.qk_norm:
        matrices -= 2 * config.n_layers * config.head_dim
    if not config.tie_embeddings:
        matrices -= config.vocab_size * config.dim  # looking a row up costs nothing
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * context
    return 6 * matrices + attention
