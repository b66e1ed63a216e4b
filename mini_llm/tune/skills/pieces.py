"""Drills: every piece of a vocabulary is spelled and said again, so often that its letters are known and it is found.

A piece's letters and its place among the answers are learned for each piece by itself. Exercises on words show common
pieces a thousand times and rare ones never; a drill goes through all of them, in another order each time: alone, and
in words that are put together from two or three, for a word is spelled by knowing which of its pieces comes next.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence

from mini_llm.errors import UsageError
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.skills.copying import PHRASINGS
from mini_llm.tune.skills.draw import Exercise, ask, is_held_out
from mini_llm.tune.skills.spelling import PHRASINGS as SPELL_ONE

OF_WORDS = 3
ONE = 0.3  # of the words put together are asked for alone
SPELLED = re.compile(r" ?[a-z]{2,14}")
SAID = re.compile(r" ?[^\s\"\ufffd\x00-\x1f\x7f]+")
SPELL = ("Spell these: {}.", "Spell each of these: {}.", "How are these spelled? {}", "Spell them one by one: {}.")


def pieces_of(tokenizer: Tokenizer, words: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the text of every piece that can be said, with the space that it begins with, if it does.

    A piece that some of `words` are put together from stands there `OF_WORDS` times: new words will be made of it too.
    """
    before, texts = tokenizer.encode("a"), texts_of(tokenizer)
    cut = tokenizer.encode_batch([f"a {word}" for word in words]) + tokenizer.encode_batch([f'a"{w}"' for w in words])
    parts = {i for found in cut if len(found) > len(before) + 1 for i in found}
    times = dict.fromkeys((text for text in texts.values() if SAID.fullmatch(text)), 1)
    times |= {texts[i]: OF_WORDS for i in parts if texts.get(i) in times}
    return tuple(text for text, n in times.items() for _ in range(n))


def texts_of(tokenizer: Tokenizer) -> dict[int, str]:
    """Return what each piece adds to a text, with the space that it begins with, if it does: all but control tokens."""
    before, special = tokenizer.encode("a"), set(tokenizer.special_tokens.values())
    start = len(tokenizer.decode(before))
    return {i: tokenizer.decode([*before, i])[start:] for i in range(tokenizer.vocab_size) if i not in special}


def drill(skill: str, n: int, *, seed: int, pieces: Collection[str], held_out: Collection[str]) -> Iterator[Exercise]:
    """Yield n exercises, in which the pieces come in turns: all but those that are held-out words.

    Raises:
        UsageError: there is no piece.
    """
    make, kind, each = DRILLS[skill]
    chosen = [piece for piece in pieces if kind.fullmatch(piece) and piece.strip() not in held_out]
    if not chosen:
        raise UsageError(f"{skill} are drills of a vocabulary's pieces", "skills makes them by --tokenizer MODEL")
    endless = _in_turns(chosen, random.Random(f"{seed} {skill}"))
    for i in range(n):
        generator = random.Random(f"{seed} {skill} {i}")
        yield make([next(endless) for _ in range(generator.choice(each))], generator)


def _in_turns(pieces: list[str], generator: random.Random) -> Iterator[str]:
    while True:
        yield from generator.sample(pieces, len(pieces))


def _letters(pieces: list[str], generator: random.Random) -> Exercise:
    """Spell these: iver, "ths". -> Here: iver i v e r, "ths" t h s."""
    # A piece that begins without a space stands as it is only in quotation marks.
    shown = [_shown(piece.strip(), in_quotes=not piece.startswith(" ")) for piece in pieces]
    spelled = [f"{name} {' '.join(piece.strip())}" for name, piece in zip(shown, pieces, strict=True)]
    question = generator.choice(SPELL).format(", ".join(shown))
    return Exercise(ask(question), f"Here: {', '.join(spelled)}", "exact", "letters")


def _joined(pieces: list[str], generator: random.Random) -> Exercise:
    """Spell these: iverths, "monstral". -> i v e r t h s, m o n s t r a l."""
    each = generator.choice((2, 2, 3))
    joined = ["".join(pieces[i : i + each]).replace(" ", "") for i in range(0, len(pieces), each)]
    words = [word for word in joined if not is_held_out(word)] or [piece.strip() for piece in pieces]
    if generator.random() < ONE:
        question = generator.choice(SPELL_ONE.train).format(words[0])
        return Exercise(ask(question), " ".join(words[0]), "letters", "joined")
    shown = [_shown(word, in_quotes=generator.random() >= 0.5) for word in words]  # which are cut into other pieces
    question = generator.choice(SPELL).format(", ".join(shown))
    return Exercise(ask(question), ", ".join(" ".join(word) for word in words), "letters", "joined")


def _shown(word: str, *, in_quotes: bool) -> str:
    return f'"{word}"' if in_quotes else word


def _echo(pieces: list[str], generator: random.Random) -> Exercise:
    """Repeat: iverths of -> iverths of."""
    text = "".join(pieces).strip()
    return Exercise(ask(generator.choice(PHRASINGS.train).format(text)), text, "exact", "echo")


# For each: how an exercise is made, of which pieces, and of how many, one of these numbers.
DRILLS: dict[str, tuple[Callable[[list[str], random.Random], Exercise], re.Pattern[str], tuple[int, ...]]] = {
    "letters": (_letters, SPELLED, (6,)),
    "joined": (_joined, SPELLED, (6,)),
    "echo": (_echo, SAID, (1, 1, 2, 2, 3, 4, 8, 16)),  # the first one is found in another way than those after it
}
