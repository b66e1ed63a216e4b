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


def answer_loss_sum(model: Transformer, rows: ConversationRows, dtype: torch.dtype) -> Tensor:
    """Return sum of weight * -log p(target), in nats, over the targets of rows; products run in `dtype`."""
    ids_BT, targets_BT, weights_BT = rows.ids[:, :-1], rows.ids[:, 1:], rows.weights[:, 1:]
    with torch.autocast(ids_BT.device.type, dtype=dtype, enabled=dtype != torch.float32):
        x_BTD = model.model(ids_BT, documents_BT=rows.documents[:, :-1])
    targets_N, weights_N = targets_BT.flatten(), weights_BT.flatten()
    if dtype == torch.float16:  # its gradients must be scaled up before they are rounded; the op rounds in forward
        with torch.autocast(ids_BT.device.type, dtype=dtype):
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
    chosen_M = weights_N.nonzero().flatten()
    loss = torch.zeros((), device=x_ND.device)
    x_grad = torch.zeros_like(x_ND, dtype=torch.float32)
    weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32)
    weight_low = weight_VD.to(dtype)
    for places_C in chosen_M.split(rows_in_chunk(weight_VD)):
        x_CD, targets_C1, weights_C1 = x_ND[places_C].to(dtype), targets_N[places_C, None], weights_N[places_C, None]
        log_p_CV = torch.log_softmax((x_CD @ weight_low.mT).float(), -1)
        loss -= (log_p_CV.gather(1, targets_C1) * weights_C1).sum()
        grad_CV = log_p_CV.exp_()
        grad_CV.scatter_(1, targets_C1, grad_CV.gather(1, targets_C1) - 1)
        grad_CV = (grad_CV * weights_C1).to(dtype)
        x_grad[places_C] = (grad_CV @ weight_low).float()
        weight_grad += grad_CV.mT @ x_CD
    return loss, x_grad, weight_grad


hand_on_gradients(weighted_head_loss)
