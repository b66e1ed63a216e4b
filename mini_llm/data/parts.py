"""Parts: a corpus in pieces of work that are the same for every number of workers, each a small store once it is done.

A part is a file, several small ones, or so many whole lines of a large one. How they are cut depends on the files
alone, so that workers, restarts and their order change no byte of the store.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from mini_llm.data.formats import MAX_LINE_BYTES, format_of, naming_file, unpacked
from mini_llm.data.remote import File, RemoteFile, size_of
from mini_llm.data.token_store import Split
from mini_llm.errors import UserError
from mini_llm.files import Kind
from mini_llm.user_files import open_file, read_file

AnyFile = TypeVar("AnyFile", bound=File)

SMALLEST, LARGEST, WANTED = 2**24, 2**30, 256  # bytes of a part; parts of a corpus between 4 GB and 256 GB
RULE = 1  # another one cuts otherwise: older parts are of no use then
FILES = r"((train|val)-[0-9]{5,}\.bin|(train|val)\.idx|part\.json)"
UNFINISHED = r"\.part-[0-9]{5,}\.tmp-[0-9a-f]{8}(-old)?"  # of a killed worker, whatever it had got to
PARTS_FOLDER = Kind(
    "the parts of an unfinished token store",
    re.compile(rf"lines-[0-9]{{5,}}\.jsonl|fetched-[0-9]{{5,}}/.*|part-[0-9]{{5,}}/({FILES})?|{UNFINISHED}/[^/]*"),
)
PART_FOLDER = Kind("a part of a token store", re.compile(FILES))


@dataclass(frozen=True)
class Slice:
    """A file, or the lines of it that begin at `start` and before `end` (bytes; -1: the whole file).

    `path` is what is read and `name` what it is called: packed files are unpacked into others, remote ones fetched.
    `first_line` is the number of the first of these lines, 0 where nobody has counted.
    """

    path: str
    name: str
    start: int = 0
    end: int = -1
    first_line: int = 1
    column: str | None = None  # the text in it, where it is another than the corpus's


@dataclass(frozen=True)
class Part:
    """A piece of work. `key` names the text and the settings; `weight` is its share of the corpus, in bytes.

    `made` is the file or folder that was made for its one slice, and is of no use afterwards.
    """

    number: int
    key: str
    slices: tuple[Slice, ...]
    weight: int
    made: str = ""

    @property
    def folder_name(self) -> str:
        """The name of its folder."""
        return f"part-{self.number:05d}"


class PartRecord(BaseModel):
    """What a part's folder says of itself; `with_text` are the places of those slices that held some."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    splits: dict[str, Split]
    documents: int
    with_text: list[int]
    left_out: dict[str, int]
    examples: dict[str, str]


def read_part(folder: Path) -> PartRecord | None:
    """Return what a finished part says, or None where there is none, or its files have other sizes."""
    try:
        record = PartRecord.model_validate_json(read_file(folder / "part.json"))
        for name, split in record.splits.items():
            sizes = {shard.name: shard.bytes for shard in split.shards} | {f"{name}.idx": 8 * split.documents}
            if any((folder / file).stat().st_size != size for file, size in sizes.items()):
                return None
    except (UserError, ValueError, OSError):
        return None
    return record


def part_bytes(total_bytes: int) -> int:
    """Return about how many bytes of its files go into one part."""
    return min(max(total_bytes // WANTED, SMALLEST), LARGEST)


def groups(files: Iterable[AnyFile], target: int, is_alone: Callable[[AnyFile], bool]) -> Iterator[list[AnyFile]]:
    """Put files together, in order, until a group has `target` bytes; one that `is_alone` is a group of its own."""
    group: list[AnyFile] = []
    size = 0
    for file in files:
        alone = is_alone(file)
        if group and (alone or size >= target):
            yield group
            group, size = [], 0
        if alone:
            yield [file]
        else:
            group.append(file)
            size += size_of(file)
    if group:
        yield group


def cut(files: list[File], settings: str, workplace: Path, is_done: Callable[[int, str], bool]) -> Iterator[Part]:
    """Yield the parts of a corpus, in order. Large packed files of lines are unpacked into `workplace`, part by part.

    Not for parts of which `is_done(number, key)` is true: their lines are passed over.

    Raises:
        UserError: a file cannot be read.
    """
    target = part_bytes(sum(map(size_of, files)))
    numbers = itertools.count()

    def is_alone(file: File) -> bool:
        return isinstance(file, RemoteFile) or _lines(file) > target // (4 if _packing(file) else 1)

    for group in groups(files, target, is_alone):
        path = group[0]
        if isinstance(path, RemoteFile):
            yield _fetched(path, settings, workplace, next(numbers), is_done)
        elif is_alone(path) and (packing := _packing(path)):
            yield from _unpacked_lines(path, packing, target, settings, workplace, numbers, is_done)
        elif is_alone(path):
            yield from _stretches(path, target, settings, numbers)
        else:
            paths = [file for file in group if isinstance(file, Path)]
            key = _key(settings, [_identity(path) for path in paths])
            slices = tuple(Slice(path=str(path), name=str(path)) for path in paths)
            yield Part(number=next(numbers), key=key, slices=slices, weight=sum(map(size_of, paths)))


def only_named(files: Iterable[File]) -> bool:
    """Tell whether the parts of `files` are named and nothing is made for them: none is unpacked or fetched."""
    return not any(isinstance(file, RemoteFile) or (_packing(file) and _lines(file)) for file in files)


def _lines(path: Path) -> int:
    """Return the bytes of a file of lines, 0 of every other file."""
    return path.stat().st_size if (format_of(path) or ("", ""))[0] in (".jsonl", ".ndjson") else 0


def _packing(path: Path) -> str:
    return (format_of(path) or ("", ""))[1]


def _stretches(path: Path, target: int, settings: str, numbers: Iterator[int]) -> Iterator[Part]:
    size = path.stat().st_size
    for start in range(0, size, target):
        end = min(start + target, size)
        key = _key(settings, [_identity(path), str(start)])
        lines = Slice(path=str(path), name=str(path), start=start, end=end, first_line=0 if start else 1)
        yield Part(number=next(numbers), key=key, slices=(lines,), weight=end - start)


def _fetched(
    file: RemoteFile, settings: str, workplace: Path, number: int, is_done: Callable[[int, str], bool]
) -> Part:
    """Return a file that lies elsewhere as a part, fetched where it is not done."""
    key = _key(settings, [file.url, str(file.bytes), str(file.column)])
    folder = workplace / f"fetched-{number:05d}"
    path = folder
    if not is_done(number, key):
        folder.mkdir(exist_ok=True)  # what has come of it before is not asked for again
        path = file.get(folder)
    whole = Slice(path=str(path), name=file.name, column=file.column)
    return Part(number=number, key=key, slices=(whole,), weight=file.bytes, made=str(folder))


def _unpacked_lines(
    path: Path,
    packing: str,
    target: int,
    settings: str,
    workplace: Path,
    numbers: Iterator[int],
    is_done: Callable[[int, str], bool],
) -> Iterator[Part]:
    """Yield the parts of a packed file of lines, each in a file of its own that whoever has read it may delete."""
    first_line = 1
    with open_file(path) as file, naming_file(path):
        stream, number, place = unpacked(file, packing), next(numbers), 0
        for piece in itertools.count():
            key = _key(settings, [_identity(path), f"piece {piece}"])
            lines = workplace / f"lines-{number:05d}.jsonl"
            size = lines_read = 0
            with open(os.devnull if is_done(number, key) else lines, "wb") as out:
                while size < target and (block := stream.read(min(2**20, target - size))):
                    size, lines_read = size + out.write(block), lines_read + block.count(b"\n")
                if size >= target:
                    rest = stream.readline(MAX_LINE_BYTES)
                    size, lines_read = size + out.write(rest), lines_read + rest.count(b"\n")
            if not size:
                lines.unlink(missing_ok=True)
                return
            weight, place = file.tell() - place, file.tell()
            whole = Slice(path=str(lines), name=str(path), start=0, end=size, first_line=first_line)
            yield Part(number=number, key=key, slices=(whole,), weight=weight, made=str(lines))
            first_line += lines_read
            number = next(numbers)


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _key(settings: str, of: list[str]) -> str:
    return hashlib.sha256(json.dumps([RULE, settings, of]).encode("utf-8", "surrogateescape")).hexdigest()
