"""Tokenizers side by side: how short they make a text, what they waste, what they lose, and how they cut it.

`measure` gives the numbers, `pieces` the cuts; report_page.py writes them as Markdown, `print_report` shows them here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mini_llm.errors import UserError
from mini_llm.terminal import safe_console
from mini_llm.tokenizer.decoding import BYTE_PIECE
from mini_llm.tokenizer.samples import SAMPLES
from mini_llm.tokenizer.tokenizer import Tokenizer

SPEED_SECONDS = 0.3  # a shorter text is encoded again and again for this long
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})
BOUNDARY = "│"


@dataclass(frozen=True)
class Measures:
    """What one tokenizer makes of one text; shares are of 1."""

    name: str
    algorithm: str
    vocab_size: int
    tokens: int
    bytes_per_token: float
    tokens_per_word: float
    byte_share: float  # tokens that are single bytes or parts of characters
    unused_share: float  # pieces, bytes and special tokens aside, that the text never needed
    encode_mb_per_second: float  # on all cores
    round_trips: int  # texts that came back to the letter, of `texts`
    texts: int
    bytes_per_token_by_kind: dict[str, float]  # of the built-in samples


@dataclass(frozen=True)
class Subject:
    """A tokenizer under study and the name to call it by."""

    name: str
    algorithm: str
    tokenizer: Tokenizer
    is_byte: np.ndarray  # bool [vocab_size]
    is_special: np.ndarray  # bool [vocab_size]


def load_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Load tokenizer folders; where two have one name, their paths become the names.

    Raises:
        UserError: a folder is missing, damaged or of an unknown kind.
    """
    # `data/tokenizer` and `runs/x/tokenizer` are usual: the folder above says more.
    names = [f.parent.name if f.name == "tokenizer" and f.parent.name else f.name for f in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    return [_load(folder, name) for folder, name in zip(folders, names, strict=True)]


def _load(folder: Path, name: str) -> Subject:
    tokenizer = Tokenizer.load(folder)
    spec = json.loads(tokenizer.as_json())
    strings = {i: token for token, i in _vocabulary(spec["model"].get("vocab", {}))}
    table = tokenizer.rules.table
    return Subject(
        name=name,
        algorithm=str(spec["model"].get("type", "?")),
        tokenizer=tokenizer,
        is_byte=np.array(
            [bool(BYTE_PIECE.fullmatch(strings.get(i, ""))) or not _is_text(b) for i, b in enumerate(table)]
        ),
        is_special=np.array([not data for data in table]),
    )


def _vocabulary(vocab: Any) -> list[tuple[str, int]]:
    if isinstance(vocab, dict):
        return list(vocab.items())
    return [(entry[0], i) for i, entry in enumerate(vocab)]  # Unigram: a list of (piece, score)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def measure(subject: Subject, texts: Sequence[str]) -> Measures:
    """Measure a tokenizer on `texts`.

    Raises:
        UserError: the texts hold nothing.
    """
    texts = [text for text in texts if text]
    n_bytes, n_words = sum(len(t.encode("utf-8", "replace")) for t in texts), sum(len(t.split()) for t in texts)
    if not n_words:
        raise UserError("the text is empty, so there is nothing to measure")
    tokenizer = subject.tokenizer
    encoded = tokenizer.encode_batch(list(texts))
    counts = np.bincount(
        np.concatenate([np.array(ids, dtype=np.int64) for ids in encoded]), minlength=tokenizer.vocab_size
    )
    pieces = ~(subject.is_byte | subject.is_special)
    n_tokens = max(1, int(counts.sum()))
    return Measures(
        name=subject.name,
        algorithm=subject.algorithm,
        vocab_size=tokenizer.vocab_size,
        tokens=int(counts.sum()),
        bytes_per_token=n_bytes / n_tokens,
        tokens_per_word=n_tokens / n_words,
        byte_share=float(counts[subject.is_byte].sum() / n_tokens),
        unused_share=float((counts[pieces] == 0).mean()) if pieces.any() else 0.0,
        encode_mb_per_second=_speed(tokenizer, texts, n_bytes),
        round_trips=sum(tokenizer.decode(ids) == text for ids, text in zip(encoded, texts, strict=True)),
        texts=len(texts),
        bytes_per_token_by_kind={
            kind: len(text.encode()) / max(1, len(tokenizer.encode(text))) for kind, text in SAMPLES.items()
        },
    )


def _speed(tokenizer: Tokenizer, texts: Sequence[str], n_bytes: int) -> float:
    started, rounds = time.perf_counter(), 0
    while rounds == 0 or time.perf_counter() - started < SPEED_SECONDS:
        tokenizer.encode_batch(list(texts))
        rounds += 1
    return rounds * n_bytes / 1e6 / (time.perf_counter() - started)


def pieces(subject: Subject, text: str) -> list[str]:
    """Return the tokens of `text` for the eye: spaces and line ends visible, parts of characters in hexadecimal."""
    shown = []
    for token_id in subject.tokenizer.encode(text):
        data = subject.tokenizer.rules.bytes_of(token_id)
        if not data:
            shown.append(f"⟨{token_id}⟩")  # the unknown token, which stands for what is lost
        elif subject.is_byte[token_id]:
            shown.append("".join(f"⟨{byte:02X}⟩" for byte in data))
        else:
            shown.append(data.decode("utf-8").translate(VISIBLE))
    return shown


def rows(found: Sequence[Measures]) -> list[list[str]]:
    """Return the table: a row for each quantity, a column for each tokenizer, the first row and column are heads."""
    quantities = (
        ("algorithm", lambda m: m.algorithm),
        ("vocabulary", lambda m: f"{m.vocab_size:,}"),
        ("tokens", lambda m: f"{m.tokens:,}"),
        ("bytes per token", lambda m: f"{m.bytes_per_token:.2f}"),
        ("tokens per word", lambda m: f"{m.tokens_per_word:.2f}"),
        ("byte-fallback tokens", lambda m: f"{m.byte_share:.2%}"),
        ("unused pieces", lambda m: f"{m.unused_share:.1%}"),
        (f"encoding, {os.cpu_count()} cores", lambda m: f"{m.encode_mb_per_second:.1f} MB/s"),
        ("texts that come back", lambda m: f"{m.round_trips:,} of {m.texts:,}"),
    )
    by_kind = [
        [f"bytes per token: {kind}", *(f"{m.bytes_per_token_by_kind[kind]:.2f}" for m in found)] for kind in SAMPLES
    ]
    return [["", *(m.name for m in found)], *([name, *(show(m) for m in found)] for name, show in quantities), *by_kind]


def as_json(found: Sequence[Measures], source: str) -> dict[str, Any]:
    """Return all numbers for programs."""
    return {"text": source, "tokenizers": [asdict(m) for m in found]}


def print_report(
    subjects: Sequence[Subject], found: Sequence[Measures], source: str, file: TextIO | None = None
) -> None:
    """Print the table and the examples: each token on its own colour on a terminal, between bars in a pipe."""
    from rich.table import Table
    from rich.text import Text

    console = safe_console(file=file or sys.stdout, soft_wrap=False)
    table = Table(title=f"Measured on {source}", title_justify="left", box=None, pad_edge=False)
    head, *body = rows(found)
    for place, name in enumerate(head):
        table.add_column(Text(name), justify="right" if place else "left", no_wrap=True)
    for row in body:
        table.add_row(*map(Text, row))
    console.print(table)
    grounds = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
    for kind, text in SAMPLES.items():
        console.print(Text(f"\n{kind}", style="bold"))
        for subject in subjects:
            cut = pieces(subject, text)
            console.print(Text(f"{subject.name}, {len(cut)} tokens", style="dim"))
            if console.color_system is None:
                console.print(Text(BOUNDARY.join(cut)), soft_wrap=True)
            else:
                console.print(Text.assemble(*((piece, grounds[i % 4]) for i, piece in enumerate(cut))))
