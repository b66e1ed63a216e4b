"""Flags: every option of every verb of the command line, asked of itself, with values of every wrong kind."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from _bad_inputs.case import Case
from _bad_inputs.hostile import ESC, short, strange_files
from _bad_inputs.world import NO_HUB, ROOT, Verb, World

WRONG = {
    "integer": [
        "-1",
        "0",
        "1e3",
        "1.5",
        "abc",
        "",
        "9" * 400,
        "99999999999999999999",
        "2147483648",
        "0x10",
        "nan",
        "-0",
        ESC,
        "٣",
        " 1",
        "--",
    ],
    "float": ["nan", "inf", "-inf", "-1", "1e400", "1e-300", "1e300", "abc", "", "9" * 400, "1,5", ESC, "-0", "0x1p3"],
    "path": [
        "",
        ".",
        "/",
        "/dev/null",
        "/dev/full",
        "/dev/zero",
        "nowhere/deep/x",
        "x" * 5000,
        "/".join(["d" * 200] * 30),
        ESC,
        "a\nb",
        "..",
        "~",
        "~nobody-here",
        "$HOME/x",
        "-",
        "\udcff",
        "corpus",
        "tok",
        "train.yaml",
        "*",
        "/proc/self/mem",
        "link",
        "pipe",
    ],
    "text": ["", "x" * 100_000, ESC, "\udcff", "\n", "\u202e", "\x00"[:0], "-", "{}", "%n%s", "\\n"],
    "choice": ["", "wrong", ESC, "x" * 5000, "AUTO", "\udcff", "0"],
}
ARGUMENTS = [
    "nowhere",
    "",
    "x" * 5000,
    ESC,
    "\udcff",
    "/dev/zero",
    "/dev/null",
    "-",
    "*.nothing",
    "[",
    "a=b",
    "--",
    "pipe",
    "link",
    "empty",
    "/proc/self/mem",
    "~/x",
    "http://x/y",
    "s3://x/y",
    "corpus/d00.txt",
    "tok/tokenizer.json",
    "unreadable",
]


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []
    options = _options()
    sound = {verb.command: verb for verb in reversed(world.verbs.values()) if verb.name != "train --print-config"}
    sound[("train",)] = world.verbs["train --dry-run"]
    for command, known in options.items():
        verb = sound.get(command)
        words = list(verb.words if verb else command)
        needs = world.make(verb, _strange) if verb else (lambda folder: _strange(folder))
        slow = verb is not None and verb.seconds > 5
        for option in known:
            values = WRONG.get(option["type"], WRONG["text"])
            values = dice.sample(values, min(len(values), 1 if slow else 7))
            for value in values:
                given = _with(words, option["name"], None if option["type"] == "boolean" else value)
                found.append(_case(f"{' '.join(command)} {option['name']} {short(value)}", given, needs, verb))
            if option["type"] != "boolean":
                found.append(
                    _case(
                        f"{' '.join(command)} {option['name']} without a value", [*words, option["name"]], needs, verb
                    )
                )
        for value in ARGUMENTS if not slow else ARGUMENTS[:2]:
            place = len(command)
            given = [*words[:place], value, *words[place + 1 :]] if len(words) > place else [*words, value]
            found.append(_case(f"{' '.join(command)} {short(value)}", given, needs, verb))
        for word in ("--no-such", ESC, "--" + "x" * 5000, "-\udcff", "--\x9b31m", "-h", "--help=1"):
            found.append(_case(f"{' '.join(command)} ... {short(word)}", [*words, word], needs))
    for script, flags in {
        "run_train.py": ["--config"],
        "plot_logs.py": ["--out", "--x"],
        "run_inference.py": [
            "--prompt",
            "--checkpoint",
            "--tokenizer",
            "--temp",
            "--top_p",
            "--max_tokens",
            "--device",
        ],
    }.items():
        for flag in flags:
            for value in dice.sample([*WRONG["path"], *WRONG["float"]], 6):
                case = _case(f"{script} {flag} {short(value)}", [flag, value], needs)
                case.script = script
                found.append(case)
        for word in ("--no-such", ESC, "\udcff", "-h", "nowhere"):
            case = _case(f"{script} {short(word)}", [word], needs)
            case.script = script
            found.append(case)
    return found


def _case(name: str, words: list[str], make: Any, verb: Verb | None = None) -> Case:
    case = Case(
        "flags",
        name,
        words,
        make,
        changes=("out", "out/*", "run", "run/*", "~*", "-*"),
        deadline=90,
        limits={"FSIZE": 10**8},
        env=NO_HUB,
    )
    if verb and verb.ends_after:
        case.kill, case.codes = (signal.SIGTERM, verb.ends_after), (143,)
    return case


def _with(words: list[str], name: str, value: str | None) -> list[str]:
    words = list(words)
    if name in words:
        place = words.index(name)
        del words[place : place + (1 if value is None else 2)]
    return [*words, name, *([] if value is None else [value])]


def _strange(folder: Path) -> None:
    kinds = strange_files()
    kinds["a pipe"](folder / "pipe")
    kinds["a link to itself"](folder / "link")
    kinds["an empty folder"](folder / "empty")
    (folder / "unreadable").write_text("x")


def _options() -> dict[tuple[str, ...], list[dict[str, str]]]:
    """Ask the command line itself for its verbs and their options."""
    program = """
import json, typer
from mini_llm.cli import app
def kind(bare):
    return {int: "integer", float: "float", bool: "boolean", str: "text"}.get(bare) or (
        "path" if "Path" in str(bare) else "choice")
def walk(command, words):
    inner = getattr(command, "commands", None)
    if inner:
        for name, one in inner.items(): yield from walk(one, [*words, name])
    else:
        options = [p for p in command.params if p.opts[0].startswith("-")]
        yield words, [dict(name=p.opts[-1], type=kind(p.bare_type)) for p in options]
print(json.dumps(list(walk(typer.main.get_command(app), []))))
"""
    import json

    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {tuple(words): options for words, options in json.loads(answer)}
