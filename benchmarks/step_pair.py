"""Is this step.c faster than that one? Both in one process, call after call, so that a machine's mood meets both.

    python benchmarks/step_pair.py --baseline OTHER/step.c [--dtype bfloat16] [--threads N] [--rows 1 8 32]

A whole step of the 50M model (random weights, 32 earlier tokens) at so many rows. What counts is the median of the
pairs' own ratios: on cores that are shared with other machines, seconds of one minute are not those of the next. The
scores must have the same bits. Without --baseline the file meets itself: what then differs from 1 is the error.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import finish, machine, median, pair_ratio, table

PLACE = 32  # tokens before


def compiled(source: Path, folder: Path) -> Path:
    """Return the library made of a step.c, with the flags that the product takes first."""
    from mini_llm.inference.backends.native import FLAGS, find_compiler

    made = folder / "baseline.so"
    compiler = find_compiler()
    assert compiler, "there is no C compiler"
    subprocess.run([compiler, *FLAGS[0], "-o", str(made), str(source), "-lm"], check=True)
    return made


def backends(options: argparse.Namespace, folder: Path) -> list[Any]:
    """Return two backends on one model's weights: the other step.c, and this one."""
    import torch

    from mini_llm.inference.backends.compiled import CompiledBackend
    from mini_llm.inference.backends.native import SOURCE
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer

    torch.set_num_threads(options.threads)
    model = Transformer(ModelConfig(n_layers=options.layers))
    model.init_weights(seed=0)
    model.to(torch.float32 if options.dtype == "float32" else torch.bfloat16).requires_grad_(False)
    pair = [CompiledBackend(model, int8=options.dtype == "int8") for _ in range(2)]
    library = ctypes.CDLL(str(compiled(options.baseline or SOURCE, folder)))
    for name in ("scratch_size", "step"):
        theirs, ours = getattr(library, name), getattr(pair[0]._library, name)
        theirs.argtypes, theirs.restype = ours.argtypes, ours.restype
    pair[0]._library = library
    for backend in pair:
        backend.cache.reserve(max(options.rows), PLACE + 1)
        backend._pace.begin, backend._pace.end = lambda n: options.threads, lambda n: None  # always as many
    return pair


def measure(pair: list[Any], n_rows: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds of each, how many times as fast the second is, and whether the bits are the same."""
    import torch

    from mini_llm.inference.backends.eager import Rows

    slots = list(range(n_rows))
    rows = Rows(ids=[5 + slot for slot in slots], slots=slots, positions=[PLACE] * n_rows, wanted=slots)
    scores = [backend.run(rows) for backend in pair]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for backend, found in zip(pair, seconds, strict=True):
            began = time.perf_counter()
            backend.run(rows)
            found.append(time.perf_counter() - began)
    return {
        "ms": [round(1000 * median(found), 3) for found in seconds],
        "faster": round(pair_ratio(*seconds), 3),
        "same_bits": torch.equal(*scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="another step.c; without it this one again")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layers", type=int, default=16, help="of width 384; default 16")
    parser.add_argument("--seconds", type=float, default=6, help="of each number of rows, about; default 6")
    parser.add_argument("--quick", action="store_true", help="two layers, a second each")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.seconds = 2, 1.0
    with tempfile.TemporaryDirectory() as folder:
        pair = backends(options, Path(folder))
        found = {}
        for n_rows in options.rows:
            trial = measure(pair, n_rows, 3)
            found[n_rows] = measure(pair, n_rows, max(5, int(1000 * options.seconds / (sum(trial["ms"]) + 1e-3))))
    print(
        table(
            ["rows", "other, ms", "this, ms", "this is faster by", "bits"],
            [
                [str(n), *(f"{ms:.2f}" for ms in f["ms"]), f"{f['faster']:.3f}", "same" if f["same_bits"] else "OTHER"]
                for n, f in found.items()
            ],
        )
    )
    result = {"machine": machine("cpu"), "dtype": options.dtype, "threads": options.threads, "rows": found}
    finish("step_pair", result, as_json=options.json, keep=False)


if __name__ == "__main__":
    main()
