"""What the user sees while work goes on: messages and progress bars, on stderr, so that stdout holds only results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from mini_llm import ranks
from mini_llm.terminal import safe_console

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
BAR_SECONDS = 0.1  # between two states of a bar, which rich draws as often


@cache
def console() -> Console:
    """Return the console for messages. It is made on first use: importing rich costs 50 ms.

    Of several processes the first one speaks; the others' messages go nowhere, but for `warn` and `error`.
    """
    return safe_console(stderr=True, **({"quiet": True, "force_terminal": False} if ranks.rank() else {}))


@cache
def _loud_console() -> Console:
    return safe_console(stderr=True)


def _alarm() -> tuple[Console, str]:
    """Return where warnings and errors go, and whose they are."""
    number = ranks.rank()
    return (_loud_console(), f"process {number}: ") if number else (console(), "")


def info(message: str) -> None:
    """Say what happens, in one plain line."""
    console().print(message, markup=False)


def note(message: str) -> None:
    """Say something less important, dimmed on a terminal."""
    console().print(message, style="dim", markup=False)


def warn(message: str) -> None:
    """Say what the user should know before trusting the result."""
    where, who = _alarm()
    where.print(f"{who}warning: {message}", style="yellow", markup=False)


def error(message: str, hint: str | None = None) -> None:
    """Say what is wrong and, in a second line, what to do next."""
    where, who = _alarm()
    where.print(f"{who}error: {message}", style="bold red", markup=False)
    if hint:
        where.print(hint, markup=False)


@contextmanager
def byte_progress(description: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show MB/s and the time left while bytes are worked through: a bar on a terminal, elsewhere a line every 10 s.

    Yields `update(bytes_done)`.
    """
    if not console().is_terminal:
        yield _progress_lines(description, total_bytes, "MB")
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console()) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield _now_and_then(lambda done: progress.update(task, completed=done), total_bytes)


@contextmanager
def count_progress(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how many things are done and the time left, as `byte_progress` does. Yields `update(things_done)`."""
    if not console().is_terminal:
        yield _progress_lines(description, total, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console()) as progress:
        task = progress.add_task(description, total=total)
        yield _now_and_then(lambda done: progress.update(task, completed=done), total)


def _now_and_then(show: Callable[[int], None], total: int) -> Callable[[int], None]:
    """Return `show` for one who calls it after each line: to tell a bar takes rich as long as to read one."""
    shown = 0.0

    def update(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= BAR_SECONDS or done >= total:
            shown = now
            show(done)

    return update


def _progress_lines(description: str, total: int, unit: str) -> Callable[[int], None]:
    start = shown = time.monotonic()

    def update(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done and now - shown >= LINE_SECONDS:
            shown = now
            speed = done / (now - start)
            left = timedelta(seconds=round((total - done) / speed))
            size = 1e6 if unit == "MB" else 1
            seen = f"{done / size:,.0f} of {total / size:,.0f} {unit}, {speed / size:,.1f} {unit}/s"
            note(f"{description}: {seen}, {left} left")

    return update
