"""A foreign tokenizer at work: its panics become messages, and where its pattern may run away it gets so much time.

Patterns that backtrack cannot be told from sound ones by looking, and no trial meets every text. Those that the widely
used tokenizers have are known to end; any other one works in a thread of its own, and its user is told when it is late.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import tokenizers

from mini_llm.errors import UserError
from mini_llm.terminal import no_stderr
from mini_llm.threads import Worker
from mini_llm.tokenizer.convert import BEFORE_SPACES
from mini_llm.tokenizer.trial_worker import patterns_in

SECONDS = 20.0  # for any text; one of a few lines takes milliseconds
SECONDS_PER_CHARACTER = 20e-6  # more; a busy core encodes a character in 1e-6
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD, MARKS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
MIXED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
KNOWN = {
    BEFORE_SPACES,  # ours
    rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"(?i:{CONTRACTIONS})|{WORD}|\p{{N}}{{1,3}}|{MARKS}|{BLANKS}",  # Llama 3
    rf"(?i:{CONTRACTIONS})|{WORD}|\p{{N}}|{MARKS}|{BLANKS}",  # Qwen 2 and 3
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"  # GPT-4
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    MIXED % ((f"(?i:{CONTRACTIONS})?",) * 2) + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",  # GPT-4o
    MIXED % ("", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}",  # Mistral's tekken
    *(r"\p{N}{1,3}", r"\p{N}", r"\s+", " {2,}", "[0-9]", "[0-9][0-9][0-9]", "[一-龥぀-ゟ゠-ヿ]+"),  # parts of several
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
    rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{BLANKS}",  # DeepSeek V3
}


def own_patterns(backend: tokenizers.Tokenizer) -> list[str]:
    """Return the regular expressions of a tokenizer of which nobody knows that they end on every text."""
    parts = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    return [text for kind, text in patterns_in(parts) if kind == "Regex" and text not in KNOWN]


def is_panic(problem: BaseException) -> bool:
    """Tell whether this is how Rust fails: pyo3's PanicException, which is no Exception and cannot be imported."""
    return type(problem).__name__ == "PanicException"


Encode = Callable[..., list[tokenizers.Encoding]]


def at_work(encode: Encode, texts: list[str], folder: Path, *, bounded: bool) -> list[tokenizers.Encoding]:
    """Return what the tokenizer in `folder` makes of `texts`, `bounded` in time; a lone surrogate counts as U+FFFD.

    What is late goes on in its thread, which ends with the process.

    Raises:
        UserError: it panics, or it is late.
    """
    try:
        return _in_time(encode, texts, folder) if bounded else encode(texts, add_special_tokens=False)
    except TypeError:  # how tokenizers takes a lone surrogate
        clean = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        if clean == texts:
            raise
        return at_work(encode, clean, folder, bounded=bounded)
    except BaseException as problem:
        if not is_panic(problem):
            raise
        raise UserError(f"the tokenizer in {folder} fails at this text: {problem}", "use another model") from None


def _in_time(encode: Encode, texts: list[str], folder: Path) -> list[tokenizers.Encoding]:
    seconds = SECONDS + SECONDS_PER_CHARACTER * sum(map(len, texts))
    alone = threading.current_thread() is threading.main_thread()  # descriptor 2 is everybody's
    with no_stderr() if alone else contextlib.nullcontext():
        worker = Worker(lambda: encode(texts, add_special_tokens=False))
        if worker.wait(seconds):
            return worker.result()
    raise UserError(
        f"the tokenizer in {folder} runs away at this text: no end after {seconds:,.0f} seconds", "use another model"
    )
