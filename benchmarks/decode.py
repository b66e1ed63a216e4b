"""How fast does a model write, for one user and for many, beside transformers and llama.cpp?

    python benchmarks/decode.py [--quick] [--json] [--device cpu] [--llama-python PYTHON]

The model is the 50M one with random weights: speed does not depend on what is written. Every contender reads the same
16 ids and writes greedily, whatever it writes. llama.cpp runs in a Python of its own, on a CPU only:
`python -m venv LLAMA && LLAMA/bin/pip install llama-cpp-python`, then `--llama-python LLAMA/bin/python`. That its
files hold the same model is checked first. int8 is timed on a CPU only: elsewhere it has no kernels of its own.
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

from _decode_contenders import CONTENDERS, PROMPT
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

BATCHES, MORE_ON_A_GPU = [1, 8, 32], [256]


def write_model(folder: Path, n_layers: int) -> dict[str, float]:
    """Write the 50M model in bfloat16 as a bare Llama folder; return the bytes of its matrices in each form."""
    import torch
    from safetensors.torch import save_file

    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer

    config = ModelConfig(n_layers=n_layers)
    model = Transformer(config)
    model.init_weights(seed=0)
    model.model.norm.weight.data *= 10  # scores as sharp as a trained model's (about 3 nats), for sampling
    for layer in model.model.layers:  # attention too: unless it tells places apart, no check finds RoPE wrong
        layer.self_attn.q_proj.weight.data *= 20
        layer.self_attn.o_proj.weight.data *= 4
    weights = {
        name: w.detach().to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = config.to_hf(bos_id=1, eos_id=None, pad_id=None, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(values))
    matrices = [w for w in weights.values() if w.ndim == 2]
    n, n_outputs = sum(w.numel() for w in matrices), sum(len(w) for w in matrices)
    # int8 has a scale of 4 bytes for each output, Q8_0 one of 2 bytes for each 32 weights.
    return {"fp32": 4 * n, "bf16": 2 * n, "int8": n + 4 * n_outputs, "Q8_0": n * 34 / 32}


def run_script(python: str, script: str, *words: object) -> str:
    """Run a file of this folder with another Python and return what it prints.

    Raises:
        Skipped: that Python lacks something; the message is its last line.
    """
    command = [python, str(ROOT / "benchmarks" / script), *map(str, words)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        raise Skipped(f"{python}: {problem}") from None
    if result.returncode:
        raise Skipped((result.stderr.strip().splitlines() or ["no message"])[-1])
    return result.stdout


def write_gguf(folder: Path, out: Path, kind: str) -> None:
    """Write the model for llama.cpp.

    Raises:
        Skipped: a package is missing.
    """
    from mini_llm.errors import UserError
    from mini_llm.export.gguf_file import export_gguf

    try:
        export_gguf(folder, out, kind.lower(), name="benchmark")
    except UserError as problem:
        raise Skipped(str(problem)) from None


def check_gguf(python: str, folder: Path, ggufs: dict[str, Path]) -> dict[str, int]:
    """Return after how many of 64 random tokens llama.cpp finds the same next one likeliest as Mini-LLM in float32.

    In float32 these are all, or it is another model; fewer bits decide some close calls otherwise.
    """
    import torch

    from mini_llm.checkpoint import load_model

    model = load_model(folder, device="cpu", dtype=torch.float32)
    ids = torch.randint(model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = model(ids).argmax(-1)[0].tolist()
    same = {}
    for kind, path in ggufs.items():
        settings = {"gguf": str(path), "check": ids[0].tolist()}
        theirs = json.loads(run_script(python, "_llama_cpp.py", json.dumps(settings)).splitlines()[-1])
        same[kind] = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, default=16, help="of width 384; default 16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, help="turns of each contender; default 7, quick 2")
    parser.add_argument("--new", type=int, help="tokens that are written; default 48, quick 32")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--contenders", help="only these, comma-separated, and no result file")
    parser.add_argument("--as-on-a-gpu", action="store_true", help="leave out what is timed on a CPU only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        serve(lambda: CONTENDERS[settings["contender"]](settings))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    n_bytes = write_model(folder, options.layers)
    options.new = options.new or (32 if options.quick else 48)
    options.rounds = options.rounds or (2 if options.quick else 7)
    batches = [1] if options.quick else BATCHES + (MORE_ON_A_GPU if is_gpu(options.device) else [])
    options.batches = batches
    on_a_cpu = not (is_gpu(options.device) or options.as_on_a_gpu)
    common = {"folder": str(folder), "device": options.device, "threads": options.threads, "new": options.new}

    def command(contender: str, kind: str = "", **more: Any) -> list[str]:
        settings = {**common, "contender": contender, "kind": kind, "batches": batches, **more}
        return [sys.executable, __file__, "--worker", json.dumps(settings)]

    commands = {
        "memory": command("memory", matrix_bytes=n_bytes),
        "Mini-LLM bf16": command("ours", "bfloat16"),
        **({"Mini-LLM int8": command("ours", "int8")} if on_a_cpu else {}),
        "Mini-LLM fp32": command("ours", "float32"),
        "Mini-LLM bf16, sampled": command("ours", "bfloat16", greedy=False),
        "Mini-LLM eager fp32": command("ours", "float32", backend="eager", batches=[1]),
        "Mini-LLM uncached fp32": command("uncached"),
        "transformers dynamic cache": command("transformers", "dynamic", batches=[b for b in batches if b < 32]),
        "transformers static cache": command("transformers", "static", batches=[1]),
    }
    if options.contenders:
        commands = {name: commands[name] for name in ("memory", *options.contenders.split(","))}
    skipped, same = {}, {}
    if on_a_cpu and not options.contenders:
        ggufs = {kind: folder / f"{kind}.gguf" for kind in ("F32", "BF16", "Q8_0")}
        try:
            for kind, path in ggufs.items():
                write_gguf(folder, path, kind)
            same = check_gguf(options.llama_python, folder, ggufs)
        except Skipped as why:
            skipped["llama.cpp"] = str(why)
            note(f"  llama.cpp: skipped ({why})")
        for kind in ("BF16", "Q8_0") if same else ():
            settings = {**common, "gguf": str(ggufs[kind]), "prompt": PROMPT, "batches": batches}
            script = str(ROOT / "benchmarks" / "_llama_cpp.py")
            commands[f"llama.cpp {kind}"] = [options.llama_python, script, json.dumps(settings)]

    def result_of(answers: Answers, more: dict[str, str]) -> dict[str, Any]:
        return summary(options, {**answers}, skipped | more, n_bytes, same)

    kept = {"device": options.device, "keep": not (options.quick or options.contenders)}
    answers, more = take_turns(
        commands,
        options.rounds,
        together=is_gpu(options.device),
        after_round=lambda *found: write_so_far("decode", result_of(*found), **kept),
    )
    result = result_of(answers, more)
    show(options, result)
    finish("decode", result, as_json=options.json, **kept)


def summary(
    options: argparse.Namespace,
    answers: dict[str, list[dict[str, float]]],
    skipped: dict[str, str],
    n_bytes: dict[str, float],
    same: dict[str, int],
) -> dict[str, Any]:
    """Return the medians and ratios of what has been measured."""
    measured = answers.pop("memory", [])
    bandwidth = {form: max(answer[form] for answer in measured) for form in n_bytes if measured}
    figures = {
        name: {key: median(answer[key] for answer in found) for key in found[0]} for name, found in answers.items()
    }
    for name, figure in figures.items():
        for key in [key for key in figure if key.startswith("token_")]:
            figure[f"tokens_per_s_{key[6:]}"] = int(key[6:]) / figure[key]
        form = next((form for form in n_bytes if form in name), "bf16")
        if bandwidth:
            figure["bandwidth_share"] = n_bytes[form] / figure["token_1"] / 1e9 / bandwidth[form]

    def ratio(theirs: str, ours: str) -> float | None:
        if theirs not in answers or ours not in answers:
            return None
        return pair_ratio([a["token_1"] for a in answers[theirs]], [a["token_1"] for a in answers[ours]])

    growth = {
        form: figure["tokens_per_s_8"] / figure["tokens_per_s_1"]
        for form in ("bf16", "int8", "fp32")
        if "tokens_per_s_8" in (figure := figures.get(f"Mini-LLM {form}", {}))
    }
    return {
        "machine": machine(options.device),
        **{key: getattr(options, key) for key in ("device", "layers", "threads", "rounds", "new")},
        "rounds_done": max((len(found) for found in answers.values()), default=0),
        "prompt": len(PROMPT),
        "matrix_bytes": n_bytes,
        "ratio_to_transformers": ratio("transformers dynamic cache", "Mini-LLM bf16"),
        "ratio_to_llama_cpp": ratio("llama.cpp BF16", "Mini-LLM bf16"),
        "int8_ratio_to_llama_cpp_q8_0": ratio("llama.cpp Q8_0", "Mini-LLM int8"),
        "batch_8_over_batch_1": growth,
        "llama_cpp_same_likeliest_of_64": same,
        "memory_gb_per_s": bandwidth,
        "contenders": figures,
        "skipped": skipped,
    }


def show(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the table, and what follows from it."""

    def cell(figure: dict[str, float], key: str, factor: float = 1, form: str = ".0f") -> str:
        return format(figure[key] * factor, form) if key in figure else ""

    rows = [
        [
            name,
            cell(figure, "first_1", 1000, ".1f"),
            cell(figure, "token_1", 1000, ".2f"),
            *(cell(figure, f"tokens_per_s_{n}") for n in options.batches),
            cell(figure, "bandwidth_share", 100) + " %",
        ]
        for name, figure in result["contenders"].items()
    ]
    head = [
        "",
        "first token, ms",
        "per token, ms",
        *(f"tokens/s at {n}" for n in options.batches),
        "share of memory bandwidth",
    ]
    print(table(head, rows))
    lines = [
        f"Eight texts at once write {n:.2f} times what one does, {form}."
        for form, n in result["batch_8_over_batch_1"].items()
    ]
    if same := result["llama_cpp_same_likeliest_of_64"]:
        found = ", ".join(f"{n} with {kind}" for kind, n in same.items())
        lines.append(f"After 64 tokens, llama.cpp finds the same next one likeliest as we in float32: {found}.")
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
