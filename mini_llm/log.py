"""What the user sees while work goes on: messages and progress bars, on stderr, so that stdout holds only results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@cache
def console() -> Console:
    """Return the console for messages. It is made on first use: importing rich costs 50 ms."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def info(message: str) -> None:
    """Say what happens, in one plain line."""
    console().print(message, markup=False)


def note(message: str) -> None:
    """Say something less important, dimmed on a terminal."""
    console().print(message, style="dim", markup=False)


def warn(message: str) -> None:
    """Say what the user should know before trusting the result."""
    console().print(f"warning: {message}", style="yellow", markup=False)


def error(message: str, hint: str | None = None) -> None:
    """Say what is wrong and, in a second line, what to do next."""
    console().print(f"error: {message}", style="bold red", markup=False)
    if hint:
        console().print(hint, markup=False)


@contextmanager
def byte_progress(description: str, total_bytes: int | None) -> Iterator[Progress]:
    """Show a bar with MB/s and the time left while bytes are worked through. It draws only on a terminal.

    Yields a rich `Progress` whose only task is number 0: call `progress.update(0, completed=bytes_done)`.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console(), disable=not console().is_terminal) as progress:
        progress.add_task(description, total=total_bytes)
        yield progress
