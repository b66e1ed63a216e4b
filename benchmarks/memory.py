"""How near is the peak memory that `mini-llm plan` predicts to what a real run takes?

Trains three steps of several small shapes through the real command line, each in a process of its own, and compares: on
a CPU the process's largest resident memory, on a GPU `torch.cuda.max_memory_allocated`. The program itself and its
libraries are part of the prediction on a CPU; "error of the tensors" leaves that part out on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _harness import ROOT, finish, machine, note, table

BASE = "batch_size=8 block_size=256 model.dim=256 model.n_layers=8 model.n_heads=4 model.vocab_size=2048"
SHAPES = {
    "eager": f"{BASE} compile=false",
    "eager, large vocabulary": f"{BASE} compile=false model.vocab_size=8192",
    "eager, accumulation": f"{BASE} compile=false gradient_accumulation_steps=2 model.n_layers=4",
    "eager, GQA, Muon": f"{BASE} compile=false optimizer=muon model.n_kv_heads=1 model.hidden_dim=768",
    "compiled": f"{BASE} compile=true model.n_layers=4",
    "compiled, large vocabulary": f"{BASE} compile=true model.n_layers=4 model.vocab_size=16384",
}
MORE = {
    "eager, wide": f"{BASE} compile=false model.dim=512 model.n_layers=4 batch_size=4",
    "eager, long rows": f"{BASE} compile=false block_size=1024 batch_size=2",
    "eager, large weights": f"{BASE} compile=false model.dim=768 model.n_heads=12 batch_size=1 block_size=128",
    "eager, 4 micro-batches": f"{BASE} compile=false gradient_accumulation_steps=4 model.vocab_size=8192",
    "compiled, deep": f"{BASE} compile=true",
    "compiled, accumulation": f"{BASE} compile=true model.n_layers=4 gradient_accumulation_steps=4",
    "compiled, GQA, Muon": f"{BASE} compile=true model.n_layers=4 optimizer=muon model.n_kv_heads=1",
    "compiled, large weights": f"{BASE} compile=true model.dim=768 model.n_layers=4 batch_size=1 block_size=128",
}


def cli(*words: object) -> str:
    """Run the command line and return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mini_llm", *map(str, words)]
    return subprocess.run(command, check=True, text=True, capture_output=True, env=env).stdout


def make_store(folder: Path) -> Path:
    """Write a small token store of this project's own source text."""
    sources = [str(ROOT / "mini_llm"), str(ROOT / "docs"), str(ROOT / "README.md")]
    text = folder / "text.txt"
    text.write_text(
        "\n\n".join(
            p.read_text(encoding="utf-8")
            for s in sources
            for p in sorted(Path(s).rglob("*.*"))
            if p.suffix in (".py", ".md")
        ),
        encoding="utf-8",
    )
    for number in range(8):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{number}.txt").write_text(
            text.read_text(encoding="utf-8")[number::8] * 4, encoding="utf-8"
        )
    cli("tokenizer", "train", text, "--out", folder / "tokenizer", "--vocab-size", 512)
    cli(
        "prepare",
        folder / "texts",
        "--tokenizer",
        folder / "tokenizer",
        "--out",
        folder / "tokens",
        "--val-fraction",
        0.2,
    )
    return folder / "tokens"


def compare(name: str, words: list[str], device: str, folder: Path) -> dict[str, Any]:
    """Return predicted and measured bytes of one shape."""
    common = [f"device={device}", "model.max_seq_len=2048", *words]
    plan = json.loads(cli("plan", *common, "--json", *(["--gpu", "cpu"] if device == "cpu" else [])))
    run = folder / name.replace(" ", "-").replace(",", "")
    quick = ["max_iters=3", "eval_iters=1", "log_interval=1", f"data_dir={folder / 'tokens'}", f"out_dir={run}"]
    cli("train", *common, *quick)
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    predicted = plan["memory_bytes"]["as configured"]
    measured = timing[-1]["memory_gb"] * 1e9
    program = predicted["program"]
    return {
        "shape": name,
        "settings": " ".join(words),
        "predicted": predicted["peak"],
        "measured": round(measured),
        "program": program,
        "error": predicted["peak"] / measured - 1,
        "error_of_tensors": (predicted["peak"] - program) / (measured - program) - 1,
        "parts": predicted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
    parser.add_argument("--quick", action="store_true", help="without the shapes that only a full run tries")
    parser.add_argument("--only", help="only the shapes whose name holds this")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    args = parser.parse_args()
    shapes = SHAPES if args.quick else {**SHAPES, **MORE}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        make_store(Path(temporary))
        for name, words in shapes.items():
            if args.only and args.only not in name:
                continue
            rows.append(compare(name, words.split(), args.device, Path(temporary)))
            note(f"  {name}: {rows[-1]['error']:+.1%}")
    head = ["shape", "predicted MB", "measured MB", "error", "error of the tensors"]
    cells = [
        [
            r["shape"],
            f"{r['predicted'] / 1e6:.0f}",
            f"{r['measured'] / 1e6:.0f}",
            f"{r['error']:+.1%}",
            f"{r['error_of_tensors']:+.1%}",
        ]
        for r in rows
    ]
    print(table(head, cells))
    result = {"benchmark": "memory", "machine": machine(args.device), "device": args.device, "shapes": rows}
    finish("memory", result, as_json=args.json, device=args.device, keep=not args.quick and not args.only)


if __name__ == "__main__":
    main()
