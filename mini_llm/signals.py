"""Ctrl-C and SIGTERM (what a batch system sends) end the work in order, with exit codes 130 and 143."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mini_llm.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 10.0  # seconds that cleaning up may take
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def raise_on_signal(message: str) -> Iterator[None]:
    """Inside the block the first signal raises `Interrupted` at once; later ones wait until it has cleaned up.

    Ten seconds later one raises again: Python drops what is raised while it deletes an object.
    """
    raised_at = -PATIENCE

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal raised_at
        if time.monotonic() - raised_at >= PATIENCE:
            raised_at = time.monotonic()
            raise Interrupted(number, message)

    with handle_signals(stop):
        yield


@contextmanager
def in_order() -> Iterator[None]:
    """Inside the block SIGTERM raises `Interrupted` where it would end the process at once and leave half of a file."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    with raise_on_signal(""):
        yield


@contextmanager
def handle_signals(handler: Handler) -> Iterator[None]:
    """Send both signals to `handler` inside the block; without effect in threads, where Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def end_at_once_while_importing() -> Iterator[None]:
    """Inside the block Ctrl-C raises `KeyboardInterrupt`, but during an import it ends the process, with exit code 130.

    Libraries that are only half there take an exception badly, and nothing can be lost yet. After the block Ctrl-C
    ends at once too: Python waits for threads on its way out, and would show a traceback.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(128 + number)
            frame = frame.f_back
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    ignored = before == signal.SIG_IGN  # nohup, or a job in the background of a script
    if not ignored:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if not ignored:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
