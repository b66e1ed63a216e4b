"""A tokenizer.json of somebody else is tried where it can do no harm: sizes first, then in a process of its own.

It is a program: its regular expressions may run for ever, its rules may grow a text without end, and what it says of
itself may bring the library down. What was found sound is remembered by its hash, so that it costs once.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from mini_llm.cache import Known
from mini_llm.child import environment
from mini_llm.tokenizer.convert import is_made_here

MOST_IDS = 2**24  # the largest published tokenizers have 2**18
COMPUTE_SECONDS = 10  # a vocabulary of 256,000 takes 1.7
MOST_SECONDS = 120  # by the clock, where others compute too


def check_tokenizer(data: bytes, library: str) -> None:
    """Return if a tokenizer.json can be loaded and used without harm; `library` is the version that will do it.

    Raises:
        ValueError: it cannot, and why.
    """
    known, name = Known("sound-tokenizers-2"), hashlib.sha256(data + library.encode()).hexdigest()
    if name in known:
        return
    try:
        spec = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_structure(spec)
    if not is_made_here(spec):  # of ours nothing but the vocabulary can differ
        _try(data)
    known.add(name)


def check_structure(spec: Any) -> None:
    """Look at what can be looked at without running it: kinds of values, and that every id is one of a model.

    Raises:
        ValueError: something is not as in any tokenizer.
    """
    if not (isinstance(spec, dict) and isinstance(spec.get("model"), dict)):
        raise ValueError("it has no `model`")
    model, added = spec["model"], spec.get("added_tokens") or []
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict | list) or not isinstance(added, list):
        raise ValueError("its vocabulary is no list of tokens")
    if not (vocabulary or added):
        raise ValueError("it has no tokens")
    if len(vocabulary) + len(added) > MOST_IDS:
        raise ValueError(f"it has {len(vocabulary) + len(added):,} tokens, more than any model's {MOST_IDS:,}")
    for token, number in _ids(vocabulary, added):
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"the id of {token[:40]!r} is no whole number")
        if not 0 <= number < MOST_IDS:
            raise ValueError(f"it has a token of id {number:,}, beyond any model's {MOST_IDS:,}")
    unknown = model.get("unk_id")
    if unknown is not None and not (isinstance(unknown, int) and 0 <= unknown < len(vocabulary)):
        raise ValueError("its unk_id is none of its tokens")


def _ids(vocabulary: dict[str, Any] | list[Any], added: list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    for entry in added:
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"]):
            raise ValueError("one of its added tokens has no text")
        yield entry["content"], entry.get("id")


def _try(data: bytes) -> None:
    command = [sys.executable, "-P", "-m", "mini_llm.tokenizer.trial_worker", str(COMPUTE_SECONDS)]
    try:
        found = subprocess.run(
            command, input=data, capture_output=True, timeout=MOST_SECONDS, env=environment(), check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"encoding a few lines with it does not end within {MOST_SECONDS} seconds") from None
    except OSError as problem:
        raise ValueError(f"the process to try it in cannot be started: {problem.strerror}") from None
    said = found.stdout.decode("utf-8", "replace")
    if found.returncode == 0 and said == "sound":
        return
    if said and said != "sound":
        raise ValueError(said)
    raise ValueError("encoding a few lines with it does not end, or brings down the process that does it")
