"""From text to a token store: read, tokenize in parallel, hold some documents out, write.

A document becomes `<s> text </s>`. Which side it falls on depends on a hash of its text alone, so neither on the order
of the files nor on the number of threads, and copies of a document never stand on both sides.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mini_llm import log
from mini_llm.data.sources import Corpus, Piece
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import ReadFrom, Source, TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.signals import raise_on_signal
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import reason, shown

BATCH_CHARS = 2**22  # 4 MB: enough to keep every thread busy, and a signal waits for one batch at most


def prepare(
    sources: Sequence[str | Path],
    tokenizer: Path,
    out: Path,
    *,
    val_fraction: float = 0.01,
    workers: int | None = None,
    text_column: str = "text",
    leaves_out: Callable[[str], bool] | None = None,
) -> TokenStore:
    """Tokenize `sources` into a token store at `out`, whole or not at all, and return it opened.

    `workers` is the number of threads, all cores by default. It counts only before the first text of this process is
    tokenized: the pool of `tokenizers` is made then, and stays. `leaves_out(text)` says which documents do not go
    in; of one that comes in pieces, those alone.

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
        files = [Source(path=_utf8(path), bytes=path.stat().st_size) for path in corpus.files]
        with _full_disk(out, corpus), TokenStoreWriter.create(out, encoder, sources=files) as writer:
            documents = _fill(writer, encoder, corpus, val_fraction, leaves_out)
            read = corpus.reading
            writer.reading = ReadFrom(files=read.files, documents=read.documents, left_out=read.left_out)
            if val_fraction and not all(writer.tokens.values()):
                log.info(f"too few documents to hold any out: the last {val_fraction:.1%} of the tokens become val")
                writer.hold_out_tail(val_fraction)
    store = TokenStore.open(out)
    log.info(_summary(store, documents, time.monotonic() - start))
    log.info(corpus.reading.line())
    return store


def _utf8(path: Path) -> str:
    r"""Return the name as the manifest can hold it: a byte that is not UTF-8 becomes \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _fill(
    writer: TokenStoreWriter,
    tokenizer: Tokenizer,
    corpus: Corpus,
    val_fraction: float,
    leaves_out: Callable[[str], bool] | None,
) -> int:
    """Append all documents of `corpus` to the store and return their number."""
    before, after = _document_marks(tokenizer)
    side, documents = "train", 0
    pieces = corpus.pieces("tokenizing")
    for batch in _batches(pieces if leaves_out is None else _kept(pieces, leaves_out)):
        for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
            utf8 = piece.text.encode()
            if piece.first:
                side = "val" if _hash(utf8) < val_fraction else "train"
                ids = before + ids
            if piece.last:
                ids = ids + after
            writer.append(side, ids, text_bytes=len(utf8), new_document=piece.first)
            documents += piece.first
    return documents


def _kept(pieces: Iterable[Piece], leaves_out: Callable[[str], bool]) -> Iterator[Piece]:
    """Drop pieces; those that stay of a document know which of them are its first and last."""
    held: Piece | None = None
    dropped, starts = 0, False
    for piece in pieces:
        if piece.first:
            if held is not None:
                yield held._replace(last=True)
            held, starts = None, True
        if leaves_out(piece.text):
            dropped += 1
            continue
        if held is not None:
            yield held
        held, starts = piece._replace(first=starts, last=False), False
    if held is not None:
        yield held._replace(last=True)
    log.info(f"left out: {dropped:,} document{'s' * (dropped != 1)} that share text with the sets")


def _document_marks(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before and after each document: bos and eos, once only where they are the same token."""
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id in (None, tokenizer.bos_id) else [tokenizer.eos_id]
    if not before and not after:
        raise UserError(
            f"the tokenizer {tokenizer.folder} has neither a bos_token nor an eos_token to part documents with",
            f"name one in {tokenizer.folder / 'tokenizer_config.json'}",
        )
    return before, after


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash(text: bytes) -> float:
    """Spread texts evenly over 0 <= x < 1, the same way on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64


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
        hint = f"it needs about {_size(needed)} and {_size(free)} is free: make room or choose another --out"
        raise UserError(f"the disk is full: {out} was not written", hint) from None


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _summary(store: TokenStore, documents: int, seconds: float) -> str:
    splits = store.manifest.splits
    tokens = ", ".join(f"{split.tokens:,} {name} tokens" for name, split in splits.items())
    text_bytes, total = (sum(getattr(split, field) for split in splits.values()) for field in ("text_bytes", "tokens"))
    speed = f"{text_bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s"
    return (
        f"{documents:,} document{'s' * (documents != 1)}, {tokens}, {text_bytes / total:.2f} bytes per token, {speed}"
    )
