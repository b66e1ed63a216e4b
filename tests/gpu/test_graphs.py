"""CUDA graphs are recorded, and write what plain steps write: any width, any company, greedy and sampled."""

from collections.abc import Callable

import pytest
import torch

from mini_llm.inference.backends.cuda_graphs import CudaGraphsBackend
from mini_llm.inference.engine.engine import Engine
from mini_llm.inference.engine.request import Request
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer

V = 700
GREEDY, SAMPLED = SamplingParams(temperature=0), SamplingParams(temperature=0.9, top_p=0.9, top_k=50, min_p=0.01)


@pytest.fixture(scope="module")
def model(device: str) -> Transformer:
    shape = {"dim": 128, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": V, "max_seq_len": 1024}
    model = Transformer(ModelConfig.model_validate(shape)).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=random) * (0.15 if weight.ndim > 1 else 1))
    return model.to(device)


def engines(model: Transformer, graphs: Callable[..., CudaGraphsBackend], **options: int) -> tuple[Engine, Engine]:
    bursting = Engine(model, backend="eager", **options)
    bursting.backend = graphs(model, V)
    return bursting, Engine(model, backend="eager", **options)


LENGTH = 40 if torch.cuda.is_available() else 16


def ask(n: int, sampling: SamplingParams, length: int = LENGTH) -> Request:
    return Request(
        prompt_ids=[2 + n, 5, 6 + n % 7], max_new_tokens=length, sampling=sampling, seed=100 + n, ignore_eos=True
    )


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("n", [1, 8, 32])
def test_a_batch_is_what_plain_steps_write(model, graphs, n: int, sampling: SamplingParams) -> None:
    bursting, plain = engines(model, graphs)
    texts = []
    for engine in (bursting, plain):
        handles = [engine.submit(ask(i, sampling)) for i in range(n)]
        texts.append([list(handle) for handle in handles])
    assert bursting.backend.works
    assert bursting.backend._graphs
    # float32, other widths of products: a tie in the last bit may fall otherwise, and that text then goes its own way.
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= n - n // 16
    again = [list(handle) for handle in [bursting.submit(ask(i, sampling)) for i in range(n)]]
    assert again == texts[0], "the same seed, the same text"


def test_texts_join_and_leave(model, graphs) -> None:
    bursting, plain = engines(model, graphs, max_slots=6)
    written = []
    for engine in (bursting, plain):
        handles = []
        for n in range(14):
            handles.append(engine.submit(ask(n, SAMPLED if n % 2 else GREEDY, length=5 + 9 * (n % 5))))
            engine.step()
        written.append([list(handle) for handle in handles])
    assert bursting.backend.works
    assert sum(a == b for a, b in zip(*written, strict=True)) >= 13


def test_a_text_that_outgrows_its_room_goes_on(model, graphs) -> None:
    bursting, plain = engines(model, graphs)
    one, other = (list(engine.submit(ask(3, GREEDY, length=400))) for engine in (bursting, plain))
    assert one[:200] == other[:200]
    assert len(one) == 400


@pytest.mark.only_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_recorded_step_has_the_scores_of_the_model(dtype: torch.dtype) -> None:
    from mini_llm.inference.backends.fused_step import FusedWeights, decode_logits
    from mini_llm.inference.backends.slot_cache import SlotCache

    model = Transformer(ModelConfig(n_layers=4)).eval().requires_grad_(False)
    model.init_weights(seed=0)
    model.to("cuda", dtype)
    ids = torch.randint(32000, (2, 9), generator=torch.Generator().manual_seed(0)).cuda()
    expected = model(ids).float()
    cache = SlotCache(model.config, torch.device("cuda"), dtype, spare=8)
    cache.reserve(2, 256)
    weights, current = FusedWeights(model), torch.zeros(2, dtype=torch.long, device="cuda")
    positions, scores = torch.zeros_like(current), torch.empty(2, 32000, device="cuda")
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(2):
                decode_logits(weights, cache, current, positions, 256)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            scores.copy_(decode_logits(weights, cache, current, positions, 256))
        for place in range(9):
            current.copy_(ids[:, place])
            positions.fill_(place)
            scores.fill_(float("nan"))
            graph.replay()
            far = (scores - expected[:, place]).norm() / expected[:, place].norm()
            assert far < (1e-4 if dtype == torch.float32 else 3e-2), place


@pytest.mark.only_cuda
def test_auto_takes_graphs_on_a_gpu_and_records_beside_another_thread(model) -> None:
    engine = Engine(model)
    assert engine.backend.name == "cuda-graphs"
    engine.start()
    handles = [engine.submit(ask(n, SAMPLED)) for n in range(5)]
    for _ in range(50):
        torch.ones(1000, device="cuda").sum().item()
    texts = [list(handle) for handle in handles]
    engine.close()
    assert engine.backend.works
    assert engine.backend._graphs
    assert [len(text) for text in texts] == [LENGTH] * 5
