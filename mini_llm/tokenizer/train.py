"""Learn a vocabulary from text with SentencePiece, losing nothing and holding only a sample in memory."""

from __future__ import annotations

import heapq
import io
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mini_llm import log
from mini_llm.errors import UserError
from mini_llm.tokenizer.convert import CHAT_MARKERS, ESCAPES, round_scores, write_hugging_face
from mini_llm.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer

# Pieces of a document that are sampled as one, cut before white space where there is any.
CHUNK_CHARACTERS = 4096
CHUNK = re.compile(rf"(?s).{{1,{CHUNK_CHARACTERS}}}(?=\s|\Z)|.{{1,{CHUNK_CHARACTERS}}}")


def train_tokenizer(
    documents: Iterable[str], out: Path, *, vocab_size: int, model_type: str, sample_bytes: int, seed: int
) -> Tokenizer:
    """Train on a random sample of about `sample_bytes`, write the tokenizer folder `out`, and return it loaded.

    `model_type` is "bpe" (Sennrich et al. 2016) or "unigram" (Kudo 2018). A tokenizer that `out` already holds is
    replaced; `out` changes only when everything has worked.

    Raises:
        UserError: there is no text, it is too small or too varied for `vocab_size`, or `out` holds other files.
    """
    _check_replaceable(out)
    sample = _sample(documents, sample_bytes, seed)
    started = time.monotonic()
    model = _train_in_background(sample, vocab_size, model_type)
    if model_type == "unigram":
        model = round_scores(model)
    _write(model, model_type, out)
    log.info(f"{vocab_size:,} tokens ({model_type}) learned in {time.monotonic() - started:.0f} s: {out}")
    return Tokenizer.load(out)


def _check_replaceable(out: Path) -> None:
    if out.is_dir():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in TOKENIZER_FILES)
        if foreign:
            raise UserError(
                f"{out} holds more than a tokenizer ({foreign[0]}), so it is not replaced", "choose another --out"
            )
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out} is not a folder", "choose another --out")


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
            yield match.group().encode("utf-8", "replace")


def _train_in_background(sample: list[bytes], vocab_size: int, model_type: str) -> bytes:
    """Train in a thread, so that the console stays alive and Ctrl-C works."""
    result: list[bytes | BaseException] = []

    def work() -> None:
        try:
            result.append(_train(sample, vocab_size, model_type))
        except BaseException as problem:
            result.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    started = time.monotonic()
    with log.console().status("") as status:
        thread.start()
        while thread.is_alive():
            status.update(f"learning {vocab_size:,} tokens ({model_type}): {time.monotonic() - started:.0f} s")
            thread.join(timeout=0.5)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _train(sample: list[bytes], vocab_size: int, model_type: str) -> bytes:
    """Return a SentencePiece model of `vocab_size`, or raise a UserError that names a size that works."""
    try:
        return _run_sentencepiece(sample, vocab_size, model_type)
    except RuntimeError as problem:
        too_high = re.search(r"set it to a value <= (\d+)", str(problem))
        too_low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(problem))
        if too_high is None and too_low is None:
            raise
    size = int((too_high or too_low).group(1))  # type: ignore[union-attr]
    if too_high:
        message = f"the text supports at most {size:,} tokens, not {vocab_size:,}"
    else:
        message = f"{vocab_size:,} tokens are too few: bytes, special tokens and the text's characters need {size:,}"
    raise UserError(message, f"run again with --vocab-size {size}")


def _run_sentencepiece(sample: list[bytes], vocab_size: int, model_type: str) -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        escape, unescape = Path(folder, "escape.tsv"), Path(folder, "unescape.tsv")
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


def _write(model: bytes, model_type: str, out: Path) -> None:
    """Write the folder under a temporary name, then rename it: whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        (temporary / "tokenizer.model").write_bytes(model)
        write_hugging_face(model, model_type, temporary)
        temporary.chmod(0o755)
        if out.exists():
            _check_replaceable(out)
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
