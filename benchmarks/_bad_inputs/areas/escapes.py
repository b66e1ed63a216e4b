"""Terminal codes in everything that a command may repeat: names, keys, values, pieces of a model, lines of a run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bad_inputs.case import Case
from _bad_inputs.world import GREEDY, World

CODES = [
    "\x1b]0;PWN\x1b\\",
    "\x1b[2J",
    "\x9b31m",
    "\x1b[31mred",
    "\x07\x08\x08",
    "\u202egnp",
    "\x1b]8;;http://x\x07link",
]


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []

    def add(
        name: str, words: list[str], needs: tuple[str, ...], spoil: Callable[[Path], Any] | None = None, **more: Any
    ) -> None:
        def make(folder: Path) -> None:
            world.bring(folder, *needs)
            if spoil:
                spoil(folder)

        for stdout in ("file", "terminal"):
            found.append(Case("escapes", f"{name}, to a {stdout}", words, make, stdout=stdout, changes=("*",), **more))

    for code in CODES:
        add(f"--prompt {code!r}", ["generate", "run", "--prompt", code, *GREEDY], ("run",))
        add(f"a run called {code!r}", ["generate", f"run{code}", "--prompt", "a"], ())
        add(f"a config called {code!r}", ["train", "--config", f"{code}.yaml"], ())
        add(f"a key {code!r}", ["train", f"{code}=1"], ())
        add(f"a value {code!r}", ["train", f"seed={code}"], ())
        add(f"a device {code!r}", ["train", "--config", "train.yaml", f"device={code}"], ("train.yaml", "tokens"))
        add(f"a verb {code!r}", [code], ())
        add(f"an option --{code!r}", ["plan", f"--{code}"], ())
        add(f"a value of an option {code!r}", ["plan", "--gpu", code], ())
        add(
            f"an out_dir {code!r}",
            ["train", "--config", "train.yaml", f"out_dir=x{code.replace('/', '')}"],
            ("train.yaml", "tokens"),
        )
        add(f"--print-config with {code!r}", ["train", f"out_dir={json.dumps(code)}", "--print-config"], ())
        add(
            f"a sample after {code!r}",
            ["train", "--config", "train.yaml", "sample_interval=2", f"sample_prompt={json.dumps(code)}"],
            ("train.yaml", "tokens"),
        )
        add(
            f"plan with {code!r}",
            ["plan", "--config", "train.yaml", f"wandb_project={json.dumps(code)}"],
            ("train.yaml",),
        )
        add(f"--stop {code!r}", ["generate", "run", "--prompt", "a", "--stop", code, *GREEDY], ("run",))
        add(f"--logit-bias {code!r}", ["generate", "run", "--prompt", "a", "--logit-bias", code, *GREEDY], ("run",))
        add(f"--system {code!r}", ["chat", "run", "--system", code, *GREEDY], ("run",))
        add(
            f"a config file's key {code!r}",
            ["train", "--config", "c.yaml"],
            (),
            lambda folder, c=code: (folder / "c.yaml").write_text(f"{json.dumps(c)}: 1\n"),
        )
        add(
            f"model_type {code!r}",
            ["generate", "free", "--prompt", "a"],
            ("free",),
            _edit("free/config.json", model_type=code),
        )
        add(
            f"hidden_act {code!r}",
            ["generate", "free", "--prompt", "a"],
            ("free",),
            _edit("free/config.json", hidden_act=code),
        )
        add(
            f"hidden_size {code!r}",
            ["generate", "free", "--prompt", "a"],
            ("free",),
            _edit("free/config.json", hidden_size=code),
        )
        decoder = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "e"}, "content": code},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        }
        add(
            f"pieces that hold {code!r}",
            ["generate", "free", "--prompt", "The", *GREEDY],
            ("free",),
            _edit("free/tokenizer.json", decoder=decoder),
        )
        add(
            f"a report of pieces that hold {code!r}",
            ["tokenizer", "report", "free"],
            ("free",),
            _edit("free/tokenizer.json", decoder=decoder),
        )
        add(
            f"a decoder of type {code!r}",
            ["tokenizer", "report", "free"],
            ("free",),
            _edit("free/tokenizer.json", decoder={"type": code}),
        )
        name = code.replace("/", "")
        add(
            f"a tokenizer called {name!r}",
            ["tokenizer", "report", f"tok{name}"],
            ("tok",),
            lambda folder, n=name: (folder / "tok").rename(folder / f"tok{n}"),
        )
        add(
            f"a run drawn that is called {name!r}",
            ["plot", f"run{name}", "--terminal"],
            ("run",),
            lambda folder, n=name: (folder / "run").rename(folder / f"run{n}"),
        )
        add(f"a picture called {name!r}", ["plot", "run", "--out", f"x{name}.svg"], ("run",))
        add(
            f"a corpus called {name!r}",
            ["prepare", f"x{name}.jsonl", "--tokenizer", "tok", "--out", "out"],
            ("tok",),
            lambda folder, n=name: (folder / f"x{n}.jsonl").write_text('{"a": 1}\n'),
        )
        add(
            f"--out {name!r}", ["tokenizer", "train", "corpus", "--vocab-size", "400", "--out", f"x{name}"], ("corpus",)
        )
        for script, words in (
            ("run_inference.py", [f"--{code}"]),
            ("run_train.py", [f"{code}=1"]),
            ("plot_logs.py", [code]),
        ):
            add(f"{script} {code!r}", words, (), script=script)
    typed = "".join(CODES) + "\n/" + CODES[0] + "\n"
    add(
        "chat, all typed",
        ["chat", "run", *GREEDY],
        ("run",),
        lambda folder: (folder / "typed").write_text(typed),
        stdin="typed",
    )
    return found


def _edit(name: str, **values: Any) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")

    return spoil
