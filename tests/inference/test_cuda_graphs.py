"""What a CUDA graph would record, run on the CPU without recording: bursts write what the uncached model would."""

import contextlib
from collections.abc import Callable
from unittest.mock import MagicMock

import pytest
import torch
from random_model import V, make_model

from mini_llm.errors import UsageError
from mini_llm.inference.backends.cuda_graphs import CudaGraphsBackend, Recorded
from mini_llm.inference.backends.eager import Rows
from mini_llm.inference.engine.engine import Engine
from mini_llm.inference.engine.request import Request
from mini_llm.inference.engine.slots import Slot
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.sampling import RowParams
from mini_llm.model.transformer import Transformer


def without_recording(self: CudaGraphsBackend, step: Callable[[], None]) -> Callable[[], None]:
    for _ in range(3):
        step()
    return step


class Watched(CudaGraphsBackend):
    """Notes which widths burst, how many rows plain steps read, and what is recorded."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model, V)
        self.widths: list[int] = []
        self.rows: list[int] = []
        self.recorded: list[tuple[int, int]] = []

    _capture = without_recording

    def _lay_out(self, slots: list[Slot]) -> tuple[torch.Tensor, RowParams]:
        inputs, params = super()._lay_out(slots)
        self.widths.append(inputs.shape[1])
        return inputs, params

    def run(self, rows: Rows) -> torch.Tensor:
        self.rows.append(len(rows.ids))
        return super().run(rows)

    def _record(self, inputs: torch.Tensor, params: RowParams, n_places: int) -> Recorded:
        self.recorded.append((inputs.shape[1], n_places))
        return super()._record(inputs, params, n_places)


def watched_engine(max_slots: int = 32, kept_slots: int = 4, **shape: object) -> tuple[Engine, Watched]:
    model = make_model(**shape)
    engine = Engine(model, backend="eager", max_slots=max_slots, kept_slots=kept_slots)
    engine.backend = Watched(model)
    return engine, engine.backend


def ask(n: int, max_new_tokens: int, **sampling: object) -> Request:
    greedy = SamplingParams(**{"temperature": 0, **sampling})
    return Request(prompt_ids=[2 + n, 5, 6], max_new_tokens=max_new_tokens, sampling=greedy)


def test_graphs_are_at_work_while_others_wait() -> None:
    engine, backend = watched_engine(max_slots=2)
    handles = [engine.submit(ask(n, 41)) for n in range(8)]
    assert [len(list(handle)) for handle in handles] == [41] * 8
    assert backend.rows == [6] * 4, "plain steps read prompts, and nothing else"
    assert len(backend.widths) == 4 * 40 / 8


def test_a_text_that_looks_back_does_not_hold_the_others_up() -> None:
    engine, _ = watched_engine()
    quick, slow = ask(1, 25), ask(2, 25, presence_penalty=0.5)
    expected = [list(Engine(make_model(), backend="eager").submit(request)) for request in (quick, slow)]
    handles = [engine.submit(quick), engine.submit(slow)]
    for _ in range(4):
        engine.step()
    assert [len(handle._job.written) for handle in handles] == [25, 4]
    assert [list(handle) for handle in handles] == expected


def test_a_prompt_that_is_being_read_does_not_hold_the_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_llm.inference.engine.engine.CHUNK", 10)
    engine, _ = watched_engine()
    prompt = list(range(40))
    expected = list(Engine(make_model(), backend="eager").submit(Request(prompt_ids=prompt, max_new_tokens=9, seed=1)))
    quick = engine.submit(ask(1, 25))
    engine.step()
    long = engine.submit(Request(prompt_ids=prompt, max_new_tokens=9, seed=1))
    engine.step()
    assert len(quick._job.written) == 9
    assert list(long) == expected


def test_a_lone_text_does_not_pay_for_those_before_it() -> None:
    engine, backend = watched_engine(kept_slots=1)
    for n in (1, 8, 1):
        for handle in [engine.submit(ask(i, 20)) for i in range(n)]:
            list(handle)
        assert max(backend.widths) == n
        backend.widths.clear()


def test_a_full_context_moves_no_cache_and_records_nothing_anew() -> None:
    engine, backend = watched_engine(max_seq_len=256)
    handle, other = engine.submit(ask(1, 400)), engine.submit(ask(2, 9))
    assert len(list(other)) == 9
    places = backend.cache.keys_LBJSK
    assert len(list(handle)) == 256 - 3
    assert handle.finish_reason == "context"
    assert len(list(engine.submit(ask(9, 30)))) == 30, "beside a slot that holds a long text"
    assert backend.cache.keys_LBJSK is places
    assert backend.recorded == [(2, 256), (1, 256)]


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
        assert bursting.backend._graphs or max_new_tokens == 1


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


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 0.9},
        {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.5},
    ],
    ids=["greedy", "sampled", "filtered"],
)
@pytest.mark.parametrize("shape", [{}, {"qk_norm": True}], ids=["gqa", "qk_norm"])
def test_a_recorded_step_never_asks_the_host(shape: dict[str, object], sampling: dict[str, float]) -> None:
    """On tensors without numbers, where to look at one, or to mix in a tensor of the CPU, is an error."""
    model = make_model(**shape).to("meta")
    backend = Watched(model)
    backend.cache.reserve(4, 64)
    mixed = [SamplingParams(temperature=0), *[SamplingParams(**sampling)] * 3]
    params = RowParams.of(mixed, "meta")
    recorded = backend._record(torch.zeros(4, 4, dtype=torch.long, device="meta"), params, 64)
    recorded.replay()
    assert recorded.chosen.shape == (4,)
    assert backend.cache.keys_LBJSK.device.type == "meta"


def test_graphs_are_refused_without_a_gpu() -> None:
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        Engine(make_model(), backend="cuda-graphs")


@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_leaves_streams_and_other_threads_alone(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    cuda, before = MagicMock(), MagicMock()
    cuda.current_stream.return_value = before
    cuda.graph.return_value.__exit__.side_effect = RuntimeError("operation not permitted") if fails else None
    monkeypatch.setattr(torch, "cuda", cuda)
    backend = CudaGraphsBackend(make_model(), V)
    for _ in range(2):
        with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
            backend._capture(lambda: None)
    cuda.device.assert_called_with(backend.device)
    cuda.set_stream.assert_called_with(before)
    shared = {"pool": backend._pool, "stream": cuda.Stream(), "capture_error_mode": "thread_local"}
    assert cuda.graph.call_args.kwargs == shared
    assert fails or backend._pool is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_graphs_write_what_plain_steps_write() -> None:
    model = make_model(max_seq_len=256).to("cuda")
    asked = [ask(n, 60 + n) for n in range(5)]
    engine = Engine(model, backend="cuda-graphs")
    engine.start()  # what the engine's thread records, another one's work does not disturb
    handles = [engine.submit(request) for request in asked]
    torch.ones(1000, device="cuda").sum().item()
    texts = [list(handle) for handle in handles]
    engine.close()
    assert engine.backend.works
    assert engine.backend._graphs
    assert texts == [list(Engine(model, backend="eager").submit(request)) for request in asked]
