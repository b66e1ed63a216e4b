"""Files appear whole or not at all: write under a temporary name, flush to the disk, exchange.

A reader never meets half a file, whenever the power fails; and nothing is replaced or deleted that Mini-LLM did not
make: a `Kind` says what that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_llm.errors import UserError
from mini_llm.temporary import being_written, leftovers, lock, remove_leftovers, temporary_name
from mini_llm.user_files import behind_link, kind_of, open_file, reason, shown, what_is

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
NOT_OURS = "choose another place, or move what is there"
MADE_HERE = "made by Mini-LLM"  # stands in each page and picture that may be replaced by the next
LARGEST_PAGE = 2**26  # bytes


@dataclass(frozen=True)
class Kind:
    """What a folder of ours is made of. Only a folder that holds nothing else may be replaced or deleted.

    `entries` matches the paths of its files, with slashes, and those of its folders, which end in one. `is_ours` looks
    inside where names alone could be those of another program.
    """

    name: str
    entries: re.Pattern[str]
    is_ours: Callable[[Path], bool] = lambda _: True


# --- what may be replaced --------------------------------------------------------------------------------------------


def foreign_entry(folder: Path, kind: Kind) -> str | None:
    """Return the first entry below `folder` that a folder of this kind does not have; links are foreign too."""

    def look(inside: Path, prefix: str) -> str | None:
        with os.scandir(inside) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = prefix + entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if not (is_folder or entry.is_file(follow_symlinks=False)):
                    return name
                if not kind.entries.fullmatch(name + "/" * is_folder):
                    return name
                if is_folder and (found := look(inside / entry.name, name + "/")):
                    return found
        return None

    return look(folder, "")


def check_replaceable(path: Path, kind: Kind | None) -> None:
    """Refuse to replace what is at `path`, unless that is nothing, an empty folder or a whole one of `kind`.

    Raises:
        UserError: it holds something else, which is named, or cannot be looked at.
    """
    found = kind_of(path)
    if found == "nothing":
        return
    if found != "folder":
        raise UserError(f"{shown(path)} is {what_is(path)}, not a folder: not replaced", NOT_OURS)
    try:
        foreign = foreign_entry(path, kind or Kind("", re.compile(r"(?!)")))
    except OSError as problem:
        raise UserError(f"cannot look into {shown(path)}: {reason(problem)}") from None
    name = kind.name if kind else "an empty folder"
    if foreign and kind and not kind.is_ours(path):
        raise UserError(f"{shown(path)} is there and is not {name} ({foreign}): not replaced", NOT_OURS)
    if foreign:
        raise UserError(f"{shown(path)} holds more than {name} ({foreign}): not replaced", NOT_OURS)
    if kind and any(path.iterdir()) and not kind.is_ours(path):
        raise UserError(f"{shown(path)} is there and is not {name}: not replaced", NOT_OURS)


def check_replaceable_file(path: Path) -> bool:
    """Tell whether there is a file at `path`.

    Raises:
        UserError: what is there is no file.
    """
    found = kind_of(path)
    if found == "nothing" and not path.is_symlink():
        return False
    if found != "file":
        what = "a link that leads to nothing" if found == "nothing" else what_is(path)
        raise UserError(f"{shown(path)} is {what}, not a file: not replaced", NOT_OURS)
    return True


def check_replaceable_lines(path: Path, is_ours: Callable[[dict[str, Any]], bool], name: str) -> None:
    """Refuse to replace a file of lines, unless it is empty or its first object is one that only we write.

    Raises:
        UserError: the file is somebody else's, or is no file.
    """
    if not check_replaceable_file(path):
        return
    with open_file(path) as file:
        first = file.readline(LARGEST_PAGE)
    record: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(first)
    if first and not (isinstance(record, dict) and is_ours(record)):
        raise UserError(f"{shown(path)} is there and is no {name} made by Mini-LLM: not replaced", NOT_OURS)


def check_page(path: Path) -> None:
    """Refuse to replace a page, a picture or another file without our mark.

    Raises:
        UserError: the file is somebody else's, or is no file.
    """
    if check_replaceable_file(path):
        with open_file(path) as file:
            found = file.read(LARGEST_PAGE)
        if found and MADE_HERE.encode() not in found:
            raise UserError(f"{shown(path)} is there, and Mini-LLM did not make it: not replaced", NOT_OURS)


def free_name(path: Path) -> Path:
    """Return the first of PATH.1, PATH.2 ... that is not there."""
    return next(p for i in range(1, 10**6) if not os.path.lexists(p := path.with_name(f"{path.name}.{i}")))


# --- writing ---------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, atomically."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; when the block ends well the file becomes `path`, else it vanishes."""
    path = behind_link(path)
    remove_leftovers(path)
    temporary = temporary_name(path, suffix=path.suffix)  # some libraries choose the format by it
    temporary.touch(exist_ok=False)
    try:
        with being_written(temporary):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path, kind: Kind | None = None, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends well it becomes `path`, else it vanishes.

    A folder of `kind` at `path` is replaced in that last moment, of which every reader sees the state before or after.
    A run killed with -9 leaves its temporary folder behind; the next call for the same `path` removes it. Live runs
    hold a lock on theirs and are left alone. Files get the mode that the umask gives, whichever library wrote them.
    `temporary`: its name meanwhile, where others must know it.

    Raises:
        UserError: `path` holds what is not of `kind`; also at the end, and then the new folder is kept beside it.
    """
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError) as problem:
        raise UserError(f"cannot write {shown(path)}: {reason(problem)}", "choose another place") from None
    put_back(path)
    check_replaceable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = temporary.absolute() if temporary else temporary_name(path)
    temporary.mkdir()
    try:
        with being_written(temporary):
            yield temporary
            _set_modes(temporary)
            for entry in (*temporary.rglob("*"), temporary):
                _sync(entry)
            try:
                check_replaceable(path, kind)
            except UserError as problem:  # it was put there meanwhile
                aside = free_name(path)
                temporary.rename(aside)
                raise UserError(f"{problem.message}; the new one is {shown(aside)}", problem.hint) from None
            _replace(path, by=temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_modes(folder: Path) -> None:
    """Give all files the mode of a file made here: safetensors makes its own readable by their owner alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


# --- the exchange ----------------------------------------------------------------------------------------------------


def _replace(path: Path, *, by: Path) -> None:
    """Put the folder `by` in the place of `path`; the old one is deleted."""
    old = by
    if not path.exists():
        by.rename(path)
    elif not _exchange(by, path):
        old = by.with_name(f"{by.name}-old")
        try:
            path.rename(old)  # a folder with files in it cannot be renamed over
            by.rename(path)  # killed just before: `put_back` mends it
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not on macOS, Windows and musl
        return None


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change their places in one moment; False where system or disk cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an old kernel; NFS and some FUSE disks
        return False
    raise OSError(number, os.strerror(number), str(b))


def put_back(path: Path) -> None:
    """Bring back the folder that was at `path` when a kill came between the two renames of a system without exchange.

    Readers call it where nothing is at `path`.
    """
    if os.path.lexists(path):
        return
    for old in leftovers(path, "-old"):
        writer = old.with_name(old.name.removesuffix("-old"))
        held = lock(writer) if writer.exists() else None
        if held is not None or not writer.exists():  # else it lives, and is about to do its second rename
            with contextlib.suppress(OSError):
                old.rename(path)
        if held is not None:
            os.close(held)
        if os.path.lexists(path):
            return


def _sync(path: Path) -> None:
    """Wait until the disk has `path` (a folder: its list of names)."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
