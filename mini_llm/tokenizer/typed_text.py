"""Who wrote which character: a chat template's text becomes control tokens, and what somebody typed never does.

A conversation is rendered twice: as it is, and with every sign that control tokens are made of exchanged, within the
contents, for a private character. Where the two texts differ, somebody typed. Strip, upper and the like do the same to
both. A template that looks for such signs in contents writes another text the second time; then only whole names of
control tokens are exchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mini_llm.tokenizer.tokenizer import Tokenizer

PRIVATE = range(0xF0000, 0xFFFFD)
Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `typed` are the places of characters that are no part of any control token.

    `answers` are the spans that the template itself says the assistant wrote.
    """

    text: str
    typed: frozenset[int] = frozenset()
    answers: list[Span] = field(default_factory=list)


class PrivateCharacters:
    """Characters of Unicode's private plane that none of the texts holds, each to stand for one other."""

    def __init__(self, *texts: Any) -> None:
        held = set("".join(json.dumps(text, ensure_ascii=False) for text in texts))
        self._free: Iterator[str] = (chr(code) for code in PRIVATE if chr(code) not in held)
        self._of: dict[str, str] = {}

    def new(self) -> str:
        """Return one that stands for nothing."""
        return next(self._free)

    def of(self, character: str) -> str:
        """Return the one that stands for `character`."""
        if character not in self._of:
            self._of[character] = self.new()
        return self._of[character]

    def restore(self, text: str) -> tuple[str, frozenset[int]]:
        """Return the text with the real characters, and the places where stand-ins stood."""
        real: dict[str, str | int | None] = {private: character for character, private in self._of.items()}
        places = frozenset(place for place, character in enumerate(text) if character in real)
        return text.translate(str.maketrans(real)), places


def render_apart(
    render: Callable[[dict[str, Any]], str], said: dict[str, Any], names: list[str], private: PrivateCharacters
) -> tuple[str, frozenset[int]]:
    """Return what `render` makes of `said` (messages and tools), and which places of it are typed.

    `names` are those of all control tokens.
    """
    text = render(said)
    whole = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)", re.IGNORECASE)
    signs = {c for name in names for c in name if not (c.isalnum() or c.isspace() or c == "_")}
    for pattern in (re.compile(f"{whole.pattern}|{'|'.join(map(re.escape, sorted(signs))) or '(?!)'}", re.I), whole):
        hidden = _hide(said, pattern, whole, private)
        if hidden == said:
            return text, frozenset()
        shown, typed = private.restore(render(hidden))
        if shown == text:
            break
    return shown, typed


def _hide(value: Any, pattern: re.Pattern[str], names: re.Pattern[str], private: PrivateCharacters) -> Any:
    """Exchange the signs of each match in every text of `value`; of keys, of control tokens' names only."""

    def exchange(match: re.Match[str]) -> str:
        found = match.group()
        # All signs of a name; its first character where it has none, or is met in another case.
        marked = "".join(c if c.isalnum() or c.isspace() or c == "_" else private.of(c) for c in found)
        return marked if marked[0] != found[0] else private.of(found[0]) + marked[1:]

    match value:
        case str():
            return pattern.sub(exchange, value)
        case list():
            return [_hide(item, pattern, names, private) for item in value]
        case dict():
            return {
                names.sub(exchange, key): item if key == "role" else _hide(item, pattern, names, private)
                for key, item in value.items()
            }
    return value


def take_answers(text: str, typed: frozenset[int], marks: tuple[str, str]) -> Rendered:
    """Return the text without `marks`, and the spans that stood between two of them."""
    kept: list[str] = []
    places: set[int] = set()
    answers: list[Span] = []
    start = 0
    for place, character in enumerate(text):
        if character == marks[0]:
            start = len(kept)
        elif character == marks[1]:
            answers.append((start, len(kept)))
        else:
            if place in typed:
                places.add(len(kept))
            kept.append(character)
    return Rendered("".join(kept), frozenset(places), answers)


def encode_rendered(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[Span]]:
    """Return the ids, and which characters of the text each stands for.

    Where nobody typed a control token's name, they are those of the whole text, as transformers encodes it. Else the
    text between two control tokens of the template is encoded as text.
    """
    specials = tokenizer.special_tokens
    found = list(_control_tokens(rendered, specials))
    whole, offsets = tokenizer.encode_spans(rendered.text, markers=True)
    n_typed = sum(i in specials.values() for i in whole) - len(found)
    if not rendered.typed or n_typed <= 0:
        return whole, offsets
    ids: list[int] = []
    spans: list[Span] = []
    start = 0
    for name, place in [*found, ("", len(rendered.text))]:
        more, offsets = _encode_between(tokenizer, rendered.text[start:place], first=start == 0)
        ids += more
        spans += [(start + a, start + b) for a, b in offsets]
        if name:
            ids.append(specials[name])
            spans.append((place, place + len(name)))
        start = place + len(name)
    return ids, spans


def _control_tokens(rendered: Rendered, specials: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield name and place of each control token that the template wrote."""
    if not specials:
        return
    pattern = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
    place = 0
    while match := pattern.search(rendered.text, place):
        if rendered.typed.isdisjoint(range(match.start(), match.end())):
            yield match.group(), match.start()
            place = match.end()
        else:
            place = match.start() + 1


def _encode_between(tokenizer: Tokenizer, text: str, first: bool) -> tuple[list[int], list[Span]]:
    if not text:
        return [], []
    if first or not tokenizer.prefixes_first_only:
        return tokenizer.encode_spans(text)
    # This kind puts a space before the first word of a text only: let another one be the first.
    n = len(tokenizer.encode("\n"))
    ids, offsets = tokenizer.encode_spans("\n" + text)
    return ids[n:], [(max(0, a - 1), b - 1) for a, b in offsets[n:]]
