"""Raw text from anywhere: files, folders and globs become one stream of documents, in bounded memory.

Formats: .txt and .md (a file is one document, unless lines that are exactly `<|endoftext|>` part it), .jsonl (.ndjson)
and .parquet (a row is one document), each also .gz, .xz or .zst. A document may be larger than memory: what streams is
its pieces.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from mini_llm import log
from mini_llm.errors import UserError, did_you_mean

FORMATS = (".txt", ".md", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
SUPPORTED = "supported: .txt .md .jsonl .parquet, each also with .gz .xz .zst"
INSTALL = "install it: pip install 'mini-llm[data]'"

PIECE_CHARS = 2**20  # longer documents come in pieces of at most this
MAX_LINE_BYTES = 2**28  # of jsonl: a file without newlines must not fill the memory
BLOCK_BYTES = 2**20
SEPARATOR = re.compile(r"^<\|endoftext\|>\r?(?:\n|\Z)", re.MULTILINE)


class Piece(NamedTuple):
    """A document, or a part of a long one. `first` and `last` say whether it holds the document's start and end."""

    text: str
    first: bool
    last: bool


class Corpus:
    """The files that SOURCES stand for.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """

    def __init__(self, sources: Sequence[str | Path], text_column: str = "text") -> None:
        self.files = find_files(sources)
        self.total_bytes = sum(path.stat().st_size for path in self.files)
        self.done_bytes = 0  # of the files as they lie on the disk
        self._text_column = text_column

    def pieces(self, description: str | None = None) -> Iterator[Piece]:
        """Yield all documents, file by file; with `description`, progress is shown.

        Raises:
            UserError: a file is corrupt, not UTF-8 or lacks the text column (it names the file and the line), or there
                is no text at all.
        """
        found = False
        with log.byte_progress(description, self.total_bytes) if description else nullcontext(_ignore) as show:
            for path in self.files:
                start, empty = self.done_bytes, True
                with _naming(path), path.open("rb") as file:
                    for piece in _pieces(_texts(file, path, self._text_column)):
                        empty = False
                        yield piece
                        if (done := start + file.tell()) - self.done_bytes >= BLOCK_BYTES:
                            self.done_bytes = done
                            show(done)
                    self.done_bytes = start + os.fstat(file.fileno()).st_size
                show(self.done_bytes)
                found = found or not empty
                if empty:
                    log.note(f"{path} holds no text")
        if not found:
            raise UserError(f"no text in {', '.join(map(str, self.files[:3]))}{' ...' if len(self.files) > 3 else ''}")


def read_documents(
    sources: Sequence[str | Path], *, text_column: str = "text", description: str | None = None
) -> Iterator[str]:
    """Yield the text of every document; documents of more than 1,048,576 characters come in pieces.

    Raises:
        UserError: as `Corpus` (at once) and `Corpus.pieces` (while reading).
    """
    corpus = Corpus(sources, text_column)
    return (piece.text for piece in corpus.pieces(description))


# --- which files -----------------------------------------------------------------------------------------------------


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """Return the files behind `sources`: each once, those of a folder or glob in sorted order.

    Raises:
        UserError: a source does not exist, holds no text file, or is of an unknown format.
    """
    files: dict[Path, Path] = {}
    for source in sources:
        for path in _find(str(source)):
            files.setdefault(path.resolve(), path)
    if not files:
        raise UserError("no files to read", "name files, folders or quoted globs")
    return list(files.values())


def _find(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return _known(sorted(_walk(path)), f"the folder {source}")
    if path.is_file():
        if _format(path) is None:
            raise UserError(f"cannot read {source}: unknown format '{path.suffix}'", SUPPORTED)
        return [path]
    if not path.exists() and glob.has_magic(source):
        matches = sorted(Path(match) for match in glob.glob(source, recursive=True))
        return _known([match for match in matches if match.is_file()], f"the glob {source}")
    if path.exists():
        raise UserError(f"{source} is not a regular file")
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"no file, folder or glob '{source}'{did_you_mean(path.name, names)}")


def _walk(folder: Path) -> Iterator[Path]:
    def stop(problem: OSError) -> None:
        raise UserError(f"cannot read the folder {problem.filename}: {problem.strerror}")

    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith(".") and Path(root, name).is_file())


def _known(paths: list[Path], where: str) -> list[Path]:
    known = [path for path in paths if _format(path)]
    if not known:
        found = ", ".join(sorted({path.suffix or path.name for path in paths})[:8])
        raise UserError(f"no text files in {where}" + (f"; it has {found}" if found else ""), SUPPORTED)
    return known


def _format(path: Path) -> tuple[str, str] | None:
    """Return format and compression by the name, such as (".jsonl", ".gz") or (".txt", ""); None: unknown."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    known = next((suffix for suffix in FORMATS if name.removesuffix(compression).endswith(suffix)), None)
    return None if known is None else (known, compression)


# --- bytes -> texts; None ends a document ----------------------------------------------------------------------------


def _texts(file: IO[bytes], path: Path, text_column: str) -> Iterator[str | None]:
    known = _format(path)
    assert known is not None
    kind, compression = known
    stream = _unpacked(file, compression)
    if kind == ".parquet":
        return _parquet_texts(file, stream, path, text_column)
    if kind in (".jsonl", ".ndjson"):
        return _json_texts(stream, path, text_column)
    return _plain_texts(_decoded(stream, path))


def _unpacked(file: IO[bytes], compression: str) -> IO[bytes]:
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
            utf16 = where == 0 and problem.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise UserError(
                *_not_utf8(f"{path}, byte {where:,}", path, "UTF-16" if utf16 else "WINDOWS-1252")
            ) from None


def _not_utf8(where: str, path: Path, encoding: str) -> tuple[str, str]:
    return f"{where}: not UTF-8", f"convert it, for example: iconv -f {encoding} -t UTF-8 {path} > utf8-{path.name}"


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


def _json_texts(stream: IO[bytes], path: Path, text_column: str) -> Iterator[str | None]:
    for number in itertools.count(1):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB", "is this JSON lines?"
            )
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield from _cut_all(_json_text(line, path, number, text_column))
            yield None


def _json_text(line: bytes, path: Path, number: int, text_column: str) -> str:
    where = f"{path}:{number}"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(*_not_utf8(where, path, "WINDOWS-1252")) from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{where}: not JSON: {problem}", "each line must be one JSON object") from None
    if isinstance(value, dict):
        if text_column not in value:
            raise UserError(*_no_column(where, "key", text_column, value))
        where, value = f"{where}: '{text_column}'", value[text_column]
    if not isinstance(value, str):
        raise UserError(f"{where} holds {_kind_of(value)}, not a string", "choose another key with --text-column")
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        raise UserError(f"{where} holds half a character: \\u{ord(value[problem.start]):04x}") from None
    return value


def _no_column(where: str, what: str, wanted: str, known: Iterable[str]) -> tuple[str, str]:
    names = list(known)
    have = f"it has: {', '.join(names[:20]) or 'none'}"
    return f"{where}: no {what} '{wanted}'{did_you_mean(wanted, names)}", f"{have}; choose one with --text-column"


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "a truth value", list: "a list", dict: "an object", str: "a string"}.get(type(value), "a number")


def _parquet_texts(file: IO[bytes], stream: IO[bytes], path: Path, text_column: str) -> Iterator[str | None]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(".parquet files need the package pyarrow", INSTALL) from None
    size = os.fstat(file.fileno()).st_size
    with tempfile.TemporaryFile() if stream is not file else path.open("rb") as table:
        if stream is not file:  # a table is read from its end: unpack it first
            shutil.copyfileobj(stream, table, BLOCK_BYTES)
        if not size:
            return
        try:
            parquet = pq.ParquetFile(table, buffer_size=BLOCK_BYTES, pre_buffer=False)
            if text_column not in parquet.schema_arrow.names:
                raise UserError(*_no_column(str(path), "column", text_column, parquet.schema_arrow.names))
            rows = 0
            for batch in parquet.iter_batches(batch_size=64, columns=[text_column]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        kind = f"{path}: '{text_column}' holds {batch.column(0).type}, not strings"
                        raise UserError(kind, "choose another column with --text-column")
                    yield from _cut_all(text or "")
                    yield None
                rows += batch.num_rows
                file.seek(size * rows // parquet.metadata.num_rows)  # what the progress bar follows
        except UnicodeDecodeError:
            raise UserError(f"{path}: row {rows + 1} or one of the 63 after it is not UTF-8") from None
        except pa.ArrowException as problem:
            raise UserError(*_corrupt(path, problem)) from None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a message with its name."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as problem:
        raise UserError(*_corrupt(path, problem)) from None
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror or problem}") from None


def _corrupt(path: Path, problem: Exception) -> tuple[str, str]:
    return f"{path} is corrupt or cut short: {problem}", "fetch or make the file again"


def _ignore(_done: int) -> None: ...


# --- texts -> pieces -------------------------------------------------------------------------------------------------


def _cut(text: str, start: int) -> int:
    """Return the end of the piece from `start`: after a newline, else before a space, at most PIECE_CHARS further."""
    end = start + PIECE_CHARS
    if end >= len(text):
        return len(text)
    if newline := text.rfind("\n", start, end) + 1:
        return newline
    space = text.rfind(" ", start + PIECE_CHARS // 2, end)
    return space if space > 0 else end


def _cut_all(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        end = _cut(text, position)
        yield text[position:end]
        position = end


def _pieces(texts: Iterator[str | None]) -> Iterator[Piece]:
    """Mark where documents begin and end; drop those without anything but white space."""
    held, first = "", True
    for text in texts:
        if text is None:
            if not first or held.strip():
                yield Piece(held, first, True)
            held, first = "", True
        elif text and held:
            yield Piece(held, first, False)
            held, first = text, False
        elif text:
            held = text
