"""The last answer under the glass: how likely each token was, why one of them came, and what else might have come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mini_llm.errors import UsageError
from mini_llm.inference.continuation import decoder_after
from mini_llm.inference.engine.draw import Candidate, Drawn
from mini_llm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

LINE_WIDTH = 60
TINTS = ((0.5, ""), (0.2, "cyan"), (0.05, "yellow"), (0.01, "magenta"), (0.0, "red"))  # from this probability on


@dataclass
class Answer:
    """What was asked, and how each token of the answer was drawn."""

    prompt_ids: list[int]
    drawn: list[Drawn]

    def drawn_at(self, number: str) -> tuple[int, Drawn]:
        """Return index and draw of token `number`, which counts from 1."""
        index = whole(number, "a token's number") - 1
        if not 0 <= index < len(self.drawn):
            raise UsageError(f"the last answer has tokens 1 to {len(self.drawn)}, not {number}")
        return index, self.drawn[index]

    def branch(self, number: str, rank: str) -> tuple[list[int], list[Drawn]]:
        """Return the ids of the answer up to token `number`, in whose stead stands its `rank`-th alternative."""
        index, drawn = self.drawn_at(number)
        others = alternatives(drawn)
        place = whole(rank, "an alternative's number") - 1
        if not 0 <= place < len(others):
            raise UsageError(f"token {number} has alternatives 1 to {len(others)}, not {rank}")
        taken = replace(drawn, chosen=others[place], rank=1 + drawn.candidates.index(others[place]), dart=None)
        kept = [*self.drawn[:index], taken]
        return [one.chosen.token_id for one in kept], kept


def whole(word: str, what: str) -> int:
    """Return a whole number. Raises UsageError for anything else."""
    try:
        return int(word)
    except ValueError:
        raise UsageError(f"{what} must be a whole number, not '{word:.40}'") from None


def alternatives(drawn: Drawn) -> list[Candidate]:
    """Return the likeliest tokens without the one that came."""
    return [candidate for candidate in drawn.candidates if candidate.token_id != drawn.chosen.token_id]


def shown(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token so that it can be seen, white space too; a control token by its name."""
    name = next((name for name, i in tokenizer.special_tokens.items() if i == token_id), None)
    if name and name.isprintable():
        return name
    return repr(name) if name else repr(tokenizer.rules.bytes_of(token_id).decode("utf-8", "backslashreplace"))


def text_after(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Return the whole characters of `ids`, as they follow a prompt."""
    decoder = decoder_after(tokenizer, prompt_ids)
    return "".join(decoder.push(token_id) for token_id in ids)


def tinted(tokenizer: Tokenizer, answer: Answer) -> Text:
    """Return the answer's tokens, numbered, the unlikelier the redder."""
    from rich.text import Text

    text = Text()
    for number, drawn in enumerate(answer.drawn, 1):
        p = math.exp(drawn.chosen.logprob)
        tint = next(style for least, style in TINTS if p >= least)
        text.append(f"{number}:", style="dim")
        text.append(f"{shown(tokenizer, drawn.chosen.token_id)} ", style=tint)
    return text


def why(tokenizer: Tokenizer, drawn: Drawn) -> str:
    """Return how a token was drawn, for a reader: its numbers, the candidates, and the line with the dart."""
    chosen = drawn.chosen
    lines = [
        f"{shown(tokenizer, chosen.token_id)}: probability {math.exp(chosen.logprob):.4f} under the model, "
        f"{chosen.p_sampled:.4f} after temperature and filters",
        f"rank {drawn.rank}, entropy {drawn.entropy:.2f} nats, {drawn.n_kept:,} tokens could have come",
    ]
    for number, candidate in enumerate(alternatives(drawn), 1):
        gone = "" if candidate.p_sampled else "  ruled out"
        numbers = f"{math.exp(candidate.logprob):8.4f} {candidate.p_sampled:8.4f}{gone}"
        lines.append(f"  {number}  {numbers}  {shown(tokenizer, candidate.token_id)}")
    return "\n".join([*lines, *_line(drawn)])


def _line(drawn: Drawn) -> list[str]:
    """Return the line from 0 to 1: '=' is the chosen token's piece, letters are the others', '.' the rest."""
    if drawn.dart is None:
        return ["no dart was thrown"]
    line = ["."] * LINE_WIDTH
    for number, candidate in enumerate(alternatives(drawn), 1):
        _lay(line, candidate, str(number))
    _lay(line, drawn.chosen, "=")
    place = min(LINE_WIDTH - 1, int(drawn.dart * LINE_WIDTH))
    return [f"0 {''.join(line)} 1", f"  {' ' * place}^ the dart, at {drawn.dart:.4f}"]


def _lay(line: list[str], candidate: Candidate, sign: str) -> None:
    if candidate.p_sampled:
        start, end = candidate.start * LINE_WIDTH, (candidate.start + candidate.p_sampled) * LINE_WIDTH
        for place in range(int(start), min(LINE_WIDTH, max(int(start) + 1, round(end)))):
            line[place] = sign
