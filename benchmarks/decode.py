"""How fast does a model write, for one user and for many, beside transformers and llama.cpp?

    python benchmarks/decode.py [--quick] [--json] [--device cpu] [--llama-python PYTHON]

The model is the 50M one with random weights: speed does not depend on what is written. Every contender reads the same
16 ids and writes greedily, whatever it writes. llama.cpp runs in a Python of its own:
`python -m venv LLAMA && LLAMA/bin/pip install llama-cpp-python gguf`, then `--llama-python LLAMA/bin/python`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import ROOT, Skipped, finish, machine, median, note, pair_ratio, serve, table, take_turns

PROMPT = [1, *range(100, 115)]
BATCHES = [1, 8, 32]


def write_model(folder: Path) -> int:
    """Write the 50M model in bfloat16 as a bare Llama folder; return the bytes of its matrices."""
    import torch
    from safetensors.torch import save_file

    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer

    config = ModelConfig()
    model = Transformer(config)
    model.init_weights(seed=0)
    model.model.norm.weight.data *= 10  # scores as sharp as a trained model's (about 3 nats), for sampling
    weights = {
        name: w.detach().to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = config.to_hf(bos_id=1, eos_id=None, pad_id=None, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(values))
    return sum(2 * w.numel() for w in weights.values() if w.ndim == 2)


# --- contenders ------------------------------------------------------------------------------------------------------


def time_ours(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    import torch

    from mini_llm.checkpoint import load_model
    from mini_llm.inference.engine import Engine
    from mini_llm.inference.params import SamplingParams
    from mini_llm.inference.request import Request

    torch.set_num_threads(settings["threads"])
    kind = settings["kind"]
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    model = load_model(Path(settings["folder"]), device=settings["device"], dtype=dtype)
    engine = Engine(model, int8=kind == "int8", backend=settings.get("backend", "auto"))
    sampling = SamplingParams(temperature=0) if settings.get("greedy", True) else SamplingParams()

    def one(n: int) -> dict[str, float]:
        request = {"max_new_tokens": settings["new"], "sampling": sampling, "ignore_eos": True, "seed": 1}
        for slot in engine.slots:
            slot.known = []  # the prompt is read anew each time
        started = time.perf_counter()
        # Prompts differ in their first id: none is copied from another's slot.
        handles = [engine.submit(Request(prompt_ids=[2 + i, *PROMPT[1:]], **request)) for i in range(n)]
        for handle in handles:
            next(handle)
        first = time.perf_counter() - started
        for handle in handles:
            list(handle)
        return {"first": first, "token": (time.perf_counter() - started - first) / (settings["new"] - 1)}

    one(1)
    return lambda: {f"{key}_{n}": value for n in settings["batches"] for key, value in one(n).items()}


def time_uncached(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    import torch

    from mini_llm.checkpoint import load_model

    torch.set_num_threads(settings["threads"])
    model = load_model(Path(settings["folder"]), device=settings["device"], dtype=torch.float32)
    new = min(24, settings["new"])

    @torch.inference_mode()
    def sample() -> dict[str, float]:
        ids = torch.tensor([PROMPT], device=settings["device"])
        started, first = time.perf_counter(), 0.0
        for _ in range(new):
            ids = torch.cat((ids, model(ids, last_only=True).argmax(-1)), dim=1)
            first = first or time.perf_counter() - started
        return {"first_1": first, "token_1": (time.perf_counter() - started - first) / (new - 1)}

    sample()
    return sample


def time_transformers(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=torch.bfloat16).to(settings["device"])
    cache = {"cache_implementation": "static"} if settings["kind"] == "static" else {}

    def seconds(n: int, new: int) -> float:
        ids = torch.tensor([PROMPT] * n, device=settings["device"])
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=new, **options, **cache)
        return time.perf_counter() - started

    def one(n: int) -> dict[str, float]:
        first = seconds(n, 1)
        return {"first": first, "token": (seconds(n, settings["new"]) - first) / (settings["new"] - 1)}

    one(1)
    return lambda: {f"{key}_{n}": value for n in settings["batches"] for key, value in one(n).items()}


def time_memory(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Read a gigabyte that no cache holds, with all threads: what memory gives at best."""
    import torch

    torch.set_num_threads(settings["threads"])
    numbers = torch.ones(2**27, dtype=torch.int64, device=settings["device"])

    def sample() -> dict[str, float]:
        started = time.perf_counter()
        numbers.sum().item()
        return {"gb_per_s": numbers.numel() * 8 / (time.perf_counter() - started) / 1e9}

    sample()
    return sample


CONTENDERS = {"ours": time_ours, "uncached": time_uncached, "transformers": time_transformers, "memory": time_memory}


def cold_start() -> float:
    """Return the seconds since this process was started (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


# --- the comparison --------------------------------------------------------------------------------------------------


def make_gguf(python: str, folder: Path) -> dict[str, Path]:
    """Write the model for llama.cpp.

    Raises:
        Skipped: that Python has no `gguf` or no llama.cpp.
    """
    made = {}
    for kind in ("bf16", "q8_0"):
        made[kind] = folder / f"{kind}.gguf"
        command = [python, str(ROOT / "benchmarks" / "_gguf.py"), str(folder), str(made[kind]), kind]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as problem:
            raise Skipped(f"{python}: {problem}") from None
        if result.returncode:
            raise Skipped((result.stderr.strip().splitlines() or ["no message"])[-1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "int8"], help="ours, in the quick mode")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--new", type=int, default=None, help="tokens that are written")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python and gguf")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        serve(lambda: CONTENDERS[settings["contender"]](settings))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    n_bytes = write_model(folder)
    new, rounds = options.new or (32 if options.quick else 64), options.rounds or (2 if options.quick else 5)
    batches = [1] if options.quick else BATCHES
    common = {"folder": str(folder), "device": options.device, "threads": options.threads, "new": new}

    def command(contender: str, kind: str = "", **more: Any) -> list[str]:
        settings = {**common, "contender": contender, "kind": kind, "batches": batches, **more}
        return [sys.executable, __file__, "--worker", json.dumps(settings)]

    commands = {
        "memory": command("memory"),
        "Mini-LLM bf16": command("ours", "bfloat16"),
        "Mini-LLM int8": command("ours", "int8"),
        "Mini-LLM fp32": command("ours", "float32"),
        "Mini-LLM bf16, sampled": command("ours", "bfloat16", greedy=False),
        "Mini-LLM eager fp32": command("ours", "float32", backend="eager", batches=[1]),
        "Mini-LLM uncached": command("uncached"),
        "transformers dynamic cache": command("transformers", "dynamic", batches=[b for b in batches if b < 32]),
        "transformers static cache": command("transformers", "static", batches=[1]),
    }
    skipped = {}
    if options.device == "cpu":
        try:
            for kind, path in make_gguf(options.llama_python, folder).items():
                settings = {**common, "gguf": str(path), "prompt": PROMPT, "batches": batches}
                script = str(ROOT / "benchmarks" / "_llama_cpp.py")
                commands[f"llama.cpp {kind.upper()}"] = [options.llama_python, script, json.dumps(settings)]
        except Skipped as why:
            skipped["llama.cpp"] = str(why)
            note(f"  llama.cpp: skipped ({why})")
    answers, more = take_turns(commands, rounds)
    skipped |= more
    report(options, answers, skipped, n_bytes)


def report(
    options: argparse.Namespace, answers: dict[str, list[dict[str, float]]], skipped: dict[str, str], n_bytes: int
) -> None:
    bandwidth = max(answer["gb_per_s"] for answer in answers.pop("memory", [{"gb_per_s": 0.0}]))
    figures = {
        name: {key: median(answer[key] for answer in found) for key in found[0]} for name, found in answers.items()
    }
    for name, figure in figures.items():
        for key in [key for key in figure if key.startswith("token_")]:
            figure[f"tokens_per_s_{key[6:]}"] = int(key[6:]) / figure[key]
        weight_bytes = n_bytes * (0.5 if "int8" in name else 2 if "fp32" in name or "uncached" in name else 1)
        if bandwidth:
            figure["bandwidth_share"] = weight_bytes / figure["token_1"] / 1e9 / bandwidth

    def ratio(theirs: str, ours: str) -> float | None:
        if theirs not in answers or ours not in answers:
            return None
        return pair_ratio([a["token_1"] for a in answers[theirs]], [a["token_1"] for a in answers[ours]])

    result = {
        "machine": machine(),
        "threads": options.threads,
        "ratio_to_transformers": ratio("transformers dynamic cache", "Mini-LLM bf16"),
        "ratio_to_llama_cpp": ratio("llama.cpp BF16", "Mini-LLM bf16"),
        "int8_ratio_to_llama_cpp_q8_0": ratio("llama.cpp Q8_0", "Mini-LLM int8"),
        "memory_gb_per_s": bandwidth,
        "contenders": figures,
        "skipped": skipped,
    }
    ours = figures.get("Mini-LLM bf16", {})
    if "tokens_per_s_8" in ours:
        result["batch_8_over_batch_1"] = ours["tokens_per_s_8"] / ours["tokens_per_s_1"]

    def cell(figure: dict[str, float], key: str, factor: float = 1, form: str = ".0f") -> str:
        return format(figure[key] * factor, form) if key in figure else ""

    rows = [
        [
            name,
            cell(figure, "first_1", 1000, ".1f"),
            cell(figure, "token_1", 1000, ".2f"),
            *(cell(figure, f"tokens_per_s_{n}") for n in BATCHES),
            cell(figure, "bandwidth_share", 100) + " %",
        ]
        for name, figure in figures.items()
    ]
    head = ["", "first token, ms", "per token, ms", *(f"tokens/s at {n}" for n in BATCHES), "share of memory bandwidth"]
    print(table(head, rows))
    finish("decode", result, as_json=options.json, device=options.device, keep=not options.quick)


if __name__ == "__main__":
    main()
