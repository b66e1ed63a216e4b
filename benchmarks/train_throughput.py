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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import ROOT, Skipped, finish, machine, median, note, pair_ratio, serve, table, take_turns

LITGPT = "litgpt==0.5.13"
QUICK = {"layers": 4, "vocab": 8192, "block": 256, "rounds": 3}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"layers": 16, "dim": 384, "heads": 6, "ff": 1536, "vocab": 32000, "batch": 4, "block": 512}
    for key, value in shape.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; default 5")
    parser.add_argument("--steps", type=int, help="training steps in a turn; default 1 on a CPU, 10 on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16 (automatic mixed precision)")
    parser.add_argument("--contenders", help="comma-separated; default: all")
    parser.add_argument("--peer-python", help="Python of an environment that has litgpt")
    parser.add_argument("--baseline", help="another checkout of Mini-LLM, to compare with as `mini-llm before`")
    parser.add_argument(
        "--peers-reuse-memory", action="store_true", help="give peers Mini-LLM's setting of the memory allocator too"
    )
    parser.add_argument("--quick", action="store_true", help=f"a smaller question: {QUICK}")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    return args


# What one contender does; runs in its own process.


def random_rows(args: argparse.Namespace) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, args.vocab, (args.batch, args.block + 1), generator=generator)


def wait(args: argparse.Namespace) -> None:
    """Wait for what a GPU still has to do."""
    import torch

    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def most_memory_gb(args: argparse.Namespace) -> float:
    """Return the most memory so far: of the GPU, or of this process; litgpt's environment has no Mini-LLM to ask."""
    import torch

    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def timed(step: Callable[[], Any], args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Warm `step` up and return the function that times `args.steps` of it."""

    def sample() -> dict[str, Any]:
        wait(args)
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        wait(args)
        return {"seconds": (time.perf_counter() - start) / args.steps, "memory_gb": most_memory_gb(args)}

    step()
    sample()
    return sample


def ours(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.step import Stepper

    class SameRows:
        def rows(self, step: int) -> Any:
            return random_rows(args)

    model = {"dim": args.dim, "n_layers": args.layers, "n_heads": args.heads, "hidden_dim": args.ff}
    config = TrainConfig.model_validate(
        {
            "batch_size": args.batch,
            "block_size": args.block,
            "device": args.device,
            "dtype": args.dtype,
            "optimizer": "adamw",
            "model": {**model, "vocab_size": args.vocab, "max_seq_len": args.block},
        }
    )
    stepper = Stepper(config, SameRows())  # type: ignore[arg-type]
    stepper.compile()
    return timed(stepper.step, args)


def peer(args: argparse.Namespace, model: Any, loss_of: Callable[[Any], Any]) -> Callable[[], dict[str, Any]]:
    """Train a peer's model as its users do: automatic mixed precision, clipping, fused AdamW."""
    import torch

    if args.peers_reuse_memory:
        from mini_llm.device import reuse_freed_memory

        reuse_freed_memory()
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = random_rows(args)
    low = args.dtype != "float32"

    def step() -> None:
        with torch.autocast(args.device.split(":")[0], dtype=getattr(torch, args.dtype), enabled=low):
            loss = loss_of(rows.to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, args)


def transformers(args: argparse.Namespace, *, compile: bool) -> Callable[[], dict[str, Any]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.dim,
        intermediate_size=args.ff,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=args.block,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    forward = torch.compile(model, dynamic=False) if compile else model

    def loss_of(rows: Any) -> Any:
        targets = rows[:, 1:].contiguous()
        return forward(input_ids=rows[:, :-1], labels=targets, shift_labels=targets).loss

    return peer(args, model, loss_of)


def litgpt(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=args.block,
        vocab_size=args.vocab,
        padded_vocab_size=args.vocab,
        n_layer=args.layers,
        n_head=args.heads,
        n_embd=args.dim,
        intermediate_size=args.ff,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
    model.transformer.wte.weight = model.lm_head.weight  # its option tie_embeddings
    forward = torch.compile(model, dynamic=False)

    def loss_of(rows: Any) -> Any:
        return chunked_cross_entropy(forward(rows[:, :-1]), rows[:, 1:].contiguous())

    return peer(args, model, loss_of)


def matmuls(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Do the matrix products of a step and nothing else, into memory that is there; answer FLOP/s.

    One layer's and the head's, forward and both halves of backward; layers are alike, so one stands for all.
    """
    import torch

    tokens, d, f = args.batch * args.block, args.dim, args.ff
    work = []
    for inputs, outputs, times in [(d, d, 4), (d, f, 2), (f, d, 1), (d, args.vocab, 0)]:
        x, w, y = (
            torch.randn(*size).to(args.device, getattr(torch, args.dtype))
            for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
        )
        count = times * args.layers or 1  # 0: the head, once
        work.append((count, 2 * tokens * inputs * outputs, x, w, y))
    results = [(torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)) for _, _, x, w, y in work]

    def seconds(x: Any, w: Any, y: Any, out_y: Any, out_x: Any, out_w: Any) -> float:
        wait(args)
        start = time.perf_counter()
        torch.mm(x, w.t(), out=out_y)
        torch.mm(y, w, out=out_x)
        torch.mm(y.t(), x, out=out_w)
        wait(args)
        return time.perf_counter() - start

    def sample() -> dict[str, Any]:
        total = flops = 0.0
        for (count, ops, *tensors), out in zip(work, results, strict=True):
            total += count * min(seconds(*tensors, *out) for _ in range(3))
            flops += count * 3 * ops
        return {"flops_per_second": flops / total}

    sample()
    return sample


CONTENDERS: dict[str, Callable[[argparse.Namespace], Callable[[], dict[str, Any]]]] = {
    "mini-llm": ours,
    "mini-llm before": ours,
    "transformers": lambda args: transformers(args, compile=False),
    "transformers compiled": lambda args: transformers(args, compile=True),
    "litgpt": litgpt,
    "matmuls": matmuls,
}


# What the process that the user starts does.


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
    wanted = args.contenders.split(",") if args.contenders else list(CONTENDERS)
    flags = ["layers", "dim", "heads", "ff", "vocab", "batch", "block", "steps", "device", "dtype"]
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
        result[name] = [python, __file__, "--worker", name, *words]
        result[name] += ["--peers-reuse-memory"] if args.peers_reuse_memory else []
    return result, skipped


def main() -> None:
    args = parse()
    if args.worker:
        serve(lambda: CONTENDERS[args.worker](args))
        return
    from mini_llm.device import peak_flops, pick_device, pick_dtype
    from mini_llm.model.accounting import count_parameters, flops_per_token
    from mini_llm.model.config import ModelConfig

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    args.device, args.dtype = str(device), str(dtype).removeprefix("torch.")
    args.steps = args.steps or (10 if device.type == "cuda" else 1)
    model = {"dim": args.dim, "n_layers": args.layers, "n_heads": args.heads, "hidden_dim": args.ff}
    config = ModelConfig.model_validate({**model, "vocab_size": args.vocab})
    flops, tokens = flops_per_token(config, args.block), args.batch * args.block
    about = machine()
    note(f"{args.layers}x{args.dim}, {count_parameters(config):,} parameters, {args.batch} rows of {args.block} tokens")

    starters, skipped = commands(args)
    before = {"mini-llm before": os.environ | {"PYTHONPATH": str(args.baseline)}}
    answers, more = take_turns(starters, args.rounds, before)
    skipped |= more
    rates = [a["flops_per_second"] for a in answers.pop("matmuls", [])]
    speeds = {name: [tokens / a["seconds"] for a in values] for name, values in answers.items()}
    mine = speeds.get("mini-llm")
    peers = {name: median(s) for name, s in speeds.items() if not name.startswith("mini-llm")}
    best = max(peers, key=lambda name: peers[name], default=None)
    peak = peak_flops(device, dtype) if device.type == "cuda" else None
    ceiling = median(rates) if rates else None

    def share(speed: float) -> float | None:
        return speed * flops / (peak or ceiling) if peak or ceiling else None  # type: ignore[operator]

    kind = "mfu" if device.type == "cuda" else "ceiling_share"
    result = {
        "benchmark": "train_throughput",
        "machine": about,
        "shape": {key: getattr(args, key) for key in ("layers", "dim", "heads", "ff", "vocab", "batch", "block")},
        "parameters": count_parameters(config),
        "device": args.device,
        "dtype": args.dtype,
        "rounds": args.rounds,
        "peers_reuse_memory": args.peers_reuse_memory,
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
    head = ["contender", "tokens/s", "MFU" if peak else "share of matmul ceiling", "memory", "mini-llm is faster by"]
    lines = []
    for name, samples in sorted(speeds.items(), key=lambda pair: -median(pair[1])):
        part, ratio = share(median(samples)), result["ratios"].get(name)
        lines.append(
            [
                name,
                f"{median(samples):,.0f}",
                f"{part:.1%}" if part else "?",
                f"{result['memory_gb'][name]:.1f} GB",
                f"{ratio:.2f}x" if ratio else "-",
            ]
        )
    print(table(head, lines))
    print(f"\n{about['gpu'] or about['cpu']}, {about['cores']} cores, {args.dtype}, torch {about['torch']};", end=" ")
    print(f"medians of {args.rounds} turns.")
    if rates:
        print(f"Matrix products alone, at these shapes: {median(rates) / 1e9:,.0f} GFLOP/s.")
    for name, why in skipped.items():
        print(f"{name} was skipped: {why}")
    whole = not (args.quick or args.contenders or args.baseline or args.peers_reuse_memory)
    finish("train_throughput", result, as_json=args.json, device=args.device, keep=whole)


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
