"""A start that knows which token follows which: counting is cheaper than learning.

The first thing that a language model learns, at the price of millions of tokens, is the table of bigrams. Here that
table is counted, smoothed, compressed to the model's width by a singular value decomposition, and written into the
embedding and the head; the blocks start as nothing (what they write into the stream is zero), and learn the rest.
Letters: V vocabulary, D width, K = D - 2 kept singular vectors, P pairs seen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.rows.dataloader import TrainLoader

SMOOTHING = 100.0  # how many times a token must be seen before its own successors outweigh the average text's
EMBEDDING_STD = 0.5  # smaller, and the first steps drown what was counted (docs/LOG.md)


@torch.no_grad()
def init_bigram(model: Transformer, loader: TrainLoader, n_tokens: int, seed: int) -> None:
    """Set embedding and head so that the model's first guess is the smoothed bigram table of its first training rows.

    `n_tokens` are counted, or the training split, each token once. Then logits(y | x) = rmsnorm(embedding[x]) . head[y]
    is about log((count(x, y) + a p(y)) / (count(x) + a)) up to a constant of x; p: frequency of tokens, a: smoothing.
    """
    V, D = model.lm_head.weight.shape
    generator = torch.Generator().manual_seed(seed)
    x_P, y_P, count_P, p_V = count_pairs(loader, n_tokens, V)
    seen_V = torch.zeros(V).index_add_(0, x_P, count_P)
    # Against p(y) alone, seen pairs gain log(1 + count / (a p)) and all others nothing: a sparse matrix. Frequent
    # tokens matter more: rows and columns are weighted by the root of how often they come.
    weight_x_V, weight_y_V = (seen_V + 1).sqrt(), p_V.sqrt()
    gain_P = torch.log1p(count_P / (SMOOTHING * p_V[y_P]))
    left_VK, right_VK = truncated_svd(x_P, y_P, gain_P * weight_x_V[x_P] * weight_y_V[y_P], V, D - 2, generator)
    left_VK, right_VK = left_VK / weight_x_V[:, None], right_VK / weight_y_V[:, None]
    zeros_V = torch.zeros(V, D - 1 - right_VK.shape[1])  # one for the filler, more where the width exceeds V

    # RMSNorm gives every embedding the same length: one coordinate carries the bias, another fills up the length.
    norm_V = left_VK.norm(dim=1, keepdim=True)
    longest = torch.quantile(norm_V, 0.999).clamp(min=1e-3)
    left_VK = left_VK * (longest / norm_V.clamp(min=longest))
    length = math.sqrt(2.2) * longest
    bias_V1 = torch.full((V, 1), longest.item())
    fill_V1 = (length**2 - longest**2 - left_VK.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    embedding_VD = torch.cat([left_VK, bias_V1, fill_V1, zeros_V[:, 1:]], dim=1)
    to_logits = length / math.sqrt(D)  # undoes RMSNorm's scale
    log_p_V1 = p_V.log()[:, None]
    head_VD = to_logits * torch.cat([right_VK, (log_p_V1 - log_p_V1.mean()) / longest, zeros_V], dim=1)
    # Each direction stays in a coordinate of its own. AdamW moves every coordinate of a rare token's row by a whole
    # step towards less of it; were the bias turned into all D, that would be D steps of its logit at once.
    model.model.embed_tokens.weight.copy_(embedding_VD * (EMBEDDING_STD / embedding_VD.std()))
    model.lm_head.weight.copy_(head_VD)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()


def count_pairs(loader: TrainLoader, n_tokens: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pairs (x, y) of neighbours in the first `n_tokens`, how often each comes, and p(y), smoothed.

    Whole steps are read, one at least, and of the first epoch alone.
    """
    tokens_per_step = loader.rows_per_step * loader.block_size
    steps = max(1, min(n_tokens // tokens_per_step, loader.rows_per_epoch // loader.rows_per_step))
    stride = max(1, 2_000_000 // tokens_per_step)  # steps counted at once: sorting all at once would take gigabytes
    keys, counts = torch.empty(0, dtype=torch.int64), torch.empty(0)
    uses = torch.full((vocab_size,), 0.5)  # no token is impossible
    for first in range(0, steps, stride):
        rows = torch.cat([loader.rows(step) for step in range(first, min(steps, first + stride))])
        uses += torch.bincount(rows[:, 1:].flatten(), minlength=vocab_size)
        new_keys, new_counts = (rows[:, :-1] * vocab_size + rows[:, 1:]).unique(return_counts=True)
        keys, index = torch.cat([keys, new_keys]).unique(return_inverse=True)
        counts = torch.zeros(len(keys)).index_add_(0, index, torch.cat([counts, new_counts.float()]))
    return keys // vocab_size, keys % vocab_size, counts, uses / uses.sum()


def truncated_svd(
    row_P: Tensor, column_P: Tensor, value_P: Tensor, size: int, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return L and R (size, rank or size) with L R^T near the sparse matrix; the singular values' roots are in each.

    Randomised (Halko et al. 2011, arXiv 0909.4061): a random subspace, turned twice towards the largest vectors.
    """
    with torch.sparse.check_sparse_tensor_invariants(False):
        matrix = torch.sparse_coo_tensor(torch.stack([row_P, column_P]), value_P, (size, size)).coalesce()
    transposed = matrix.t().coalesce()
    oversampled = min(size, rank + 20)
    basis, _ = torch.linalg.qr(matrix @ torch.randn(size, oversampled, generator=generator))
    for _ in range(2):
        basis, _ = torch.linalg.qr(transposed @ basis)
        basis, _ = torch.linalg.qr(matrix @ basis)
    u, s, vh = torch.linalg.svd((transposed @ basis).T, full_matrices=False)
    root = s[:rank].sqrt()
    return basis @ u[:, :rank] * root, vh[:rank].T * root
