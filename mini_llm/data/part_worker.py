"""A worker of `prepare`: a process that turns parts into small stores, one after the other, until it is told no more.

It reads one JSON object a line: the settings, then parts. It answers in the same way: why it is slow, if it is, how far
it has come, that a part is done, or what went wrong.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mini_llm.data.fill import fill
from mini_llm.data.formats import BLOCK_BYTES, line_texts, naming_file, read_texts
from mini_llm.data.parts import PART_FOLDER, Part, PartRecord, Slice
from mini_llm.data.reading import Reading
from mini_llm.data.sources import Piece, file_pieces
from mini_llm.data.store_writer import SHARD_BYTES, TokenStoreWriter
from mini_llm.errors import UserError
from mini_llm.files import new_folder
from mini_llm.tokenizer.fast import DifferentIds, FastEncoder
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import open_file

Say = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Work:
    """What is the same for all parts."""

    tokenizer: str  # its folder
    fingerprint: str
    folder: str  # where the parts go
    val_fraction: float
    text_column: str
    proved: bool  # whether the faster library may be used

    def settings(self) -> str:
        """Return all that the tokens depend on but the text, and which library made them: one is not trusted."""
        return json.dumps([self.fingerprint, self.val_fraction, self.text_column, self.proved])


class _LinesBetween:
    """The lines of a file that begin at `start` and before `end`."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._end = file, end
        if start:
            file.seek(start - 1)
            while (skipped := file.readline(BLOCK_BYTES)) and not skipped.endswith(b"\n"):
                pass

    def readline(self, limit: int = -1, /) -> bytes:
        return self._file.readline(limit) if self._file.tell() < self._end else b""


def write_part(part: Part, work: Work, tokenizer: Tokenizer, encoder: FastEncoder, say: Say) -> None:
    """Write the store of a part, whole or not at all.

    Raises:
        UserError: its text is damaged.
        DifferentIds: the faster library cannot be trusted with it.
        OSError: it cannot be written.
    """
    count, with_text = Reading(), []
    total = sum(_size(piece) for piece in part.slices)

    def pieces() -> Iterator[Piece]:
        done, told = 0, 0.0
        for place, piece in enumerate(part.slices):
            empty = True
            for found, read in _read(piece, work.text_column, count):
                empty = False
                yield found
                if (share := (done + read) / max(total, 1)) > told + 0.01:
                    told = share
                    say({"done": share})
            done += _size(piece)
            if not empty:
                with_text.append(place)

    with new_folder(Path(work.folder, part.folder_name), PART_FOLDER) as folder:
        writer = TokenStoreWriter(folder, tokenizer, [], SHARD_BYTES)
        try:
            documents = fill(writer, tokenizer, encoder, pieces(), work.val_fraction)
            record = PartRecord(
                key=part.key,
                splits=writer.finished_splits(),
                documents=documents,
                with_text=with_text,
                left_out=count.left_out,
                examples={kind: _printable(name) for kind, name in count.examples.items()},
            )
        finally:
            writer.close()
        (folder / "part.json").write_text(record.model_dump_json(), encoding="utf-8")


def _read(piece: Slice, text_column: str, count: Reading) -> Iterator[tuple[Piece, int]]:
    """Yield the pieces of a slice, each with the bytes that have been read until then."""
    name = Path(piece.name)
    with open_file(piece.path) as file, naming_file(name):
        if piece.end < 0:
            texts = read_texts(file, name, piece.column or text_column)
        else:
            lines = _LinesBetween(file, piece.start, piece.end)
            texts = line_texts(lines, name, text_column, piece.first_line)
        try:
            for found in file_pieces(texts, count, name):
                yield found, file.tell() - piece.start
        except UserError:
            if piece.first_line:
                raise
            _fail_with_line_number(piece, text_column)
            raise


def _fail_with_line_number(piece: Slice, text_column: str) -> None:
    """Read a slice again, with the lines before it counted, so that the message names the right one."""
    with open(piece.path, "rb") as file:
        before = 0
        for place in range(0, piece.start, BLOCK_BYTES):
            before += file.read(min(BLOCK_BYTES, piece.start - place)).count(b"\n")
        file.seek(piece.start - 1)
        inside = file.read(1) != b"\n"  # the rest of a line that began earlier comes first
        lines = _LinesBetween(file, piece.start, piece.end)
        for _ in line_texts(lines, Path(piece.name), text_column, before + 1 + inside):
            pass


def _size(piece: Slice) -> int:
    return piece.end - piece.start if piece.end >= 0 else Path(piece.path).stat().st_size


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def main() -> None:
    """Work until standard input ends."""

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    work = Work(**json.loads(sys.stdin.readline()))
    tokenizer = Tokenizer.load(work.tokenizer)
    encoder = FastEncoder(tokenizer, proved=work.proved)
    if encoder.engine != "kitoken":
        say({"slower": encoder.reason})
    for line in sys.stdin:
        given = json.loads(line)
        part = Part(**{**given, "slices": tuple(Slice(**one) for one in given["slices"])})
        try:
            write_part(part, work, tokenizer, encoder, say)
            say({"finished": part.number})
        except UserError as problem:
            say({"message": problem.message, "hint": problem.hint})
        except DifferentIds:
            say({"differs": True})
        except OSError as problem:
            say({"errno": problem.errno, "message": problem.strerror})


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):  # whoever gave the work is gone
        sys.exit(1)
