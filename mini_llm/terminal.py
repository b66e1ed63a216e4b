"""What a terminal would obey is shown, never sent: `visible` for text, `SafeConsole` for all that rich draws.

A model, a file name or a key of a file can hold codes that move the cursor, rename the window or turn the order of
letters around (CVE-2021-42574). Each such character becomes one that can be seen. That looks at single characters, so
a code that arrives in pieces is as harmless as one that comes whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from mini_llm.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console

LINE_ENDS_AND_TABS = "\t\n"
# ESC becomes the picture of it (U+241B); those that have no picture are written as numbers.
_PICTURES = {n: chr(0x2400 + n) for n in range(0x20)} | {0x7F: "\u2421"}
_C1 = {n: f"<{n:02X}>" for n in range(0x80, 0xA0)}
_ORDER = {n: f"<U+{n:04X}>" for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # of letters: bidi controls
_TABLE = {n: new for n, new in {**_PICTURES, **_C1, **_ORDER}.items() if chr(n) not in LINE_ENDS_AND_TABS}


def visible(text: str) -> str:
    r"""Return `text` with every character that a terminal would obey, but `\t` and `\n`, as one that can be seen."""
    return text.replace("\r\n", "\n").translate(_TABLE)


def leave(stream: TextIO, number: int) -> None:
    """Let all that is still written to a standard stream go nowhere."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    with contextlib.suppress(OSError, ValueError):
        stream.flush()


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """Drop what a library itself writes to descriptor 2: Rust tells of a panic there before it raises one."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def safe_console(**options: Any) -> Console:
    """Return a console of rich whose texts are `visible`; the codes that rich makes itself stay.

    To stderr, what cannot be written is dropped: work goes on when nobody can hear of it. Where the reader of a pipe
    has gone it ends (`2>&1 | head`), as SIGPIPE would end it.
    """
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else visible(text), style, control)

        def on_broken_pipe(self) -> None:
            self.quiet = True
            raise Interrupted(signal.SIGPIPE, "")

        def _check_buffer(self) -> None:
            try:
                super()._check_buffer()
            except OSError as problem:
                self._buffer.clear()
                if self.stderr:
                    leave(sys.stderr, 2)
                else:
                    raise UserError(f"cannot write to standard output: {problem.strerror or problem}") from None

    return SafeConsole(highlight=False, soft_wrap=options.pop("soft_wrap", True), emoji=False, **options)
