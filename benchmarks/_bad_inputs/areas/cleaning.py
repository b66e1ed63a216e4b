"""Cleaning, spoiled: the text, the rules, the words of the command, and what lies where the result shall be."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bad_inputs.case import Case
from _bad_inputs.hostile import remove, short, spoiled_bytes, spoiled_json, strange_files, values_yaml
from _bad_inputs.world import NO_HUB, Verb, World

NOTHING = ("an empty folder", "an empty file", "a dangling link")  # nothing is lost with them


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    verb = world.verbs.get("clean")
    if verb is None:
        return []
    found: list[Case] = []
    strange = strange_files()

    def add(what: str, then: Any, words: list[str] = verb.words, **more: Any) -> None:
        more = {"changes": verb.changes, "deadline": 90, "env": NO_HUB, "limits": {"FSIZE": 10**8}, **more}
        found.append(Case("cleaning", f"clean: {what}", words, world.make(verb, then), **more))

    for name in ("web.jsonl", "clean.yaml"):
        for what, data in dice.sample(list(spoiled_bytes((world.home / name).read_bytes(), dice)), 12):
            add(f"{name} {what}", lambda folder, d=data, n=name: (folder / n).write_bytes(d))
        for what in dice.sample(sorted(strange), 5):
            if what != "a terabyte of nothing":
                add(f"{name} is {what}", functools.partial(_replaced, name=name, make=strange[what]))
    rows = [json.loads(line) for line in (world.home / "web.jsonl").read_text(encoding="utf-8").splitlines()]
    for what, value in spoiled_json(rows, dice, 15):
        lines = value if isinstance(value, list) else [value]
        text = "".join(json.dumps(row) + "\n" for row in lines)
        add(f"web.jsonl {what}", lambda folder, t=text: (folder / "web.jsonl").write_text(t))
    for _ in range(60):
        key, value = dice.choice(_keys()), dice.choice(values_yaml())
        add(f"{key}={short(value)}", None, [*verb.words, "--dry-run", f"{key}={value}"])
    for what, make in strange.items():
        changes = verb.changes if what in NOTHING else ()
        add(f"--out is {what}", lambda f, m=make: m(f / "out"), accept=what in NOTHING, changes=changes)
    add("--out is the corpus", None, _with(verb, "."), accept=False, changes=())
    add("--out holds a diary", _diary, accept=False, changes=())
    add("--out is what was cleaned, another rule", lambda folder: _cleaned(folder), changes=())
    for sets in ("nothing", "", ",", "piqa", "../x", "\x1b]0;PWN\x07"):
        add(f"--decontaminate {short(sets)}", None, [*verb.words, "--decontaminate", sets, "--data", "nowhere"])
    for slurm in ("", "a", "partition=", "cpus=x", "time=99", "mem=-1,cpus=1", "=,=", "\x1b]0;PWN\x07=1"):
        add(f"--slurm {short(slurm)}", None, [*verb.words, "--slurm", slurm])
    return found


def _replaced(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    remove(folder / name)
    make(folder / name)


def _keys() -> list[str]:
    from mini_llm.data.clean.config import CleanConfig

    inner = [
        f"{key}.{one}"
        for key, value in CleanConfig.model_validate({})
        for one in getattr(type(value), "model_fields", ())
    ]
    return [*CleanConfig.model_fields, *inner, "c4.nothing"]


def _with(verb: Verb, out: str) -> list[str]:
    words = list(verb.words)
    words[words.index("--out") + 1] = out
    return words


def _diary(folder: Path) -> None:
    (folder / "out" / "kept").mkdir(parents=True)
    (folder / "out" / "kept" / "diary.txt").write_text("mine")


def _cleaned(folder: Path) -> None:
    (folder / "out" / "kept").mkdir(parents=True)
    (folder / "out" / "kept" / "00000.jsonl.gz").write_bytes(b"not gzip")
    shutil.copyfile(folder / "web.jsonl", folder / "out" / "report.json")
