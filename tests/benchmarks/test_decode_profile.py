"""The profile of a GPU, on a CPU and without recording: it runs, and its parts add up to a token."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from mini_llm.inference.backends.cuda_graphs import CudaGraphsBackend
from mini_llm.inference.backends.eager import EagerBackend
from mini_llm.inference.engine import engine
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer


def tiny_model(n_layers: int, options: argparse.Namespace) -> Transformer:
    model = Transformer(ModelConfig(dim=32, n_layers=1 + n_layers // 16, n_heads=2, vocab_size=700, max_seq_len=2048))
    model.init_weights(seed=0)
    return model.eval().requires_grad_(False)


def test_the_parts_of_a_token_on_a_gpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pick(name: str, model: Transformer, *, vocab_size: int, int8: bool) -> EagerBackend:
        return CudaGraphsBackend(model, vocab_size) if name == "cuda-graphs" else EagerBackend(model)

    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    benchmark: Any = importlib.import_module("decode_profile")
    monkeypatch.setattr(CudaGraphsBackend, "_capture", lambda self, step: step)
    monkeypatch.setattr(engine, "pick_backend", pick)
    monkeypatch.setattr(benchmark, "make_model", tiny_model)
    options = argparse.Namespace(device="cpu", dtype="float32", layers=16, threads=1, quick=True, json=True)
    samples, find_parts = benchmark.on_gpu(tiny_model(16, options), options)
    parts = find_parts({name: sample() for name, sample in samples.items()})
    assert parts["a replayed step"] + parts["engine: plan, hand over, read back every 8 tokens"] == pytest.approx(
        parts["a whole token, greedy"]
    )
    assert all(parts[name] > 0 for name in parts if name.startswith("a "))
