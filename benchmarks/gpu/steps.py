"""The steps of `make gpu`, most valuable first: what each runs, for how long at most, and the same at toy size."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One line of the table: `real` on a GPU, `toy` in a rehearsal on a CPU; words after `python`."""

    name: str
    seconds: int  # at most
    real: list[str]
    toy: list[str]
    beside: bool = False  # runs while later steps do, for it needs no GPU
    after: str | None = None  # what must have been done
    only_cuda: str = ""  # what of it no CPU can do
    rehearsed: int = 150  # seconds at most, at toy size


def benchmark(name: str, real: str, toy: str) -> tuple[list[str], list[str]]:
    """Return the words of a file of benchmarks/, on a GPU and on a CPU."""
    file = f"benchmarks/{name}.py"
    return [file, "--device", "cuda", *real.split()], [file, "--device", "cpu", *toy.split()]


TINY = "--layers 1 --dim 64 --heads 2 --ff 128 --vocab 512 --block 64 --batch 2 --rounds 1 --dtype float32"
QUICK, WIDE = "--quick --layers 1", "--layers 12 --dim 768 --heads 12 --ff 3072"
# One of each function of _decode_contenders.py, which is what can break.
EACH_WAY = "Mini-LLM bf16,Mini-LLM uncached fp32,transformers dynamic cache,transformers static cache"
PEERS = ("--contenders", "mini-llm,transformers compiled,nanogpt,matmuls")


def throughput(shape: str, more: str, toy: str) -> tuple[list[str], list[str]]:
    """Return train_throughput.py at one shape; `more` rows that each contender may choose too."""
    real, small = benchmark("train_throughput", f"{shape} --block 1024 {more} --rounds 3", f"{TINY} {toy}")
    # In a second shape, words alone are new.
    return [*real, *PEERS], [*small, *PEERS] if not toy else [*small, "--contenders", "matmuls"]


def forms() -> tuple[list[str], list[str]]:
    """Return train_throughput.py on Mini-LLM's own forms: each choice for a GPU with and without."""
    real, small = benchmark("train_throughput", "--batch 32 --block 1024 --rounds 3", f"{TINY} --layers 2")
    names = ["mini-llm", *(f"mini-llm {form}" for form in ("separate", "by head", "in chunks", "recorded"))]
    return [*real, "--contenders", ",".join(names)], [*small, "--contenders", "mini-llm in chunks"]


def steps() -> list[Step]:
    """Return all steps in their order."""
    tests = [
        "-m", "pytest", "tests/gpu", "-m", "gpu", "-vv", "--tb=short", "-rs", "--durations=8", "-p", "no:cacheprovider",
    ]  # fmt: skip
    # Compiling is most of it, and whoever is free helps; at toy size their start takes longer than the tests.
    processes = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
    flagship = "benchmarks/gpu/flagship.py"
    writing, once = benchmark("decode", "--rounds 3", f"{QUICK} --rounds 1 --new 4 --as-on-a-gpu --threads 1")
    compiling, toy = benchmark("compile", "--batch 16 --layers 16 --cold", f"{QUICK} --vocab 512 --modes")
    graphs = "the recording of graphs, memory of the card"
    return [
        Step("text", 170, [flagship, "tokens"], [flagship, "tokens", "--toy"], beside=True),
        Step("correct", 120, [*tests, *processes], [*tests, "-n", "0"], only_cuda=graphs),
        Step("throughput 16x384", 95, *throughput("--batch 32", "", "")),
        Step("forms 16x384", 90, *forms(), only_cuda="recorded as graphs, the head's kernel"),
        Step("flagship", 240, [flagship, "train"], [flagship, "train", "--toy"], after="text"),
        Step("decode", 75, writing, [*once, "--contenders", EACH_WAY], only_cuda=graphs),
        Step("throughput 12x768", 80, *throughput(f"{WIDE} --batch 16", "", "--layers 2")),
        Step("profile", 40, [flagship, "profile"], [flagship, "profile", "--toy"], only_cuda="the GPU's kernels"),
        Step("decode profile", 30, *benchmark("decode_profile", "", "--quick --layers 2"), only_cuda=graphs),
        Step("compile", 90, compiling, [*toy, "blocks alone"]),
        Step("precision", 40, *benchmark("precision", "--compile", "--quick --rounds 1")),
    ]  # fmt: skip


FLAGSHIP_SECONDS = 150  # that are kept free for it while it has not begun
