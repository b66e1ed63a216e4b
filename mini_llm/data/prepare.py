"""From text to a token store: read, tokenize in parallel, hold some documents out, write.

A small corpus is done at once, a large one in parts that several processes share. The bytes are the same for every
number of them.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mini_llm import log
from mini_llm.data.fill import document_marks, fill
from mini_llm.data.parallel import fill_in_parts, workplace
from mini_llm.data.part_worker import Work
from mini_llm.data.parts import SMALLEST
from mini_llm.data.reading import Reading
from mini_llm.data.remote import File, RemoteFile, size_of
from mini_llm.data.sources import Corpus, Piece
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import ReadFrom, Source, TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.signals import raise_on_signal
from mini_llm.tokenizer.fast import DifferentIds, FastEncoder, slower
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.units import size
from mini_llm.user_files import reason, shown


def prepare(
    sources: Sequence[str | Path],
    tokenizer: Path,
    out: Path,
    *,
    val_fraction: float = 0.01,
    workers: int | None = None,
    text_column: str = "text",
    leaves_out: Callable[[str], bool] | None = None,
    max_tokens: int | None = None,
) -> TokenStore:
    """Tokenize `sources` into a token store at `out`, whole or not at all, and return it opened.

    `workers` is the number of processes, all cores by default; a corpus of less than 16 MB is done by this one.
    `leaves_out(text)` says which documents do not go in; of one that comes in pieces, those alone. It keeps the work in
    this process. The document that reaches `max_tokens` is the last, of a large corpus the part that does.

    Raises:
        UserError: no text, a bad file, no tokenizer, a full disk, or `out` is something else than a token store.
        Interrupted: Ctrl-C or SIGTERM; nothing is left behind.
    """
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction={val_fraction} must be at least 0 and less than 1")
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    start = time.monotonic()
    with raise_on_signal(f"stopped; {out} is as it was before"):
        corpus = Corpus(sources, text_column)
        encoder = Tokenizer.load(tokenizer)
        document_marks(encoder)
        try:
            documents = _write(corpus, encoder, out, val_fraction, workers, leaves_out, max_tokens, proved=True)
        except DifferentIds:
            documents = _write(corpus, encoder, out, val_fraction, workers, leaves_out, max_tokens, proved=False)
    store = TokenStore.open(out)
    log.info(_summary(store, documents, time.monotonic() - start))
    log.info(corpus.reading.line())
    return store


def _write(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: Path,
    val_fraction: float,
    workers: int | None,
    leaves_out: Callable[[str], bool] | None,
    max_tokens: int | None,
    *,
    proved: bool,
) -> int:
    """Write the store and return its documents; `proved` says whether the faster library may encode."""
    large = corpus.total_bytes > SMALLEST or any(isinstance(file, RemoteFile) for file in corpus.files)
    in_parts = leaves_out is None and large
    files = [Source(path=_utf8(file), bytes=size_of(file)) for file in corpus.files]
    with (
        _full_disk(out, corpus),
        workplace(out) if in_parts else nullcontext() as parts,
        TokenStoreWriter.create(out, tokenizer, sources=files) as writer,
    ):
        if parts is not None:
            work = Work(
                tokenizer=str(tokenizer.folder),
                fingerprint=tokenizer.fingerprint,
                folder=str(parts),
                val_fraction=val_fraction,
                text_column=corpus.text_column,
                proved=proved,
            )
            with log.byte_progress("tokenizing", corpus.total_bytes) as show:
                fill_in_parts(writer, corpus.files, work, workers or cores(), corpus.new_reading(), show, max_tokens)
            if not any(writer.tokens.values()):
                raise corpus.no_text()
            documents = corpus.reading.documents
        else:
            encoder = FastEncoder(tokenizer, proved=proved)
            if encoder.engine != "kitoken" and large:
                log.note(slower(encoder.reason))
            kept = corpus.pieces("tokenizing") if leaves_out is None else _kept(corpus, leaves_out)
            documents = fill(writer, tokenizer, encoder, kept, val_fraction, max_tokens)
        read = corpus.reading
        examples = {kind: _utf8(Path(example)) for kind, example in read.examples.items()}
        writer.reading = ReadFrom(files=read.files, documents=read.documents, left_out=read.left_out, examples=examples)
        if val_fraction and not all(writer.tokens.values()):
            log.info(f"too few documents to hold any out: the last {val_fraction:.1%} of the tokens become val")
            writer.hold_out_tail(val_fraction)
    return documents


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _utf8(file: File) -> str:
    r"""Return the name as the manifest can hold it: a byte that is not UTF-8 becomes \xff."""
    return file.url if isinstance(file, RemoteFile) else os.fsencode(file).decode("utf-8", "backslashreplace")


def _kept(corpus: Corpus, leaves_out: Callable[[str], bool]) -> Iterator[Piece]:
    """Drop pieces, and count them; those that stay of a document know which of them are its first and last."""
    held: Piece | None = None
    dropped: list[str] = []
    starts = True
    for piece in corpus.pieces("tokenizing"):
        if piece.first:
            dropped, starts = [], True
        if leaves_out(piece.text):
            dropped.append(" ".join(piece.text[:60].split()))
        else:
            if held is not None:
                yield held
            held, starts = piece._replace(first=starts, last=False), False
        if piece.last:
            if held is not None:
                yield held._replace(last=True)
            _count_dropped(corpus.reading, dropped, whole=held is None)
            held = None


def _count_dropped(count: Reading, dropped: list[str], whole: bool) -> None:
    if dropped and whole:
        count.documents -= 1
        count.leave_out("documents that share text with the sets", dropped[0])
    elif dropped:
        count.leave_out("parts of documents that share text with the sets", dropped[0], len(dropped))


@contextmanager
def _full_disk(out: Path, corpus: Corpus) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"cannot write {shown(out)}: {reason(problem)}") from None
        # What had been written is free again: it was enough for the share of the text that had been read.
        free = shutil.disk_usage(out.resolve().parent).free
        needed = free * corpus.total_bytes / max(corpus.done_bytes, 1)
        hint = f"it needs about {size(needed)} and {size(free)} is free: make room or choose another --out"
        raise UserError(f"the disk is full: {out} was not written", hint) from None


def _summary(store: TokenStore, documents: int, seconds: float) -> str:
    splits = store.manifest.splits
    tokens = ", ".join(f"{split.tokens:,} {name} tokens" for name, split in splits.items())
    text_bytes, total = (sum(getattr(split, field) for split in splits.values()) for field in ("text_bytes", "tokens"))
    speed = f"{text_bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s"
    return (
        f"{documents:,} document{'s' * (documents != 1)}, {tokens}, {text_bytes / total:.2f} bytes per token, {speed}"
    )
