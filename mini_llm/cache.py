"""What need not be done twice: a folder in the user's home for what was compiled, and for what was found sound."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/mini-llm`, or the one in the user's home; it need not be there."""
    return of_user("XDG_CACHE_HOME", "~/.cache")


def of_user(variable: str, usual: str) -> Path:
    """Return our folder in the one that a variable of the XDG specification names, or in the usual one.

    A relative one does not count, as the specification says: each folder that one works in would get its own. A user
    without a home (`docker run --user 1234`) has a place where nothing can be kept.
    """
    places = (os.environ.get(variable, ""), os.path.expanduser(usual))
    return Path(next((place for place in places if os.path.isabs(place)), os.devnull)) / "mini-llm"


class Known:
    """Things of one kind that were found sound, each an empty file under a name that says exactly which it is."""

    def __init__(self, kind: str) -> None:
        self._folder = cache_folder() / kind

    def __contains__(self, name: str) -> bool:
        try:
            return (self._folder / name).exists()
        except OSError:  # a home that may not be looked at
            return False

    def add(self, name: str) -> None:
        """Remember `name`; where nothing can be written it is looked at again next time."""
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).touch()
