"""Settings: YAML files and KEY=VALUE words with values of every wrong kind, and files that are no settings."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from _bad_inputs.case import Case, Check, Outcome
from _bad_inputs.hostile import remove, short, spoiled_bytes, strange_files, values_yaml
from _bad_inputs.world import TRAIN, World

PRINT = ["train", "--config", "train.yaml", "--print-config"]
LONG = {"max_iters", "eval_iters", "gradient_accumulation_steps", "out_dir", "data_dir"}  # large ones are only slow


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []
    keys = _keys()
    for _ in range(220):  # one key of the file has a hostile value
        key, value = dice.choice(keys), dice.choice(values_yaml())
        found.append(
            Case("configs", f"{key}: {short(value)}", PRINT, _file(world, key, value), check=_kept(key, value))
        )
    for _ in range(120):  # the same as words of the command
        key, value = dice.choice(keys), dice.choice(values_yaml())
        words = [*PRINT, f"{key}={value}"]
        found.append(Case("overrides", f"{key}={short(value)}", words, _plain(world), check=_kept(key, value)))
    for _ in range(70):  # what is accepted is also trained with, or planned
        key, value = dice.choice([k for k in keys if k not in LONG]), dice.choice(values_yaml())
        for words in (["train", "--config", "train.yaml", "--dry-run"], ["plan", "--config", "train.yaml"]):
            make = _plain(world, "tokens")
            found.append(
                Case(
                    "overrides",
                    f"{words[0]} {key}={short(value)}",
                    [*words, f"{key}={value}"],
                    make,
                    changes=("run", "run/*"),
                )
            )
    for word in (
        "=1",
        "a",
        "seed=",
        "model=1",
        "model.=1",
        ".=1",
        "model.dim.x=1",
        "seed.x=1",
        "__class__=1",
        "model={}",
        "--seed=1",
        "-seed=1",
        "seed=1=2",
        "a" * 5000 + "=1",
        "\x1b]0;PWN\x07=1",
        "seed\n=1",
    ):
        found.append(Case("overrides", f"word {short(word)}", [*PRINT, word], _plain(world)))
    for name, data in spoiled_bytes(TRAIN.encode(), dice):
        found.append(Case("configs", f"file: {name}", PRINT, _bytes(data), check=_reads_alike))
    texts = [f"seed: 1\n{line}\n" for line in _yaml_lines()]
    found += [
        Case("configs", f"line {short(text)}", PRINT, _bytes(text.encode("utf-8", "surrogatepass"))) for text in texts
    ]
    for name, make in strange_files().items():
        if name not in ("a file",):
            found.append(
                Case(
                    "configs",
                    f"train.yaml is {name}",
                    PRINT,
                    lambda folder, m=make: m(folder / "train.yaml"),
                    accept=False,
                    deadline=20,
                )
            )
    for path in ("\0", "a" * 5000, "", "/", "~nobody-here/x", "$UNKNOWN/x", "train.yaml/x", "\x1b[2J"):
        words = [path if word == "train.yaml" else word for word in PRINT if "\0" not in path]
        if "\0" not in path:
            found.append(Case("configs", f"--config {short(path)}", words, _plain(world), accept=False))
        for key in ("out_dir", "data_dir"):
            value = yaml.dump(path, default_style='"').strip()
            make = _file(world, key, value, "tokens")
            found.append(
                Case(
                    "configs",
                    f"{key}: {short(path)}",
                    ["train", "--config", "train.yaml"],
                    make,
                    check=lambda _: None,
                    changes=("*",),
                )
            )
    return found


def _keys() -> list[str]:
    import re

    source = (Path(__file__).resolve().parents[3] / "mini_llm" / "train" / "config.py").read_text(encoding="utf-8")
    shape = (Path(__file__).resolve().parents[3] / "mini_llm" / "model" / "config.py").read_text(encoding="utf-8")
    own = re.findall(r"^    ([a-z_0-9]+): (?!.*ModelConfig)", source, re.MULTILINE)
    of_model = re.findall(r"^    ([a-z_0-9]+): ", shape.partition("class ModelConfig")[2], re.MULTILINE)
    return own + [f"model.{key}" for key in of_model]


def _yaml_lines() -> list[str]:
    tags = [
        f"{key}: !!{tag} {value}"
        for key in ("seed", "learning_rate", "resume", "out_dir")
        for tag in (
            "int",
            "float",
            "bool",
            "timestamp",
            "binary",
            "null",
            "set",
            "omap",
            "pairs",
            "seq",
            "map",
            "python/object:os.system",
            "python/name:os.system",
            "merge",
            "str",
            "unknown",
            "value",
        )
        for value in ("abc", "[1]", "{a: 1}")
    ]
    return [
        *tags,
        "? [a, b]\n: c",
        "{a: 1}: 2",
        "[1]: 2",
        "1: 2",
        "null: 1",
        "true: 1",
        "<<: {seed: 2}",
        "seed: &a 1",
        "---\nseed: 2",
        "%YAML 9.9\n---\nseed: 1",
        "seed: 2",
        "model: {dim: 32, dim: 64}",
        "a: *b",
        "\t",
        "\tseed: 1",
        "- 1",
        "seed: |\n  1",
        "model: []",
        "model: null",
        "model: {rope_scaling: {factor: a}}",
        "\ufeffseed: 2",
        "\x07",
        'out_dir: "\\x1b]0;PWN\\x07"',
        '"\\x1b]0;PWN\\x07": 1',
        "x" * 90_000 + ": 1",
        "x: " + "[" * 20_000,
        "x: " + "{a: " * 3000,
        "seed: 0o17",
        "seed: 1:30",
        "seed: 0b11",
        "model: !!set {dim}",
        "\ud800: 1",
    ]


def _plain(world: World, *more: str):  # type: ignore[no-untyped-def]
    return lambda folder: world.bring(folder, "train.yaml", *more)


def _bytes(data: bytes):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / "train.yaml").write_bytes(data)


def _file(world: World, key: str, value: str, *more: str):  # type: ignore[no-untyped-def]
    def make(folder: Path) -> None:
        world.bring(folder, *more)
        remove(folder / "train.yaml")
        if key.startswith("model."):
            name = key.partition(".")[2]
            shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 400, "max_seq_len": 64}
            lines = [f"  {k}: {v}" for k, v in shape.items() if k != name] + [f"  {name}: {value}"]
            text = TRAIN.partition("model:")[0] + "model:\n" + "\n".join(lines) + "\n"
        else:
            text = (
                "".join(f"{line}\n" for line in TRAIN.splitlines() if not line.startswith(f"{key}:"))
                + f"{key}: {value}\n"
            )
        (folder / "train.yaml").write_text(text, encoding="utf-8")

    return make


def _kept(key: str, value: str) -> Check:
    """A value that is accepted must be the one that is used."""

    def check(outcome: Outcome) -> str | None:
        printed = yaml.safe_load(outcome.stdout)
        for part in key.split("."):
            printed = printed[part]
        try:
            given = yaml.safe_load(value)
        except Exception:
            given = value
        if isinstance(given, str) and not isinstance(printed, str):
            try:
                given = (
                    {"true": True, "false": False, "null": None}.get(given)
                    if given in ("true", "false", "null")
                    else float(given)
                )
            except ValueError:
                return f"{given!r} became {printed!r}"
        if isinstance(printed, list) and not isinstance(given, list):  # one thing is a list of one
            return None if printed == [str(given)] or printed == [value] else f"{value} became {printed!r}"
        if isinstance(printed, str) or given is None or isinstance(given, (dict, list)):
            return None  # text stays text; null is the default
        return (
            None if float(printed) == float(given) or type(given).__name__ == "date" else f"{value} became {printed!r}"
        )

    return check


def _reads_alike(outcome: Outcome) -> str | None:
    """A file that is accepted though it was spoiled must be YAML, and every value in it be used."""
    given = yaml.safe_load((outcome.folder / "train.yaml").read_text(encoding="utf-8"))
    printed = yaml.safe_load(outcome.stdout)
    wrong = [key for key, value in given.items() if key != "model" and value is not None and printed[key] != value]
    return f"not as in the file: {wrong}" if wrong else None
