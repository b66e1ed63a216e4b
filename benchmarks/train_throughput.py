"""How many tokens a second does training eat, beside its peers and beside what the machine's matrix products allow?

Forward, backward, clipping and AdamW on the same rows of tokens, in the same shape and dtype, in turns. Peers:
transformers' LlamaForCausalLM (SDPA attention, fused AdamW), eager and under torch.compile, and litgpt's GPT under
torch.compile with the chunked loss of its own pre-training. litgpt needs other versions of shared libraries, so it gets
an environment of its own in build/litgpt, which borrows this one's torch; `--peer-python` names another.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from _harness import (
    ROOT,
    Answers,
    Skipped,
    finish,
    is_gpu,
    machine,
    median,
    note,
    pair_ratio,
    serve,
    table,
    take_turns,
    write_so_far,
)
from _train_contenders import CONTENDERS, FORMS

LITGPT = "litgpt==0.5.13"
SWITCHES = ("peers_reuse_memory", "deterministic")  # that a contender knows; a result with one of them is not kept
QUICK = {"layers": 4, "vocab": 8192, "block": 256, "rounds": 3}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"layers": 16, "dim": 384, "heads": 6, "ff": 1536, "vocab": 32000, "batch": 4, "block": 512}
    for key, value in shape.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument(
        "--batches", help="rows of other sizes to try too, as 16,32: each contender counts with its best"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; default 5")
    parser.add_argument("--steps", type=int, help="training steps in a turn; default 1 on a CPU, 10 on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16 (automatic mixed precision)")
    parser.add_argument("--contenders", help=f"comma-separated; default: all but {', '.join(FORMS)}")
    parser.add_argument("--peer-python", help="Python of an environment that has litgpt")
    parser.add_argument("--baseline", help="another checkout of Mini-LLM, to compare with as `mini-llm before`")
    parser.add_argument(
        "--peers-reuse-memory", action="store_true", help="give peers Mini-LLM's setting of the memory allocator too"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="hold Mini-LLM, and it alone, to the same bits every time"
    )
    parser.add_argument("--quick", action="store_true", help=f"a smaller question: {QUICK}")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    return args


def litgpt_python(given: str | None) -> str:
    """Return the Python that has litgpt; make its environment if need be.

    Raises:
        Skipped: it cannot be installed.
    """
    if given:
        return given
    home = ROOT / "build" / "litgpt"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (home / ".complete").exists():
        return str(python)
    note(f"  installing {LITGPT} into {home.relative_to(ROOT)} ...")
    try:
        run([sys.executable, "-m", "venv", "--clear", str(home)])
        theirs = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
        here = Path(sysconfig.get_path("purelib"))
        for pattern in ("torch", "torch-*", "torchgen", "functorch", "triton*", "nvidia*", "cuda*"):
            for path in here.glob(pattern):  # the very same torch, and no second gigabyte of it
                (theirs / path.name).symlink_to(path)
        torch = f"torch=={importlib.metadata.version('torch')}"
        run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", LITGPT, torch])
        run([str(python), "-c", "import litgpt"])
    except (OSError, subprocess.CalledProcessError) as problem:
        lines = (getattr(problem, "stderr", "") or str(problem)).strip().splitlines()
        raise Skipped(f"{LITGPT} cannot be installed: {lines[-1][:200] if lines else problem}") from None
    (home / ".complete").touch()
    return str(python)


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commands(args: argparse.Namespace) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return how to start each contender, and why some cannot be."""
    wanted = args.contenders.split(",") if args.contenders else [name for name in CONTENDERS if name not in FORMS]
    flags = ["layers", "dim", "heads", "ff", "vocab", "block", "steps", "device", "dtype"]
    words = [word for key in flags for word in (f"--{key}", str(getattr(args, key)))]
    result, skipped = {}, {}
    for name in CONTENDERS:
        if name not in wanted or (name == "mini-llm before" and not args.baseline):
            continue
        python = sys.executable
        if name == "litgpt":
            try:
                python = litgpt_python(args.peer_python)
            except Skipped as why:
                skipped[name] = str(why)
                note(f"  {name}: skipped ({why})")
                continue
        for batch in batch_sizes(args) if name != "matmuls" else [args.batch]:
            starter = [python, __file__, "--worker", name, *words, "--batch", str(batch)]
            starter += [f"--{key.replace('_', '-')}" for key in SWITCHES if getattr(args, key)]
            result[f"{name} @{batch}"] = starter
    return result, skipped


def batch_sizes(args: argparse.Namespace) -> list[int]:
    return sorted({args.batch, *map(int, filter(None, (args.batches or "").split(",")))})


def best_of_each(
    answers: dict[str, list[dict[str, float]]], skipped: dict[str, str]
) -> tuple[dict[str, list[dict[str, float]]], dict[str, int], dict[str, str]]:
    """Return each contender's answers at the number of rows that it is fastest with, those rows, and who has none."""
    best: dict[str, list[dict[str, float]]] = {}
    rows: dict[str, int] = {}
    for key, values in answers.items():
        name, _, batch = key.rpartition(" @")
        if name not in best or rate(values, int(batch)) > rate(best[name], rows[name]):
            best[name], rows[name] = values, int(batch)
    left = {key.rpartition(" @")[0] if " @" in key else key: why for key, why in skipped.items()}
    return best, rows, {name: why for name, why in left.items() if name not in best}


def rate(values: list[dict[str, float]], batch: int) -> float:
    return batch / median(a.get("seconds", 1.0) for a in values)


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: CONTENDERS[args.worker](args))
        return
    from mini_llm.device import pick_device, pick_dtype
    from mini_llm.model.accounting import count_parameters
    from mini_llm.model.config import ModelConfig

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    args.device, args.dtype = str(device), str(dtype).removeprefix("torch.")
    args.steps = args.steps or (10 if device.type == "cuda" else 1)
    model = {"dim": args.dim, "n_layers": args.layers, "n_heads": args.heads, "hidden_dim": args.ff}
    config = ModelConfig.model_validate({**model, "vocab_size": args.vocab})
    note(
        f"{args.layers}x{args.dim}, {count_parameters(config):,} parameters, "
        f"{batch_sizes(args)} rows of {args.block} tokens"
    )

    starters, skipped = commands(args)
    before = {"mini-llm before": os.environ | {"PYTHONPATH": str(args.baseline)}}
    env = {name: before["mini-llm before"] for name in starters if name.startswith("mini-llm before")}
    whole = not (args.quick or args.contenders or args.baseline or any(getattr(args, key) for key in SWITCHES))
    shape = "" if (args.layers, args.dim) == (16, 384) else f"-{args.layers}x{args.dim}"
    has_forms = any(key.rpartition(" @")[0] in FORMS for key in starters)
    name = f"train_throughput{shape}" + ("-forms" if has_forms else "")

    def result_of(tried: Answers, more: dict[str, str]) -> dict[str, Any]:
        return summary(args, device, dtype, config, tried, skipped | more)

    tried, more = take_turns(
        starters,
        args.rounds,
        env,
        together=is_gpu(args.device),
        after_round=lambda *found: write_so_far(name, result_of(*found), device=args.device, keep=whole),
    )
    result = result_of(tried, more)
    show(result, "MFU" if result["peak_flops"] else "share of matmul ceiling")
    finish(name, result, as_json=args.json, device=args.device, keep=whole)


def summary(
    args: argparse.Namespace, device: Any, dtype: Any, config: Any, tried: Answers, skipped: dict[str, str]
) -> dict[str, Any]:
    """Return speeds, shares and ratios of what has been measured, each contender at its best number of rows."""
    from mini_llm.device import peak_flops
    from mini_llm.model.accounting import count_parameters, flops_per_token

    flops = flops_per_token(config, args.block)
    answers, rows, skipped = best_of_each(tried, skipped)
    rates = [a["flops_per_second"] for a in answers.pop("matmuls", [])]
    speeds = {name: [rows[name] * args.block / a["seconds"] for a in values] for name, values in answers.items()}
    mine = speeds.get("mini-llm")
    peers = {name: median(s) for name, s in speeds.items() if not name.startswith("mini-llm")}
    best = max(peers, key=lambda name: peers[name], default=None)
    peak = peak_flops(device, dtype) if device.type == "cuda" else None
    ceiling = median(rates) if rates else None

    def share(speed: float) -> float | None:
        return speed * flops / (peak or ceiling) if peak or ceiling else None  # type: ignore[operator]

    kind = "mfu" if device.type == "cuda" else "ceiling_share"
    return {
        "benchmark": "train_throughput",
        "rounds_done": max((len(values) for values in tried.values()), default=0),
        "machine": machine(args.device),
        "shape": {key: getattr(args, key) for key in ("layers", "dim", "heads", "ff", "vocab", "batch", "block")},
        "rows_of_each": {name: rows[name] for name in speeds},
        "tried": {
            key: round(int(key.rpartition(" @")[2]) * args.block / median(a["seconds"] for a in values), 1)
            for key, values in tried.items()
            if not key.startswith("matmuls")
        },
        "parameters": count_parameters(config),
        "device": args.device,
        "dtype": args.dtype,
        "rounds": args.rounds,
        "steps": args.steps,
        **{key: getattr(args, key) for key in SWITCHES},
        "flops_per_token": flops,
        "flops_convention": "6 per matrix weight, 6*L*H*K*T for attention (causal: half of each row)",
        "matmul_flops_per_second": ceiling,
        "peak_flops": peak,
        "tokens_per_second": {name: round(median(s), 1) for name, s in speeds.items()},
        "samples": {name: [round(x, 1) for x in s] for name, s in speeds.items()},
        "memory_gb": {name: round(max(a["memory_gb"] for a in answers[name]), 2) for name in speeds},
        kind: share(median(mine)) if mine else None,
        f"{kind}_of_each": {name: share(median(s)) for name, s in speeds.items()},
        "ratios": {name: pair_ratio(mine, s) for name, s in speeds.items() if name != "mini-llm"} if mine else {},
        "best_peer": best,
        "ratio_to_best_peer": pair_ratio(mine, speeds[best]) if mine and best else None,
        "skipped": skipped,
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"litgpt": LITGPT},
    }


def show(result: dict[str, Any], title: str) -> None:
    """Print the table, the fastest first, and under what it was measured."""
    shares = result["mfu_of_each" if "mfu_of_each" in result else "ceiling_share_of_each"]
    lines = [
        [
            name,
            str(result["rows_of_each"][name]),
            f"{speed:,.0f}",
            f"{part:.1%}" if (part := shares[name]) else "?",
            f"{result['memory_gb'][name]:.1f} GB",
            f"{ratio:.2f}x" if (ratio := result["ratios"].get(name)) else "-",
        ]
        for name, speed in sorted(result["tokens_per_second"].items(), key=lambda pair: -pair[1])
    ]
    print(table(["contender", "rows", "tokens/s", title, "memory", "mini-llm is faster by"], lines))
    about, ceiling = result["machine"], result["matmul_flops_per_second"]
    print(f"\n{about['gpu'] or about['cpu']}, {about['cores']} cores, {result['dtype']}, torch {about['torch']};")
    print(f"medians of {result['rounds']} turns.")
    if ceiling:
        print(f"Matrix products alone, at these shapes: {ceiling / 1e9:,.0f} GFLOP/s.")
    for name, why in result["skipped"].items():
        print(f"{name} was skipped: {why}")


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
