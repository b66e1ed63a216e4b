"""A foreign tokenizer at work for the first time, in a process of its own: whatever it does ends with this process.

The seconds of computing that it may take are the argument. The tokenizer.json comes in on stdin; "sound", or what is
wrong, goes out on stdout.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

MEMORY_BYTES = 4 << 30
MOST_OWN = 100  # characters of patterns, or words that are replaced
MOST_WORDS = 300  # characters of a complaint


def patterns_in(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the patterns anywhere in a part of a tokenizer.json: their kind, `Regex` or `String`, and the text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("Regex", "String") and isinstance(inner, str):
                yield key, inner
            else:
                yield from patterns_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from patterns_in(inner)


def texts(spec: Any) -> Iterator[str]:
    """Yield what patterns and rules of replacement have run away on: each character, and long runs, also of theirs."""
    yield from ("A word, 1 more", "", " ", "\n\n \t\r\n  x", "don't", "<s></s>", "\u2581\u2581a\u2581", "e\u0301 🙂")
    yield "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    for run in (*"aA1 \n-=._é漢", "ab", "a ", "a1", "aA", "!?", "\u0915\u093f"):
        yield run * 2000 + "!"
        yield "." + run * 40 + "\u0001b"
    own = list(patterns_in([spec.get("normalizer"), spec.get("pre_tokenizer")]))
    for character in sorted({character for kind, text in own if kind == "Regex" for character in text})[:MOST_OWN]:
        yield character * 2000 + "\u0001"
    for word in [text for kind, text in own if kind == "String"][:MOST_OWN]:
        yield word * 8


def work(data: str) -> str:
    """Return "sound", or what is wrong."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(data)
    backend.no_padding()
    backend.no_truncation()
    last = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    for flag in (True, False):
        backend.encode_special_tokens = flag
        for text in texts(json.loads(data)):
            ids = backend.encode(text, add_special_tokens=flag).ids
            if ids and max(ids) > last:
                return f"it makes the id {max(ids):,}, which is none of its tokens"
            if len(ids) > 50 * len(text) + 50:
                return f"it makes {len(ids):,} tokens of {len(text):,} characters"
    tokenizers.Tokenizer.from_str(backend.to_str())
    return "sound"


def main() -> None:
    """Try one tokenizer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    _limit(int(sys.argv[1]))
    try:
        said = work(sys.stdin.buffer.read().decode("utf-8"))
    except BaseException as problem:  # a panic of Rust is no Exception
        said = f"{problem}"[:MOST_WORDS] or type(problem).__name__
    sys.stdout.buffer.write(said.encode("utf-8", "replace"))


def _limit(seconds: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # Windows, macOS: the clock of the one who asks is what is left
        return


if __name__ == "__main__":
    main()
