"""Hostile values: numbers, texts, paths, bytes and JSON, for every area to choose from."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pickle
import random
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ESC = "\x1b]0;PWN\x1b\\"
NUMBERS = [
    "-1", "0", "1e30", "-1e30", "1e400", "nan", "inf", "-inf", ".inf", ".nan", "1" * 400, "0x10", "1_0", "1e5",
    "1e-300",
    "99999999999999999999", "4294967296", "2147483648", "0.1", "1.5", "-0", "1e-45", "٣", "١٢", "0b1", "1,5", "1 000",
]  # fmt: skip
WRONG_TYPES = [
    "",
    "null",
    "true",
    "[]",
    "{}",
    "[1, 2]",
    "{a: 1}",
    "abc",
    "'",
    '"',
    "!!int abc",
    "!!python/none",
    "2024-01-01",
    "~",
]
TEXTS = [
    "x" * 5000,
    ESC,
    "\x9b31m",
    "a\nb",
    "\u202eevil",
    "\ud83d",
    "${HOME}",
    "$(id)",
    "%s%n",
    "..",
    "*",
    "[",
    "-",
    "--",
]

JSON_VALUES: list[Any] = [
    None, True, -1, 0, 0.5, 1e30, 10**400, "abc", "", ESC, [], {}, [1], {"a": 1}, float("nan"), "x" * 5000, 2**31,
    2**63,
]  # fmt: skip


def values_yaml() -> list[str]:
    """Return hostile values as YAML writes them."""
    return [
        *NUMBERS,
        *WRONG_TYPES,
        "x" * 5000,
        json.dumps(ESC),
        '"\\0"',
        '"a\\0b"',
        "[" * 300,
        "&a [*a]",
        "? ",
        "@",
        "`",
    ]


def spoiled_bytes(data: bytes, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield a file's bytes as bad disks, broken downloads and wrong tools leave them."""
    yield "empty", b""
    yield "one byte", data[:1]
    for part in (0.02, 0.3, 0.7, 0.98):
        yield f"cut at {part:.0%}", data[: int(len(data) * part)]
    yield "last byte gone", data[:-1]
    for _ in range(5):
        place = dice.randrange(max(1, len(data)))
        flipped = bytearray(data)
        flipped[place] ^= 1 << dice.randrange(8)
        yield f"a bit of byte {place} flipped", bytes(flipped)
    middle = len(data) // 2
    yield "zeros in the middle", data[: middle - 64] + bytes(128) + data[middle + 64 :]
    yield "all zeros", bytes(len(data))
    yield "garbage", dice.randbytes(len(data))
    yield "twice", data + data
    yield "garbage at the end", data + dice.randbytes(50)
    yield "first half gone", data[middle:]
    yield "a web page", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
    yield "a pointer of git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    yield "a pickle", pickle.dumps({"a": 1})
    yield "gzipped", gzip.compress(data)


def spoiled_json(value: Any, dice: random.Random, count: int) -> Iterator[tuple[str, Any]]:
    """Yield copies of a JSON value in which one thing is gone, doubled or of another kind."""
    places = list(_places(value))
    for _ in range(count):
        place = dice.choice(places)
        if dice.random() < 0.25:
            yield f"{'.'.join(map(str, place))} gone", _changed(value, place, None, delete=True)
        else:
            new = dice.choice(JSON_VALUES)
            yield f"{'.'.join(map(str, place))} = {short(new)}", _changed(value, place, new)


def short(value: Any) -> str:
    """Return a value as a case's name can hold it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        text = "a long number"
    return text if len(text) < 40 else f"{text[:25]}... ({len(text)})"


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*before, key)
        if len(before) < 4:
            yield from _places(item, (*before, key))


def _changed(value: Any, place: tuple[Any, ...], new: Any, delete: bool = False) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if delete:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return changed


def strange_files() -> dict[str, Callable[[Path], None]]:
    """Return, by name, what may stand where a file or folder is expected: `make(path)`."""

    def fifo(path: Path) -> None:
        os.mkfifo(path)

    def unix_socket(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name may have 107 characters
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)

    def many_links(path: Path) -> None:
        path.symlink_to(path.name)

    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(2**40)

    return {
        "a pipe": fifo,
        "a socket": unix_socket,
        "a link to itself": many_links,
        "a dangling link": lambda path: path.symlink_to("nowhere"),
        "a link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
        "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
        "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
        "a link to a terminal device": lambda path: path.symlink_to("/dev/tty"),
        "an empty folder": lambda path: path.mkdir(),
        "an empty file": lambda path: path.touch(),
        "a terabyte of nothing": sparse,
        "a link to /proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
        "a file": lambda path: path.write_text("mine\n") and None,
    }


def remove(path: Path) -> None:
    """Remove a file, link or folder."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_plain(path: Path) -> bool:
    """Tell whether a path is a regular file of sane size: one that may be read and compared."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size < 50_000_000
