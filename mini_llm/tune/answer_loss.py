"""The loss of what is learned, and of nothing else: scores are computed only where there is a target.

A third of a conversation's tokens are answers, so the head costs a third. Weights may be any numbers: 1 teaches an
answer, an advantage below 0 unteaches one.
Letters: B rows, T tokens, N = B*T, C tokens of a chunk, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import hand_on_gradients, rows_in_chunk
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
    loss = torch.zeros((), device=x_ND.device)
    x_grad = torch.zeros_like(x_ND, dtype=torch.float32)
    weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32)
    weight_low = weight_VD.to(dtype)
    rows = min(rows_in_chunk(weight_VD), len(x_ND))
    low_room = x_ND.new_empty(rows, len(weight_VD), dtype=dtype)
    room = low_room if dtype == torch.float32 else x_ND.new_empty(low_room.shape, dtype=torch.float32)
    for places_C in chosen_M.split(rows):
        x_CD, targets_C1, weights_C1 = x_ND[places_C].to(dtype), targets_N[places_C, None], weights_N[places_C, None]
        low_CV, log_p_CV = low_room[: len(places_C)], room[: len(places_C)]
        log_p_CV.copy_(torch.mm(x_CD, weight_low.mT, out=low_CV))
        torch.log_softmax(log_p_CV, -1, out=log_p_CV)
        loss -= (log_p_CV.gather(1, targets_C1) * weights_C1).sum()
        grad_CV = log_p_CV.exp_()
        grad_CV.scatter_(1, targets_C1, grad_CV.gather(1, targets_C1) - 1)
        low_CV.copy_(grad_CV.mul_(weights_C1))
        x_grad[places_C] = (low_CV @ weight_low).float()
        if dtype == torch.float32:
            weight_grad.addmm_(low_CV.mT, x_CD)
        else:
            weight_grad += low_CV.mT @ x_CD
    return loss, x_grad, weight_grad


hand_on_gradients(weighted_head_loss)
