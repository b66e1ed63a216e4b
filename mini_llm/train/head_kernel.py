"""A chunk's scores become their loss and their own gradient in one kernel of a GPU, with no float32 copy in memory.

One program a row: it reads the row once for the highest score and the sum of exponentials (arXiv 1805.02867), and once
more, mostly from the cache, to write softmax - one-hot in the scores' place. PyTorch's own operations move some 30
bytes a bfloat16 score for it, this 4 to 6. No atomic sums: the same bits every time. Written in Triton, which comes
with torch's CUDA build; only `head_loss` imports this file. Letters: C rows of a chunk, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # scores that a program has at hand: 16 for each of 256 threads


def scores_to_gradient(scores_CV: Tensor, targets_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's -log p(target) in float32, and its gradient by the scores: `scores_CV` itself, overwritten."""
    losses_C = torch.empty(len(scores_CV), dtype=torch.float32, device=scores_CV.device)
    with torch.cuda.device_of(scores_CV):
        _row[(len(scores_CV),)](
            scores_CV,
            targets_C1.contiguous(),
            losses_C,
            scores_CV.shape[1],
            scores_CV.stride(0),
            block=BLOCK,
            num_warps=8,
        )
    return losses_C, scores_CV


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _row(scores, targets, losses, size, stride, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride
    target = tl.load(targets + row)
    at_target = tl.load(scores + target).to(tl.float32)
    highest, total = at_target, 0.0  # any score of the row will do: minus infinity less itself would be no number
    for start in range(0, size, block):
        places = start + tl.arange(0, block)
        x = tl.load(scores + places, mask=places < size, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    tl.store(losses + row, highest - at_target + tl.log(total))
    for start in range(0, size, block):
        places = start + tl.arange(0, block)
        x = tl.load(scores + places, mask=places < size, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(x - highest) / total - tl.where(places == target, 1.0, 0.0)
        tl.store(scores + places, gradient.to(scores.dtype.element_ty), mask=places < size)
