"""A tokenizer as llama.cpp keeps it: tokens with their kinds, the order of merges, a name for the cut into words.

llama.cpp knows two algorithms that matter here. `llama` is SentencePiece's: spaces become U+2581, any two neighbours
that form a piece are joined, best score first, and what is no piece becomes bytes. `gpt2` is byte-level BPE: a regular
expression cuts words, and llama.cpp has it built in under a name, for no file can carry it.
Whatever would get other ids there is refused by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from mini_llm.errors import UserError
from mini_llm.tokenizer.convert import ESCAPES, SPACE
from mini_llm.tokenizer.template import default_source
from mini_llm.tokenizer.tokenizer import Tokenizer

ELSEWHERE = "llama.cpp's own convert_hf_to_gguf.py knows more tokenizers than Mini-LLM does"
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The regular expression of a byte-level tokenizer -> what llama.cpp calls it.
WORDS = {rf"{LETTERS}|\p{{N}}{{1,3}}|{REST}": "llama-bpe", rf"{LETTERS}|\p{{N}}|{REST}": "qwen2"}
WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is a token is taken whole, whatever the merges say
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Kind(IntEnum):
    """What a token is, by llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in GGUF's words; the place in the lists is the id."""

    model: str  # llama or gpt2
    pre: str  # how llama.cpp calls the cut into words
    tokens: list[str]
    kinds: list[Kind]
    scores: list[float] = field(default_factory=list)  # llama: the higher, the earlier a piece is joined
    merges: list[str] = field(default_factory=list)  # gpt2: "left right", first ones first
    add_space_prefix: bool = False
    special_ids: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, unk, pad: those that exist
    add_bos: bool = False
    chat_template: str | None = None


def read_vocabulary(tokenizer: Tokenizer, n_ids: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer's folder; ids up to `n_ids`, the model's, are filled with unused tokens.

    Raises:
        UserError: llama.cpp would make other ids of it, and why; or it has more ids than the model.
    """
    where = tokenizer.folder / "tokenizer.json"
    values = json.loads(tokenizer.as_json())
    if tokenizer.vocab_size > n_ids:
        raise UserError(f"{where} has {tokenizer.vocab_size:,} ids, the model has room for {n_ids:,}")
    model = values["model"]
    if model.get("type", "BPE") != "BPE":
        raise UserError(
            f"{where} is {model['type']}: llama.cpp has no such tokenizer that falls back to bytes", ELSEWHERE
        )
    tokens, kinds = _tokens(values, n_ids)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    common: dict[str, Any] = {
        "tokens": tokens,
        "kinds": kinds,
        "special_ids": _special_ids(tokenizer, tokens, model.get("unk_token")),
        "add_bos": tokenizer.bos_id is not None and tokenizer.bos_id in tokenizer.prefix_ids,
        "chat_template": default_source(tokenizer.folder, tokenizer.config),
    }
    if any(part["type"] == "ByteLevel" for part in _parts(values.get("pre_tokenizer"), "pretokenizers")):
        return Vocabulary("gpt2", _words_name(values, str(where)), merges=merges, **common)
    prefix = _space_prefix(values, str(where))
    return Vocabulary("llama", "default", scores=_scores(tokens, merges), add_space_prefix=prefix, **common)


def _tokens(values: dict[str, Any], n_ids: int) -> tuple[list[str], list[Kind]]:
    tokens, kinds = [f"[PAD{i}]" for i in range(n_ids)], [Kind.UNUSED] * n_ids
    unknown = values["model"].get("unk_token")
    has_bytes = values["model"].get("byte_fallback", False)
    for token, i in values["model"]["vocab"].items():
        tokens[i] = token
        is_byte = has_bytes and BYTE_TOKEN.fullmatch(token)
        kinds[i] = Kind.UNKNOWN if token == unknown else Kind.BYTE if is_byte else Kind.NORMAL
    for added in values.get("added_tokens") or []:
        i = added["id"]
        tokens[i] = added["content"]
        if kinds[i] != Kind.UNKNOWN:
            kinds[i] = Kind.CONTROL if added["special"] else Kind.USER_DEFINED
    return tokens, kinds


def _special_ids(tokenizer: Tokenizer, tokens: list[str], unknown: str | None) -> dict[str, int]:
    ends = [i for i in tokenizer.eos_ids if i != tokenizer.eos_id]
    ids = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "eot": ends[0] if ends else None,  # the end of a turn
        "unk": tokens.index(unknown) if unknown in tokens else None,
        "pad": tokenizer.pad_id,
    }
    return {name: i for name, i in ids.items() if i is not None}


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return minus the place of the first merge that makes each token; 0 for those that none makes."""
    first: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ")
        first.setdefault(left + right, -float(rank + 1))
    return [first.get(token, 0.0) for token in tokens]


def _parts(section: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if section is None:
        return []
    return section[name] if section["type"] == "Sequence" else [section]


def _words_name(values: dict[str, Any], where: str) -> str:
    """Return what llama.cpp calls the cut into words of a byte-level tokenizer."""
    parts = _parts(values.get("pre_tokenizer"), "pretokenizers")
    kinds = [part["type"] for part in parts]
    uses_regex, name = parts[-1].get("use_regex", True), None
    if kinds == ["ByteLevel"] and uses_regex:
        name = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and uses_regex and parts[0]["individual_digits"]:
        name = "smollm"
    elif kinds == ["Split", "ByteLevel"] and not uses_regex and parts[0]["behavior"] == "Isolated":
        name = WORDS.get(parts[0]["pattern"].get("Regex"))
    normalizers = [part["type"] for part in _parts(values.get("normalizer"), "normalizers")]
    fits = values["model"].get("ignore_merges", False) == (name in WHOLE_WORDS_FIRST)
    # Qwen's tokenizers compose characters first (NFC); llama.cpp lacks that step, and is used with them all the same.
    if name is None or not fits or normalizers not in ([], ["NFC"]) or parts[-1].get("add_prefix_space"):
        raise UserError(f"{where} cuts text into words in a way that has no name in llama.cpp", ELSEWHERE)
    return name


def _space_prefix(values: dict[str, Any], where: str) -> bool:
    """Return whether a tokenizer like SentencePiece's puts a space before a text; check all that it does to it."""
    replaced = {**ESCAPES, " ": SPACE}
    prefix = False
    for part in _parts(values.get("normalizer"), "normalizers"):
        if part == {"type": "Prepend", "prepend": SPACE}:
            prefix = True
        elif part["type"] != "Replace" or replaced.get(part["pattern"].get("String")) != part["content"]:
            raise UserError(f"{where} has a normalizer {part['type']}, which llama.cpp lacks", ELSEWHERE)
    for part in _parts(values.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "Metaspace":
            prefix |= part.get("prepend_scheme", "always") != "never"
        elif part["type"] != "Split" or SPACE not in part["pattern"].get("Regex", ""):
            raise UserError(f"{where} has a pre-tokenizer {part['type']}, which llama.cpp lacks", ELSEWHERE)
    if not values["model"].get("byte_fallback"):
        raise UserError(f"{where} has no bytes to fall back to, as llama.cpp's SentencePiece has", ELSEWHERE)
    return prefix
