"""The same ids several times sooner: kitoken encodes where it is proved to give what `tokenizers` gives.

The proof is made twice: at the start on texts that are hard for tokenizers, and all along on a sample of the very text.
"""

from __future__ import annotations

import re
from typing import Any

from mini_llm.tokenizer.bounded import is_panic
from mini_llm.tokenizer.samples import SAMPLES
from mini_llm.tokenizer.tokenizer import Tokenizer

SHARE = 400  # of so many characters one is encoded twice: 1.4 % of the time, where kitoken is 5.5 times faster
SAMPLE_CHARS = 2048
BLANK_BLOCK = (
    2**17
)  # kitoken brings the process down at 1,000,000 blanks in a row: from two of these on it has no chance
HARD = (
    *SAMPLES.values(),
    "",
    " ",
    "  two   spaces \n\n\t lines\r\nand \x00 control \x1b[0m\x7f",
    "\u2581 \u2581\u2581a \ue000 \ue001\ue002 <0x41> \ufffd \ufeff\u200b\u00a0\u2028\u3000x",
    "e\u0301 \u00e9 \ufb01 \u0130I\u0131 \u1e9e",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U00010348",
    "1234567890 3.14159 1,000,000 0x1F 1e-9 don't I'LL we'Ve it\u2019s",
    "a" * 700,
    " " * 700 + "\n" * 50,
    "ab " * 300 + "x",
    "\u0e01\u0e33\u0e25\u0e31\u0e07 \u0645\u0631\u062d\u0628\u0627 \u65e5\u672c\u8a9e\u30c6\u30b9\u30c8",
)


class DifferentIds(Exception):
    """kitoken and `tokenizers` do not agree on some text: all has to be encoded again, by the second."""


def slower(reason: str) -> str:
    """Return what the user is told where `tokenizers` encodes a large text."""
    return f"`tokenizers` encodes, several times slower than kitoken would: {reason}"


class FastEncoder:
    """Encodes as `Tokenizer.encode_batch` does. `engine` says by which library, `reason` why not by the faster one.

    Texts that hold the name of a control token, which kitoken would cut there, go through `tokenizers` alone.
    """

    def __init__(self, tokenizer: Tokenizer, *, proved: bool = True) -> None:
        """Prepare the faster library; not where `proved` says that it was found to differ."""
        self._tokenizer = tokenizer
        self._encoded = self._sampled = 0
        names = sorted(map(re.escape, tokenizer.added_tokens), key=len, reverse=True)
        self._names = re.compile("|".join(names) or "(?!)")
        self._kitoken: Any = None
        self.reason = "it gave other ids for this text"
        if proved:
            self._kitoken, self.reason = _load(tokenizer)
        if self._kitoken is not None:
            try:
                hard = [*HARD, *(f"a {name} b\n{name}" for name in tokenizer.added_tokens[:64])]
                self._compare(hard, [self._encode(text) for text in hard])
            except DifferentIds:
                self._kitoken, self.reason = None, "it gives other ids"
        self.engine = "tokenizers" if self._kitoken is None else "kitoken"

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens.

        Raises:
            DifferentIds: the two libraries do not agree on a sample of these texts.
        """
        if self._kitoken is None:
            return self._tokenizer.encode_batch(texts)
        for text in texts:
            self._encoded += len(text)
            if self._sampled * SHARE < self._encoded:
                sample = [text[:SAMPLE_CHARS]]
                self._sampled += len(sample[0])
                self._compare(sample, [self._encode(sample[0])])
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        if self._names.search(text) or _has_blank_block(text):
            return self._tokenizer.encode(text)
        try:
            ids: list[int] = self._kitoken.encode(text, False)
        except (ValueError, RuntimeError):  # a lone surrogate; what it cannot encode
            return self._tokenizer.encode(text)
        return ids

    def _compare(self, texts: list[str], ids: list[list[int]]) -> None:
        if self._tokenizer.encode_batch(texts) != ids:
            raise DifferentIds


def _has_blank_block(text: str) -> bool:
    starts = range(0, len(text) - BLANK_BLOCK + 1, BLANK_BLOCK)
    return any(text[start : start + BLANK_BLOCK].isspace() for start in starts)


def _load(tokenizer: Tokenizer) -> tuple[Any, str]:
    if tokenizer.own_patterns:  # where one backtracks too long kitoken brings the process down
        return None, f"nobody knows whether its pattern ends on every text: {tokenizer.own_patterns[0][:60]}"
    try:
        from kitoken import Kitoken
    except ImportError:
        return None, "it is not installed: pip install 'mini-llm[data]'"
    try:
        return Kitoken.from_tokenizers(tokenizer.as_json().encode()), ""
    except BaseException as problem:  # a panic of its own is no Exception
        if not (isinstance(problem, Exception) or is_panic(problem)):
            raise
        return None, f"it cannot read this tokenizer ({problem})"
