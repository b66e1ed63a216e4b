"""The optimizer: from gradients to a step.

AdamW (arXiv 1711.05101) for everything, or Muon for the matrices inside the blocks and AdamW for the rest.
Muon: K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; its update is the momentum with all singular
values set to about 1, so that rare directions move as much as common ones.
Letters: N matrices of one shape, R rows, C columns.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mini_llm import log
from mini_llm.device import has_fast_bfloat16
from mini_llm.model.transformer import Transformer
from mini_llm.train.config import TrainConfig
from mini_llm.train.parallel.boxes import how_shared, is_share, local

# The quintic a*X + b*(X X^T) X + c*(X X^T)^2 X of Muon's authors: steepest at 0, so small singular values grow fast.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
Owners = Callable[[list[Tensor], list[Tensor], Callable[[Tensor], Tensor]], list[Tensor]]
LONG = 2  # from this ratio of columns to rows on, all rounds are done on X X^T


def build_optimizers(
    model: Transformer, config: TrainConfig, owners: Owners | None = None
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together hold every parameter once that is trained.

    Matrices decay towards zero, norms' gains do not. Each group's `peak` is its highest learning rate. AdamW's rate for
    matrices that sum over the width (all but the embedding) goes with base_dim / dim (muP, arXiv 2203.03466, table 8);
    Muon's steps need no such rule, because an orthogonal matrix changes outputs by the same amount at every width.
    `owners` deal Muon's matrices out where several processes train.
    """
    in_blocks = {id(p) for p in model.model.layers.parameters() if p.ndim == 2} if config.optimizer == "muon" else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    others = [p for p in trained if id(p) not in in_blocks]
    embedding, head, rate = model.model.embed_tokens.weight, model.lm_head.weight, config.learning_rate
    width_rule = (config.base_dim or model.config.dim) / model.config.dim
    sums = [p for p in others if p.ndim >= 2 and p is not embedding]
    apart = [p for p in sums if p is head and config.head_rate_scale != 1]
    if config.base_dim and not sums:
        log.warn("base_dim changes nothing here: with Muon and a tied head, no matrix follows the width")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p is embedding], "lr": rate * config.embedding_rate_scale},
        {"params": [p for p in sums if p is not head or not apart], "lr": rate * width_rule},
        {"params": apart, "lr": rate * width_rule * config.head_rate_scale},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=betas, eps=1e-8, weight_decay=decay, fused=_can_fuse(model))
    ]
    if in_blocks:
        matrices = [p for p in trained if id(p) in in_blocks]
        dtype = torch.bfloat16 if has_fast_bfloat16(matrices[0].device) else torch.float32
        muon = Muon(
            matrices,
            lr=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
            cautious=config.cautious_decay,
            dtype=dtype,
            owners=owners,
        )
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _can_fuse(model: nn.Module) -> bool:
    """One fused kernel for all of AdamW's arithmetic; MPS has one only in newer versions."""
    return next(model.parameters()).device.type in ("cpu", "cuda")


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. Matrices of equal shape are worked on together, as one batch.

    The same arithmetic as `torch.optim.Muon` (the tests hold them together), which takes one matrix at a time.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        cautious: bool = False,  # decay only the weights that the step moves towards zero (arXiv 2510.12402)
        dtype: torch.dtype = torch.bfloat16,  # of the orthogonalisation: 8 bits of mantissa are enough for it
        owners: Owners | None = None,  # who orthogonalises which matrix, where several processes train
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.cautious, self.dtype, self.owners = cautious, dtype, owners

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape, how_shared(p)].append(p)
            for matrices in by_shape.values():
                self._step_equal_shapes(matrices, group["lr"], group["weight_decay"], group["momentum"])

    def _step_equal_shapes(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        if self.owners is None and is_share(matrices[0]):
            raise TypeError("Muon needs owners for matrices of which each process has a share")
        rows, columns = matrices[0].shape
        momenta = [local(self._momentum_of(p)) for p in matrices]
        gradients = [local(p.grad) for p in matrices if p.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        updates = self._orthogonal(matrices, torch._foreach_lerp(gradients, momenta, momentum))
        matrices = [local(p) for p in matrices]
        # A tall matrix maps few inputs to many outputs: sqrt(R/C) keeps the change of each output the same size.
        scale = max(1.0, rows / columns) ** 0.5
        if self.cautious:
            decaying = [w * (w * u >= 0) for w, u in zip(matrices, updates, strict=True)]
            torch._foreach_add_(matrices, decaying, alpha=-lr * weight_decay)
        else:
            torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, updates, alpha=-lr * scale)

    def _orthogonal(self, matrices: list[Tensor], nesterov: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
        if self.owners is not None:
            return self.owners(matrices, list(nesterov), lambda x_NRC: orthogonalise(x_NRC.to(self.dtype)))
        return list(orthogonalise(torch.stack(nesterov).to(self.dtype)).to(matrices[0].dtype).unbind())

    def _momentum_of(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def orthogonalise(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (N, R, C) with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Newton-Schulz iteration: five rounds of matrix products instead of a singular value decomposition.
    """
    if is_share(x_NRC):  # torch 2.13 would give a wrong one without an error: `diagonal().add_()` does nothing there
        raise TypeError("a share of a matrix cannot be orthogonalised alone")
    a, b, c = NEWTON_SCHULZ
    if x_NRC.shape[1] > x_NRC.shape[2]:  # the smaller Gram matrix is the cheaper one
        return orthogonalise(x_NRC.mT, steps).mT
    x = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.dtype == torch.float32 and x.shape[2] >= LONG * x.shape[1]:
        return _polynomial_of_gram(x @ x.mT, steps) @ x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _polynomial_of_gram(gram_NRR: Tensor, steps: int) -> Tensor:
    """Return the matrices (N, R, R) that all rounds together multiply X by, given X X^T.

    A round is X <- Q X with Q = aI + bG + cG^2 and G = X X^T, so that G <- Q G Q: long rows are met at the beginning
    and the end alone, 1.7 to 1.9 times as fast for C = 4R. float32 only: G holds squares, which take twice the digits.
    """
    a, b, c = NEWTON_SCHULZ
    gram, product = gram_NRR, None
    for left in reversed(range(steps)):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=1, dim2=2).add_(a)
        product = q if product is None else q @ product
        if left:
            gram = q @ gram @ q
    assert product is not None
    return product
