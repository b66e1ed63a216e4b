"""The loss: how surprised the model is by each next token, in nats.

It is a sum; whoever trains divides once, by the number of targets of the whole step, so that micro-batches of any size
add up to the same gradient. Letters: B rows, T tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model.transformer import Transformer


def token_loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the sum of -log p(target) over all B*T targets, in float32.

    float32: the sum over a 32,000-token softmax loses the second digit of the loss in bfloat16.
    """
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="sum")


def rows_loss_sum(model: Transformer, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the summed loss of rows (B, T+1): each token but the last predicts the next.

    Matrix products run in `dtype` (automatic mixed precision); weights and reductions stay float32.
    """
    with torch.autocast(rows.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits_BTV = model(rows[:, :-1])
    return token_loss_sum(logits_BTV, rows[:, 1:])
