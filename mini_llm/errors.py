"""The errors that a user can mend: what is wrong, where, and the command to run next.

The command line prints them without a traceback. Anything else that escapes is a bug of ours.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something in the user's files or machine stops the work.

    `message` says what and where, `hint` says what to do or run next. The process exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n{hint}")
        self.message = message
        self.hint = hint


class UsageError(UserError):
    """The command itself is wrong: an unknown key, a value out of range, a flag that does not fit. Exits with 2."""

    exit_code = 2


class Interrupted(BaseException):
    """A signal asked the process to stop and it has saved its work. The process exits with 128 + signal number.

    Like KeyboardInterrupt it is no `Exception`: what a library raises is often caught as one, and must not swallow it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return ", did you mean 'X'?" for the known word nearest to `word`, or "" if none is so much alike (0 to 1)."""
    matches = difflib.get_close_matches(word, list(known), 1, alike)
    return f", did you mean '{matches[0]}'?" if matches else ""
