"""Soft targets: a part of each target is what followed the same tokens elsewhere in the text.

A row shows one continuation of each place; the text knows more, and what it counts at once the model would have to meet
one by one. It is distillation (Hinton et al. 2015) whose teacher is an n-gram model of the very text, so nothing has to
be trained first. Value: -log p of the text's own tokens, comparable with held-out text; gradient: of the mixture.
Letters: B rows, T tokens, N = B*T, M continuations of each, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import hand_on_gradients, head_sums
from mini_llm.train.loss import token_loss_sum, wants_chunks
from mini_llm.train.rows.continuations import Continuations
from mini_llm.train.rows.dataloader import TrainLoader, shorten
from mini_llm.train.rows.tensor_rows import TensorRows


@dataclass(frozen=True)
class SoftRows(TensorRows):
    """R rows of T+1 tokens, and for each target M other tokens with their shares of it; the rest is its own."""

    ids: Tensor  # (R, T+1), int64
    others: Tensor  # (R, T, M), int32
    shares: Tensor  # (R, T, M), float32; of a token together 1 at most

    def shorten(self, parts: int) -> SoftRows:
        """Cut each row into `parts`, as `dataloader.shorten` does."""
        R, T, M = self.others.shape
        cut = (R * parts, T // parts, M)
        return SoftRows(shorten(self.ids, parts), self.others.reshape(cut), self.shares.reshape(cut))


class SoftTargets:
    """Says of rows what else their targets might have been."""

    def __init__(self, loader: TrainLoader, n_tokens: int, vocab_size: int) -> None:
        """Sort the places of the first `n_tokens` that will be read, or of one epoch."""
        n_rows = min(loader.rows_per_epoch, max(1, n_tokens // loader.block_size))
        numbers = np.arange(n_rows)
        rows, starts_R = loader.rows_at(numbers), torch.from_numpy(loader.starts_at(numbers))
        self.continuations = Continuations(rows, starts_R, vocab_size)

    def rows(self, ids: Tensor, starts_R: np.ndarray, share: float) -> SoftRows:
        """Return rows (R, T+1), each the text from its start on, with what followed the same tokens elsewhere.

        What the counts are sure of gets `share` of the target, 1 at most.
        """
        others, shares = self.continuations.after(ids[:, :-1], torch.from_numpy(starts_R))
        return SoftRows(ids, others, shares * share)


def soft_loss_sum(model: Transformer, rows: SoftRows, dtype: torch.dtype) -> Tensor:
    """Return the summed loss of rows in nats, with the gradient of their soft targets; products run in `dtype`."""
    ids_BT, targets_BT = rows.ids[:, :-1], rows.ids[:, 1:]
    others_NM, shares_NM = rows.others.flatten(0, 1), rows.shares.flatten(0, 1)
    with torch.autocast(rows.ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
        if wants_chunks(model, ids_BT, dtype):
            x_ND, head_VD = model.model(ids_BT).flatten(0, 1), model.lm_head.weight
            loss: Tensor = soft_head_loss(x_ND, head_VD, targets_BT.flatten(), others_NM, shares_NM, dtype)[0]
            return loss
        logits_BTV = model(ids_BT)
    own = token_loss_sum(logits_BTV, targets_BT)
    log_p_NV = F.log_softmax(logits_BTV.float().flatten(0, 1), -1)
    moved_NM = log_p_NV.gather(1, targets_BT.flatten()[:, None]) - log_p_NV.gather(1, others_NM.long())
    moved = (shares_NM * moved_NM).sum()
    return own + moved - moved.detach()


@torch.library.custom_op("mini_llm::soft_head_loss", mutates_args=())
def soft_head_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, others_NM: Tensor, shares_NM: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed -log p(target), and the gradients of the soft targets' loss by `x_ND` and `weight_VD`.

    As `head_loss.head_loss`; the scores' gradient is softmax - (1 - all shares) * one-hot - shares.
    """
    return head_sums(x_ND, weight_VD, targets_N, dtype, soft=(others_NM, shares_NM))


hand_on_gradients(soft_head_loss)
