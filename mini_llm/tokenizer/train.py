"""Learn a vocabulary from text with SentencePiece, losing nothing and holding only a sample in memory."""

from __future__ import annotations

import heapq
import io
import random
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.files import Kind, check_replaceable, new_folder
from mini_llm.hub import TOKENIZER_FILES
from mini_llm.signals import raise_on_signal
from mini_llm.temporary import temporary_folder
from mini_llm.threads import Worker, WorkerDied
from mini_llm.tokenizer.convert import (
    CHAT_MARKERS,
    ESCAPES,
    NAME_CHARACTERS,
    SPECIAL_TOKENS,
    clean_model,
    write_hugging_face,
)
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import json_object, writing_to

# Pieces of a document that are sampled as one, cut before white space where there is any.
CHUNK_CHARACTERS = 4096
FIXED_TOKENS = len(SPECIAL_TOKENS) + 256
CHUNK = re.compile(rf"(?s).{{1,{CHUNK_CHARACTERS}}}(?=\s|\Z)|.{{1,{CHUNK_CHARACTERS}}}")


def _is_trained_here(folder: Path) -> bool:
    return json_object(folder / "tokenizer_config.json").get("extra_special_tokens") == CHAT_MARKERS


TOKENIZER_FOLDER = Kind("a tokenizer", re.compile("|".join(map(re.escape, TOKENIZER_FILES))), _is_trained_here)


class WrongVocabSize(UserError):
    """The text supports fewer tokens, or needs more; `size` is one that works."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message, f"run again with --vocab-size {size}")
        self.size = size


def train_tokenizer(
    documents: Iterable[str], out: Path, *, vocab_size: int, model_type: str, sample_bytes: int, seed: int
) -> Tokenizer:
    """Train on a random sample of about `sample_bytes`, write the tokenizer folder `out`, and return it loaded.

    `model_type` is "bpe" (Sennrich et al. 2016) or "unigram" (Kudo 2018). A tokenizer that `out` already holds is
    replaced; `out` changes only when everything has worked.

    Raises:
        WrongVocabSize: the text is too small or too varied for `vocab_size`.
        UserError: there is no text, or `out` cannot be written.
    """
    check_replaceable(out, TOKENIZER_FOLDER)  # before hours of reading
    started = time.monotonic()
    stoppable = raise_on_signal("stopped: no tokenizer was written")
    with writing_to(out), stoppable, new_folder(out, TOKENIZER_FOLDER) as folder:
        sample = _sample(documents, sample_bytes, seed)
        model = clean_model(_train(sample, vocab_size, model_type))
        (folder / "tokenizer.model").write_bytes(model)
        write_hugging_face(model, model_type, folder)
    log.info(f"{vocab_size:,} tokens ({model_type}) learned in {time.monotonic() - started:.0f} s: {out}")
    return Tokenizer.load(out)


def _sample(documents: Iterable[str], sample_bytes: int, seed: int) -> list[bytes]:
    """Return chunks of about `sample_bytes` in all, each as likely as any other, in the order of the text.

    Every chunk draws a number and the lowest are kept: one pass, whatever the size (bottom-k sampling).
    """
    draw = random.Random(seed).random
    kept: list[tuple[float, int, bytes]] = []  # a heap whose first has the highest draw
    seen_bytes = kept_bytes = 0
    for place, chunk in enumerate(_chunks(documents)):
        seen_bytes += len(chunk)
        kept_bytes += len(chunk)
        heapq.heappush(kept, (-draw(), place, chunk))
        while kept_bytes > sample_bytes and len(kept) > 1:
            kept_bytes -= len(heapq.heappop(kept)[2])
    if not any(chunk.strip() for _, _, chunk in kept):
        raise UserError("the sources hold no text, so there is nothing to learn a vocabulary from")
    log.info(f"training on {kept_bytes / 1e6:,.1f} MB sampled from {seen_bytes / 1e6:,.1f} MB of text")
    return [chunk for _, _, chunk in sorted(kept, key=lambda entry: entry[1])]


def _chunks(documents: Iterable[str]) -> Iterator[bytes]:
    for document in documents:
        for match in CHUNK.finditer(document):
            # SentencePiece skips text with U+2585, its own sign for an unknown character.
            yield match.group().replace("\u2585", " ").encode("utf-8", "replace")


def _train(sample: list[bytes], vocab_size: int, model_type: str) -> bytes:
    """Return a SentencePiece model of `vocab_size`, or raise WrongVocabSize."""
    try:
        with (
            temporary_folder() as rules,
            log.console().status(f"learning {vocab_size:,} tokens ({model_type})"),
        ):
            # In a thread that nobody waits for at exit, so that Ctrl-C works while it runs.
            return Worker(lambda: _run_sentencepiece(sample, max(vocab_size, FIXED_TOKENS), model_type, rules)).result()
    except WorkerDied:
        raise UserError("too little memory to learn a vocabulary", "learn from less: --sample-mb 50") from None
    except RuntimeError as problem:
        too_many = re.search(r"set it to a value <= (\d+)", str(problem))
        too_few = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(problem))
        if too_many:
            size, message = int(too_many[1]), "the text supports at most {:,} tokens, not {:,}"
        elif too_few:
            size, message = int(too_few[1]), "bytes, markers and the text's characters need {:,} tokens, not {:,}"
        else:
            raise UserError(f"SentencePiece cannot learn from this text: {str(problem).splitlines()[0]}") from None
    raise WrongVocabSize(message.format(size, vocab_size), size)


def _run_sentencepiece(sample: list[bytes], vocab_size: int, model_type: str, rules: Path) -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    escape, unescape = rules / "escape.tsv", rules / "unescape.tsv"
    escape.write_text("".join(map(_rule, ESCAPES.keys(), ESCAPES.values())))
    unescape.write_text("".join(map(_rule, ESCAPES.values(), ESCAPES.keys())))
    SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        control_symbols=CHAT_MARKERS,
        # No Unicode normalisation, no space added or dropped: what goes in comes out.
        normalization_rule_tsv=str(escape),
        denormalization_rule_tsv=str(unescape),
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,  # indents become one token
        split_digits=True,
        byte_fallback=True,
        required_chars=NAME_CHARACTERS if model_type == "unigram" else "",
        max_sentence_length=4 * CHUNK_CHARACTERS,
        minloglevel=2,
    )
    return model.getvalue()


def _rule(before: str, after: str) -> str:
    """Return a line of SentencePiece's rule format: code points in hexadecimal."""
    return "\t".join(" ".join(f"{ord(c):X}" for c in text) for text in (before, after)) + "\n"
