"""Where questions come from: a person at a terminal, with arrow keys and a private history, or a pipe."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from mini_llm import log
from mini_llm.cache import of_user
from mini_llm.errors import UserError

PROMPT = "you> "
SIGNS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def with_signs(text: str) -> str:
    r"""Return what somebody typed, with `\n`, `\t`, `\r` and `\\` as the signs that they stand for."""
    return re.sub(r"\\([ntr\\])", lambda found: SIGNS[found[1]], text)


@contextlib.contextmanager
def kept_history() -> Iterator[None]:
    """Give a person at a terminal arrow keys, and the questions of earlier days, which nobody else may read."""
    try:
        import readline
    except ImportError:  # Windows has none and needs none
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    log.note("/help shows the commands, Ctrl-D leaves")
    path = of_user("XDG_STATE_HOME", "~/.local/state") / "chat_history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))
        path.chmod(0o600)
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
            path.chmod(0o600)


def typed_lines() -> Iterator[str]:
    """Yield the lines of stdin; ask for each where a person types it."""
    person = sys.stdin.isatty()
    while True:
        prompt = PROMPT if person else ""
        if not sys.stdout.isatty():  # the answers go to a file: keep the prompt out of it
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        try:
            line = input(prompt)
        except OSError as problem:
            raise UserError(f"cannot read standard input: {problem.strerror or problem}") from None
        except (EOFError, KeyboardInterrupt) as end:
            if person:  # the shell's next prompt gets a line of its own
                print(file=sys.stderr)
            if isinstance(end, KeyboardInterrupt):
                raise
            return
        yield line
