"""Learn a vocabulary from text with SentencePiece, losing nothing and holding only a sample in memory."""

from __future__ import annotations

import heapq
import io
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.tokenizer.convert import CHAT_MARKERS, ESCAPES, clean_model, write_hugging_face
from mini_llm.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer

# Pieces of a document that are sampled as one, cut before white space where there is any.
CHUNK_CHARACTERS = 4096
FIXED_TOKENS = 4 + len(CHAT_MARKERS) + 256  # <unk> <s> </s> <pad>, markers, bytes
CHUNK = re.compile(rf"(?s).{{1,{CHUNK_CHARACTERS}}}(?=\s|\Z)|.{{1,{CHUNK_CHARACTERS}}}")


def train_tokenizer(
    documents: Iterable[str], out: Path, *, vocab_size: int, model_type: str, sample_bytes: int, seed: int
) -> Tokenizer:
    """Train on a random sample of about `sample_bytes`, write the tokenizer folder `out`, and return it loaded.

    `model_type` is "bpe" (Sennrich et al. 2016) or "unigram" (Kudo 2018). A tokenizer that `out` already holds is
    replaced; `out` changes only when everything has worked.

    Raises:
        UserError: there is no text, it is too small or too varied for `vocab_size`, or `out` cannot be written.
    """
    _check_replaceable(out)
    with _work_folder(out) as work:
        sample = _sample(documents, sample_bytes, seed)
        started = time.monotonic()
        model = clean_model(_train(sample, vocab_size, model_type, work))
        _publish(model, model_type, work, out)
    log.info(f"{vocab_size:,} tokens ({model_type}) learned in {time.monotonic() - started:.0f} s: {out}")
    return Tokenizer.load(out)


def _check_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder", "choose another --out")
    foreign = sorted({path.name for path in out.iterdir()} - {*TOKENIZER_FILES}) if out.exists() else []
    if foreign:
        raise UserError(f"{out} holds more than a tokenizer ({foreign[0]}): not replaced", "choose another --out")


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside `out`, gone at the end: what is finished in it moves to `out` by a rename."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent)
    except OSError as problem:
        raise UserError(f"cannot write to {out.parent}: {problem.strerror}", "choose another --out") from None
    with folder as name:
        yield Path(name)


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


def _train(sample: list[bytes], vocab_size: int, model_type: str, work: Path) -> bytes:
    """Return a SentencePiece model of `vocab_size`, or raise a UserError that names a size that works."""
    size = max(vocab_size, FIXED_TOKENS)
    try:
        with log.console().status(f"learning {vocab_size:,} tokens ({model_type})"):
            return _in_background(lambda: _run_sentencepiece(sample, size, model_type, work))
    except RuntimeError as problem:
        too_high = re.search(r"set it to a value <= (\d+)", str(problem))
        too_low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(problem))
        if too_high:
            size, message = int(too_high[1]), "the text supports at most {:,} tokens, not {:,}"
        elif too_low:
            size, message = (
                int(too_low[1]),
                "bytes, special tokens and the text's characters need {:,} tokens, not {:,}",
            )
        else:
            raise
    raise UserError(message.format(size, vocab_size), f"run again with --vocab-size {size}")


def _in_background(work: Callable[[], bytes]) -> bytes:
    """Do it in a thread that nobody waits for at exit, so that Ctrl-C works while it runs."""
    done: Future[bytes] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


def _run_sentencepiece(sample: list[bytes], vocab_size: int, model_type: str, work: Path) -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    escape, unescape = work / "escape.tsv", work / "unescape.tsv"
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
        # The letters of the special tokens' own names: see NEVER in convert.py.
        required_chars="<>|/_0123456789ABCDEFadegiknprstumyxbo" if model_type == "unigram" else "",
        max_sentence_length=4 * CHUNK_CHARACTERS,
        minloglevel=2,
    )
    return model.getvalue()


def _rule(before: str, after: str) -> str:
    """Return a line of SentencePiece's rule format: code points in hexadecimal."""
    return "\t".join(" ".join(f"{ord(c):X}" for c in text) for text in (before, after)) + "\n"


def _publish(model: bytes, model_type: str, work: Path, out: Path) -> None:
    """Write the tokenizer in `work`, then put it in the place of `out`: whole or not at all."""
    try:
        new = work / "new"
        new.mkdir()
        (new / "tokenizer.model").write_bytes(model)
        write_hugging_face(model, model_type, new)
        for path in new.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        target = out.resolve()
        if target.exists():
            _check_replaceable(target)
            target.rename(work / "old")
        new.rename(target)
    except OSError as problem:
        raise UserError(f"cannot write {out}: {problem.strerror}", "choose another --out") from None
