"""The formats of raw text, packed or not: bytes in, texts out, in bounded memory; damage is named with its place."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from mini_llm.data.reading import encoding_without_mark
from mini_llm.errors import UserError, did_you_mean

TABLES = (".parquet", ".arrow")
FORMATS = (".txt", ".md", ".jsonl", ".ndjson", *TABLES)
COMPRESSIONS = (".gz", ".xz", ".zst")
SUPPORTED = "supported: .txt .md .jsonl .parquet .arrow, each also with .gz .xz .zst"
PLAIN = tuple((kind, packing) for kind in (".txt", ".md") for packing in ("", *COMPRESSIONS))
CHOOSE = "`prepare` and `tokenizer train` take one of them by --text-column"
HOW_ROWS_ARE = "each row must be a text, or hold one"
NULL = "\u2028"  # white space that stands for a null, so that it can be counted
INSTALL = "install it: pip install 'mini-llm[data]'"

PIECE_CHARS = 2**20  # longer texts come in pieces of at most this
MAX_LINE_BYTES = 2**28  # of jsonl: a file without newlines must not fill the memory
BLOCK_BYTES = 2**20
SEPARATOR = re.compile(r"^<\|endoftext\|>\r?(?:\n|\Z)", re.MULTILINE)


class Lines(Protocol):
    """What lines can be read from."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its first `limit` bytes; nothing at the end."""


def format_of(path: Path) -> tuple[str, str] | None:
    """Return format and compression by the name, such as (".jsonl", ".gz") or (".txt", ""); None: unknown."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    known = next((suffix for suffix in FORMATS if name.removesuffix(compression).endswith(suffix)), None)
    return None if known is None else (known, compression)


def read_texts(file: IO[bytes], path: Path, text_column: str) -> Iterator[str | None]:
    """Yield the texts of a file, None after each document; how far `file` has been read shows the progress.

    Raises:
        UserError: the file lacks the text column, is not UTF-8, or needs a library that is not there.
    """
    known = format_of(path)
    assert known is not None
    kind, compression = known
    stream = unpacked(file, compression)
    if kind in TABLES:
        from mini_llm.data.tables import table_texts  # which needs this file

        return table_texts(file, stream, path, kind, text_column)
    if kind in (".jsonl", ".ndjson"):
        return line_texts(stream, path, text_column)
    return _plain_texts(_decoded(stream, path))


def unpacked(file: IO[bytes], compression: str) -> IO[bytes]:
    """Return the bytes of a file as they were before it was packed (.gz, .xz, .zst or "")."""
    if os.fstat(file.fileno()).st_size == 0:
        return file  # an empty file is no text, not a corrupt archive
    if compression == ".gz":
        return gzip.open(file)  # type: ignore[return-value]
    if compression == ".xz":
        return lzma.open(file)
    if compression == ".zst":
        return io.BufferedReader(_ZstdReader(file), BLOCK_BYTES)
    return file


class _ZstdReader(io.RawIOBase):
    """Unpacks zstd. `zstandard.stream_reader` would do, but it takes a file that is cut short for a whole one."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(".zst files need the package zstandard", INSTALL) from None
        self._file = file
        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._packed = self._text = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            # zstd packs up to 128 KiB into 4 bytes: 4 KiB at a time unpack to 128 MiB at most.
            self._packed = self._packed or self._file.read(4096)
            if not self._packed and self._frame is not None:
                raise EOFError("it ends in the middle of a frame")
            if not self._packed:
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._text = self._frame.decompress(self._packed)
            except self._error as problem:
                raise EOFError(str(problem)) from None
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        n = min(len(buffer), len(self._text))
        buffer[:n], self._text = self._text[:n], self._text[n:]
        return n


def _decoded(stream: IO[bytes], path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done, block = 0, b"start"
    while block:
        block = stream.read(BLOCK_BYTES)
        done += len(block)
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as problem:
            where = done - len(problem.object) + problem.start
            raise UserError(*not_utf8(f"{path}, byte {where:,}", path, problem.object if where == 0 else b"")) from None


def not_utf8(where: str, path: Path, beginning: bytes) -> tuple[str, str]:
    """Return message and hint for bytes that are not UTF-8; `beginning`: the first of them, where it is the file's."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "UTF-16" if beginning[:2] in marks else "WINDOWS-1252"
    if beginning[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        encoding = "UTF-32"
    return f"{where}: not UTF-8", f"convert it, for example: {conversion(encoding, path)}"


def conversion(encoding: str, path: Path) -> str:
    """Return the command that makes a file UTF-8."""
    return f"iconv -f {encoding} -t UTF-8 {path} > utf8-{path.name}"


def refuse_without_mark(text: str, path: Path) -> None:
    """Refuse the beginning of a file that is UTF-16 or UTF-32 without a mark, and yet valid UTF-8.

    Raises:
        UserError: it is, with the command that converts it.
    """
    if encoding := encoding_without_mark(text):
        what = f"{path}: NULs beside every letter: this is {encoding[:6]} without its mark, not UTF-8"
        raise UserError(what, f"convert it: {conversion(encoding, path)}")


def _plain_texts(blocks: Iterable[str]) -> Iterator[str | None]:
    """Cut text into pieces and part it at the separator lines."""
    buffer, line_start = "", True
    for block in itertools.chain(blocks, [None]):
        buffer, position = buffer + (block or ""), 0
        while position < len(buffer) and (block is None or len(buffer) - position > PIECE_CHARS):
            end = _cut(buffer, position)
            piece, position = buffer[position:end], end
            start = 0
            for match in SEPARATOR.finditer(piece):
                if match.start() or line_start:
                    yield piece[start : match.start()]
                    yield None
                    start = match.end()
            yield piece[start:]
            line_start = piece.endswith("\n")
        buffer = buffer[position:]
    yield None


def line_texts(stream: Lines, path: Path, text_column: str, first_line: int = 1) -> Iterator[str | None]:
    """Yield the texts of JSON lines, None after each; the first of them is line `first_line` of `path`.

    Raises:
        UserError: as `read_texts`.
    """
    for number in itertools.count(first_line):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB", "is this JSON lines?"
            )
        if number == 1:  # where nobody knows the number it is 0, and there is no mark
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            text = _json_text(line, path, number, text_column)
            yield from cut_all(text) if text is not NULL else (NULL,)
            yield None


def _json_text(line: bytes, path: Path, number: int, text_column: str) -> str:
    where, row = f"{path}:{number}", {}
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(*not_utf8(where, path, line if number == 1 else b"")) from None
    except (ValueError, RecursionError) as problem:
        refuse_without_mark(line.decode("latin-1"), path)
        raise UserError(f"{where}: not JSON: {problem}", "each line must be one JSON object") from None
    if isinstance(value, dict):
        if text_column not in value:
            raise UserError(*no_column(where, "key", text_column, value))
        where, row, value = f"{where}: '{text_column}'", value, value[text_column]
    if value is None:
        return NULL
    if not isinstance(value, str):
        raise UserError(f"{where} holds {_kind_of(value)}, not a string", texts_of(row))
    refuse_half_characters(value, where)
    return value


def refuse_half_characters(text: str, where: str) -> None:
    r"""Refuse text with half of a character, which JSON can write as \ud800.

    Raises:
        UserError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise UserError(f"{where} holds half a character: \\u{ord(text[problem.start]):04x}") from None


def no_column(where: str, what: str, wanted: str, known: Iterable[str]) -> tuple[str, str]:
    """Return message and hint where there is no such key or column, with those that there are."""
    names = list(known)
    have = f"it has: {', '.join(names[:20]) or 'none'}"
    return f"{where}: no {what} '{wanted}'{did_you_mean(wanted, names)}", f"{have}; {CHOOSE}" if names else have


def texts_of(row: Mapping[str, Any]) -> str:
    """Return what helps where a value is no text: the keys that hold one, or what a row must be."""
    names = [name for name, value in row.items() if isinstance(value, str)]
    return f"these hold text: {', '.join(names[:20])}; {CHOOSE}" if names else HOW_ROWS_ARE


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "a truth value", list: "a list", dict: "an object", str: "a string"}.get(type(value), "a number")


def _cut(text: str, start: int) -> int:
    """Return the end of the piece from `start`: after a newline, else before a space, at most PIECE_CHARS further."""
    end = start + PIECE_CHARS
    if end >= len(text):
        return len(text)
    if newline := text.rfind("\n", start, end) + 1:
        return newline
    space = text.rfind(" ", start + PIECE_CHARS // 2, end)
    return space if space > 0 else end


def cut_all(text: str) -> Iterator[str]:
    """Yield a text in pieces of at most PIECE_CHARS."""
    position = 0
    while position < len(text):
        end = _cut(text, position)
        yield text[position:end]
        position = end


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a message with its name."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as problem:
        raise UserError(*corrupt(path, problem)) from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None


def corrupt(path: Path, problem: Exception) -> tuple[str, str]:
    """Return message and hint of a damaged file."""
    return f"{path} is corrupt or cut short: {problem}", "fetch or make the file again"
