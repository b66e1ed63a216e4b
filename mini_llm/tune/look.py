"""What the model holds of the answers that it gave: how likely each token was, how open, how far from the start.

Entropy and distance are those of whole distributions, not of the tokens that came, and so hardly noisy: a mean over
all answers of a step. Entropy near 0 means that sampling finds nothing new; a distance that grows fast, that the
learning rate is too high. Letters: R rows, T tokens, M marked tokens, C of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mini_llm.model.transformer import Transformer
from mini_llm.train.head_loss import rows_in_chunk
from mini_llm.tune.rollouts import quiet
from mini_llm.tune.rows import ConversationRows


@dataclass(frozen=True)
class Look:
    """What was seen of the tokens of rows whose weight is not 0."""

    logprobs: Tensor  # (R, T+1), float32, on the host: of each of them after those before it; 0 elsewhere
    entropy: float  # mean, in nats
    kl: float  # mean KL(model || start), in nats


@torch.no_grad()
def look(model: Transformer, start: Transformer, rows: ConversationRows, dtype: torch.dtype, batch_size: int) -> Look:
    """Look at rows, `batch_size` at once; `start` is the model as it was, on the same device."""
    device = model.lm_head.weight.device
    logprobs = torch.zeros(rows.weights.shape)
    entropy = kl = 0.0
    with quiet(model):
        for first, part in zip(range(0, len(rows), batch_size), rows.split(batch_size), strict=True):
            there = part.to(device)
            marked = part.weights[:, 1:] != 0
            if not marked.any():
                continue
            x_MD, start_MD = (_hidden(which, there, dtype)[marked.to(device)] for which in (model, start))
            targets_M = there.ids[:, 1:][marked.to(device)]
            found = []
            for places_C in torch.arange(len(x_MD), device=device).split(rows_in_chunk(model.lm_head.weight)):
                log_p_CV, log_q_CV = (
                    torch.log_softmax((x[places_C].to(dtype) @ which.lm_head.weight.to(dtype).mT).float(), -1)
                    for which, x in ((model, x_MD), (start, start_MD))
                )
                found.append(log_p_CV.gather(1, targets_M[places_C, None])[:, 0])
                p_CV = log_p_CV.exp()
                entropy -= (p_CV * log_p_CV).sum().item()
                kl += (p_CV * (log_p_CV - log_q_CV)).sum().item()
            logprobs[first : first + len(part), 1:][marked] = torch.cat(found).cpu()
    n = max(1, rows.n_targets())
    return Look(logprobs, entropy / n, kl / n)


def _hidden(model: Transformer, rows: ConversationRows, dtype: torch.dtype) -> Tensor:
    ids_BT = rows.ids[:, :-1]
    with torch.autocast(ids_BT.device.type, dtype=dtype, enabled=dtype != torch.float32):
        x_BTD: Tensor = model.model(ids_BT, documents_BT=rows.documents[:, :-1])
    return x_BTD
