"""SwiGLU: each token alone decides what to make of what it has gathered.

After attention in every block. Paper: arXiv 2002.05202. Letters: B batch, T tokens, D width, F inner width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mini_llm.model.config import ModelConfig
from mini_llm.model.joined import products


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): one projection opens or shuts what the other carries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        gate_BTF, up_BTF = products(x_BTD, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate_BTF) * up_BTF)
