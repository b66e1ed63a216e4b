"""Head and loss at once, a few rows at a time: the scores of a whole batch never exist together.

For 2,048 tokens and a vocabulary of 32,000 they would take 262 MB, and their gradient as much again. Here each chunk's
scores become its loss and its gradient while they are at hand, and the next chunk takes their place.
Letters: N tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import CustomOpDef

from mini_llm import log

# Float32 scores at hand. On a CPU more leave the cache, fewer add up the weight's gradient too often; a GPU has
# nothing to do while small chunks are launched (a small one gets less: head_room.py).
CHUNK_BYTES = {"cpu": 32 * 1024**2}
CHUNK_BYTES_ELSEWHERE = 1024**3
IN_ONE_KERNEL = {"cuda"}  # kinds of devices; a benchmark empties it to compare

Soft = tuple[Tensor, Tensor] | None  # other tokens (N, M), and their shares of the target (N, M)
# scores (C, V), targets (C, 1), their part of `Soft` -> losses (C,), gradient (C, V)
LossAndGradient = Callable[[Tensor, Tensor, Soft], tuple[Tensor, Tensor]]


def rows_in_chunk(weight_VD: Tensor) -> int:
    """Return how many tokens' scores are made at once, on the device of the head's weight."""
    return max(1, CHUNK_BYTES.get(weight_VD.device.type, CHUNK_BYTES_ELSEWHERE) // (4 * len(weight_VD)))


def held_out_head_loss(x_ND: Tensor, head: nn.Linear, targets_N: Tensor) -> Tensor:
    """Return the summed -log p(target) where no gradient is wanted, a chunk of rows at a time."""
    chunks = zip(*(rows.split(rows_in_chunk(head.weight)) for rows in (x_ND, targets_N)), strict=True)
    return torch.stack([F.cross_entropy(head(x).float(), targets, reduction="sum") for x, targets in chunks]).sum()


@torch.library.custom_op("mini_llm::head_loss", mutates_args=())
def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed -log p(target), and its gradients by `x_ND` and `weight_VD`, all float32.

    Matrix products run in `dtype`, softmax and sums in float32. The scores' gradient is softmax - one-hot, so it needs
    no second look at the scores: forward computes it, backward hands it on.
    """
    return head_sums(x_ND, weight_VD, targets_N, dtype)


def head_sums(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    dtype: torch.dtype,
    weights_N: Tensor | None = None,
    soft: Soft = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `head_loss` says; with weights each token's loss counts that many times.

    With `soft` the gradient is that of targets which give other tokens their shares.
    """
    x_low, weight_low = x_ND.to(dtype), weight_VD.to(dtype)
    loss = torch.zeros((), device=x_ND.device)
    x_grad = torch.empty_like(x_ND, dtype=torch.float32)
    weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32)
    rows = rows_in_chunk(weight_VD)
    room = x_low.new_empty(min(rows, len(x_ND)), len(weight_VD))
    loss_and_gradient = _one_kernel(x_ND.device, dtype) or _steps(room)
    for start in range(0, len(x_ND), rows):
        x_CD, targets_C1 = x_low[start : start + rows], targets_N[start : start + rows, None]
        scores_CV = torch.mm(x_CD, weight_low.mT, out=room[: len(x_CD)])
        part = None if soft is None else (soft[0][start : start + rows], soft[1][start : start + rows])
        losses_C, grad_CV = loss_and_gradient(scores_CV, targets_C1, part)
        x_grad_CD = x_grad[start : start + rows].copy_(grad_CV @ weight_low)
        if weights_N is not None:  # on the narrow side, where it costs least
            weights_C1 = weights_N[start : start + rows, None]
            losses_C, x_CD = losses_C.view_as(weights_C1) * weights_C1, (x_CD * weights_C1).to(dtype)
            x_grad_CD *= weights_C1
        loss += losses_C.sum()
        if dtype == torch.float32:
            weight_grad.addmm_(grad_CV.mT, x_CD)
        else:
            weight_grad += grad_CV.mT @ x_CD
    return loss, x_grad, weight_grad


def _steps(scores: Tensor) -> LossAndGradient:
    """Return what makes of scores like these their losses and, where they were, their gradient; in float32."""
    room = scores if scores.dtype == torch.float32 else torch.empty_like(scores, dtype=torch.float32)

    def loss_and_gradient(scores_CV: Tensor, targets_C1: Tensor, soft: Soft = None) -> tuple[Tensor, Tensor]:
        p_CV = scores_CV if room is scores else room[: len(scores_CV)].copy_(scores_CV)
        highest_C1, at_target_C1 = p_CV.amax(-1, keepdim=True), p_CV.gather(1, targets_C1)
        torch.softmax(p_CV, -1, out=p_CV)
        # log sum exp(scores) = highest - log p(highest), and p(highest) is at least 1/V: no underflow.
        losses_C1 = highest_C1 - p_CV.amax(-1, keepdim=True).log() - at_target_C1
        p_CV.scatter_(1, targets_C1, p_CV.gather(1, targets_C1) - 1)
        _share_out(p_CV, targets_C1, soft)
        return losses_C1, p_CV if room is scores else scores_CV.copy_(p_CV)

    return loss_and_gradient


def _share_out(grad_CV: Tensor, targets_C1: Tensor, soft: Soft) -> None:
    """Give a part of each target to others: in float32, for on a CPU a sum in bfloat16 copies the whole chunk twice."""
    if soft is not None:
        others_CM, shares_CM = soft
        grad_CV.scatter_add_(1, targets_C1, shares_CM.sum(1, keepdim=True).to(grad_CV.dtype))
        grad_CV.scatter_add_(1, others_CM.long(), -shares_CM.to(grad_CV.dtype))


def _one_kernel(device: torch.device, dtype: torch.dtype) -> LossAndGradient | None:
    """Return the kernel that does the same at once, where there is one; None: it is done in steps."""
    return _tried_kernel(device, dtype) if device.type in IN_ONE_KERNEL else None


@cache
def _tried_kernel(device: torch.device, dtype: torch.dtype) -> LossAndGradient | None:
    """Try the kernel on two scores: without Triton or a C compiler for its launcher the steps work as well."""
    try:
        from mini_llm.train.head_kernel import scores_to_gradient

        def loss_and_gradient(scores_CV: Tensor, targets_C1: Tensor, soft: Soft = None) -> tuple[Tensor, Tensor]:
            losses_C, grad_CV = scores_to_gradient(scores_CV, targets_C1)
            _share_out(grad_CV, targets_C1, soft)
            return losses_C, grad_CV

        zeros, targets = torch.zeros(1, 2, device=device, dtype=dtype), torch.zeros(1, 1, device=device).long()
        _, gradient = loss_and_gradient(zeros, targets)
        assert gradient.tolist() == [[-0.5, 0.5]], f"its gradient is {gradient.tolist()}"
    except Exception as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        log.warn(f"the loss head's kernel does not work here, several others do its work, slower ({reason[:200]})")
        return None
    return loss_and_gradient


def _shapes(x_ND, weight_VD, *_more):  # type: ignore[no-untyped-def]
    return (
        x_ND.new_empty((), dtype=torch.float32),
        torch.empty_like(x_ND, dtype=torch.float32),
        torch.empty_like(weight_VD, dtype=torch.float32),
    )


def _keep_gradients(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output[1], output[2])
    ctx.dtypes, ctx.n_inputs = (inputs[0].dtype, inputs[1].dtype), len(inputs)


def _scale_gradients(ctx, grad_loss, _x, _weight):  # type: ignore[no-untyped-def]
    x_grad, weight_grad = (g * grad_loss for g in ctx.saved_tensors)
    return x_grad.to(ctx.dtypes[0]), weight_grad.to(ctx.dtypes[1]), *[None] * (ctx.n_inputs - 2)


def hand_on_gradients(operation: CustomOpDef) -> None:
    """Let backward scale what forward has computed: of an operation (x, weight, ...) -> (loss, x_grad, weight_grad)."""
    operation.register_fake(_shapes)
    operation.register_autograd(_scale_gradients, setup_context=_keep_gradients)


hand_on_gradients(head_loss)
