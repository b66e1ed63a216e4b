"""Exercises as a file that `sft` and `rl` read: one object a line, the skills mixed in the order of their shares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.data.sources import read_documents
from mini_llm.errors import UsageError, did_you_mean
from mini_llm.files import check_replaceable_lines, new_file
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.tune.skills import DRILLS, SKILLS, Exercise, Material, exercises
from mini_llm.tune.skills.draw import Side
from mini_llm.tune.skills.pieces import pieces_of
from mini_llm.tune.skills.talks import talks
from mini_llm.user_files import writing_to

MOST = 10**7  # exercises of a skill, as in RlConfig: their order is held in memory


def _is_made_here(record: dict[str, Any]) -> bool:
    return record.get("skill") in {**SKILLS, **DRILLS} and record.get("source") == "synthetic"


@dataclass(frozen=True)
class Wish:
    """What to make: how many exercises of each skill, of which sides."""

    counts: dict[str, int]
    seed: int = 0
    arguments: Side = "train"
    phrasings: Side = "train"
    turns: int = 1  # the most that are joined to a conversation


def parse_counts(words: str, n: int, *, with_drills: bool = False) -> dict[str, int]:
    """Return how many exercises of each skill "spelling=3000,copying" means, `n` where no number is given.

    Where nothing is named, all skills are meant, and `with_drills` the drills of a vocabulary too.

    Raises:
        UsageError: no such skill, or no number.
    """
    counts, known = dict[str, int](), [*SKILLS, *DRILLS]
    for word in filter(None, (word.strip() for word in words.split(","))):
        name, _, number = word.partition("=")
        if name not in known:
            raise UsageError(f"no skill '{name}'{did_you_mean(name, known)}", f"known: {', '.join(known)}")
        if number and not number.isdecimal():
            raise UsageError(f"how many exercises of {name}? '{number}' is no number", f"for instance {name}=3000")
        if len(number) > len(str(MOST)) or (number and int(number) > MOST):
            raise UsageError(f"{name}={number[:20]} is more than {MOST:,} exercises", f"for instance {name}=3000")
        counts[name] = int(number) if number else n
    return counts or dict.fromkeys(known if with_drills else SKILLS, n)


def material_of(corpus: Sequence[str], name: str, model: str | None = None) -> Material:
    """Return what the exercises speak of: words and sentences of files, or made-up words where none are named.

    Args:
        corpus: the files.
        name: what the model calls itself.
        model: whose vocabulary the drills go through.

    Raises:
        UserError: a file or the model's tokenizer cannot be read.
    """
    material = Material(name)
    if corpus:
        material = Material.of(read_documents(list(corpus), description="looking for words and sentences"), name)
    if model is None:
        return material
    return replace(material, pieces=pieces_of(Tokenizer.load(resolve_checkpoint(model)), material.words))


def mixed(wish: Wish, material: Material) -> Iterator[Exercise]:
    """Yield the exercises of all skills, so that any part of them holds each in its share; see `talks`."""
    return talks(_each(wish, material), wish.turns, wish.seed)


def _each(wish: Wish, material: Material) -> Iterator[Exercise]:
    sides = {"arguments": wish.arguments, "phrasings": wish.phrasings}
    streams = {
        skill: exercises(skill, n, seed=wish.seed, material=material, **sides) for skill, n in wish.counts.items()
    }
    places = sorted(((i + 0.5) / n, skill) for skill, n in wish.counts.items() for i in range(n))
    for _, skill in places:
        yield next(streams[skill])


def write_exercises(out: Path, wish: Wish, material: Material) -> int:
    """Write them and return how many they are.

    Raises:
        UserError: the place is taken by a file of somebody else's, or cannot be written.
    """
    check_replaceable_lines(out, _is_made_here, "file of exercises")
    n_lines = 0
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for exercise in mixed(wish, material):
                file.write(json.dumps(exercise.record(), ensure_ascii=False) + "\n")
                n_lines += 1
    together = f" in {n_lines:,} conversations" if wish.turns > 1 else ""
    n = sum(wish.counts.values())
    log.info(f"{out}: {n:,} exercises{together}, made by program, of {', '.join(wish.counts)}")
    return n
