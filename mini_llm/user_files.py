"""A user's file is looked at, opened and written in one place, which says precisely what is wrong with it.

`Path.exists` and its like raise where a name is too long or a folder may not be searched, and take a file that may not
be read for a missing one; opening a pipe waits for ever. Here each of these is a sentence.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from mini_llm.errors import UserError

MOST_SHOWN = 200  # characters of a path in a message
MOST_BYTES = 2**29  # of a file that describes others; the manifest of a petabyte has some megabytes
REASONS = {
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EFBIG: "the file-size limit of this process is reached (ulimit -f)",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
}
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def shown(path: Path | str) -> str:
    """Return a path for a message: the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]}...{text[-MOST_SHOWN // 4 :]}"


def reason(problem: Exception) -> str:
    """Return what an error of the system means, in a few words."""
    if isinstance(problem, OSError) and problem.errno in (errno.EACCES, errno.EPERM) and problem.filename:
        return _denied(Path(os.fsdecode(problem.filename)))
    if isinstance(problem, OSError) and not problem.errno and "requested and" in str(problem):  # numpy hides why
        return f"the disk is full, or the file-size limit is reached (ulimit -f): {problem}"
    if isinstance(problem, OSError):
        return REASONS.get(problem.errno or 0) or problem.strerror or str(problem) or type(problem).__name__
    if isinstance(problem, ValueError) and "null" in str(problem):  # "embedded null byte", of every call with a path
        return "the name holds a NUL character"
    if isinstance(problem, RuntimeError) and "ymlink loop" in str(problem):  # of Path.resolve, before Python 3.13
        return REASONS[errno.ELOOP]
    return str(problem) or type(problem).__name__


def _denied(path: Path) -> str:
    """Say which folder on the way may not be searched, where that is why."""
    for folder in reversed(path.absolute().parents):
        if not os.access(folder, os.X_OK) and os.access(folder.parent, os.X_OK) and folder.is_dir():
            return f"permission denied: the folder {shown(folder)} may not be searched"
    return "permission denied"


def kind_of(path: Path | str) -> Literal["nothing", "file", "folder", "other"]:
    """Tell what is at `path`, links followed; a link to nothing is nothing.

    Raises:
        UserError: it cannot be looked at, and why.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError) as problem:
        raise UserError(f"cannot look at {shown(path)}: {reason(problem)}") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def above(path: Path | str, otherwise: str | None = None) -> str | None:
    """Return the hint for a path that is missing: where it would be from a folder above this one, or `otherwise`."""
    relative = Path(path)
    with suppress(OSError, ValueError):  # the folder that one is in may be gone
        here = Path.cwd()
        for folder in () if relative.is_absolute() or not relative.parts else here.parents:
            if (folder / relative).exists():
                there = os.path.relpath(folder / relative)
                return f"paths count from the folder that you are in: give {shown(there)}, or go to {shown(folder)}"
    return otherwise


def what_is(path: Path | str) -> str:
    """Return "a pipe", "a device" and so on, for a message; `path` is there."""
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a file")


def refuse_special(path: Path | str) -> None:
    """Refuse pipes, devices and sockets, which may keep a reader waiting for ever; what is missing passes.

    Raises:
        UserError: it is one of them, or cannot be looked at.
    """
    if kind_of(path) == "other":
        raise UserError(f"{shown(path)} is {what_is(path)}, not a file")


def refuse_non_utf8(path: Path | str) -> None:
    """Refuse a name that is not UTF-8: safetensors can neither write nor read there.

    Raises:
        UserError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{shown(path)}: weights cannot lie under a name that is not UTF-8", "rename it") from None


def behind_link(path: Path) -> Path:
    """Return the file that a link leads to; all else as it is: `/dev/stdout` is a link."""
    return path.resolve() if path.is_symlink() and path.is_file() else path


def open_file(path: Path | str, hint: str | None = None) -> IO[bytes]:
    """Open a regular file for reading. Pipes, devices and folders are refused by name, so that nothing waits.

    Raises:
        UserError: it is not there, may not be read, or is no file; `hint` says what to do where it is not there.
    """
    kind = kind_of(path)
    if kind == "nothing":
        is_link = os.path.islink(path)
        raise UserError(f"{shown(path)} {'is a link that leads to nothing' if is_link else 'is missing'}", hint)
    if kind != "file":
        raise UserError(f"{shown(path)} is {what_is(path)}, not a file", hint)
    try:
        return open(path, "rb")
    except OSError as problem:
        raise UserError(f"cannot read {shown(path)}: {reason(problem)}") from None


def read_file(path: Path | str, hint: str | None = None, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file that describes others, `most` at most.

    Raises:
        UserError: as `open_file`; it is longer than any of its kind; or the disk fails.
    """
    with open_file(path, hint) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:  # of a terabyte: more than the memory holds
            raise UserError(f"{shown(path)} is damaged: it has {size:,} bytes, {most:,} at most", hint)
        try:
            return file.read()
        except OSError as problem:
            raise UserError(f"cannot read {shown(path)}: {reason(problem)}") from None


def json_object(path: Path | str) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none, or it cannot be read."""
    try:
        found = json.loads(read_file(path))
    except (UserError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def writing_to(path: Path | str, hint: str | None = "make room, or choose another --out") -> Iterator[None]:
    """Turn what the system says inside the block into a UserError: `path` cannot be written, and why."""
    try:
        yield
    except OSError as problem:
        raise UserError(f"cannot write {shown(path)}: {reason(problem)}", hint) from None
