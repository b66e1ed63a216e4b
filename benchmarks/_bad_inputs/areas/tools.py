"""What comes after training, spoiled: conversations, tasks, reports, exports, servers and the hub."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bad_inputs.case import Case
from _bad_inputs.hostile import ESC, JSON_VALUES, remove, short, spoiled_bytes, spoiled_json, strange_files
from _bad_inputs.world import GREEDY, NO_HUB, Verb, World

NAMES = ["", "a/b", "a/b@", "../x", "a//b", "x" * 5000, ESC, "\udcff", "hf://", "hf://a/b/c/d", "a b/c", "/etc", "-"]
URLS = ["", "x", "http://", "http://127.0.0.1:1", "http://127.0.0.1:99999", "file:///etc/passwd", "http://[::1", ESC]
URLS += ["http://" + "x" * 3000, "ftp://127.0.0.1/", "http://a b/", "http://127.0.0.1:1/\x00", "\udcff", "https://%zz/"]
PORTS = ["0", "1", "-1", "65536", "abc", "", "9" * 30]
TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: a
doc_to_choice: c
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROWS = [{"q": "river stone", "a": 0, "c": ["bread", "quiet"]}, {"q": "lamp walks", "a": 1, "c": ["under", "seven"]}]


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []
    for name, verb in world.verbs.items():
        if name in ("sft", "report", "export", "export hf"):
            found += spoiled_files("tools", world, dice, verb, 30)
    found += _conversations(world, dice) if "sft" in world.verbs else []
    found += _tasks(world, dice)
    found += [_plain(world, f"push {short(n)}", ["push", "model", n], ("model",)) for n in NAMES]
    found += [_plain(world, f"pull {short(n)}", ["pull", n, "--out", "out"], ()) for n in NAMES]
    found += [_plain(world, f"generate hf://{short(n)}", ["generate", f"hf://{n}", "--prompt", "a"], ()) for n in NAMES]
    for url in URLS:
        words = ["chat", "--url", url, *GREEDY[:4]]
        found.append(_plain(world, f"chat --url {short(url)}", words, (), typed=b"hello\n/exit\n"))
        found.append(_plain(world, f"eval {short(url)}", ["eval", url, "--text", "corpus/d00.txt"], ("corpus",)))
    for port in PORTS:
        for host in dice.sample(["127.0.0.1", "0.0.0.0", "::1", "nowhere.invalid", "", ESC], 3):
            words = ["serve", "model", "--port", port, "--host", host, "--device", "cpu"]
            case = _plain(world, f"serve {short(host)}:{port}", words, ("model",))
            case.kill, case.codes = (signal.SIGTERM, 12.0), (143,)
            found.append(case)
    return found


def spoiled_files(area: str, world: World, dice: random.Random, verb: Verb, count: int) -> list[Case]:
    """Spoil each file that a verb reads: as bytes, as JSON, and by putting other things in its place."""
    files = [
        path.relative_to(world.home)
        for need in verb.needs
        for path in [world.home / need, *sorted((world.home / need).rglob("*"))]
        if path.is_file() and path.stat().st_size and not path.is_symlink() and "profile" not in path.parts
    ]
    ways: list[tuple[str, Path, Callable[[Path], Any]]] = []
    for name in files:
        data = (world.home / name).read_bytes()
        ways += [(what, name, lambda p, s=s: (remove(p), p.write_bytes(s))) for what, s in spoiled_bytes(data, dice)]
        if name.suffix == ".json":
            for what, value in spoiled_json(json.loads(data), dice, 6):
                text = json.dumps(value).encode("utf-8", "surrogatepass")
                ways.append((what, name, lambda p, s=text: p.write_bytes(s)))
        for what, make in strange_files().items():
            if what != "a terabyte of nothing":
                ways.append((f"is {what}", name, lambda p, m=make: (remove(p), m(p))))
        ways.append(("gone", name, remove))
    chosen = dice.sample(ways, min(count, len(ways)))
    return [
        Case(area, f"{verb.name}: {name} {what}", verb.words, world.make(verb, lambda f, n=name, w=way: w(f / n)),
             changes=verb.changes, deadline=90, limits={"FSIZE": 10**8})
        for what, name, way in chosen
    ]  # fmt: skip


def _conversations(world: World, dice: random.Random) -> list[Case]:
    verb = world.verbs["sft"]
    sound = [json.loads(line) for line in (world.home / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    found = []
    for what, value in spoiled_json(sound, dice, 40):
        rows = value if isinstance(value, list) else [value]
        text = "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
        make = world.make(verb, lambda folder, t=text: (folder / "chats.jsonl").write_bytes(t))
        found.append(Case("tools", f"sft: chats.jsonl {what}", verb.words, make, changes=verb.changes, deadline=90))
    for value in JSON_VALUES:
        row = json.dumps({"messages": [{"role": "user", "content": value}, {"role": "assistant", "content": value}]})
        make = world.make(verb, lambda folder, t=row: (folder / "chats.jsonl").write_text(t + "\n"))
        name = f"sft: every content is {short(value)}"
        found.append(Case("tools", name, verb.words, make, changes=verb.changes, deadline=90))
    return found


def _tasks(world: World, dice: random.Random) -> list[Case]:
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    words = ["eval", "model", "--include", "tasks", "--tasks", "mine", "--data", "tasks", "--out", "out"]
    found = []
    for place, sound in (("mine.yaml", TASK), ("rows.jsonl", rows)):
        for what, data in dice.sample(list(spoiled_bytes(sound.encode(), dice)), 12):
            found.append(_task(world, f"eval: {place} {what}", words, {place: data}, rows))
    for what, value in spoiled_json(ROWS, dice, 30):
        spoiled = "".join(json.dumps(row) + "\n" for row in (value if isinstance(value, list) else [value]))
        files = {"rows.jsonl": spoiled.encode("utf-8", "surrogatepass")}
        found.append(_task(world, f"eval: rows.jsonl {what}", words, files, rows))
    for line in (
        "{{ 'a' * 10**9 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ q.__class__.__mro__ }}",
        "{{",
        ESC,
    ):
        text = TASK.replace("{{q}}", line.replace('"', "'"))
        found.append(_task(world, f"eval: a template {short(line)}", words, {"mine.yaml": text.encode()}, rows))
    return found


def _task(world: World, name: str, words: list[str], files: dict[str, bytes], rows: str) -> Case:
    def make(folder: Path) -> None:
        world.bring(folder, "model")
        (folder / "tasks").mkdir()
        for place, data in {"mine.yaml": TASK.encode(), "rows.jsonl": rows.encode(), **files}.items():
            (folder / "tasks" / place).write_bytes(data)

    return Case("tools", name, words, make, deadline=60, env=NO_HUB)


def _plain(world: World, name: str, words: list[str], needs: tuple[str, ...], typed: bytes = b"") -> Case:
    def make(folder: Path) -> None:
        world.bring(folder, *needs)
        (folder / "typed").write_bytes(typed)

    return Case("tools", name, words, make, env=NO_HUB, stdin="typed" if typed else "null", deadline=60)
