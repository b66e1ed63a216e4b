"""What does saving cost? The same steps with no checkpoint, with one written in the background, and one waited for.

The 50M model of configs/mini-50m.yaml with smaller batches. Each round does every variant once, in another order, on
the same warm model. The cost of a checkpoint is what its steps took more, the background thread's share of the cores
included, and is then spread over the `save_interval` of the shipped configuration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import finish, machine, median, note, table

VARIANTS = ("none", "async", "sync")
SHIPPED_INTERVAL = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=6, help="steps of each sample; the checkpoint begins before the first"
    )
    parser.add_argument("--rows", type=int, default=2, help="rows of 256 tokens in a step")
    parser.add_argument("--quick", action="store_true", help="two rounds of a model of four layers, and no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="mini-llm-save-") as name:
        seconds, stalls, size = measure(Path(name), rounds, arguments.steps, arguments.rows, small=arguments.quick)
    plain = [value / arguments.steps for value in seconds["none"]]
    step, sizes = median(plain), {"steps": arguments.steps, "rows": arguments.rows}
    rows, result = (
        [],
        {"step_seconds": step, "checkpoint_bytes": size, "rounds": rounds, **sizes, "save_interval": SHIPPED_INTERVAL},
    )
    for variant in ("async", "sync"):
        cost = median([a - b for a, b in zip(seconds[variant], seconds["none"], strict=True)])
        share = cost / (SHIPPED_INTERVAL * step)
        result |= {
            f"{variant}_stall_seconds": median(stalls[variant]),
            f"{variant}_cost_seconds": cost,
            f"{variant}_share_of_step_time": share,
        }
        rows.append([variant, f"{median(stalls[variant]):.3f}", f"{cost:.3f}", f"{cost / step:.2f}", f"{share:.3%}"])
    print(f"a step {step:.3f} s, a checkpoint {size / 1e6:,.0f} MB")
    head = [
        "saving",
        "steps wait, s",
        "cost in all, s",
        "in steps",
        f"share of step time, one every {SHIPPED_INTERVAL} steps",
    ]
    print(table(head, rows))
    finish("async_save", {**result, "machine": machine()}, as_json=arguments.json, keep=not arguments.quick)


def measure(
    folder: Path, rounds: int, steps: int, rows: int, *, small: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Return the seconds of each variant's samples, how long its steps stood still, and the bytes of a checkpoint."""
    from mini_llm.config import load_config, shipped_config
    from mini_llm.tokenizer.tokenizer import Tokenizer
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.run.resume import Snapshot
    from mini_llm.train.run.saver import Saver
    from mini_llm.train.step import Stepper

    store = make_store(folder)
    words = [f"data_dir={store}", f"out_dir={folder / 'run'}", f"batch_size={rows}", "block_size=256", "keep_last=1"]
    words += ["gradient_accumulation_steps=1", *(["model.n_layers=4"] if small else [])]
    config = load_config(TrainConfig, shipped_config("mini-50m.yaml"), words)
    stepper = Stepper(config)
    note("  compiling ...")
    stepper.compile()
    stepper.step()
    tokenizer = Tokenizer.load(store / "tokenizer")
    savers = {
        variant: Saver(
            folder / variant, config.model_copy(update={"async_save": variant == "async"}), tokenizer, lambda: None
        )
        for variant in ("async", "sync")
    }
    for saver in savers.values():  # the first one makes the memory that later ones use again
        saver.save(stepper.trainee)
        saver.wait()
    seconds: dict[str, list[float]] = defaultdict(list)
    stalls: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        turn = number % len(VARIANTS)
        for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
            start = time.perf_counter()
            if variant != "none":
                savers[variant].save(stepper.trainee)
                stalls[variant].append(time.perf_counter() - start)
            for _ in range(steps):
                stepper.step()
            seconds[variant].append(time.perf_counter() - start)
            if variant != "none":
                begin = time.perf_counter()
                savers[variant].wait()
                if (rest := time.perf_counter() - begin) > 0.01:
                    note(f"  the checkpoint took {rest:.2f} s longer than {steps} steps: give more --steps")
        note(f"  round {number + 1} of {rounds}")
    return seconds, stalls, Snapshot.of(stepper.trainee).n_bytes


def make_store(folder: Path) -> Path:
    """Return a store of 200,000 tokens, with a tokenizer that is small; what the tokens say does not matter here."""
    import numpy as np

    from mini_llm.data.store_writer import TokenStoreWriter
    from mini_llm.tokenizer.tokenizer import Tokenizer
    from mini_llm.tokenizer.train import train_tokenizer

    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    train_tokenizer([text], folder / "tokenizer", vocab_size=400, model_type="bpe", sample_bytes=10**6, seed=0)
    with TokenStoreWriter.create(folder / "tokens", Tokenizer.load(folder / "tokenizer")) as writer:
        for split in ("train", "val"):
            writer.append(split, np.arange(200_000) % 397, text_bytes=800_000)
    return folder / "tokens"


if __name__ == "__main__":
    main()
