"""Temporary files and folders: known by their names, and removed by the next call when their maker was killed.

A live maker holds a lock on its own. The system frees it when the process ends, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mini_llm.errors import UserError
from mini_llm.signals import in_order

try:
    import fcntl
except ImportError:  # Windows: what a killed run leaves behind stays until someone removes it
    fcntl = None  # type: ignore[assignment]

LONGEST_STEM = 200  # bytes; a name may have 255


def temporary_name(path: Path, suffix: str = "") -> Path:
    """Return a new name beside `path`, to write what shall become `path`."""
    return path.with_name(_stem(path) + secrets.token_hex(4) + suffix)


def leftovers(path: Path, suffix: str) -> list[Path]:
    """Return what lies beside `path` under a temporary name of it that ends in the pattern `suffix`."""
    pattern = re.compile(re.escape(_stem(path)) + "[0-9a-f]{8}" + suffix)
    try:
        names = os.listdir(path.parent)
    except OSError:  # it is not there yet, or may be searched but not read
        return []
    return [path.with_name(name) for name in sorted(names) if pattern.fullmatch(name)]


def remove_leftovers(path: Path) -> None:
    """Delete what killed writers of `path` have left, but nothing of a live one."""
    for leftover in leftovers(path, rf"(-old|{re.escape(path.suffix)})?"):
        remove_dead(leftover)


def remove_dead(leftover: Path) -> None:
    """Delete a temporary file or folder of ours, unless the process that made it lives."""
    if leftover.is_symlink():  # a pointer of a killed run: links cannot be locked, and live for a moment
        leftover.unlink(missing_ok=True)
    elif (held := lock(leftover)) is not None:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
        os.close(held)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder in the system's place for such; it vanishes with the block, or after a kill with the next call."""
    root = Path(tempfile.gettempdir())
    for name in os.listdir(root):
        if re.fullmatch(r"mini-llm-[0-9a-f]{8}", name) and hasattr(os, "getuid"):
            with contextlib.suppress(OSError):
                if (root / name).lstat().st_uid == os.getuid():
                    remove_dead(root / name)
    folder = root / f"mini-llm-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    try:
        with being_written(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lock(path: Path) -> int | None:
    """Lock `path` while this process lives and return what to close; None: another has it, or the disk has no locks."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


@contextlib.contextmanager
def being_written(path: Path) -> Iterator[None]:
    """Mark a temporary file or folder as one of a living process; SIGTERM raises meanwhile, so that it is removed."""
    descriptor = lock(path)
    try:
        with in_order():
            yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def alone(path: Path, refusal: UserError) -> Iterator[None]:
    """Hold the folder at `path`, which is there, while the block runs; without effect where the disk knows no locks.

    Raises:
        UserError: `refusal`, where another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise refusal from None
        yield
    finally:
        os.close(descriptor)


def _stem(path: Path) -> str:
    """Return what the temporary names of `path` begin with."""
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= LONGEST_STEM else hashlib.sha256(name).hexdigest()[:16]}.tmp-"
