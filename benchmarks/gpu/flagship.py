"""The flagship: what does the 50M model learn from 45 million tokens in four minutes of one GPU?

    python benchmarks/gpu/flagship.py tokens [--toy]     make tokens of luggage/text, or of this repository's own pages
    python benchmarks/gpu/flagship.py train [--toy]      train, plot, and keep curve, samples and model
    python benchmarks/gpu/flagship.py profile [--toy]    say what a step's time goes to

configs/flagship.yaml says what is trained. The model is kept in bfloat16, without the optimizer's state, as a tar file
in pieces below 16 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from _harness import machine, median, write_result  # noqa: E402 (two folders up)
from check import LUGGAGE, has_text  # noqa: E402
from pieces import cut, join_command  # noqa: E402

HOME = Path(os.environ.get("MINI_LLM_GPU_HOME", ROOT / "build" / "gpu"))
SECONDS = float(os.environ.get("MINI_LLM_SECONDS", 240))  # of the whole step
AROUND = 40  # of them before training and after it: imports, plot, the kept folder
SHORT = "max_minutes=null fit_minutes=false warmup_iters=4 eval_interval=12 save_interval=12 sample_interval=12"
TOY = """
    model.dim=32 model.n_layers=2 model.n_heads=2 model.vocab_size=512 model.max_seq_len=64 block_size=64 batch_size=2
    gradient_accumulation_steps=1 warmup_iters=4 max_iters=24 eval_interval=3 save_interval=3 sample_interval=3
    eval_iters=1 log_interval=1 device=cpu dtype=float32 compile=false max_minutes=2
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokens", "train", "profile"])
    parser.add_argument("--toy", action="store_true", help="a few thousand parameters on a CPU, as a rehearsal")
    options = parser.parse_args()
    {"tokens": make_tokens, "train": train, "profile": profile}[options.what](options.toy)


def cli(*words: object, check: bool = True) -> None:
    subprocess.run([sys.executable, "-m", "mini_llm", *map(str, words)], cwd=ROOT, check=check)


def make_tokens(toy: bool) -> None:
    """Write HOME/tokens."""
    text, tokenizer = [LUGGAGE / "text"], LUGGAGE / "tokenizer"
    if toy:
        text, tokenizer = [ROOT / "docs", ROOT / "README.md"], HOME / "tokenizer"
        shutil.rmtree(tokenizer, ignore_errors=True)
        cli("tokenizer", "train", *text, "--out", tokenizer, "--vocab-size", 512)
    elif not has_text():
        sys.exit("luggage/ holds no text: make luggage CORPUS=FILE")
    shutil.rmtree(HOME / "tokens", ignore_errors=True)
    cli("prepare", *text, "--tokenizer", tokenizer, "--out", HOME / "tokens", "--val-fraction", 0.2 if toy else 0.005)
    # A few steps: what they compile is kept by torch, and the run that is timed finds it.
    short(HOME / "warm", "max_iters=12", toy=toy, check=False)


def short(run: Path, *words: str, toy: bool, check: bool = True) -> None:
    """Train a few steps of the flagship."""
    shutil.rmtree(run, ignore_errors=True)
    where = TOY.split() if toy else ["device=cuda"]
    words = (f"data_dir={HOME / 'tokens'}", f"out_dir={run}", *where, *SHORT.split(), "log_interval=1", *words)
    cli("train", "--config", "configs/flagship.yaml", *words, check=check)


def profile(toy: bool) -> None:
    """Print what the time of a step goes to, by kernel, and leave it in HOME/shown."""
    run, shown = HOME / "profiled", HOME / "shown"
    short(run, "max_iters=24", "profile=true", toy=toy)
    text = (run / "profile" / "table.txt").read_text(encoding="utf-8")
    shown.mkdir(exist_ok=True)
    (shown / "profile.txt").write_text(text, encoding="utf-8")
    print(text)


def train(toy: bool) -> None:
    """Train within the step's seconds, and leave a result, HOME/shown and HOME/pieces."""
    run, start = HOME / "flagship", time.monotonic()
    shutil.rmtree(run, ignore_errors=True)
    words = TOY.split() if toy else ["device=cuda", f"max_minutes={max(0.5, (SECONDS - AROUND) / 60):.3f}"]
    cli("train", "--config", "configs/flagship.yaml", f"data_dir={HOME / 'tokens'}", f"out_dir={run}", *words)
    seconds = time.monotonic() - start
    cli("plot", run)
    device = "cpu" if toy else "cuda"
    result = {"benchmark": "flagship", "command": "make gpu", "machine": machine(device), **summary(run, seconds)}
    result["pieces"] = keep(run)
    write_result("flagship", result, device)
    shown = HOME / "shown"
    shutil.rmtree(shown, ignore_errors=True)
    shutil.copytree(run / "plots", shown)
    for name in ("config.yaml", "budget.json", "metrics.jsonl", "timing.jsonl", "samples.jsonl"):
        shutil.copy(run / name, shown)
    rows = {
        key: result[key] for key in ("parameters", "tokens", "seconds", "val_bits_per_byte", "tokens_per_second", "mfu")
    }
    print("\n".join(f"| {key} | {value} |" for key, value in rows.items()))


def summary(run: Path, seconds: float) -> dict[str, Any]:
    """Return the curve, the held-out losses, the samples and the speed of a run."""
    from mini_llm.config import load_config
    from mini_llm.model.accounting import count_parameters
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.run.metrics import read_metrics

    metrics, timing = read_metrics(run), read_metrics(run, "timing")
    losses = [row for row in metrics if "loss" in row]
    held_out = [row for row in metrics if "val_loss" in row]
    shares = [row["mfu"] for row in timing if row["mfu"] is not None]
    return {
        "parameters": count_parameters(load_config(TrainConfig, run / "config.yaml").model),
        "tokens": losses[-1]["tokens"],
        "steps": losses[-1]["step"],
        "seconds": round(seconds, 1),
        "val_loss": held_out[-1]["val_loss"],
        "val_bits_per_byte": held_out[-1]["val_bits_per_byte"],
        "tokens_per_second": round(median(row["tokens_per_second"] for row in timing)),
        "mfu": median(shares) if shares else None,
        "memory_gb": max(row["memory_gb"] for row in timing),
        "held_out": held_out,
        "curve": [{key: row[key] for key in ("step", "tokens", "loss", "lr")} for row in losses],
        "samples": read_metrics(run, "samples"),
    }


def keep(run: Path) -> dict[str, Any]:
    """Write the run's folder, its last model in bfloat16 and no optimizer, as a tar file in pieces into HOME/pieces."""
    import torch

    from mini_llm.checkpoint import load_model, save_model
    from mini_llm.pointers import resolve_checkpoint
    from mini_llm.tokenizer.tokenizer import Tokenizer

    kept, pieces = HOME / "mini-llm-flagship", HOME / "pieces"
    for folder in (kept, pieces):
        shutil.rmtree(folder, ignore_errors=True)
    last = resolve_checkpoint(run)
    model = load_model(last, device="cpu", dtype=torch.float32)
    save_model(kept, model, Tokenizer.load(last), dtype=torch.bfloat16)
    for name in ("config.yaml", "budget.json", "metrics.jsonl", "timing.jsonl", "samples.jsonl"):
        shutil.copy(run / name, kept / ("run-config.yaml" if name == "config.yaml" else name))
    archive = HOME / f"{kept.name}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(kept, arcname=kept.name)
    files = cut(archive, pieces)
    archive.unlink()
    sums = (pieces / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    return {"files": [f.name for f in files], "sha256": sums, "join": join_command(archive.name)}


if __name__ == "__main__":
    main()
