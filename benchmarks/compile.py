"""What does torch.compile bring? The same training step compiled and eager, in turns, and how long compiling takes.

Compiled in three ways: the whole loss as one graph; each block alone, whose code one compilation makes for all, while
what is around them stays as it is; and the whole with its blocks marked as one region that repeats
(`torch.compiler.nested_compile_region`). `--cold` gives each an empty cache.
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

MODES = ("eager", "compiled", "blocks alone", "blocks as regions")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--layers", type=int, default=4, help="layers of width 384; default 4")
    parser.add_argument("--vocab", type=int, default=8192, help="default 8192")
    parser.add_argument("--batch", type=int, default=4, help="rows of 256 tokens; default 4")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {MODES}")
    parser.add_argument("--cold", action="store_true", help="whatever torch has kept of earlier compiling is not used")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; default 5")
    parser.add_argument("--quick", action="store_true", help="3 turns")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 3
    return args


def contender(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Return a function that times one training step."""
    import torch

    from mini_llm.model.transformer_block import TransformerBlock

    if args.worker == "blocks as regions":
        TransformerBlock.forward = torch.compiler.nested_compile_region(TransformerBlock.forward)  # type: ignore[method-assign]
    settings = {
        "batch_size": args.batch,
        "block_size": 256,
        "device": args.device,
        "dtype": args.dtype,
        "compile": args.worker in ("compiled", "blocks as regions"),
        "model": {"n_layers": args.layers, "vocab_size": args.vocab, "max_seq_len": 256},
    }
    stepper = stepper_of_same_rows(settings)
    if args.worker == "blocks alone":
        for block in stepper.trainee.model.model.layers:
            block.compile(dynamic=False)
    start = time.perf_counter()
    stepper.compile()
    stepper.step()
    wait_for(args.device)
    first = time.perf_counter() - start

    def sample() -> dict[str, Any]:
        start = time.perf_counter()
        stepper.step()
        wait_for(args.device)  # the step itself waits for the loss alone, not for the new weights
        return {"seconds": time.perf_counter() - start, "first": first}

    sample()
    return sample


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: contender(args))
        return
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker"]
    modes = args.modes.split(",")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        env = (
            {mode: os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{empty}/{mode.replace(' ', '-')}"} for mode in modes}
            if args.cold
            else {}
        )
        commands = {mode: [*command, mode] for mode in modes}
        answers, skipped = take_turns(commands, args.rounds, env, together=is_gpu(args.device))
    result: dict[str, Any] = {"benchmark": "compile", "machine": machine(args.device), "device": args.device}
    times = {mode: [answer["seconds"] for answer in found] for mode, found in answers.items()}
    result |= {
        "skipped": skipped,
        "cold": args.cold,
        "settings": {"layers": args.layers, "dim": 384, "vocab": args.vocab, "rows": args.batch, "block": 256},
        "step_ms": {mode: 1e3 * median(found) for mode, found in times.items()},
        "times_eager": {mode: pair_ratio(times["eager"], found) for mode, found in times.items() if "eager" in times},
        "first_step_s": {mode: found[0]["first"] for mode, found in answers.items()},
    }
    cells = [
        [
            mode,
            f"{ms:.0f}",
            f"{result['first_step_s'][mode]:.1f}",
            f"{result['times_eager'].get(mode, float('nan')):.2f}",
        ]
        for mode, ms in result["step_ms"].items()
    ]
    print(table(["training step", "ms", "first step, s", "times as fast"], cells))
    finish("compile", result, as_json=args.json, device=args.device, keep=not args.quick)


if __name__ == "__main__":
    main()
