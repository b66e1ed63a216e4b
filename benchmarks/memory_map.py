"""Does a terabyte of tokens open like a megabyte? Time to open, resident memory and tokens/s of the loader, by size.

The stores are sparse: files of zeros that take no room on the disk but whose sizes are real, in shards of 1 GB, so that
the reader does all its work (manifest, sizes, permutation, mapping, range check) but the disk does none. What a disk
adds is its own speed at reading rows of 2 KB from anywhere. Beside it, for the smallest size, NumPy's own memory map
read at random places, and `numpy.fromfile`, which reads all of the file first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import MARK, finish, machine, note, table, tell

SHARD = 10**9
SIZES = {"1 GB": 10**9, "10 GB": 10**10, "100 GB": 10**11, "1 TB": 10**12}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=1024, help="tokens in a row; default 1024")
    parser.add_argument("--rows", type=int, default=64, help="rows in a step; default 64")
    parser.add_argument("--seconds", type=float, default=3.0, help="reading time at each size; default 3")
    parser.add_argument("--folder", type=Path, help="where to make the files; default: the system's temporary folder")
    parser.add_argument("--quick", action="store_true", help="1 second at each size")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", choices=("ours", "numpy map", "numpy read"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.seconds = 1.0
    return args


def make_store(folder: Path, n_bytes: int) -> None:
    """Write a token store of `n_bytes` bytes of zeros, without their bytes."""
    folder.mkdir(parents=True)
    shards = []
    for number in range(n_bytes // SHARD):
        name = f"train-{number:05d}.bin"
        sparse(folder / name, SHARD)
        shards.append({"name": name, "tokens": SHARD // 2, "bytes": SHARD, "sha256": "0" * 64})
    sparse(folder / "train.idx", 8)
    split = {"documents": 1, "tokens": n_bytes // 2, "text_bytes": 0, "index_sha256": "0" * 64, "shards": shards}
    manifest = {
        "format_version": 1,
        "dtype": "uint16",
        "vocab_size": 32000,
        "tokenizer_hash": "none",
        "splits": {"train": split},
        "sources": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def sparse(path: Path, n_bytes: int) -> None:
    """Make a file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(n_bytes)


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def worker(args: argparse.Namespace) -> None:
    """Open the store, read steps for a while and tell what it took."""
    import numpy as np

    from mini_llm.data.token_store import TokenStore
    from mini_llm.train.rows.dataloader import TrainLoader

    before = resident()
    start = time.perf_counter()
    if args.worker == "ours":
        split = TokenStore.open(args.folder).split("train")
        loader = TrainLoader(split, block_size=args.block, rows_per_step=args.rows, seed=1)
        read = loader.rows
    else:
        path = args.folder / "train-00000.bin"
        ids = np.memmap(path, "<u2", "r") if args.worker == "numpy map" else np.fromfile(path, "<u2")
        places = np.random.default_rng(1)

        def read(step: int) -> Any:
            starts = places.integers(0, len(ids) - args.block - 1, args.rows)
            return np.stack([ids[s : s + args.block + 1].astype(np.int64) for s in starts])

    opened = time.perf_counter()
    read(0)
    first = time.perf_counter()
    steps = 0
    while time.perf_counter() - first < args.seconds:
        steps += 1
        read(steps)
    rate = steps * args.rows * args.block / (time.perf_counter() - first)
    tell({"open_ms": 1e3 * (opened - start), "memory": resident() - before, "tokens_per_second": rate})


def measure(args: argparse.Namespace, reader: str, folder: Path) -> dict[str, Any]:
    """Run `worker` in a process of its own, so that memory is its alone."""
    words = [
        "--worker",
        reader,
        "--folder",
        folder,
        "--block",
        args.block,
        "--rows",
        args.rows,
        "--seconds",
        args.seconds,
    ]
    command = [sys.executable, __file__, *map(str, words)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in output.splitlines() if line.startswith(MARK))
    return dict(json.loads(line.removeprefix(MARK)))


def main() -> None:
    args = parse()
    if args.worker:
        worker(args)
        return
    rows = []
    for name, n_bytes in SIZES.items():
        folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="mini-llm-"))
        try:
            make_store(folder / "tokens", n_bytes)
            for reader in ("ours", "numpy map", "numpy read") if n_bytes == SHARD else ("ours",):
                rows.append({"size": name, "bytes": n_bytes, "reader": reader})
                rows[-1] |= measure(args, reader, folder / "tokens")
                note(f"  {name}, {reader}: {rows[-1]['open_ms']:.1f} ms")
        finally:
            shutil.rmtree(folder)
    head = ["store", "reader", "open, ms", "resident memory, MB", "million tokens/s"]
    cells = [
        [
            r["size"],
            r["reader"],
            f"{r['open_ms']:.1f}",
            f"{r['memory'] / 1e6:.1f}",
            f"{r['tokens_per_second'] / 1e6:.1f}",
        ]
        for r in rows
    ]
    print(table(head, cells))
    result = {"benchmark": "memory_map", "machine": machine(), "block": args.block, "rows": rows}
    finish("memory_map", result, as_json=args.json, keep=not args.quick)


if __name__ == "__main__":
    main()
