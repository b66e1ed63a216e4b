"""From pieces of text to tokens in a store: encode, mark where documents begin and end, choose their side.

A document becomes `<s> text </s>`. Which side it falls on depends on a hash of its text alone, so neither on the order
of the files nor on the number of workers, and copies of a document never stand on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from mini_llm.data.sources import Piece
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.errors import UserError
from mini_llm.tokenizer.fast import FastEncoder
from mini_llm.tokenizer.tokenizer import Tokenizer

BATCH_CHARS = 2**20  # ids are 32 bytes each until they are written: batches of 4 MB cost 4 % more, for fresh memory


def fill(
    writer: TokenStoreWriter,
    tokenizer: Tokenizer,
    encoder: FastEncoder,
    pieces: Iterable[Piece],
    val_fraction: float,
    max_tokens: int | None = None,
) -> int:
    """Append all documents to the store, or those until one reaches `max_tokens`, and return their number.

    Raises:
        UserError: the tokenizer has no mark that parts documents.
        DifferentIds: the faster library cannot be trusted with this text.
    """
    before, after = document_marks(tokenizer)
    side, documents = "train", 0
    for batch in _batches(pieces):
        for piece, ids in zip(batch, encoder.encode_batch([piece.text for piece in batch]), strict=True):
            utf8 = piece.text.encode()
            if piece.first:
                side = "val" if _hash(utf8) < val_fraction else "train"
                ids[:0] = before
            if piece.last:
                ids += after
            writer.append(side, ids, text_bytes=len(utf8), new_document=piece.first)
            documents += piece.first
            if max_tokens is not None and piece.last and sum(writer.tokens.values()) >= max_tokens:
                return documents
    return documents


def document_marks(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before and after each document: bos and eos, once only where they are the same token.

    Raises:
        UserError: the tokenizer has neither.
    """
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
