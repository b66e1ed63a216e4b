"""Raw text from anywhere: files, folders and globs become one stream of documents, in bounded memory.

Formats: .txt and .md (a file is one document, unless lines that are exactly `<|endoftext|>` part it), .jsonl (.ndjson)
and .parquet (a row is one document), each also .gz, .xz or .zst. A document may be larger than memory: what streams is
its pieces.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from mini_llm import log
from mini_llm.data.formats import BLOCK_BYTES, SUPPORTED, format_of, naming_file, read_texts
from mini_llm.errors import UserError, did_you_mean


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
                with naming_file(path), path.open("rb") as file:
                    for piece in _pieces(read_texts(file, path, self._text_column)):
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


def _ignore(_done: int) -> None: ...


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
        if format_of(path) is None:
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
    known = [path for path in paths if format_of(path)]
    if not known:
        found = ", ".join(sorted({path.suffix or path.name for path in paths})[:8])
        raise UserError(f"no text files in {where}" + (f"; it has {found}" if found else ""), SUPPORTED)
    return known
