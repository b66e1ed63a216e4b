"""Files that a command reads, spoiled as bytes and as JSON: tokenizers, stores, checkpoints, runs, seed checkpoints."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bad_inputs.case import Case, Check
from _bad_inputs.hostile import JSON_VALUES, remove, short, spoiled_bytes, spoiled_json, strange_files
from _bad_inputs.world import GREEDY, World

GENERATE = ["generate", "model", "--prompt", "river stone", *GREEDY]
FREE = ["generate", "free", "--prompt", "river stone", *GREEDY]
PREPARE = ["prepare", "corpus", "--tokenizer", "tok", "--out", "out", "--val-fraction", "0.1"]
TRAIN = ["train", "--config", "train.yaml"]
RESUME = ["train", "--config", "train.yaml", "max_iters=6"]
RUN = ("run", "run/*")
CHECKPOINT = "run/checkpoints/step-00000004"


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    area = _Area(world, dice)
    generated = world.same("generate")
    warned = "warning"
    # A store: train refuses, warns, or learns the same.
    for name in (
        "manifest.json",
        "train-00000.bin",
        "val-00000.bin",
        "train.idx",
        "val.idx",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/tokenizer.model",
    ):
        area.bytes("stores", f"tokens/{name}", TRAIN, ("train.yaml", "tokens"), world.same("train"), warned, RUN, 11)
    area.json("stores", "tokens/manifest.json", TRAIN, ("train.yaml", "tokens"), world.same("train"), warned, RUN, 40)
    # A checkpoint of ours has checksums: a changed byte is refused.
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "checksums.json",
    ):
        area.bytes("checkpoints", f"model/{name}", GENERATE, ("model",), generated, warned, (), 10)
    # A folder from elsewhere has none: what is accepted may be another model, but nothing may break.
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        area.bytes("checkpoints", f"free/{name}", FREE, ("free",), None, None, (), 12)
    area.json("checkpoints", "free/config.json", FREE, ("free",), None, None, (), 70)
    area.json("checkpoints", "free/generation_config.json", FREE, ("free",), None, None, (), 25)
    area.json("checkpoints", "model/checksums.json", GENERATE, ("model",), generated, warned, (), 12)
    area.header("checkpoints", 45)
    # A tokenizer.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        area.bytes("tokenizers", f"tok/{name}", PREPARE, ("tok", "corpus"), None, None, ("out", "out/*"), 14)
        area.json("tokenizers", f"tok/{name}", PREPARE, ("tok", "corpus"), None, None, ("out", "out/*"), 70)
        area.json("tokenizers", f"free/{name}", FREE, ("free",), None, None, (), 40)
        area.json("tokenizers", f"tok/{name}", ["tokenizer", "report", "tok"], ("tok",), None, None, (), 20)
    area.parts()
    # A run that goes on.
    for name in (
        "training_state/state.json",
        "training_state/optimizer.safetensors",
        "model.safetensors",
        "checksums.json",
        "config.json",
    ):
        area.bytes(
            "runs",
            f"{CHECKPOINT}/{name}",
            RESUME,
            ("train.yaml", "tokens", "run"),
            world.same("resume"),
            warned,
            RUN,
            9,
        )
    area.json(
        "runs",
        f"{CHECKPOINT}/training_state/state.json",
        RESUME,
        ("train.yaml", "tokens", "run"),
        world.same("resume"),
        warned,
        RUN,
        40,
        free=f"{CHECKPOINT}/checksums.json",
    )
    for name in ("config.yaml", "metrics.jsonl", "timing.jsonl"):
        area.bytes("runs", f"run/{name}", RESUME, ("train.yaml", "tokens", "run"), None, None, RUN, 11)
    for words in (["plot", "run", "--terminal"], ["plot", "run", "--json"]):
        area.bytes("runs", "run/metrics.jsonl", words, ("run",), None, None, ("run/plots", "run/plots/*"), 14)
        area.lines(words)
    area.pointers()
    area.bytes(
        "checkpoints",
        "seed.pt",
        ["import-seed", "seed.pt", "--out", "out"],
        ("seed.pt",),
        world.same("import-seed"),
        None,
        ("out", "out/*"),
        22,
    )
    return area.found


class _Area:
    def __init__(self, world: World, dice: random.Random) -> None:
        self.world, self.dice, self.found = world, dice, []  # type: ignore[var-annotated]

    def add(
        self,
        area: str,
        name: str,
        words: list[str],
        needs: tuple[str, ...],
        spoil: Callable[[Path], Any],
        *,
        check: Check | None = None,
        told: str | None = None,
        changes: tuple[str, ...] = (),
        **more: Any,
    ) -> None:
        def make(folder: Path) -> None:
            self.world.bring(folder, *needs)
            spoil(folder)

        self.found.append(Case(area, name, words, make, check=check, told=told, changes=changes, **more))

    def bytes(
        self,
        area: str,
        name: str,
        words: list[str],
        needs: tuple[str, ...],
        check: Check | None,
        told: str | None,
        changes: tuple[str, ...],
        count: int,
    ) -> None:
        """Spoil a file as bytes, and put strange things in its place."""
        data = (self.world.home / name).read_bytes()
        ways: list[tuple[str, Callable[[Path], Any]]] = []
        for what, spoiled in spoiled_bytes(data, self.dice):
            ways.append((what, lambda path, s=spoiled: (remove(path), path.write_bytes(s))))
        for what, make in strange_files().items():
            if what == "a terabyte of nothing" and not name.startswith("free/"):
                continue  # to hold it against a checksum takes an hour, rightly
            ways.append((f"is {what}", lambda path, m=make: (remove(path), m(path))))
        ways.append(("gone", remove))
        for what, spoil in self.dice.sample(ways, min(count, len(ways))):
            self.add(
                area,
                f"{words[0]}: {name} {what}",
                words,
                needs,
                lambda folder, s=spoil: s(folder / name),
                check=check,
                told=told,
                changes=changes,
            )

    def json(
        self,
        area: str,
        name: str,
        words: list[str],
        needs: tuple[str, ...],
        check: Check | None,
        told: str | None,
        changes: tuple[str, ...],
        count: int,
        free: str | None = None,
    ) -> None:
        """Change one value of a JSON file; `free` names the checksums that would tell it, which go."""
        value = json.loads((self.world.home / name).read_text(encoding="utf-8"))
        for what, changed in spoiled_json(value, self.dice, count):
            text = _dumps(changed)

            def spoil(folder: Path, text: str = text) -> None:
                (folder / name).write_text(text, encoding="utf-8")
                if free:
                    remove(folder / free)

            loose = check if not free else None
            self.add(area, f"{words[0]}: {name} {what}", words, needs, spoil, check=loose, told=told, changes=changes)
        for value in self.dice.sample(JSON_VALUES, 5):
            self.add(
                area,
                f"{words[0]}: {name} holds {short(value)}",
                words,
                needs,
                lambda folder, v=value: (folder / name).write_text(_dumps(v), encoding="utf-8"),
                check=check,
                told=told,
                changes=changes,
            )

    def header(self, area: str, count: int) -> None:
        """Change the header of a safetensors file: its length, shapes, types, places and names."""
        data = (self.world.home / "free" / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
        kinds = ["F16", "BF16", "I8", "U8", "I32", "I64", "BOOL", "F64", "F8_E4M3", "F8_E5M2", "F4", "C64", "X", "U16"]
        for _ in range(count):
            name = self.dice.choice([name for name in header if name != "__metadata__"])
            what, changed = self._changed_header(json.loads(json.dumps(header)), name, self.dice.choice(kinds))
            text = json.dumps(changed).encode()
            size = self.dice.choice([len(text)] * 6 + [0, 2**63, 2**31, len(text) + 5])
            made = size.to_bytes(8, "little") + text + rest

            def spoil(folder: Path, made: bytes = made) -> None:
                (folder / "free" / "model.safetensors").write_bytes(made)

            self.add(area, f"generate: header of {name}: {what}, length {size}", FREE, ("free",), spoil)

    def _changed_header(self, header: dict[str, Any], name: str, kind: str) -> tuple[str, dict[str, Any]]:
        entry = header[name]
        ways: list[tuple[str, Callable[[], Any]]] = [
            (f"dtype {kind}", lambda: entry.update(dtype=kind)),
            ("shape -1", lambda: entry.update(shape=[-1, 32])),
            ("shape 2**62", lambda: entry.update(shape=[2**62, 32])),
            ("no shape", lambda: entry.pop("shape")),
            ("offsets back", lambda: entry.update(data_offsets=[9, 0])),
            ("offsets beyond", lambda: entry.update(data_offsets=[0, 2**40])),
            ("gone", lambda: header.pop(name)),
            ("one more", lambda: header.update({"model.extra": dict(entry)})),
            ("renamed", lambda: header.update({"\x1b]0;PWN\x07": header.pop(name)})),
        ]
        what, change = self.dice.choice(ways)
        change()
        return what, header

    def parts(self) -> None:
        """Give tokenizer.json parts that other models have, or that no model should have."""
        value = json.loads((self.world.home / "tok" / "tokenizer.json").read_text(encoding="utf-8"))
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        parts: list[tuple[str, Any]] = [
            ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
            ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
            ("normalizer", {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000}),
            ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
            ("normalizer", {"type": "Prepend", "prepend": "y" * 10**6}),
            ("normalizer", {"type": "Lowercase"}),
            ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "zz"}] * 50}),
            ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(?=a"}, "behavior": "Isolated", "invert": False}),
            (
                "pre_tokenizer",
                {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Removed", "invert": True},
            ),
            ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
            ("pre_tokenizer", {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always"}),
            ("decoder", None),
            ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
            ("decoder", {"type": "Replace", "pattern": {"String": "e"}, "content": "\x1b]0;PWN\x1b\\"}),
            ("decoder", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
            ("decoder", {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True}),
            ("model", {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 4294967295}}),
            ("model", {"type": "WordLevel", "unk_token": "a", "vocab": {}}),
            ("model", {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}),
            ("model", {"type": "Unigram", "unk_id": 0, "vocab": []}),
            ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
            ("truncation", {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 9}),
            (
                "padding",
                {
                    "strategy": {"Fixed": 10**9},
                    "direction": "Left",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "x",
                },
            ),
            ("added_tokens", [{"id": 4294967295, "content": "<far>", **token}]),
            ("added_tokens", [{"id": 399, "content": "", **token}]),
            ("added_tokens", [{"id": 5, "content": " ", **token, "special": False}]),
            ("added_tokens", [{"id": i, "content": f"<\x1b]0;PWN\x07{i}>", **token} for i in range(400, 420)]),
        ]
        for key, part in parts:
            text = _dumps({**value, key: part})
            name = f"{key} {short(part)}"
            self.add(
                "tokenizers",
                f"prepare: {name}",
                PREPARE,
                ("tok", "corpus"),
                lambda folder, t=text: (folder / "tok" / "tokenizer.json").write_text(t, "utf-8"),
                changes=("out", "out/*"),
            )
            for words, target in ((FREE, "free"), (["tokenizer", "report", "tok"], "tok")):
                self.add(
                    "tokenizers",
                    f"{words[0]}: {name}",
                    words,
                    (target,),
                    lambda folder, t=text, d=target: (folder / d / "tokenizer.json").write_text(t, "utf-8"),
                    stdout=self.dice.choice(["file", "terminal"]),
                )

    def lines(self, words: list[str]) -> None:
        """Spoil single lines of metrics.jsonl."""
        lines = [
            "{}",
            "[]",
            "null",
            "{",
            '{"step": "a"}',
            '{"step": 1e400}',
            '{"step": -1, "loss": 1}',
            '{"step": 2, "loss": "x"}',
            '{"step": 3, "loss": null}',
            '{"step": 5, "loss": 1e308, "tokens": 1}',
            '{"step": 5, "tokens": {}, "loss": []}',
            '{"step": ' + "9" * 400 + ', "loss": 1, "tokens": 2}',
            '{"step": 6, "loss": NaN, "tokens": NaN}',
            '{"step": true, "loss": true}',
            "[" * 5000,
            '{"step": 9, "val_loss": "\x1b]0;PWN\x07", "tokens": 9}',
            "\x00",
        ]
        for line in lines:
            self.add(
                "runs",
                f"{' '.join(words)}: a line {short(line)}",
                words,
                ("run",),
                lambda folder, text=line: (folder / "run" / "metrics.jsonl").open("a").write(text + "\n"),
                changes=("run/plots", "run/plots/*"),
            )
            self.add(
                "runs",
                f"{' '.join(words)}: only the line {short(line)}",
                words,
                ("run",),
                lambda folder, text=line: (folder / "run" / "metrics.jsonl").write_text(text + "\n"),
            )

    def pointers(self) -> None:
        """Spoil what a run's parts are: pointers, folders and locks."""
        strange = strange_files()
        for name in ("latest", "best", "checkpoints", ".lock", "metrics.jsonl", "config.yaml", "plots"):
            for what in self.dice.sample(sorted(strange), 5):

                def spoil(folder: Path, n: str = name, m: Callable[[Path], Any] = strange[what]) -> None:
                    remove(folder / "run" / n)
                    m(folder / "run" / n)

                for words, needs in (
                    (RESUME, ("train.yaml", "tokens", "run")),
                    (["generate", "run", "--prompt", "river stone", *GREEDY], ("run",)),
                    (["plot", "run"], ("run",)),
                ):
                    self.add("runs", f"{words[0]}: run/{name} is {what}", words, needs, spoil, changes=RUN)


def _dumps(value: Any) -> str:
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)
