"""What a CUDA graph would record, run on the CPU without recording: bursts write what the uncached model would."""

from collections.abc import Callable

import pytest
import torch

from mini_llm.errors import UsageError
from mini_llm.inference.cuda_graphs import CudaGraphsBackend, FusedWeights, decode_logits
from mini_llm.inference.engine import Engine
from mini_llm.inference.params import SamplingParams
from mini_llm.inference.request import Request
from mini_llm.inference.slot_cache import SlotCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer

V = 700


def make_model(**shape: object) -> Transformer:
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": V, "max_seq_len": 64}
    model = Transformer(ModelConfig(**{**values, **shape})).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=rng) * (0.3 if weight.ndim > 1 else 1))
    return model


@pytest.mark.parametrize("shape", [{}, {"qk_norm": True, "head_dim": 16}, {"n_kv_heads": 4}])
def test_a_recorded_step_has_the_scores_of_the_uncached_model(shape: dict[str, object]) -> None:
    model = make_model(**shape)
    cache, weights = SlotCache(model.config, torch.device("cpu"), torch.float32), FusedWeights(model)
    cache.reserve(3, 64)
    ids = torch.randint(V, (3, 20), generator=torch.Generator().manual_seed(2))
    expected = model(ids)
    for step in range(20):
        positions = torch.full((3,), step)
        scores = decode_logits(weights, cache, ids[:, step], positions, n_places=32)
        torch.testing.assert_close(scores, expected[:, step], atol=1e-4, rtol=1e-4)


def without_recording(self: CudaGraphsBackend, step: Callable[[], None]) -> Callable[[], None]:
    for _ in range(3):
        step()
    return step


@pytest.mark.parametrize("max_new_tokens", [1, 5, 30, 100])
def test_bursts_write_what_single_steps_write(max_new_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    settings = [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(temperature=1, top_k=9, min_p=0.01),
        SamplingParams(presence_penalty=0.5),  # looks back: no burst
    ]
    asked = [
        Request(prompt_ids=[1, 2, 3 + n], max_new_tokens=max_new_tokens + n, sampling=settings[n % 4], seed=n)
        for n in range(6)
    ]
    for requests in (asked[:1], asked[:3], asked):
        plain, bursting = Engine(model, backend="eager"), Engine(model, backend="eager", eos_ids={5})
        plain.eos_ids = {5}
        bursting.backend = CudaGraphsBackend(model, V)
        monkeypatch.setattr(CudaGraphsBackend, "_capture", without_recording)
        for _ in range(2):  # the second time graphs and slots are there already
            handles = [bursting.submit(request) for request in requests]
            texts = [list(handle) for handle in handles]
            alone = [plain.submit(request) for request in requests]
            assert texts == [list(handle) for handle in alone]
            assert [handle.finish_reason for handle in handles] == [handle.finish_reason for handle in alone]
        assert bursting.backend._graphs or max_new_tokens == 1 or len(requests) > 3


def test_where_graphs_do_not_work_texts_are_computed_anyway(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: CudaGraphsBackend, step: Callable[[], None]) -> Callable[[], None]:
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model, request = make_model(), Request(prompt_ids=[1, 2], max_new_tokens=9, seed=1)
    engine = Engine(model, backend="eager")
    engine.backend = CudaGraphsBackend(model, V)
    monkeypatch.setattr(CudaGraphsBackend, "_capture", refuse)
    assert list(engine.submit(request)) == list(Engine(model, backend="eager").submit(request))
    assert capsys.readouterr().err.count("CUDA graphs do not work here") == 1


def test_graphs_are_refused_without_a_gpu() -> None:
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        Engine(make_model(), backend="cuda-graphs")
