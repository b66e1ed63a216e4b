"""RMSNorm: keep the direction of a vector, set its length, let a learned gain speak.

Before each sublayer and before the head. Paper: arXiv 1910.07467. Letters: D any width.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, computed in float32 (bfloat16 keeps 8 bits of the mean)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        """Normalise the last axis; any shape (..., D) in, the same shape and dtype out."""
        x32_D = x_D.float()
        scale_1 = torch.rsqrt(x32_D.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x_D.dtype) * (x32_D * scale_1).to(x_D.dtype)
