"""Who sits where: each text has a slot of the cache, and a slot remembers the text after its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from mini_llm.inference.request import Job

WORTH_KEEPING = 16  # a beginning in common of so many tokens is worth a slot of its own
KEPT_SLOTS = 4  # as long as there are no more, a new conversation does not overwrite an old one


@dataclass(eq=False)
class Slot:
    """A place for one text, and what the cache holds of it, also after the text has ended."""

    index: int
    known: list[int] = field(default_factory=list)  # ids whose keys and values are in the cache
    unread: list[int] = field(default_factory=list)  # ids to be read next
    job: Job | None = None
    used: int = 0  # when, in submissions

    def in_common(self, ids: list[int]) -> int:
        """Return how many of `ids` the cache holds already; the last is read anyway, for its scores."""
        n = 0
        while n < min(len(self.known), len(ids) - 1) and self.known[n] == ids[n]:
            n += 1
        return n


def choose_slot(slots: list[Slot], ids: list[int], max_slots: int) -> Slot:
    """Return the free slot that holds most of `ids`, of equals the one that has rested longest, or a new one."""
    free = [slot for slot in slots if slot.job is None]
    best = max(free, key=lambda slot: (slot.in_common(ids), -slot.used), default=None)
    fits = best is not None and (not best.known or best.in_common(ids) >= min(WORTH_KEEPING, len(ids) - 1))
    if best is None or (not fits and len(slots) < min(KEPT_SLOTS, max_slots)):
        best = Slot(len(slots))
        slots.append(best)
    return best


def slid(ids: list[int], context: int) -> list[int]:
    """Return what is kept of a text that has filled the context: its first tokens (1/16 of it) and its last half.

    The beginning stays because attention leans on it (arXiv 2309.17453); the half is read again at its new positions.
    """
    return ids[: context // 16] + ids[-max(1, context // 2) :]
