"""What does torch.compile bring? The same training step compiled and eager, in turns, and how long compiling takes.

Compiled in two ways: the whole loss as one graph, which a GPU runs, and each block alone, which a CPU runs: one
compilation makes the code of all, and what is around them stays as it is. `--cold` starts each with an empty cache,
torch's compiled headers included, `--again` once more with what it has kept there; the turns are then of that start.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import (
    finish,
    is_gpu,
    machine,
    median,
    pair_ratio,
    serve,
    stepper_of_same_rows,
    table,
    take_turns,
    wait_for,
)

MODES = ("eager", "one graph", "blocks alone")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    shape = {"layers": 4, "dim": 384, "heads": 6, "vocab": 8192, "batch": 4, "block": 256}
    for key, value in shape.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--ff", type=int, help="default: 8/3 of the width, rounded up")
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--optimizer", default="adamw", help="adamw or muon")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {MODES}")
    parser.add_argument("--cold", action="store_true", help="whatever torch has kept of earlier compiling is not used")
    parser.add_argument("--again", action="store_true", help="with --cold: a second start, which finds what was kept")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; default 5")
    parser.add_argument("--steps", type=int, default=1, help="training steps in a turn; default 1")
    parser.add_argument("--quick", action="store_true", help="3 turns")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 3
    return args


def contender(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Return a function that times training steps."""
    import torch

    from mini_llm.device import memory_gb
    from mini_llm.train import compiled

    compiled.BY_BLOCK.clear()
    if args.worker == "blocks alone":
        compiled.BY_BLOCK.add(torch.device(args.device).type)
    shape = {"dim": args.dim, "n_layers": args.layers, "n_heads": args.heads, "hidden_dim": args.ff}
    settings = {
        "batch_size": args.batch,
        "block_size": args.block,
        "device": args.device,
        "dtype": args.dtype,
        "optimizer": args.optimizer,
        "compile": args.worker != "eager",
        "model": {**shape, "vocab_size": args.vocab, "max_seq_len": args.block, "tie_embeddings": not args.untied},
    }
    stepper = stepper_of_same_rows(settings)
    start = time.perf_counter()
    stepper.compile()
    loss = stepper.step().loss
    wait_for(args.device)
    first = time.perf_counter() - start
    start = time.perf_counter()
    with torch.no_grad():
        held_out = stepper.evaluation_loss_sum(stepper.objective.example().to(stepper.device)).item()
    known = {"first": first, "evaluation": time.perf_counter() - start, "losses": [loss, held_out]}

    def sample() -> dict[str, Any]:
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(args.steps):
            stepper.step()
        wait_for(args.device)  # the step itself waits for the loss alone, not for the new weights
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        each = {"seconds": seconds / args.steps, "processor": processor / args.steps}
        return {**each, **known, "memory_gb": memory_gb(stepper.device)}

    sample()
    return sample


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: contender(args))
        return
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker"]
    modes, env, first_cold = args.modes.split(","), {}, {}
    commands, together = {mode: [*command, mode] for mode in modes}, is_gpu(args.device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        if args.cold:
            env = {mode: os.environ | caches(Path(empty, mode.replace(" ", "-"))) for mode in modes}
        if args.cold and args.again:
            cold, _ = take_turns(commands, 1, env, together=together)
            first_cold = {mode: found[0] for mode, found in cold.items()}
        answers, skipped = take_turns(commands, args.rounds, env, together=together)
    result: dict[str, Any] = {"benchmark": "compile", "machine": machine(args.device), "device": args.device}
    times = {mode: [answer["seconds"] for answer in found] for mode, found in answers.items()}
    shape = ("layers", "dim", "heads", "ff", "vocab", "batch", "block", "untied", "optimizer", "dtype")
    result |= {
        "skipped": skipped,
        "cold": args.cold,
        "settings": {key: getattr(args, key) for key in shape},
        "step_ms": {mode: 1e3 * median(found) for mode, found in times.items()},
        "processor_ms": {mode: 1e3 * median(a["processor"] for a in found) for mode, found in answers.items()},
        "times_eager": {mode: pair_ratio(times["eager"], found) for mode, found in times.items() if "eager" in times},
        "memory_gb": {mode: found[-1]["memory_gb"] for mode, found in answers.items()},
        "losses": {mode: found[0]["losses"] for mode, found in answers.items()},
    }
    for key, of in (("first_step_s", "first"), ("first_evaluation_s", "evaluation")):
        result[key] = {mode: found[0][of] for mode, found in answers.items()}
        result[f"cold_{key}"] = {mode: found[of] for mode, found in first_cold.items()}
    print(show(result))
    finish("compile", result, as_json=args.json, device=args.device, keep=not args.quick)


def caches(folder: Path) -> dict[str, str]:
    """Return what makes torch keep what it compiles in `folder`; its headers lie in the system's folder otherwise."""
    folder.mkdir()
    return {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torchinductor")}


def show(result: dict[str, Any]) -> str:
    starts = ["cold_first_step_s", "cold_first_evaluation_s"] if result["cold_first_step_s"] else []
    columns = [*starts, "first_step_s", "first_evaluation_s", "step_ms", "times_eager", "memory_gb"]
    digits = {"step_ms": 0, "times_eager": 3, "memory_gb": 2}
    rows = [
        [mode, *(f"{result[key].get(mode, float('nan')):.{digits.get(key, 1)}f}" for key in columns)]
        for mode in result["step_ms"]
    ]
    heads = {
        "first_step_s": "first step, s",
        "first_evaluation_s": "first evaluation's batch, s",
        "step_ms": "step, ms",
    }
    heads |= {f"cold_{key}": f"{heads[key]}, cold" for key in ("first_step_s", "first_evaluation_s")}
    heads |= {"times_eager": "times as fast", "memory_gb": "GB"}
    return table(["", *(heads[key] for key in columns)], rows)


if __name__ == "__main__":
    main()
