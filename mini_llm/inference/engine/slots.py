"""Who sits where: each text has a slot of the cache, and a slot remembers the text after its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from mini_llm.inference.engine.request import Job

WORTH_KEEPING = 16  # so many tokens are worth a slot of their own, or a copy


@dataclass(eq=False)
class Slot:
    """A place for one text, and what the cache holds of it, also after the text has ended."""

    index: int
    known: list[int] = field(default_factory=list)  # ids whose keys and values are in the cache
    unread: list[int] = field(default_factory=list)  # ids to be read next
    whole: int = 0  # so many of the first of `known` were read in whole chunks
    job: Job | None = None
    used: int = 0  # when, in submissions

    @property
    def text(self) -> Job:
        """The job of a slot that is busy."""
        assert self.job is not None, f"slot {self.index} rests"
        return self.job

    def in_common(self, ids: list[int]) -> int:
        """Return how many of `ids` the cache holds already; the last is read anyway, for its scores."""
        n = 0
        while n < min(len(self.known), len(ids) - 1) and self.known[n] == ids[n]:
            n += 1
        return n

    def begin(self, ids: list[int], n_known: int) -> None:
        """Take the text `ids`, of which the cache holds the first `n_known` already."""
        self.known, self.unread, self.whole = ids[:n_known], ids[n_known:], n_known


def choose_slot(slots: list[Slot], ids: list[int], *, kept: int, max_slots: int) -> Slot:
    """Return the free slot that a text `ids` goes on from: one that loses next to nothing by it.

    Else a new one, while there are fewer than `kept` or none is free. Else the one that has rested longest, of the
    first `kept` if it can be: a GPU computes all slots up to the last busy one.
    """
    free = [slot for slot in slots if slot.job is None]
    common = {slot.index: slot.in_common(ids) for slot in free}
    fitting = [slot for slot in free if len(slot.known) - common[slot.index] < WORTH_KEEPING]
    if fitting:
        return max(fitting, key=lambda slot: (common[slot.index], -slot.index))
    if not free or len(slots) < min(kept, max_slots):
        slots.append(Slot(len(slots)))
        return slots[-1]
    return min(free, key=lambda slot: (slot.index >= kept, slot.used))


def slid(ids: list[int], context: int) -> list[int]:
    """Return what is kept of a text that has filled the context: its first tokens (1/16 of it) and its last half.

    The beginning stays because attention leans on it (arXiv 2309.17453); the half is read again at its new positions.
    """
    return ids[: context // 16] + ids[-max(1, context // 2) :]
