"""How probable a model holds each answer: the sum of its tokens' log-probabilities, one number a document.

A loss that depends on whole answers knows only afterwards how much each token counts. So the scores are made twice, a
few rows at a time: forward for the numbers, backward for the gradient; they never exist all together.
Letters: R rows, T tokens, N = R*T, C tokens of a chunk, D documents of a row, W width, V vocabulary.
"""

import torch
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import rows_in_chunk
from mini_llm.tune.rows import ConversationRows


def document_log_probs(
    model: Transformer, rows: ConversationRows, dtype: torch.dtype, n_documents: int
) -> tuple[Tensor, Tensor]:
    """Return for documents 0 .. n-1 of each row the sum of log p over what is learned, (R, D), and its tokens, (R, D).

    Both are 0 where nothing is learned. Products run in `dtype`.
    """
    ids_RT, learned_RT, documents_RT = rows.ids[:, 1:], rows.weights[:, 1:] != 0, rows.documents[:, 1:]
    with torch.autocast(ids_RT.device.type, dtype=dtype, enabled=dtype != torch.float32):
        x_RTW = model.model(rows.ids[:, :-1], documents_BT=rows.documents[:, :-1])
    log_p_N = target_log_probs(x_RTW.flatten(0, 1), model.lm_head.weight, ids_RT.flatten(), learned_RT.flatten(), dtype)
    numbers_D = torch.arange(n_documents, device=ids_RT.device)
    belongs_RTD = (documents_RT[..., None] == numbers_D) & learned_RT[..., None]
    # A sum over a mask, not a scattered one: CUDA adds those up in any order.
    return (log_p_N.view(ids_RT.shape)[..., None] * belongs_RTD).sum(1), belongs_RTD.sum(1)


@torch.library.custom_op("mini_llm::target_log_probs", mutates_args=())
def target_log_probs(
    x_NW: Tensor, weight_VW: Tensor, targets_N: Tensor, learned_N: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return log p(target), float32, where it is learned, and 0 elsewhere.

    An operation of its own, as `answer_loss.weighted_head_loss` is: how many are learned changes from step to step.
    """
    log_p_N = torch.zeros(len(x_NW), device=x_NW.device)
    weight_low = weight_VW.to(dtype)
    for places_C in learned_N.nonzero().flatten().split(rows_in_chunk(weight_VW)):
        scores_CV = (x_NW[places_C].to(dtype) @ weight_low.mT).float()
        log_p_N[places_C] = torch.log_softmax(scores_CV, -1).gather(1, targets_N[places_C, None])[:, 0]
    return log_p_N


@torch.library.custom_op("mini_llm::target_log_probs_backward", mutates_args=())
def target_log_probs_backward(
    grad_N: Tensor, x_NW: Tensor, weight_VW: Tensor, targets_N: Tensor, learned_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradients by `x_NW` and `weight_VW`: of a log p by the scores it is one-hot - softmax."""
    x_grad = torch.zeros_like(x_NW, dtype=torch.float32)
    weight_grad = torch.zeros_like(weight_VW, dtype=torch.float32)
    weight_low = weight_VW.to(dtype)
    for places_C in learned_N.nonzero().flatten().split(rows_in_chunk(weight_VW)):
        x_CW, targets_C1 = x_NW[places_C].to(dtype), targets_N[places_C, None]
        grad_CV = -torch.softmax((x_CW @ weight_low.mT).float(), -1)
        grad_CV.scatter_(1, targets_C1, grad_CV.gather(1, targets_C1) + 1)
        grad_CV = (grad_CV * grad_N[places_C, None]).to(dtype)
        x_grad[places_C] = (grad_CV @ weight_low).float()
        weight_grad += grad_CV.mT @ x_CW
    return x_grad, weight_grad


@target_log_probs.register_fake
def _(x_NW, weight_VW, targets_N, learned_N, dtype):  # type: ignore[no-untyped-def]
    return x_NW.new_empty(len(x_NW), dtype=torch.float32)


@target_log_probs_backward.register_fake
def _(grad_N, x_NW, weight_VW, targets_N, learned_N, dtype):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_NW, dtype=torch.float32), torch.empty_like(weight_VW, dtype=torch.float32)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.product_dtype = inputs
    ctx.save_for_backward(*tensors)


def _hand_on(ctx, grad_N):  # type: ignore[no-untyped-def]
    x_NW, weight_VW, *more = ctx.saved_tensors
    x_grad, weight_grad = target_log_probs_backward(grad_N, x_NW, weight_VW, *more, ctx.product_dtype)
    return x_grad.to(x_NW.dtype), weight_grad.to(weight_VW.dtype), None, None, None


target_log_probs.register_autograd(_hand_on, setup_context=_keep)
