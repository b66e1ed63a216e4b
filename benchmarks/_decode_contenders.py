"""What decode.py compares, each in a process of its own: it warms up, then times one sample at each turn.

A sample has, for each number of texts, the seconds to the first token of all and from then on for each further one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _harness import memory_speed, wait_for

PROMPT = [1, *range(100, 115)]


def time_ours(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    import torch

    from mini_llm.checkpoint import load_model
    from mini_llm.inference.engine.engine import Engine
    from mini_llm.inference.engine.request import Request
    from mini_llm.inference.sampling.params import SamplingParams

    torch.set_num_threads(settings["threads"])
    kind = settings["kind"]
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    model = load_model(Path(settings["folder"]), device=settings["device"], dtype=dtype)
    sampling = SamplingParams(temperature=0) if settings.get("greedy", True) else SamplingParams()

    def one(n: int) -> dict[str, float]:
        # An engine of its own: a recorded graph computes as many slots as there have ever been.
        engine = Engine(model, int8=kind == "int8", backend=settings.get("backend", "auto"), max_slots=n)
        write(engine, n)  # takes memory, records graphs
        for slot in engine.slots:
            slot.known = []  # the prompt is read anew
        seconds = write(engine, n)
        del engine
        torch.cuda.empty_cache()  # nothing where there is no GPU
        return seconds

    def write(engine: Engine, n: int) -> dict[str, float]:
        request = {"max_new_tokens": settings["new"], "sampling": sampling, "ignore_eos": True, "seed": 1}
        started = time.perf_counter()
        # Prompts differ in their first id: none is copied from another's slot.
        handles = [engine.submit(Request(prompt_ids=[2 + i, *PROMPT[1:]], **request)) for i in range(n)]
        for handle in handles:
            next(handle)
        first = time.perf_counter() - started
        for handle in handles:
            list(handle)
        return {"first": first, "token": (time.perf_counter() - started - first) / (settings["new"] - 1)}

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
            ids[0, -1].item()  # each token is there before the next one is begun
            first = first or time.perf_counter() - started
        return {"first_1": first, "token_1": (time.perf_counter() - started - first) / (new - 1)}

    sample()
    return sample


def time_transformers(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=torch.bfloat16).to(settings["device"])
    cache = {"cache_implementation": "static"} if settings["kind"] == "static" else {}

    class AfterOne(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def seconds(n: int, **more: Any) -> float:
        ids = torch.tensor([PROMPT] * n, device=settings["device"])
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        wait_for(settings["device"])
        started = time.perf_counter()
        # The same room for one token as for all: a static cache of another length would be compiled for anew.
        model.generate(ids, max_new_tokens=settings["new"], **options, **cache, **more)
        wait_for(settings["device"])
        return time.perf_counter() - started

    def one(n: int) -> dict[str, float]:
        first = seconds(n, stopping_criteria=[AfterOne()])
        return {"first": first, "token": (seconds(n) - first) / (settings["new"] - 1)}

    one(1)
    return lambda: {f"{key}_{n}": value for n in settings["batches"] for key, value in one(n).items()}


def time_memory(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    import torch

    torch.set_num_threads(settings["threads"])
    speeds = {form: memory_speed(settings["device"], size) for form, size in settings["matrix_bytes"].items()}
    return lambda: {form: speed() for form, speed in speeds.items()}


CONTENDERS = {"ours": time_ours, "uncached": time_uncached, "transformers": time_transformers, "memory": time_memory}
