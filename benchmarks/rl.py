"""What does reinforcement learning give to one skill, and what does it take from the others?

A small model reads the State of the Union addresses and is tuned on nine kinds of exercises; one of them, reversing,
stays half right. From there `mini-llm rl` learns to reverse, once a seed, alone and with the exercises of the tuning
beside the answers. Measured: held-out questions of the run, sampled and greedy, and all skills by `eval --chat`.

Each step is a command that you could type, and is printed. `--folder` keeps the runs: the same call goes on with them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import ROOT, finish, machine, note, table

SHAPE = "model.vocab_size=512 model.dim=128 model.n_layers=3"
EXERCISES = {
    "spelling": 12_000, "counting": 8_000, "copying": 8_000, "reversing": 4_000, "sorting": 4_000, "recall": 6_000,
    "identity": 2_000, "forms": 4_000, "unknown": 2_000,
}  # fmt: skip
TUNING = "fit_minutes=false max_minutes=null replay=0.25 letters=0"
LEARNED = "reversing"
WAYS = {"alone": "", "beside its exercises": "mix.share=0.2"}
CALLS_AT_ONCE = 2  # each takes one thread


@dataclass(frozen=True)
class Size:
    """How long everything takes."""

    share: float  # of the exercises
    base_steps: int
    tuning_steps: int
    steps: int
    questions: int  # held out, of the run
    asked: int  # of each skill, after it


FULL = Size(share=1, base_steps=500, tuning_steps=1500, steps=80, questions=300, asked=200)
QUICK = Size(share=0.02, base_steps=20, tuning_steps=30, steps=2, questions=8, asked=4)


def mini_llm(words: list[str]) -> str:
    """Run one command on one thread and return its standard output.

    Raises:
        SystemExit: it failed.
    """
    note("  mini-llm", shlex.join(words))
    done = subprocess.run(
        [sys.executable, "-m", "mini_llm", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"mini-llm {shlex.join(words)}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def corpus() -> str:
    """Return where the addresses are."""
    from mini_llm.data.built_in import built_in_corpus

    return str(built_in_corpus())


def tuned(folder: Path, size: Size) -> None:
    """Make the model that everything begins from, `folder/sft`, with its base and its exercises beside it."""
    text, store = corpus(), folder / "tokens"
    if not (folder / "tokenizer").exists():
        mini_llm(["tokenizer", "train", text, "--out", str(folder / "tokenizer"), "--vocab-size", "512"])
    if not store.exists():
        mini_llm(["prepare", text, "--tokenizer", str(folder / "tokenizer"), "--out", str(store)])
    if not (folder / "skills.jsonl").exists():
        counts = ",".join(f"{skill}={round(n * size.share)}" for skill, n in EXERCISES.items())
        options = ["--skills", counts, "--corpus", text, "--turns", "1", "--out", str(folder / "skills.jsonl")]
        mini_llm(["skills", *options])
    base = f"data_dir={store} out_dir={folder / 'base'} max_iters={size.base_steps} eval_interval={size.base_steps}"
    mini_llm(["train", "--config", "configs/demo.yaml", *base.split(), *SHAPE.split()])
    tuning = f"{TUNING} out_dir={folder / 'sft'} max_iters={size.tuning_steps} eval_interval={size.tuning_steps}"
    data = ["--base", str(folder / "base"), "--data", str(folder / "skills.jsonl")]
    mini_llm(["sft", "--config", "configs/demo-chat.yaml", *data, *tuning.split()])


def learned(folder: Path, size: Size, way: str, seed: int) -> dict[str, Any]:
    """Return what became of one run: its own held-out answers before and after, and all skills after it."""
    run = folder / f"rl-{way.replace(' ', '-')}-{seed}"
    mix = [WAYS[way], f"mix.data={folder / 'skills.jsonl'}"] if WAYS[way] else []
    settings = f"task={LEARNED} corpus={corpus()} out_dir={run} seed={seed} max_iters={size.steps}"
    looks = f"eval_interval={max(1, size.steps // 4)} eval_questions={size.questions}"
    start = ["--base", str(folder / "sft"), "--config", "configs/rl-spelling.yaml"]
    mini_llm(["rl", *start, *settings.split(), *looks.split(), *mix])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks_at = [line for line in lines if "val_greedy" in line]
    course = {kind: [line[f"val_{kind}"] for line in looks_at] for kind in ("sampled", "greedy")}
    return {"way": way, "seed": seed, **course, **asked(folder, size, run)}


def asked(folder: Path, size: Size, run: Path) -> dict[str, Any]:
    """Return the shares of right answers of all groups, of ended answers, and the loss of text."""
    options = ["--base", str(folder / "base"), "--text", corpus(), "--limit", str(size.asked), "--json"]
    found = json.loads(mini_llm(["eval", str(run), "--chat", *options]))["mini_llm"]["chat"]
    return {
        "groups": {name: group["right"] for name, group in found["groups"].items()},
        "stop_rate": found["form"]["all"]["stop_rate"],
        "bits_per_byte": found["forgetting"]["now"],
    }


def as_table(before: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """Return a table: a row a measure, a column a way, one value a seed."""
    ways = list(dict.fromkeys(run["way"] for run in runs))

    def row(name: str, value: Callable[[dict[str, Any]], float], before: str = "") -> list[str]:
        return [name, before, *(", ".join(f"{value(run):.1f}" for run in runs if run["way"] == way) for way in ways)]

    rows = [
        row(f"its questions, {kind}: gained", lambda run, k=kind: 100 * (run[k][-1] - run[k][0]))
        for kind in ("sampled", "greedy")
    ]
    rows += [row(g, lambda run, g=g: 100 * run["groups"][g], f"{100 * v:.1f}") for g, v in before["groups"].items()]
    rows += [
        row("answers that end", lambda run: 100 * run["stop_rate"], f"{100 * before['stop_rate']:.1f}"),
        row("text, bits per byte: worse by", lambda run: 100 * (run["bits_per_byte"] / before["bits_per_byte"] - 1)),
    ]
    return table(["percent", "before", *ways], rows)


def losses(before: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return, by way, the groups that have lost two points and more on the average of the seeds."""
    found: dict[str, list[str]] = {}
    for way in dict.fromkeys(run["way"] for run in runs):
        of_way = [run["groups"] for run in runs if run["way"] == way]
        change = {g: sum(run[g] for run in of_way) / len(of_way) - value for g, value in before["groups"].items()}
        found[way] = [f"{g} {100 * d:.1f}" for g, d in change.items() if d <= -0.02]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way (default 3)")
    parser.add_argument("--folder", type=Path, help="keep the runs here, and go on with those that are (default: none)")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps; no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    size, seeds = (QUICK, 1) if arguments.quick else (FULL, arguments.seeds)
    with tempfile.TemporaryDirectory(prefix="mini-llm-rl-") as name:
        folder = (arguments.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        tuned(folder, size)
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            calls = [pool.submit(learned, folder, size, way, seed + 1) for way in WAYS for seed in range(seeds)]
            before = asked(folder, size, folder / "sft")
            runs = [call.result() for call in calls]
    print(as_table(before, runs))
    lost = losses(before, runs)
    for way, groups in lost.items():
        print(f"{way}: two points and more lost on average: {', '.join(groups) or 'nowhere'}")
    result = {"before": before, "runs": runs, "lost": lost, "machine": machine()}
    finish("rl", result, as_json=arguments.json, keep=not arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
