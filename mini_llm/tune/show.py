"""What is learned of a conversation, in colour: the bug that everyone ships once is a mask that nobody looked at."""

from __future__ import annotations

import itertools

from rich.text import Text

from mini_llm import log, output
from mini_llm.data.sources import find_files
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.config import SftConfig, with_base
from mini_llm.tune.encode import shortened
from mini_llm.tune.formats import read_conversations
from mini_llm.tune.pair_set import encode_pair
from mini_llm.tune.preference import read_pairs


def show(config: SftConfig, n: int) -> None:
    """Print the first `n` conversations as the model will read them: learned tokens green, all others dim.

    In a pipe, where there is no colour, what is learned stands in [[ ]].

    Raises:
        UsageError, UserError: as `with_base` and `read_conversations`.
    """
    config = with_base(config)
    tokenizer = Tokenizer.load(resolve_checkpoint(config.base))
    left = n
    for path in find_files(config.data):
        for conversation in read_conversations(path, merge_turns=config.merge_turns):
            if not left:
                return
            left -= 1
            found = shortened(tokenizer, conversation, config.block_size + 1)
            if found is None:
                log.note(f"{conversation.place}: left out, its first answer does not fit into a row")
                continue
            output.line(f"--- {conversation.place}{' (shortened)' if found[2] else ''}")
            _print(_parts(tokenizer, found[0], found[1]))


def show_pairs(config: SftConfig, n: int) -> None:
    """Print the first `n` pairs: what is to become more probable green, what is to become less so red, all else dim.

    In a pipe they stand in [[ ]] too, below + and -.

    Raises:
        UserError: as `read_pairs`.
    """
    tokenizer = Tokenizer.load(resolve_checkpoint(config.base))
    pairs = (pair for path in find_files(config.data) for pair in read_pairs(path, merge_turns=config.merge_turns))
    for pair in itertools.islice(pairs, n):
        both = encode_pair(tokenizer, pair)
        too_long = max(len(ids) for ids, _ in both) > config.block_size + 1
        output.line(f"--- {pair.place}{' (left out: longer than block_size)' if too_long else ''}")
        for sign, colour, (ids, learned) in zip("+-", ("bold green", "bold red"), both, strict=True):
            output.line(sign)
            _print(_parts(tokenizer, ids, learned), colour)


def _parts(tokenizer: Tokenizer, ids: list[int], learned: list[bool]) -> list[tuple[str, bool]]:
    parts: list[tuple[list[int], bool]] = []
    for token_id, flag in zip(ids, learned, strict=True):
        if not parts or parts[-1][1] != flag:
            parts.append(([], flag))
        parts[-1][0].append(token_id)
    return [(_text(tokenizer, part), flag) for part, flag in parts]


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of ids, markers by their names."""
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    text, run = "", list[int]()
    for token_id in [*ids, -1]:
        if token_id != -1 and token_id not in names:
            run.append(token_id)
            continue
        text, run = text + tokenizer.decode(run) + names.get(token_id, ""), []
    return text


def _print(parts: list[tuple[str, bool]], colour: str = "bold green") -> None:
    console = output.console()
    text = Text()
    for part, flag in parts:
        plain = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in part)
        marked = plain if console.is_terminal else f"[[{plain}]]"
        text.append(marked if flag else plain, style=colour if flag else "dim")
    console.print(text)
