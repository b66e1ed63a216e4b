"""What a shape costs, by formula: parameters, operations, tokens worth training on, and the KV cache.

The tests hold these against the real model. memory.py counts what training keeps in memory.
Letters: V vocabulary, D width, L layers, T context, H heads, J key/value heads, K head width.
"""

from mini_llm.model.config import ModelConfig

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 ("Chinchilla", arXiv 2203.15556), table 3: 19 to 23


def count_parameters(config: ModelConfig) -> int:
    """Return the number of trainable numbers; a tied head counts once."""
    embeddings = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    return embeddings + config.n_layers * count_block_parameters(config) + config.dim


def count_block_parameters(config: ModelConfig) -> int:
    """Return the number of trainable numbers of one block, its norms included."""
    attention = config.dim * config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    qk_norms = 2 * config.head_dim if config.qk_norm else 0
    return attention + qk_norms + 3 * config.dim * config.hidden_dim + 2 * config.dim


def count_block_matrices(config: ModelConfig) -> int:
    """Return the numbers in the matrices of all blocks: what Muon trains, where AdamW trains the rest."""
    norms = 2 * config.dim + (2 * config.head_dim if config.qk_norm else 0)
    return config.n_layers * (count_block_parameters(config) - norms)


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Return the operations of forward and backward for one token in rows of `context` tokens.

    6 for each weight of a matrix product (2 forward, 4 backward), and 6 * L * H * K * T for attention: causal, so a
    token meets half of the row on average. nanoGPT counts 12 there, as if every token met the whole row.
    """
    head = config.vocab_size * config.dim  # also when it is tied; looking a row up costs nothing
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * context
    return 6 * (count_block_matrices(config) + head) + attention


def kv_cache_bytes_per_token(config: ModelConfig, item_bytes: int) -> int:
    """Return what generation remembers of one token: 2 * L * J * K numbers of `item_bytes` bytes."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * item_bytes


def compute_optimal_tokens(config: ModelConfig) -> int:
    """Return the tokens that make the best of a fixed number of operations: about 20 for each parameter.

    Models that will be used a lot are trained on many times more: Llama 3 8B on 1,900 for each parameter.
    """
    return TOKENS_PER_PARAMETER * count_parameters(config)


def chinchilla_loss(parameters: int, tokens: int) -> float:
    """Return the held-out loss, in nats per token, that N parameters reach on D tokens of web text.

    L = E + A / N^a + B / D^b, with the constants of Besiroglu et al. 2024 (arXiv 2404.10102), who mended the fit of
    arXiv 2203.15556. It holds for that paper's text and its 32,000-token vocabulary: elsewhere it is a rough guide.
    """
    return 1.8172 + 482.01 / parameters**0.3478 + 2085.43 / tokens**0.3658
