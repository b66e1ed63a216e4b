"""Tuning, spoiled: pairs, questions and mixtures row by row, every setting of sft, dpo and rl, and what they read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from _bad_inputs.areas.tools import spoiled_files
from _bad_inputs.case import Case
from _bad_inputs.hostile import JSON_VALUES, short, spoiled_bytes, spoiled_json, values_yaml
from _bad_inputs.world import World

FILES = ("sft lora", "dpo", "rl", "pairs", "skills", "mix", "eval --chat", "export --merge", "export ollama")
ROWS = {"dpo": "pairs.jsonl", "rl": "asked.jsonl", "pairs": "asked.jsonl", "mix": "chats.jsonl"}
SLOW = {"out_dir", "data_dir", "max_iters", "epochs", "made", "eval_iters", "eval_questions", "corpus"}
NAMES = [
    "",
    ",",
    "spelling,",
    "spelling=0",
    "spelling=-1",
    "spelling=1e9",
    "nothing",
    "spelling=x",
    "=5",
    "spelling=5=5",
]


def cases(world: World, dice: random.Random) -> list[Case]:
    """Return the area's cases."""
    found: list[Case] = []
    for name in FILES:
        found += spoiled_files("tuning", world, dice, world.verbs[name], 24)
    for name, file in ROWS.items():
        found += _rows(world, dice, name, file)
    for name in ("sft lora", "dpo", "rl"):
        found += _settings(world, dice, name)
    found += _mixtures(world, dice)
    for names in NAMES:
        for name, flag in (("skills", "--skills"), ("pairs", "--tasks")):
            words = _without(world.verbs[name].words, "--prompts" if name == "pairs" else flag)
            found.append(_of(world, name, f"{flag} {short(names)}", [*words, flag, names]))
    return found


def _of(world: World, name: str, what: str, words: list[str], then: Any = None, **more: Any) -> Case:
    verb = world.verbs[name]
    return Case("tuning", f"{name}: {what}", words, world.make(verb, then), changes=verb.changes, deadline=40, **more)


def _rows(world: World, dice: random.Random, name: str, file: str) -> list[Case]:
    words = world.verbs[name].words
    sound = [json.loads(line) for line in (world.home / file).read_text(encoding="utf-8").splitlines()]

    def row_case(what: str, rows: list[Any]) -> Case:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
        return _of(world, name, what, words, lambda folder, t=text: (folder / file).write_bytes(t))

    found = [row_case("no row", []), row_case("one row", sound[:1]), row_case("one row, often", sound[:1] * 50)]
    for what, value in spoiled_json(sound, dice, 40):
        found.append(row_case(what, value if isinstance(value, list) else [value]))
    for key in sound[0]:
        for value in dice.sample(JSON_VALUES, 6):
            found.append(row_case(f"every {key} is {short(value)}", [{**row, key: value} for row in sound]))
        found.append(row_case(f"no {key}", [{k: v for k, v in row.items() if k != key} for row in sound]))
    return found


def _settings(world: World, dice: random.Random, name: str) -> list[Case]:
    """Give each key hostile values: what is accepted is also tried for one step."""
    from mini_llm.tune.dpo_config import DpoConfig
    from mini_llm.tune.rl_config import RlConfig

    config = {"sft lora": DpoConfig.__base__, "dpo": DpoConfig, "rl": RlConfig}[name]
    keys = [key for key in config.model_fields if key not in ("model", "lora")] + ["lora.rank", "lora.alpha", "lora.x"]
    verb, found = world.verbs[name], []
    for key in keys:
        for value in dice.sample(values_yaml(), 3):
            more = ["--print-config"] if key in SLOW else ["--dry-run"]
            found.append(_of(world, name, f"{key}={short(value)}", [*verb.words, f"{key}={value}", *more]))
    for what, data in dice.sample(list(spoiled_bytes(b"epochs: 1\nlora: {rank: 2}\n", dice)), 8):
        words = [*verb.words, "--config", "tune.yaml", "--dry-run"]
        found.append(_of(world, name, f"tune.yaml {what}", words, lambda f, d=data: (f / "tune.yaml").write_bytes(d)))
    words = [*verb.words, "--config", "train.yaml", "--dry-run"]
    found.append(_of(world, name, "pretraining's settings", words, lambda folder: world.bring(folder, "train.yaml")))
    return found


def _mixtures(world: World, dice: random.Random) -> list[Case]:
    sound = yaml.safe_load((world.home / "mix.yaml").read_text(encoding="utf-8"))
    sound |= {"key": "source", "rest": True, "seed": 0}
    words, found = world.verbs["mix"].words, []
    for what, value in spoiled_json(sound, dice, 50):
        text = json.dumps(value)
        found.append(_of(world, "mix", f"mix.yaml {what}", words, lambda f, t=text: (f / "mix.yaml").write_text(t)))
    for key in ("of", "keep", "times", "most_words", "without", "say", "say_below"):
        for value in dice.sample(values_yaml(), 6):
            text = f"groups:\n  - {{of: a, keep: 3}}\n  - {key}: {value}\n"
            make = lambda f, t=text: Path(f, "mix.yaml").write_text(t, encoding="utf-8")  # noqa: E731
            found.append(_of(world, "mix", f"{key}: {short(value)}", words, make))
    return found


def _without(words: list[str], flag: str) -> list[str]:
    place = words.index(flag)
    return words[:place] + words[place + 2 :]
