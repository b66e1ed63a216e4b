"""How many threads compute a step: all, or fewer where other work holds them up. The clock decides, by trying.

The threads of a step wait for each other eight times a layer. Where something else needs one of the cores, all wait for
the one that was stopped, and two threads write a tenth of what one does alone (docs/LOG.md). Nobody can ask the system
what is going to run, but a step has the same bits with any number of threads, so now and then another has a turn.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection

TURN = 16  # steps of a trial, and those of late that it is compared with
STALLED = 1 / 8  # of them, the slowest, do not count: forty times a second a loop stops a step, whoever computes
LOST = 1.25  # so many times as slow, and a trial ends early
WON = 0.9  # so much of the time, and a trial's number stays
ALARM = 1.5  # steps take so many times as long as when their number was chosen: time for a trial
SOON, LATE = 0.05, 8.0  # seconds between two trials: the shortest, and the longest where nothing changes
SETTLED = 0.5  # seconds between two trials: from here on a contest has found its number


class _Contest:
    """The numbers of threads for steps of about one size."""

    def __init__(self, counts: list[int], best: int, now: float) -> None:
        self.counts, self.best = counts, best  # `best`: index of the number in use
        self.begin(now)

    def begin(self, now: float) -> None:
        """Know nothing yet of the steps' time."""
        self.lately: deque[float] = deque(maxlen=TURN)  # seconds of steps with `best`
        self.then = 0.0  # a step's, after the last trial
        self.trial: int | None = None
        self.tried: list[float] = []
        self.down = True
        self.wait, self.next_trial = SOON, now + SOON

    def pick(self, now: float) -> int:
        if self.trial is None and self.then and now >= self.next_trial and len(self.counts) > 1:
            self.down = self.best + 1 < len(self.counts) and (self.best == 0 or not self.down)
            self.trial, self.tried = self.best + (1 if self.down else -1), []
        return self.counts[self.best if self.trial is None else self.trial]

    def note(self, seconds: float, now: float) -> None:
        if self.trial is None:
            self.lately.append(seconds)
            lately = usual(self.lately)
            if not self.then and len(self.lately) >= TURN // 4:
                self.then = lately
            elif self.then and lately > ALARM * self.then:
                self.then, self.wait, self.next_trial = lately, SOON, now
            return
        self.tried.append(seconds)
        lately, tried = usual(self.lately), usual(self.tried)
        if len(self.tried) < TURN and not (len(self.tried) > 2 and tried > LOST * lately):
            return
        if tried < WON * lately:
            self.best, self.wait = self.trial, SOON
            self.lately = deque(self.tried, maxlen=TURN)
        else:
            self.wait = min(2 * self.wait, LATE)
        self.trial, self.then, self.next_trial = None, usual(self.lately), now + self.wait


def usual(seconds: Collection[float]) -> float:
    """Return the mean, without the slowest ones."""
    kept = sorted(seconds)[: len(seconds) - math.ceil(STALLED * len(seconds)) or 1]
    return sum(kept) / len(kept)


def size(n_rows: int) -> tuple[int, int]:
    """Return what steps of about so many rows have in common: 4 and 5, 6 and 7, 8 to 11, 12 to 15, 16 to 23, ..."""
    octave = max(1, n_rows.bit_length() - 1)
    return octave, n_rows >> (octave - 1)


class Pace:
    """Chooses for each step, and is told what it took.

    Args:
        most: threads that there may be.
        clock: seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.most, self._clock = most, clock
        self._counts = [most]
        while self._counts[-1] > 1:
            self._counts.append(self._counts[-1] // 2)
        self._contests: dict[tuple[int, int], _Contest] = {}
        self._began, self._latest = 0.0, 0

    def begin(self, n_rows: int) -> int:
        """Return how many threads shall compute a step of `n_rows` rows; it begins."""
        self._began = now = self._clock()
        if size(n_rows) not in self._contests:
            self._contests[size(n_rows)] = _Contest(self._counts, self._latest, now)
        return self._contests[size(n_rows)].pick(now)

    def end(self, n_rows: int) -> None:
        """Note that the step has ended."""
        now, contest = self._clock(), self._contests[size(n_rows)]
        before = contest.best
        contest.note(now - self._began, now)
        self._latest = contest.best
        if contest.best > before:  # what holds up steps of one size holds up all: else each size pays for learning it
            for other in self._contests.values():
                if other.best < contest.best and other.wait >= SETTLED:
                    other.best = contest.best
                    other.begin(now)
