"""The loss: how surprised the model is by each next token, in nats.

It is a sum; whoever trains divides once, by the number of targets of the whole step, so that micro-batches of any size
add up to the same gradient. Letters: B rows, T tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import head_loss, held_out_head_loss
from mini_llm.train.parallel.boxes import is_share

# Float32 scores (B*T*V) that may exist at once in training; above it `head_loss` works in chunks. A large GPU has the
# room (a small one less: head_room.py), and torch.compile's one pass over all scores is the faster form there.
MOST_SCORES_BYTES = {"cpu": 32 * 1024**2}
MOST_SCORES_BYTES_ELSEWHERE = 8 * 1024**3


def token_loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the sum of -log p(target) over all B*T targets, in float32.

    float32: the sum over a 32,000-token softmax loses the second digit of the loss in bfloat16.
    """
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="sum")


def rows_loss_sum(model: Transformer, rows: Tensor, dtype: torch.dtype, documents_BT: Tensor | None = None) -> Tensor:
    """Return the summed loss of rows (B, T+1): each token but the last predicts the next, from its own document alone.

    Matrix products run in `dtype` (automatic mixed precision); weights and reductions stay float32.
    """
    ids_BT, targets_BT = rows[:, :-1], rows[:, 1:]
    with torch.autocast(rows.device.type, dtype=dtype, enabled=dtype != torch.float32):
        learns, on_cpu = torch.is_grad_enabled(), rows.device.type == "cpu"
        if (learns or not on_cpu) and wants_chunks(model, ids_BT, dtype):
            x_ND, targets_N = model.model(ids_BT, documents_BT=documents_BT).flatten(0, 1), targets_BT.flatten()
            if learns:
                return head_loss(x_ND, model.lm_head.weight, targets_N, dtype)[0]
            return held_out_head_loss(x_ND, model.lm_head, targets_N)
        logits_BTV = model(ids_BT, documents_BT=documents_BT)
    return token_loss_sum(logits_BTV, targets_BT)


def wants_chunks(model: Transformer, ids_BT: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether the scores of these ids are too many to exist at once.

    Never in float16, whose gradients must be scaled up before they are rounded, and `head_loss` rounds in forward; nor
    where several processes share the vocabulary, and the scores with it.
    """
    if dtype == torch.float16 or is_share(model.lm_head.weight):
        return False
    room = MOST_SCORES_BYTES.get(ids_BT.device.type, MOST_SCORES_BYTES_ELSEWHERE)
    return 4 * ids_BT.numel() * model.config.vocab_size > room
