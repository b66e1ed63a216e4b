"""PPO's clip, as a change of weights: what a batch of answers still teaches after the weights have moved.

After the first update the answers are another model's. So a token counts as many times as it has become likelier
(the ratio), and no more where that has gone far enough in the direction of its advantage (arXiv 1707.06347, equation
7; the wider upper side: DAPO, arXiv 2503.14476). The gradient of min(ratio A, clip(ratio) A) is ratio A times that of
log p where it is not clipped, and 0 where it is: so all that PPO changes is the weight of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped(advantages: Tensor, logprobs: Tensor, old: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return each token's weight, and whether it was clipped; all of one shape, float32.

    Args:
        advantages: of each token's answer.
        logprobs: now.
        old: when it was written.
        low: the ratio is clipped below 1 - low, where the advantage is negative.
        high: and above 1 + high, where it is positive.
    """
    ratio = (logprobs - old).exp()
    is_clipped = torch.where(advantages > 0, ratio > 1 + high, ratio < 1 - low) & (advantages != 0)
    return torch.where(is_clipped, 0.0, ratio * advantages), is_clipped
