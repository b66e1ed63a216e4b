"""How many threads compute a step: all, or fewer where other work holds them up. The clock decides, by trying.

The threads of a step wait for each other eight times a layer. Where something else needs one of the cores, all wait for
the one that was stopped, and two threads write a tenth of what one does alone (docs/LOG.md). Nobody can ask the system
what is going to run, but a step has the same bits with any number of threads, so now and then another has a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TURN = 16  # steps of a trial
LOST = 1.25  # so many times as slow, and a trial ends early
WON = 0.9  # so much of the time, and a trial's number stays
ALARM = 1.5  # a step takes so many times as long as when its number was chosen: time for a trial
SOON, LATE = 0.05, 8.0  # seconds between two trials: the shortest, and the longest where nothing changes
SETTLED = 0.5  # seconds between two trials: from here on a contest has found its number
MEMORY = 1 / 16  # weight of the newest step in the mean


class _Contest:
    """The numbers of threads for steps of about one size."""

    def __init__(self, counts: list[int], best: int, now: float) -> None:
        self.counts, self.best = counts, best  # `best`: index of the number in use
        self.begin(now)

    def begin(self, now: float) -> None:
        """Know nothing yet of the steps' time."""
        self.mean = self.mean_then = 0.0  # seconds of a step with it: lately, and after the last trial
        self.trial: int | None = None
        self.n_tried, self.spent, self.down = 0, 0.0, True
        self.wait, self.next_trial = SOON, now + SOON

    def pick(self, now: float) -> int:
        if self.trial is None and self.mean and now >= self.next_trial and len(self.counts) > 1:
            self.down = self.best + 1 < len(self.counts) and (self.best == 0 or not self.down)
            self.trial, self.n_tried, self.spent = self.best + (1 if self.down else -1), 0, 0.0
        return self.counts[self.best if self.trial is None else self.trial]

    def note(self, seconds: float, now: float) -> None:
        if self.trial is None:
            self.mean += (seconds - self.mean) * (MEMORY if self.mean else 1)
            self.mean_then = self.mean_then or self.mean
            if self.mean > ALARM * self.mean_then:
                self.mean_then, self.wait, self.next_trial = self.mean, SOON, now
            return
        self.n_tried += 1
        self.spent += seconds
        lost = self.n_tried > 1 and self.spent > LOST * self.n_tried * self.mean
        if not lost and self.n_tried < TURN:
            return
        if self.spent < WON * self.n_tried * self.mean:
            self.best, self.mean, self.wait = self.trial, self.spent / self.n_tried, SOON
        else:
            self.wait = min(2 * self.wait, LATE)
        self.trial, self.mean_then, self.next_trial = None, self.mean, now + self.wait


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
        self._contests: dict[int, _Contest] = {}
        self._began, self._latest = 0.0, 0

    def begin(self, n_rows: int) -> int:
        """Return how many threads shall compute a step of `n_rows` rows; it begins."""
        self._began = now = self._clock()
        size = n_rows.bit_length()
        if size not in self._contests:
            self._contests[size] = _Contest(self._counts, self._latest, now)
        return self._contests[size].pick(now)

    def end(self, n_rows: int) -> None:
        """Note that the step has ended."""
        now, contest = self._clock(), self._contests[n_rows.bit_length()]
        before = contest.best
        contest.note(now - self._began, now)
        self._latest = contest.best
        if contest.best > before:  # what holds up steps of one size holds up all: else each size pays for learning it
            for other in self._contests.values():
                if other.best < contest.best and other.wait >= SETTLED:
                    other.best = contest.best
                    other.begin(now)
