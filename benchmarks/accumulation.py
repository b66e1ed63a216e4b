"""What does gradient accumulation save? Peak memory and speed of the same step cut into more and smaller micro-batches.

Every contender trains on the same tokens a step; `gradient_accumulation_steps` says in how many pieces. Peak memory is
the process's largest resident memory (on a GPU: `torch.cuda.max_memory_allocated`); the part that does not shrink is
the program, weights, gradients and optimizer state.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import finish, machine, median, serve, stepper_of_same_rows, table, take_turns, wait_for

PIECES = (1, 2, 4, 8, 16)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=16, help="rows of 256 tokens in a step; default 16")
    parser.add_argument("--layers", type=int, default=4, help="layers of width 256; default 4")
    parser.add_argument("--rounds", type=int, default=2, help="timed steps of each; default 2")
    parser.add_argument("--compile", action="store_true", help="under torch.compile")
    parser.add_argument("--quick", action="store_true", help="4 rows")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows = 4
    return args


def contender(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Return a function that does one training step and tells its time, loss and the peak so far."""
    from mini_llm.device import memory_gb

    settings = {
        "batch_size": args.rows // args.worker,
        "gradient_accumulation_steps": args.worker,
        "block_size": 256,
        "device": args.device,
        "compile": args.compile,
        "model": {"dim": 256, "n_heads": 4, "n_layers": args.layers, "vocab_size": 8192, "max_seq_len": 256},
    }
    stepper = stepper_of_same_rows(settings)
    stepper.compile()

    def sample() -> dict[str, Any]:
        start = time.perf_counter()
        loss = stepper.step().loss
        wait_for(args.device)
        return {"seconds": time.perf_counter() - start, "loss": loss, "peak": memory_gb(stepper.device) * 1e9}

    sample()
    return sample


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: contender(args))
        return
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker"]
    pieces = [n for n in PIECES if n <= args.rows]
    answers, skipped = take_turns({str(n): [*command, str(n)] for n in pieces}, args.rounds)
    rows = [
        {
            "gradient_accumulation_steps": int(name),
            "batch_size": args.rows // int(name),
            "peak_bytes": round(samples[-1]["peak"]),
            "seconds": median(sample["seconds"] for sample in samples),
            "loss": samples[-1]["loss"],
        }
        for name, samples in answers.items()
    ]
    head = ["gradient_accumulation_steps", "batch_size", "peak MB", "seconds a step", "loss"]
    cells = [
        [
            str(r["gradient_accumulation_steps"]),
            str(r["batch_size"]),
            f"{r['peak_bytes'] / 1e6:.0f}",
            f"{r['seconds']:.2f}",
            f"{r['loss']:.5f}",
        ]
        for r in rows
    ]
    print(table(head, cells))
    result = {
        "benchmark": "accumulation",
        "machine": machine(args.device),
        "device": args.device,
        "tokens_per_step": args.rows * 256,
        "compile": args.compile,
        "rows": rows,
        "skipped": skipped,
    }
    finish("accumulation", result, as_json=args.json, device=args.device, keep=not args.quick)


if __name__ == "__main__":
    main()
