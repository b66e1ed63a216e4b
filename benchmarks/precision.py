"""Is bfloat16 faster than float32 here? A training step (automatic mixed precision) and decoding, in turns.

The answer is the hardware's: some has instructions for bfloat16 matrix products (AMX, AVX512-BF16, tensor cores), other
hardware emulates them. The table's first cell says what this machine has; `dtype: auto` of training and generation
follows it.
"""

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

DTYPES = ("float32", "bfloat16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4, help="layers of width 384; default 4")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; default 3")
    parser.add_argument("--compile", action="store_true", help="under torch.compile")
    parser.add_argument("--quick", action="store_true", help="1 layer")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.layers = 1
    return args


def contender(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Return a function that times one training step and 16 decoded tokens in one dtype."""
    import torch

    from mini_llm.model.kv_cache import KVCache
    from mini_llm.model.transformer import Transformer

    settings = {
        "batch_size": 2,
        "block_size": 128,
        "device": args.device,
        "dtype": args.worker,
        "compile": args.compile,
        "model": {"n_layers": args.layers, "vocab_size": 8192, "max_seq_len": 512},
    }
    rows = torch.randint(8192, (2, 129), generator=torch.Generator().manual_seed(0))
    stepper = stepper_of_same_rows(settings, rows)
    stepper.compile()
    model = Transformer(stepper.config.model)
    model.init_weights(1)
    model.to(args.device, getattr(torch, args.worker)).eval()
    cache = KVCache(model.config, 1, 512, device=args.device, dtype=getattr(torch, args.worker))

    @torch.inference_mode()
    def decode() -> None:
        cache.rewind(0)
        model(rows[:1, :64].to(args.device), cache=cache, last_only=True)
        for token in range(16):
            model(rows[:1, token : token + 1].to(args.device), cache=cache, last_only=True)

    def sample() -> dict[str, Any]:
        start = time.perf_counter()
        stepper.step()
        wait_for(args.device)
        middle = time.perf_counter()
        decode()
        wait_for(args.device)
        return {"train": middle - start, "decode": time.perf_counter() - middle}

    sample()
    return sample


def instructions(device: str) -> str:
    """Say whether the device is made to compute bfloat16 faster."""
    import torch

    from mini_llm.device import has_fast_bfloat16

    return "fast bfloat16 instructions" if has_fast_bfloat16(torch.device(device)) else "no fast bfloat16 instructions"


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: contender(args))
        return
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker"]
    answers, skipped = take_turns(
        {dtype: [*command, dtype] for dtype in DTYPES}, args.rounds, together=is_gpu(args.device)
    )
    result: dict[str, Any] = {"benchmark": "precision", "machine": machine(args.device), "device": args.device}
    result["skipped"] = skipped
    result["instructions"] = instructions(args.device)
    result["rows"] = []
    for work in ("train", "decode") if not skipped else ():
        times = {dtype: [answer[work] for answer in answers[dtype]] for dtype in DTYPES}
        result["rows"].append(
            {
                "work": work,
                "float32_ms": 1e3 * median(times["float32"]),
                "bfloat16_ms": 1e3 * median(times["bfloat16"]),
                "speedup": pair_ratio(times["float32"], times["bfloat16"]),
            }
        )
    cells = [
        [r["work"], f"{r['float32_ms']:.0f}", f"{r['bfloat16_ms']:.0f}", f"{r['speedup']:.2f}"] for r in result["rows"]
    ]
    print(table([result["instructions"], "float32 ms", "bfloat16 ms", "float32 / bfloat16"], cells))
    finish("precision", result, as_json=args.json, device=args.device, keep=not args.quick)


if __name__ == "__main__":
    main()
