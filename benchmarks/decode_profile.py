"""Where does a token's time go, and how near is that to what memory allows?

    python benchmarks/decode_profile.py [--quick] [--json] [--device cpu] [--dtype bfloat16]

One text, the 50M model with random weights; the compiled step on a CPU, the recorded one on CUDA. The parts are found
by differences: the same step with fewer layers, at a short and at a long text, with and without sampling.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from _harness import finish, is_gpu, machine, median, memory_speed, table, wait_for

PROMPT = [1, *range(100, 115)]
Samples = dict[str, Callable[[], float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"], help="int8: on a CPU")
    parser.add_argument("--layers", type=int, default=16, help="of width 384; default 16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if is_gpu(options.device) and options.dtype == "int8":
        parser.error("int8 has no kernels of its own on a GPU: --dtype bfloat16")
    result = profile(options)
    finish(
        f"decode-profile-{options.dtype}", result, as_json=options.json, device=options.device, keep=not options.quick
    )


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Take samples in turns, print the parts of a token's time and return them."""
    import torch

    torch.set_num_threads(options.threads)
    model = make_model(options.layers, options)
    samples, find_parts = (on_gpu if is_gpu(options.device) else on_cpu)(model, options)
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[options.dtype]
    n_bytes = sum(w.numel() for w in model.parameters() if w.ndim == 2) * size
    samples["GB/s"] = memory_speed(options.device, n_bytes)
    values: dict[str, list[float]] = {name: [] for name in samples}
    for turn in range(4 if options.quick else 16):  # in turns: a slow second of the machine hits all
        for name, sample in samples.items():
            value = sample()
            if turn:  # the first time takes memory, and records graphs
                values[name].append(value)
    gb_per_s = max(values.pop("GB/s"))
    limit = n_bytes / 1e9 / gb_per_s
    parts = find_parts({name: median(found) for name, found in values.items()})
    parts["reading all weights once at the measured bandwidth"] = limit
    digits = 4 if is_gpu(options.device) else 2
    print(table(["part", "ms"], [[name, f"{1000 * value:.{digits}f}"] for name, value in parts.items()]))
    share = limit / parts["a whole token, greedy"]
    print(f"\n{gb_per_s:,.1f} GB/s measured; a token takes {share:.0%} of it")
    return {"machine": machine(options.device), "device": options.device, "dtype": options.dtype,
            "milliseconds": {k: 1000 * v for k, v in parts.items()}, "memory_gb_per_s": gb_per_s,
            "bandwidth_share": share}  # fmt: skip


def make_model(n_layers: int, options: argparse.Namespace) -> Any:
    import torch

    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer

    model = Transformer(ModelConfig(n_layers=n_layers))
    model.init_weights(seed=0)
    model.model.norm.weight.data *= 10  # scores as sharp as a trained model's (about 3 nats), for sampling
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    return model.to(options.device, dtype).eval().requires_grad_(False)


def written(engine: Any, *, greedy: bool) -> Callable[[], float]:
    """Return a function that times one token in the engine, after a short prompt: the mean of 32."""
    from mini_llm.inference.engine.request import Request
    from mini_llm.inference.sampling.params import SamplingParams

    sampling = SamplingParams(temperature=0) if greedy else SamplingParams()

    def sample() -> float:
        forget(engine)
        handle = engine.submit(Request(prompt_ids=PROMPT, max_new_tokens=33, sampling=sampling, ignore_eos=True))
        next(handle)
        started = time.perf_counter()
        list(handle)  # ids on the host: a GPU has been waited for
        return (time.perf_counter() - started) / 32

    return sample


def forget(engine: Any) -> None:
    """Have the next prompt read anew: the first token then comes alone, and 32 are left to be timed."""
    for slot in engine.slots:
        slot.known = []


def on_cpu(model: Any, options: argparse.Namespace) -> tuple[Samples, Callable[[dict[str, float]], dict[str, float]]]:
    """Return what is timed, and how the parts follow from it."""
    from mini_llm.inference.backends.compiled import CompiledBackend
    from mini_llm.inference.backends.eager import Rows
    from mini_llm.inference.engine.engine import Engine

    int8 = options.dtype == "int8"
    engine = Engine(model, backend="compiled", int8=int8)
    whole, shallow = engine.backend, CompiledBackend(make_model(1, options), int8=int8)
    for backend in (whole, shallow):
        backend.cache.reserve(1, 2048)

    def step(backend: Any, position: int, wanted: list[int]) -> Callable[[], float]:
        def sample() -> float:
            started = time.perf_counter()
            for _ in range(8):
                backend.run(Rows([5], [0], [position], wanted))
            return (time.perf_counter() - started) / 8

        return sample

    def parts(t: dict[str, float]) -> dict[str, float]:
        return {
            f"{options.layers} layers": t["step without head"],
            f"of it, {options.layers} times what one layer more costs":
                options.layers / (options.layers - 1) * (t["step without head"] - t["step, one layer without head"]),
            "head (32,000 scores)": t["step"] - t["step without head"],
            "engine: plan, hand over, argmax": t["engine, greedy"] - t["step"],
            "a whole token, greedy": t["engine, greedy"],
            "sampling with the default settings, besides": t["engine, sampled"] - t["engine, greedy"],
            "reading 2,000 earlier tokens, besides": t["step at 2000"] - t["step"],
        }  # fmt: skip

    return {
        "engine, greedy": written(engine, greedy=True),
        "engine, sampled": written(engine, greedy=False),
        "step": step(whole, 32, [0]),
        "step without head": step(whole, 32, []),
        "step, one layer without head": step(shallow, 32, []),
        "step at 2000": step(whole, 2000, [0]),
    }, parts


def on_gpu(model: Any, options: argparse.Namespace) -> tuple[Samples, Callable[[dict[str, float]], dict[str, float]]]:
    """Return what is timed, and how the parts follow from it. One slot: the graph computes one text."""
    from mini_llm.inference.backends.cuda_graphs import CudaGraphsBackend
    from mini_llm.inference.engine.engine import Engine
    from mini_llm.inference.engine.request import Job, Request
    from mini_llm.inference.engine.slots import Slot
    from mini_llm.inference.sampling.params import SamplingParams

    engine, plain = (Engine(model, backend=name, max_slots=1) for name in ("cuda-graphs", "eager"))
    whole, shallow = engine.backend, CudaGraphsBackend(make_model(1, options), engine.vocab_size)
    for backend in (whole, shallow):
        backend.cache.reserve(1, 2048)

    def step(backend: Any, position: int) -> Callable[[], float]:
        """Time one replay: what 64 more of them cost, so that starting and reading back are no part of it."""
        job = Job(Request(prompt_ids=[5], max_new_tokens=72, seed=1, sampling=SamplingParams(temperature=0)))
        slots = [Slot(0, known=[5] * position, unread=[5], job=job)]

        def seconds(n_steps: int) -> float:
            wait_for(options.device)
            started = time.perf_counter()
            if backend.burst(slots, n_steps) is None:
                sys.exit("CUDA graphs cannot be recorded here: there is nothing to profile")
            return time.perf_counter() - started  # the ids are on the host

        return lambda: (seconds(72) - seconds(8)) / 64

    def prompt() -> float:
        forget(engine)
        started = time.perf_counter()
        list(engine.submit(Request(prompt_ids=list(range(100, 612)), max_new_tokens=1, ignore_eos=True)))
        return time.perf_counter() - started

    def parts(t: dict[str, float]) -> dict[str, float]:
        layers = options.layers / (options.layers - 1) * (t["step"] - t["step, one layer"])
        return {
            f"{options.layers} times what one layer more costs": layers,
            "embedding, head (32,000 scores), argmax": t["step"] - layers,
            "a replayed step": t["step"],
            "engine: plan, hand over, read back every 8 tokens": t["engine, greedy"] - t["step"],
            "a whole token, greedy": t["engine, greedy"],
            "sampling with the default settings, besides": t["engine, sampled"] - t["engine, greedy"],
            "reading 1,900 earlier tokens, besides": t["step at 1900"] - t["step"],
            "a whole token, greedy, kernels launched one by one": t["plain, greedy"],
            "a prompt of 512 tokens": t["prompt"],
        }

    return {
        "engine, greedy": written(engine, greedy=True),
        "engine, sampled": written(engine, greedy=False),
        "plain, greedy": written(plain, greedy=True),
        "step": step(whole, 32),
        "step, one layer": step(shallow, 32),
        "step at 1900": step(whole, 1900),
        "prompt": prompt,
    }, parts


if __name__ == "__main__":
    main()
