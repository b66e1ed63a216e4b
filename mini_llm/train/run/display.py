"""What a person sees of a run: a live table on a terminal, one plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mini_llm import log

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Reading:
    """The numbers of one moment."""

    step: int
    max_iters: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float | None
    memory_gb: float
    epoch: float
    seconds_left: float
    more: dict[str, float] = field(default_factory=dict)  # what the objective has to show, by name

    def metrics(self, tokens_seen: int) -> dict[str, Any]:
        """Return what the arithmetic decides: the same in every repetition."""
        return {"tokens": tokens_seen, "loss": self.loss, "lr": self.lr, "grad_norm": self.grad_norm, **self.more}

    def timing(self) -> dict[str, Any]:
        """Return what the machine decides."""
        return {"tokens_per_second": self.tokens_per_second, "mfu": self.mfu, "memory_gb": self.memory_gb}


@dataclass
class Display:
    """Shows readings and evaluations. `live()` makes it a moving table where stderr is a terminal."""

    reading: Reading | None = None
    held_out: str = ""
    tasks: str = ""
    sample: str = ""
    skipped: int = 0
    losses: list[float] = field(default_factory=list)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw on the terminal while the block runs."""
        if not log.console().is_terminal:
            yield
            return
        from rich.live import Live

        with Live(console=log.console(), get_renderable=self._table, refresh_per_second=4, transient=False):
            yield

    def show(self, reading: Reading, *, is_log_step: bool) -> None:
        """Take a new reading; off a terminal, print it when it is due."""
        self.reading = reading
        if math.isfinite(reading.loss):  # that of a skipped batch may be NaN
            self.losses.append(reading.loss)
        if is_log_step and not log.console().is_terminal:
            log.info(plain_line(reading))

    def show_held_out(self, step: int, numbers: str, is_best: bool) -> None:
        """Report an evaluation."""
        best = " (best so far)" if is_best else ""
        self.held_out = f"{numbers} at step {step}{best}"
        log.info(f"step {step}: held-out loss {numbers}{best}")

    def show_tasks(self, step: int, numbers: str) -> None:
        """Report what the model knows of the tasks."""
        self.tasks = f"{numbers} at step {step}"
        log.info(f"step {step}: {numbers}")

    def show_sample(self, step: int, prompt: str, text: str) -> None:
        """Report what the model writes."""
        plain = "".join(c if c.isprintable() else " " for c in f"{prompt}{text}")  # no code that a terminal obeys
        self.sample = " ".join(plain.split())
        log.note(f"step {step}: the model writes: {self.sample}")

    def show_skipped(self, step: int, reason: str) -> None:
        """Report a batch that was left out."""
        self.skipped += 1
        log.warn(f"step {step} was skipped: {reason}")

    def _table(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if (r := self.reading) is None:
            return "first step (compiling takes up to a minute) ..."
        table = Table.grid(padding=(0, 2))
        table.add_row("step", f"{r.step:,} / {r.max_iters:,}   epoch {r.epoch:.2f}   {duration(r.seconds_left)} left")
        table.add_row("", ProgressBar(total=r.max_iters, completed=r.step, width=60))
        table.add_row("loss", Text.assemble((f"{r.loss:.4f}", "bold"), "   ", sparkline(self.losses)))
        if self.held_out:
            table.add_row("held out", self.held_out)
        if self.tasks:
            table.add_row("tasks", self.tasks)
        if r.more:
            table.add_row("", described(r.more))
        table.add_row("lr", f"{r.lr:.3e}   gradient norm {r.grad_norm:.3f}")
        mfu = "" if r.mfu is None else f"   MFU {r.mfu:.1%}"
        if self.skipped:
            table.add_row("skipped", f"{self.skipped} {'batch' if self.skipped == 1 else 'batches'}, see skip_spikes")
        table.add_row("speed", f"{r.tokens_per_second:,.0f} tokens/s{mfu}   memory {r.memory_gb:.2f} GB")
        if self.sample:
            table.add_row("writes", Text(self.sample[:240], style="italic"))
        return table


def plain_line(r: Reading) -> str:
    """Return a reading as one line, for logs and pipes."""
    mfu = "" if r.mfu is None else f" | MFU {r.mfu:.1%}"
    more = f"{described(r.more)} | " if r.more else ""
    return (
        f"step {r.step:>6,}/{r.max_iters:,} | loss {r.loss:.4f} | {more}lr {r.lr:.2e} | grad {r.grad_norm:.3f} | "
        f"{r.tokens_per_second:,.0f} tok/s{mfu} | {r.memory_gb:.2f} GB | {duration(r.seconds_left)} left"
    )


def described(numbers: dict[str, float]) -> str:
    """Return numbers with their names."""
    return " | ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())


def sparkline(values: list[float], width: int = 40) -> str:
    """Return the course of `values` as `width` little bars, each the mean of an equal share."""
    if not values:
        return ""
    n = min(width, len(values))
    edges = [i * len(values) // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BARS[round((m - low) / ((high - low) or 1) * (len(BARS) - 1))] for m in means)


def duration(seconds: float) -> str:
    """Return seconds as `1h05m`, `4m05s` or `12s`."""
    s = round(seconds)
    if s >= 3600:
        return f"{s // 3600}h{s % 3600 // 60:02}m"
    return f"{s // 60}m{s % 60:02}s" if s >= 60 else f"{s}s"


class Clock:
    """Seconds per step over the last stretch, without what stands between the steps: evaluations, saving, compiling."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0
        self.seconds_per_step = 0.0
        self._lap_seconds, self._lap_steps = 0.0, 0
        self._has_compiled = False

    def step(self) -> None:
        """Count a step; the very first one, which compiles, counts until a second one is there."""
        self._steps += 1
        self.seconds_per_step = (time.perf_counter() - self._since) / self._steps

    def lap(self) -> float:
        """Return the seconds per step since the last lap, of all stretches but the first, and begin another."""
        self.restart()
        seconds = self._lap_seconds / self._lap_steps if self._lap_steps else self.seconds_per_step
        self._lap_seconds, self._lap_steps = 0.0, 0
        return seconds

    def restart(self) -> None:
        """Begin a new stretch."""
        if self._has_compiled:
            self._lap_seconds += self._steps * self.seconds_per_step
            self._lap_steps += self._steps
        self._has_compiled = self._has_compiled or self._steps > 0
        self._since, self._steps = time.perf_counter(), 0
