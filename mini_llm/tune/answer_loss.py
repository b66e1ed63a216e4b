"""The loss of what is learned, and of nothing else: scores are computed only where there is a target.

A third of a conversation's tokens are answers, so the head costs a third. Weights may be any numbers: 1 teaches an
answer, an advantage below 0 unteaches one.
Letters: B rows, T tokens, N = B*T, M tokens with a target, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import hand_on_gradients, head_sums
from mini_llm.tune.rows import ConversationRows

MULTIPLE = 128


def answer_loss_sum(model: Transformer, rows: ConversationRows, dtype: torch.dtype) -> Tensor:
    """Return sum of weight * -log p(target), in nats, over the targets of rows; products run in `dtype`."""
    # The last token has no target; it is read all the same, for rows of 256 tokens are computed sooner than of 255.
    targets_BT, weights_BT = (F.pad(x[:, 1:], (0, 1)) for x in (rows.ids, rows.weights))
    with torch.autocast(rows.ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
        x_BTD = model.model(rows.ids, documents_BT=rows.documents)
    targets_N, weights_N = targets_BT.flatten(), weights_BT.flatten()
    if dtype == torch.float16:  # its gradients must be scaled up before they are rounded; the op rounds in forward
        with torch.autocast(rows.ids.device.type, dtype=dtype):
            logits_NV = model.lm_head(x_BTD.flatten(0, 1))
        return (F.cross_entropy(logits_NV.float(), targets_N, reduction="none") * weights_N).sum()
    loss: Tensor = weighted_head_loss(x_BTD.flatten(0, 1), model.lm_head.weight, targets_N, weights_N, dtype)[0]
    return loss


@torch.library.custom_op("mini_llm::weighted_head_loss", mutates_args=())
def weighted_head_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of -log p(target), and its gradients by `x_ND` and `weight_VD`, all float32.

    As `train.head_loss.head_loss`, on the tokens whose weight is not 0. An operation of its own, because how many they
    are changes from step to step, and torch.compile would compile anew for each number.
    """
    # A multiple of some number, filled up with tokens that count nothing: for each new size of a product the CPU's
    # library makes and keeps a new program, milliseconds and a megabyte.
    n = min(len(weights_N), -(-int(weights_N.count_nonzero()) // MULTIPLE) * MULTIPLE)
    chosen_M = torch.argsort(weights_N == 0, stable=True)[:n]
    loss, x_grad_MD, weight_grad = head_sums(x_ND[chosen_M], weight_VD, targets_N[chosen_M], dtype, weights_N[chosen_M])
    x_grad = torch.zeros_like(x_ND, dtype=torch.float32)
    x_grad[chosen_M] = x_grad_MD
    return loss, x_grad, weight_grad


hand_on_gradients(weighted_head_loss)
