"""Several tokens of each text at once, where a GPU writes them without asking the host in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mini_llm.inference.backends.cuda_graphs import BURST, CudaGraphsBackend
from mini_llm.inference.engine.picker import not_finite
from mini_llm.inference.engine.slots import Slot

if TYPE_CHECKING:
    from mini_llm.inference.engine.engine import Engine


def write_burst(engine: Engine, work: list[tuple[Slot, int]]) -> list[tuple[Slot, int]]:
    """Let a GPU write several tokens of each text at once; return the work that is left.

    That is prompts, and texts with penalties, biases, bans, guides or log-probabilities: what they need is known on
    the host. These get one token meanwhile.
    """
    backend, context = engine.backend, engine.config.max_seq_len
    if not isinstance(backend, CudaGraphsBackend) or not backend.works:
        return work
    slots = [slot for slot, _ in work if len(slot.unread) == 1 and slot.text.simple]
    if not slots:
        return work
    jobs = [slot.text for slot in slots]
    end = max(len(slot.known) for slot in slots)
    n_steps = min(BURST, context - 1 - end, *(job.request.max_new_tokens - len(job.written) for job in jobs))
    engine.reserve(end + n_steps)
    steps = backend.burst(slots, n_steps) if n_steps > 0 else None
    if steps is None:
        return work
    for chosen in steps:
        going = {slot: token_id for slot, token_id in zip(slots, chosen, strict=True) if slot.job is not None}
        if any(token_id < 0 for token_id in going.values()):
            raise not_finite(engine.source, backend.dtype)
        for slot in going:
            slot.known += slot.unread
        engine.deliver([*going], [*going.values()])
    return [(slot, n) for slot, n in work if slot not in slots]
