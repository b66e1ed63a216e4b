"""Where does a token's time go on a CPU, and how near is that to what memory allows?

    python benchmarks/decode_profile.py [--quick] [--json] [--dtype bfloat16]

One text, the 50M model with random weights, the compiled step. The parts are found by differences: the same step
without its layers, at a short and at a long text, with and without sampling.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from _harness import finish, machine, median, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    result = profile(options)
    finish(f"decode-profile-{options.dtype}", result, as_json=options.json, keep=not options.quick)


def profile(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mini_llm.inference.compiled import CompiledBackend
    from mini_llm.inference.eager import Rows
    from mini_llm.inference.engine import Engine
    from mini_llm.inference.params import SamplingParams
    from mini_llm.inference.request import Request
    from mini_llm.model.config import ModelConfig
    from mini_llm.model.transformer import Transformer

    torch.set_num_threads(options.threads)
    int8, dtype = options.dtype == "int8", torch.float32 if options.dtype == "float32" else torch.bfloat16

    def make(n_layers: int) -> Transformer:
        model = Transformer(ModelConfig(n_layers=n_layers))
        model.init_weights(seed=0)
        model.model.norm.weight.data *= 10  # scores as sharp as a trained model's (about 3 nats), for sampling
        return model.to(dtype).eval().requires_grad_(False)

    model = make(16)
    engine = Engine(model, backend="compiled", int8=int8)
    whole, shallow = engine.backend, CompiledBackend(make(1), int8=int8)
    for backend in (whole, shallow):
        backend.cache.reserve(1, 2048)

    def written(sampling: SamplingParams) -> Callable[[], float]:
        """Return the seconds of one token in the engine, after a short prompt."""

        def sample() -> float:
            request = Request(prompt_ids=[1, *range(100, 115)], max_new_tokens=33, sampling=sampling, ignore_eos=True)
            handle = engine.submit(request)
            next(handle)
            started = time.perf_counter()
            list(handle)
            return (time.perf_counter() - started) / 32

        return sample

    def step(backend: Any, position: int, wanted: list[int]) -> Callable[[], float]:
        def sample() -> float:
            started = time.perf_counter()
            for _ in range(8):
                backend.run(Rows([5], [0], [position], wanted))
            return (time.perf_counter() - started) / 8

        return sample

    memory = torch.ones(2**26 if options.quick else 2**27, dtype=torch.int64)

    def bandwidth() -> float:
        started = time.perf_counter()
        memory.sum().item()
        return time.perf_counter() - started

    samples = {
        "engine, greedy": written(SamplingParams(temperature=0)),
        "engine, sampled": written(SamplingParams()),
        "step": step(whole, 32, [0]),
        "step without head": step(whole, 32, []),
        "step, one layer": step(shallow, 32, [0]),
        "step, one layer without head": step(shallow, 32, []),
        "step at 2000": step(whole, 2000, [0]),
        "memory": bandwidth,
    }
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    for _ in range(3 if options.quick else 15):  # in turns: a slow second of the machine hits all
        for name, sample in samples.items():
            seconds[name].append(sample())
    t = {name: median(values) for name, values in seconds.items()}
    gb_per_s = memory.numel() * 8 / min(seconds["memory"]) / 1e9
    n_bytes = (
        sum(w.numel() for w in model.parameters() if w.ndim == 2)
        * {"float32": 4, "bfloat16": 2, "int8": 1}[options.dtype]
    )
    head, layers_15 = t["step"] - t["step without head"], t["step without head"] - t["step, one layer without head"]
    parts = {
        "16 layers": t["step without head"],
        "of it, 16 times what one layer more costs": 16 / 15 * layers_15,
        "head (32,000 scores)": head,
        "engine: plan, hand over, argmax": t["engine, greedy"] - t["step"],
        "a whole token, greedy": t["engine, greedy"],
        "sampling with the default settings, besides": t["engine, sampled"] - t["engine, greedy"],
        "reading 2,000 earlier tokens, besides": t["step at 2000"] - t["step"],
        "reading all weights once at the measured bandwidth": n_bytes / 1e9 / gb_per_s,
    }
    print(table(["part", "ms"], [[name, f"{1000 * value:.2f}"] for name, value in parts.items()]))
    share = n_bytes / 1e9 / gb_per_s / t["engine, greedy"]
    print(f"\n{gb_per_s:.1f} GB/s measured; a token takes {share:.0%} of it")
    return {"machine": machine(), "dtype": options.dtype, "milliseconds": {k: 1000 * v for k, v in parts.items()},
            "memory_gb_per_s": gb_per_s, "bandwidth_share": share}  # fmt: skip


if __name__ == "__main__":
    main()
