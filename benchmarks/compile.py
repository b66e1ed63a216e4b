"""What does torch.compile bring? The same training step compiled and eager, in turns, and how long compiling takes."""

from __future__ import annotations

import argparse
import sys
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

MODES = ("eager", "compiled")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--layers", type=int, default=4, help="layers of width 384; default 4")
    parser.add_argument("--vocab", type=int, default=8192, help="default 8192")
    parser.add_argument("--batch", type=int, default=4, help="rows of 256 tokens; default 4")
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
    settings = {
        "batch_size": args.batch,
        "block_size": 256,
        "device": args.device,
        "dtype": args.dtype,
        "compile": args.worker == "compiled",
        "model": {"n_layers": args.layers, "vocab_size": args.vocab, "max_seq_len": 256},
    }
    stepper = stepper_of_same_rows(settings)
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
    answers, skipped = take_turns({mode: [*command, mode] for mode in MODES}, args.rounds, together=is_gpu(args.device))
    result: dict[str, Any] = {"benchmark": "compile", "machine": machine(args.device), "device": args.device}
    result["skipped"] = skipped
    if not skipped:
        times = {mode: [answer["seconds"] for answer in answers[mode]] for mode in MODES}
        result |= {
            "settings": {"layers": args.layers, "dim": 384, "vocab": args.vocab, "rows": args.batch, "block": 256},
            "eager_ms": 1e3 * median(times["eager"]),
            "compiled_ms": 1e3 * median(times["compiled"]),
            "speedup": pair_ratio(times["eager"], times["compiled"]),
            "first_step_s": {mode: answers[mode][0]["first"] for mode in MODES},
        }
        cells = [
            [mode, f"{result[f'{mode}_ms']:.0f}", f"{result['first_step_s'][mode]:.1f}", f"{ratio:.2f}"]
            for mode, ratio in (("eager", 1.0), ("compiled", result["speedup"]))
        ]
        print(table(["training step", "ms", "first step, s", "times as fast"], cells))
    finish("compile", result, as_json=args.json, device=args.device, keep=not args.quick)


if __name__ == "__main__":
    main()
