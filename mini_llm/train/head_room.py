"""Room for scores on a GPU: the loss head makes fewer of them at once where the card is small.

By the card's memory, never by what of it happens to be free: the head's form decides the last bits, and a resumed run
must find the same one.
"""

from __future__ import annotations

import torch

from mini_llm.train.head_loss import CHUNK_BYTES, CHUNK_BYTES_ELSEWHERE
from mini_llm.train.loss import MOST_SCORES_BYTES, MOST_SCORES_BYTES_ELSEWHERE


def scores_room(memory: float) -> tuple[int, int]:
    """Return how many bytes of scores may exist at once on a GPU of `memory` bytes, and how many a chunk has.

    An eighth of it, with the gradient's copy a quarter; and a 32nd. From 80 GB on they are what is fastest.
    """
    return int(min(MOST_SCORES_BYTES_ELSEWHERE, memory // 8)), int(min(CHUNK_BYTES_ELSEWHERE, memory // 32))


def fit_head(device: torch.device) -> None:
    """Let the loss on a CUDA `device` take the room that it has; without effect elsewhere."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        MOST_SCORES_BYTES["cuda"], CHUNK_BYTES["cuda"] = scores_room(memory)
