"""From ids back to text: every token is a string of bytes, the text is their UTF-8, and it can arrive in pieces.

Hugging Face's decoders work on the whole list of tokens. Here their rules are read once, as a table of bytes and a few
rules for the joined text, so that streaming costs the same for each token and gives exactly what decoding at once does.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class DecodingRules:
    """What the `decoder` part of a tokenizer.json says.

    `table[id]` holds the bytes of a token. The joined text loses up to `strip_spaces` leading spaces and gets
    `replacements`.
    """

    table: list[bytes]
    strip_spaces: int = 0
    replacements: Mapping[str, str] = field(default_factory=dict)

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token: none for special tokens, or where a model has more ids than its tokenizer."""
        return self.table[token_id] if 0 <= token_id < len(self.table) else b""


class TextStream:
    """Bytes in, text out, each character as soon as it is sure."""

    def __init__(self, rules: DecodingRules) -> None:
        self._rules = rules
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces_to_strip = rules.strip_spaces
        self._held = ""
        # Whole patterns first; then, only at the end of what is known, the beginnings of patterns.
        patterns = list(rules.replacements)
        beginnings = {pattern[:n] for pattern in patterns for n in range(1, len(pattern))}
        self._pattern = re.compile(
            "|".join([*map(re.escape, patterns), *(rf"{re.escape(b)}\Z" for b in sorted(beginnings, reverse=True))])
        )

    def feed(self, data: bytes, final: bool = False) -> str:
        """Return the text that `data` completes. `final` gives out what was held back, too."""
        text = self._held + self._utf8.decode(data, final)
        self._held = ""
        if start := text[: self._spaces_to_strip]:
            kept = start.lstrip(" ")
            text = kept + text[len(start) :]
            self._spaces_to_strip = 0 if kept else self._spaces_to_strip - len(start)
        if not self._rules.replacements:
            return text
        return self._pattern.sub(lambda match: self._replace(match.group(), final), text)

    def _replace(self, found: str, final: bool) -> str:
        if found in self._rules.replacements:
            return self._rules.replacements[found]
        self._held = "" if final else found
        return found if final else ""


def read_rules(decoder: dict[str, Any] | None, tokens: list[str], special_ids: set[int]) -> DecodingRules:
    """Read the `decoder` part of a tokenizer.json. `tokens[id]` is the token's string.

    Raises:
        ValueError: a kind of decoder that no Llama-like model uses.
    """
    steps = (decoder or {}).get("decoders", [decoder])
    kinds = [(step or {}).get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        byte_of = _byte_level_alphabet()
        table = [_byte_level_bytes(token, byte_of) for token in tokens]
        return DecodingRules(_without(table, special_ids))
    fuse = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    token_rules: dict[str, str] = {}
    text_rules: dict[str, str] = {}
    strip_spaces = 0
    for place, (kind, step) in enumerate(zip(kinds, steps, strict=True)):
        match step:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                (token_rules if place < fuse else text_rules)[old] = new
            case {"type": "Strip", "content": " ", "start": start, "stop": 0} if place > fuse:
                strip_spaces = start
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case _:
                raise ValueError(f"its decoder has a step {kind} that Mini-LLM does not know")
    has_bytes = "ByteFallback" in kinds
    table = [_piece_bytes(token, token_rules, has_bytes) for token in tokens]
    return DecodingRules(_without(table, special_ids), strip_spaces, text_rules)


def _piece_bytes(token: str, rules: Mapping[str, str], has_bytes: bool) -> bytes:
    if has_bytes and (match := BYTE_PIECE.fullmatch(token)):
        return bytes([int(match.group(1), 16)])
    for old, new in rules.items():
        token = token.replace(old, new)
    return token.encode("utf-8")


def _byte_level_bytes(token: str, byte_of: Mapping[str, int]) -> bytes:
    # Added tokens are written as they are: a character outside the alphabet tells one.
    return bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode("utf-8")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2 writes each byte as a printable character: itself where it is one, else the next free one from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _without(table: list[bytes], special_ids: set[int]) -> list[bytes]:
    return [b"" if i in special_ids else data for i, data in enumerate(table)]
