"""What exercises are made of: words, sentences and numbers drawn by a seed, each only for learning or only for asking.

Two things are held out: arguments (a tenth of the words and sums, by their hash) and phrasings (some of each skill's
templates). So a model can be asked what it never saw in words that it knows, and what it knows in words it never saw.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from mini_llm.tokenizer.chat import Message

Side = Literal["train", "new"]
HELD_OUT = 0.1  # of the arguments
COMMON = 6000  # words of a corpus, the most frequent ones, that are never held out
SENTENCE = re.compile(r"[A-Z][^.!?\n]{20,200}[.!?](?=\s|$)")
PLAIN = re.compile(r"\b[a-z]{3,12}\b")
# Parts of a syllable; three of ten syllables have no end.
ONSETS = "b,bl,br,c,ch,cl,cr,d,dr,f,fl,fr,g,gl,gr,h,j,k,l,m,n,p,pl,pr,r,s,sh,sl,sp,st,t,th,tr,v,w"
VOWELS = "a,e,i,o,u,ai,ea,ee,oa,oo,ou"
ENDS = ",,,,,,,,,b,ck,d,ft,g,ld,ll,m,n,nd,ng,nt,p,r,rd,rt,s,sh,ss,st,t,x"


class Phrasings(NamedTuple):
    """Templates of one question: those to learn from, and those that are held out."""

    train: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Exercise:
    """A conversation up to a question, a right answer, and the name of the check that judges others."""

    messages: list[Message]
    answer: str
    check: str
    skill: str
    learned: tuple[int, ...] = ()  # places of earlier answers that are learned too

    def record(self) -> dict[str, object]:
        """Return it as an object of a .jsonl file; what is learned of its messages has OpenAI's `weight`."""
        turns = [
            {"role": message.role, "content": message.content, **({"weight": 1} if place in self.learned else {})}
            for place, message in enumerate(self.messages)
        ]
        made = {"answer": self.answer, "check": self.check, "skill": self.skill, "source": "synthetic"}
        return {"messages": turns, **made}


@dataclass(frozen=True)
class Material:
    """What exercises speak of: a corpus's words and sentences, or words made of syllables; and the model's name."""

    name: str = "Mini-LLM"
    words: tuple[str, ...] = ()  # the most frequent first
    sentences: tuple[str, ...] = field(default=(), repr=False)
    pieces: tuple[str, ...] = field(default=(), repr=False)  # of a vocabulary, for drills

    @classmethod
    def of(cls, texts: Iterable[str], name: str = "Mini-LLM") -> Material:
        """Return the words that occur three times, and the sentences of some length, of texts."""
        counts, sentences = Counter[str](), dict[str, None]()
        for text in texts:
            counts.update(PLAIN.findall(text))
            sentences.update(dict.fromkeys(" ".join(found.split()) for found in SENTENCE.findall(text)))
        ranked = sorted((word for word, n in counts.items() if n > 2), key=lambda word: (-counts[word], word))
        return cls(name, tuple(ranked), tuple(sentences))

    @cached_property
    def by_side(self) -> dict[Side, tuple[str, ...]]:
        """The words to learn from and those held out.

        The commonest are all learned: a word that is one token tells nothing of its letters until it is taught.
        """
        new = tuple(word for word in self.words[COMMON:] if is_held_out(word))
        known = set(new)
        return {"train": tuple(word for word in self.words if word not in known), "new": new}

    @cached_property
    def sentences_by_side(self) -> dict[Side, tuple[str, ...]]:
        """The sentences to learn from and those held out."""
        new = tuple(s for s in self.sentences if is_held_out(s))
        return {"train": tuple(s for s in self.sentences if not is_held_out(s)), "new": new}


@dataclass(frozen=True)
class Draw:
    """Draws the parts of one exercise, from the allowed sides."""

    random: random.Random
    material: Material
    arguments: Side
    phrasings: Side

    def phrase(self, phrasings: Phrasings) -> str:
        """Return a template."""
        return self.random.choice(phrasings.train if self.phrasings == "train" else phrasings.new)

    def word(self) -> str:
        """Return a word of the corpus, or one made of two or three syllables."""
        words = self.material.by_side[self.arguments]
        if words and self.random.random() < 0.8:
            return self.random.choice(words)
        return self.made_up()

    def made_up(self) -> str:
        """Return a word that no language has, of two or three syllables."""
        while True:
            word = "".join(self._syllable() for _ in range(self.random.choice((2, 2, 3))))
            if len(word) <= 12 and self.allows(word):
                return word

    def _syllable(self) -> str:
        return "".join(self.random.choice(parts.split(",")) for parts in (ONSETS, VOWELS, ENDS))

    def words(self, n: int) -> list[str]:
        """Return n different words."""
        found = dict[str, None]()
        while len(found) < n:
            found[self.word()] = None
        return list(found)

    def sentence(self, most_words: int = 40) -> str | None:
        """Return a sentence of the corpus with at most so many words, or None where there is no corpus."""
        sentences = self.material.sentences_by_side[self.arguments]
        for _ in range(50 if sentences else 0):
            sentence = self.random.choice(sentences)
            if len(sentence.split()) <= most_words:
                return sentence
        return None

    def allows(self, argument: str) -> bool:
        """Return whether an argument may be used: whether its hash puts it on the wanted side."""
        return is_held_out(argument) == (self.arguments == "new")

    def pick(self, known: Sequence[str]) -> str:
        """Return one of a few known things, of the wanted side: every fifth is held out."""
        held = known[4::5]
        return self.random.choice(held if self.arguments == "new" else [k for k in known if k not in held])


def is_held_out(argument: str) -> bool:
    """Return whether an argument is never learned from: by its hash, so that no list must be kept."""
    return int.from_bytes(hashlib.sha256(argument.encode("utf-8", "replace")).digest()[:4], "big") < HELD_OUT * 2**32


def ask(question: str) -> list[Message]:
    """Return a conversation that is one question."""
    return [Message("user", question)]
