"""Losses of preference: how much more probable must the better answer become than the worse one?

All look at rewards: how much more probable a model holds an answer than its reference did, or, in SimPO, how probable.
Per token, or in the plain form of DPO in sum: that form pays for length. Papers: DPO arXiv 2305.18290, per token as in
Tulu 3 arXiv 2411.15124, IPO 2310.12036, SimPO 2405.14734.
Letters: P pairs; side 0 is the chosen answer, side 1 the rejected one.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

LossName = Literal["dpo_norm", "dpo", "ipo", "simpo"]
# Of Tulu 3, TRL and SimPO's paper; IPO's asks the chosen answer to gain 1/(2 beta) = 1 nat a token on the other one.
BETAS: dict[LossName, float] = {"dpo_norm": 5.0, "dpo": 0.1, "ipo": 0.5, "simpo": 2.0}
NO_REFERENCE = ("simpo",)


@dataclass(frozen=True)
class Preference:
    """Which loss, and how strong."""

    loss: LossName = "dpo_norm"
    beta: float = BETAS["dpo_norm"]  # how fast a gain saturates: the larger, the nearer to the reference it stays
    gamma: float = 0.0  # SimPO: by how much the chosen answer's reward must be higher

    def rewards(self, log_p_P2: Tensor, reference_P2: Tensor, lengths_P2: Tensor) -> Tensor:
        """Return what the loss compares, (P, 2), given sums of log p over the answers and their tokens."""
        gains_P2 = log_p_P2 if self.loss in NO_REFERENCE else log_p_P2 - reference_P2
        per_token_P2 = gains_P2 if self.loss == "dpo" else gains_P2 / lengths_P2
        return per_token_P2 if self.loss == "ipo" else self.beta * per_token_P2

    def losses(self, rewards_P2: Tensor) -> Tensor:
        """Return the loss of each pair, (P,)."""
        margins_P = rewards_P2[..., 0] - rewards_P2[..., 1]
        if self.loss == "ipo":
            return (margins_P - 1 / (2 * self.beta)).square()
        return -F.logsigmoid(margins_P - self.gamma)
