"""A piece of work in a thread of its own, whose end is noticed however it ends, also before its first line.

`threading.Thread.start` waits until the new thread says that it runs. One that dies first, for lack of memory, never
does, and the caller waits for ever. Here the end is what is waited for: a token that only the thread holds.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class WorkerDied(Exception):
    """The thread ended before its work began."""


class _Token:
    """Held by the thread alone: it goes when the thread ends."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone

    def __del__(self) -> None:
        self._gone()


class Worker(Generic[Result]):
    """Begins `work()` in a thread at once; nothing waits for it at the end of the process.

    Raises:
        RuntimeError: the system gives no thread.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._results: list[Result] = []
        self._problem: BaseException | None = WorkerDied("the thread ended before its work began")
        self._ended = threading.Event()
        _thread.start_new_thread(self._run, (work, _Token(self._ended.set)))

    def is_alive(self) -> bool:
        """Tell whether it still works."""
        return not self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Return when the work has ended, or after `seconds`; tell whether it has."""
        return self._ended.wait(seconds)

    def result(self) -> Result:
        """Wait, and return what the work returned.

        Raises:
            WorkerDied: it did not begin.
            BaseException: what the work raised.
        """
        self._ended.wait()
        if self._problem is not None:
            raise self._problem
        return self._results[0]

    def _run(self, work: Callable[[], Result], _token: _Token) -> None:
        try:
            self._results.append(work())
            self._problem = None
        except BaseException as problem:
            self._problem = problem
        finally:
            self._ended.set()  # not left to the token, which the traceback of a problem holds too
