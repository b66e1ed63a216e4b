"""Raw text from anywhere: files, folders, globs and addresses become one stream of documents, in bounded memory.

Formats: .txt and .md (a file is one document, unless lines that are exactly `<|endoftext|>` part it), .jsonl (.ndjson)
.parquet and .arrow (a row is one document), each also .gz, .xz or .zst. A document may be larger than memory: what
streams is its pieces.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from mini_llm import log
from mini_llm.data.conversions import conversions
from mini_llm.data.formats import (
    BLOCK_BYTES,
    NULL,
    PLAIN,
    SUPPORTED,
    format_of,
    naming_file,
    read_texts,
    refuse_without_mark,
)
from mini_llm.data.reading import Reading
from mini_llm.data.remote import File, at_hand, find_remote, is_address, name_of, size_of
from mini_llm.data.walking import matching, walk
from mini_llm.errors import UserError, did_you_mean
from mini_llm.user_files import above, kind_of, open_file, shown, what_is


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
        self.found = Reading()
        self.reading = self.found  # of the last pass
        self.files = _find_all(sources, self.found)
        self.total_bytes = sum(map(size_of, self.files))
        self.done_bytes = 0  # of the files as they lie on the disk
        self.text_column = text_column

    def pieces(self, description: str | None = None) -> Iterator[Piece]:
        """Yield all documents, file by file; with `description`, progress is shown.

        Raises:
            UserError: a file is corrupt, not UTF-8 or lacks the text column (it names the file and the line), or there
                is no text at all.
        """
        found, self.done_bytes = False, 0
        count = self.new_reading()
        with log.byte_progress(description, self.total_bytes) if description else nullcontext(_ignore) as show:
            for source in self.files:
                path, start, empty = Path(name_of(source)), self.done_bytes, True
                column = getattr(source, "column", None) or self.text_column
                with at_hand(source) as here, open_file(here) as file, naming_file(path):
                    for piece in file_pieces(read_texts(file, path, column), count, path):
                        empty = False
                        yield piece
                        if (done := start + file.tell()) - self.done_bytes >= BLOCK_BYTES:
                            self.done_bytes = done
                            show(done)
                    self.done_bytes = start + os.fstat(file.fileno()).st_size
                show(self.done_bytes)
                found = found or not empty
                count.files += not empty
                if empty:
                    count.leave_out("files without text", path)
                    log.note(f"{path} holds no text")
        if not found:
            raise self.no_text()

    def no_text(self) -> UserError:
        """Return the error of a corpus whose files are all empty."""
        return UserError(f"no text in {', '.join(map(name_of, self.files[:3]))}{' ...' if len(self.files) > 3 else ''}")

    def new_reading(self) -> Reading:
        """Begin a pass over the corpus: return what counts it, with that left out already that was never opened."""
        self.reading = Reading(left_out=dict(self.found.left_out), examples=dict(self.found.examples))
        return self.reading


def read_documents(
    sources: Sequence[str | Path], *, text_column: str = "text", description: str | None = None
) -> Iterator[str]:
    """Yield the text of every document, and tell what was left out; those above 1,048,576 characters come in pieces.

    Raises:
        UserError: as `Corpus` (at once) and `Corpus.pieces` (while reading).
    """
    return _texts(Corpus(sources, text_column), description)


def _texts(corpus: Corpus, description: str | None) -> Iterator[str]:
    for piece in corpus.pieces(description):
        yield piece.text
    _tell_left_out(corpus.reading)


def _tell_left_out(count: Reading) -> None:
    if count.left_out:
        log.info(f"left out: {count.left()}")


def file_pieces(texts: Iterator[str | None], count: Reading, path: Path) -> Iterator[Piece]:
    """Mark where documents begin and end; those without anything but white space are dropped, and all are counted.

    Raises:
        UserError: the text is UTF-16 that has no mark.
    """
    held, first = "", True

    def checked(last: bool) -> Piece:
        if first:
            count.documents += 1
            refuse_without_mark(held, path)
        return Piece(held, first, last)

    for text in texts:
        if text is None:
            if not first or held.strip():
                yield checked(last=True)
            elif held or format_of(path) not in PLAIN:
                count.leave_out("blank documents" if held is not NULL else "nulls", path)
            held, first = "", True
        elif text and held:
            yield checked(last=False)
            held, first = text, False
        elif text:
            held = text


def _ignore(_done: int) -> None: ...


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """Return the files behind `sources`: each once, those of a folder or glob in sorted order; tell what is left out.

    Raises:
        UserError: a source does not exist, holds no text file, or is of an unknown format.
    """
    for source in sources:
        if is_address(str(source)):
            raise UserError(f"{source}: only files of this machine are read here", "fetch them first")
    count = Reading()
    found = [file for file in _find_all(sources, count) if isinstance(file, Path)]
    _tell_left_out(count)
    return found


def _find_all(sources: Sequence[str | Path], count: Reading) -> list[File]:
    files: dict[Path | str, File] = {}
    for source in sources:
        if is_address(str(source)):
            files.update({file.url: file for file in find_remote(str(source))})
            continue
        for path in _find(str(source), count):
            if files.setdefault(path.resolve(), path) != path:
                count.leave_out("files met twice", path)
    if not files:
        raise UserError("no files to read", "name files, folders or quoted globs")
    return list(files.values())


def _find(source: str, count: Reading) -> list[Path]:
    path = Path(source)
    kind = kind_of(path)
    if kind == "folder":
        return _known(_of_datasets(walk(path, count), path, count), f"the folder {source}", count)
    if kind == "file":
        if format_of(path) is None:
            raise UserError(f"cannot read {source}: unknown format '{path.suffix}'", _how([path.suffix]))
        return [path]
    if kind == "nothing" and glob.has_magic(source):
        return _known(matching(source, count), f"the glob {source}", count)
    if kind == "other":
        raise UserError(f"{source} is {what_is(path)}, not a regular file")
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"no file, folder or glob '{shown(source)}'{did_you_mean(path.name, names)}", above(path))


def _of_datasets(files: list[Path], folder: Path, count: Reading) -> list[Path]:
    """Leave out what `datasets` keeps beside a text: its caches, and in a folder of splits all but `train`."""
    kept = []
    for path in files:
        is_split = (path.parent.parent / "dataset_dict.json").is_file() and path.parent.parent.is_relative_to(folder)
        if path.suffix == ".arrow" and path.name.startswith("cache-"):
            count.leave_out("caches of `datasets`", path)
        elif path.suffix == ".arrow" and is_split and path.parent.name != "train":
            count.leave_out("files of other splits than train", path)
        else:
            kept.append(path)
    return kept


def _known(paths: list[Path], where: str, count: Reading) -> list[Path]:
    known = [path for path in paths if format_of(path)]
    for path in paths:
        if not format_of(path):
            count.leave_out(f"{path.suffix or 'nameless'} files", path)
    if not known:
        found = ", ".join(sorted({path.suffix or path.name for path in paths})[:8])
        raise UserError(
            f"no text files in {where}" + (f"; it has {found}" if found else ""), _how(path.suffix for path in paths)
        )
    if how := conversions(path.suffix for path in paths if not format_of(path)):
        log.note(f"some files in {where} are not read as they are; what makes text of them:\n{how}")
    return sorted(known)


def _how(suffixes: Iterable[str]) -> str:
    how = conversions(suffixes)
    return f"{SUPPORTED}; first make text of it:\n{how}" if how else SUPPORTED
