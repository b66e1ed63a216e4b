"""Limits: files that may not grow, few descriptors, folders without rights, and signals at any moment."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

from _bad_inputs.case import Case
from _bad_inputs.hostile import strange_files
from _bad_inputs.world import World

MINE = ("an empty folder", "an empty file", "a dangling link")  # nothing is lost with them


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []
    for verb in world.verbs.values():
        if verb.seconds > 5:
            continue
        same = world.same(verb.name)
        keep = {"changes": verb.changes, "stdin": verb.stdin}
        for size in (0, 1, 100, 1000, 5000, 20_000, 60_000, 200_000):
            found.append(
                Case(
                    "limits",
                    f"{verb.name}: no file above {size} bytes",
                    verb.words,
                    world.make(verb),
                    stdout="null",
                    stderr="null" if size < 2000 else "file",
                    limits={"FSIZE": size},
                    may_litter=True,
                    **keep,
                )
            )
        for count in (8, 16, 30):
            found.append(
                Case(
                    "limits",
                    f"{verb.name}: {count} descriptors",
                    verb.words,
                    world.make(verb),
                    check=same,
                    limits={"NOFILE": count},
                    may_litter=True,
                    **keep,
                )
            )
        for _ in range(6):
            number = dice.choice([signal.SIGINT, signal.SIGTERM])
            after = dice.choice([dice.random() * 0.1, dice.random() * 0.6])
            found.append(
                Case(
                    "limits",
                    f"{verb.name}: {number.name} after {after:.3f} s",
                    verb.words,
                    world.make(verb),
                    kill=(int(number), after),
                    codes=(130, 143),
                    may_litter=True,
                    **keep,
                )
            )
        for _ in range(3):  # in a new interpreter: also while it imports
            number = dice.choice([signal.SIGINT, signal.SIGTERM])
            after = 0.12 + dice.random() * 2.5
            found.append(
                Case(
                    "limits",
                    f"{verb.name}: {number.name} after {after:.2f} s from the start",
                    verb.words,
                    world.make(verb),
                    kill=(int(number), after),
                    codes=(130, 143),
                    may_litter=True,
                    fresh=True,
                    **keep,
                )
            )
        if _is_for_all():
            found.append(
                Case(
                    "limits",
                    f"{verb.name}: as a user without rights",
                    verb.words,
                    world.make(verb, _lock),
                    nobody=True,
                    may_litter=True,
                    **keep,
                )
            )
        if "out" in verb.words:
            for name, make in strange_files().items():

                def put(folder: Path, m=make) -> None:  # type: ignore[no-untyped-def]
                    m(folder / "out")

                found.append(
                    Case(
                        "limits",
                        f"{verb.name}: --out is {name}",
                        verb.words,
                        world.make(verb, put),
                        changes=("out", "out/*") if name in MINE else (),
                        accept="folder" in name or "dangling" in name,
                        may_litter=True,
                    )
                )
            for name in ("mine.txt", "manifest.json", "tokenizer.json", "config.json"):

                def mine(folder: Path, n: str = name) -> None:
                    (folder / "out").mkdir()
                    (folder / "out" / n).write_text("{}")
                    (folder / "out" / "diary.txt").write_text("mine")

                found.append(
                    Case(
                        "limits",
                        f"{verb.name}: --out holds {name} and a diary",
                        verb.words,
                        world.make(verb, mine),
                        changes=("out",),
                        check=lambda _: None,
                    )
                )
    return found


def _lock(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 200:
            path.chmod(0o600)
    folder.chmod(0o755)


def _is_for_all() -> bool:
    """Tell whether another user could run this Python at all."""
    folders = [Path(sys.base_prefix), *Path(sys.base_prefix).parents]
    return os.geteuid() == 0 and all(folder.stat().st_mode & 0o001 for folder in folders)
