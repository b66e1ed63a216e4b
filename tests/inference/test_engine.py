"""The engine: every text is what the uncached model alone would write, whoever else is there, on every backend."""

import random
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import V, make_model

from mini_llm.errors import UsageError, UserError
from mini_llm.inference.engine import engine as engine_module
from mini_llm.inference.engine.engine import Engine
from mini_llm.inference.engine.request import Handle, Request
from mini_llm.inference.engine.slots import slid
from mini_llm.inference.sampling.darts import dart
from mini_llm.inference.sampling.history import History
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.sampling import RowParams, sample
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer

CONTEXT = 96
GREEDY = SamplingParams(temperature=0)
SETTINGS = [
    GREEDY,
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.5, top_p=1.0, top_k=20),
    SamplingParams(temperature=0.9, min_p=0.05, repetition_penalty=1.3),
    SamplingParams(typical_p=0.8, presence_penalty=0.5, frequency_penalty=0.2, logit_bias={5: 3.0}, banned_ids=(7, 8)),
]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_model(max_seq_len=CONTEXT)


@pytest.fixture(params=["eager", pytest.param("compiled", marks=pytest.mark.needs_compiler)], scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_engine(model: Transformer, backend: str) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**options: object) -> Engine:
        engines.append(Engine(model, backend=backend, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@torch.no_grad()
def by_the_book(model: Transformer, request: Request, seed: int) -> list[int]:
    """Write without cache and without engine: the whole text through the model for each token."""
    ids, new = list(request.prompt_ids), []
    history = History(request.sampling, request.prompt_ids, V, torch.device("cpu"))
    while len(new) < request.max_new_tokens and len(ids) < CONTEXT:
        scores = history.adjust(model(torch.tensor([ids]))[0, -1])
        thrown = torch.tensor([dart(seed, len(new))], dtype=torch.float64)
        new.append(int(sample(scores[None], RowParams.of([request.sampling]), thrown)))
        history.add(new[-1])
        ids.append(new[-1])
    return new


def prompt(n: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(V), k=n)


def requests(n: int, seed: int) -> list[Request]:
    """Return n requests of all lengths and settings."""
    rng = random.Random(seed)
    return [
        Request(
            prompt_ids=prompt(rng.choice([1, 2, 9, 40]), rng.randrange(4)),
            max_new_tokens=rng.randint(1, 20),
            sampling=rng.choice(SETTINGS),
            seed=rng.randrange(100),
        )
        for _ in range(n)
    ]


def test_each_text_is_that_of_the_uncached_model(make_engine: Callable[..., Engine], model: Transformer) -> None:
    engine = make_engine()
    for n, sampling in enumerate(SETTINGS):
        request = Request(prompt_ids=prompt(11, n), max_new_tokens=30, sampling=sampling, seed=n)
        assert list(engine.submit(request)) == by_the_book(model, request, n)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), max_slots=st.integers(1, 5), chunk=st.sampled_from([1, 3, 16, 128]))
def test_requests_that_join_and_leave_at_any_step_change_no_text(
    model: Transformer, backend: str, seed: int, max_slots: int, chunk: int
) -> None:
    together, rng = Engine(model, backend=backend, max_slots=max_slots), random.Random(seed)
    asked = requests(7, seed)
    handles: list[Handle] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "CHUNK", chunk)
        for request in asked:
            handles.append(together.submit(request))
            for _ in range(rng.randrange(6)):
                together.step()
        texts = [list(handle) for handle in handles]
    assert texts == [list(Engine(model, backend=backend).submit(request)) for request in asked]
    assert all(handle.finish_reason == "length" for handle in handles)


def test_short_prompts_are_read_together_and_a_long_one_in_chunks(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    handles = [engine.submit(Request(prompt_ids=prompt(10, n), max_new_tokens=30)) for n in range(5)]
    engine.step()
    assert [len(handle._job.written) for handle in handles] == [1] * 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "CHUNK", 16)
        long = engine.submit(Request(prompt_ids=prompt(40, 9), max_new_tokens=30))
        for _ in range(3):
            assert not long._job.written
            engine.step()
    assert len(long._job.written) == 1
    assert [len(handle._job.written) for handle in handles] == [4] * 5, "nobody waited for it"


def test_a_beginning_in_common_is_read_once(
    make_engine: Callable[..., Engine], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 8)
    engine, beginning = make_engine(), prompt(40, 1)
    first = engine.submit(Request(prompt_ids=beginning, max_new_tokens=10, seed=1))
    text = list(first)
    longer = Request(prompt_ids=[*beginning, *text, 5, 6], max_new_tokens=10, seed=2)
    second = engine.submit(longer)
    next(second)
    # The last token was chosen, but never read. What eager has read one by one, it reads again in chunks.
    assert (first.n_reused, second.n_reused) == (0, 40 if backend == "eager" else 40 + 10 - 1)
    third = engine.submit(Request(prompt_ids=[*beginning, 1], max_new_tokens=10, seed=3))
    next(third)
    assert third.n_reused == 40, "copied from the slot of a text that is still being written"
    assert list(make_engine().submit(longer))[1:] == list(second)


def test_no_bit_depends_on_what_was_read_before(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 16)
    ids, scores = prompt(60, 1), []
    for earlier in ([], [ids[:27]], [[*ids[:50], 3]]):
        engine = make_engine()
        for other in earlier:
            list(engine.submit(Request(prompt_ids=other, max_new_tokens=9, sampling=GREEDY)))
        run, found = engine.backend.run, []
        monkeypatch.setattr(
            engine.backend, "run", lambda rows, run=run, found=found: found.append(run(rows)) or found[-1]
        )
        handle = engine.submit(Request(prompt_ids=ids, max_new_tokens=9, sampling=GREEDY))
        list(handle)
        assert bool(handle.n_reused) == bool(earlier)
        scores.append(torch.cat(found[-9:]))
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_chats_with_one_system_message_do_not_take_each_others_slot(make_engine: Callable[..., Engine]) -> None:
    engine, system = make_engine(), prompt(20, 0)
    talks = [system + prompt(20, 1 + n) for n in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "CHUNK", 5)
        for turn in range(3):
            for n, talk in enumerate(talks):
                handle = engine.submit(Request(prompt_ids=list(talk), max_new_tokens=4, sampling=GREEDY))
                new = list(handle)
                assert handle.n_reused >= (len(talk) - 10 if turn else n * 20)
                talk += [*new, 1, 2, 3]
    assert len(engine.slots) == 2


@pytest.mark.parametrize("limit", [{"max_slots": 3}, {"kept_slots": 3}])
def test_conversations_in_turn_keep_their_slots(
    make_engine: Callable[..., Engine], backend: str, limit: dict[str, int]
) -> None:
    engine = make_engine(**limit)
    talks = [prompt(30, n) for n in range(3)]
    for turn in range(3):
        for talk in talks:
            handle = engine.submit(Request(prompt_ids=talk, max_new_tokens=4, seed=1))
            talk += [*handle, 1, 2, 3]
            if backend == "compiled":  # eager keeps whole chunks
                assert handle.n_reused == (0 if turn == 0 else len(talk) - 4 - 3 - 3 - 1)
    list(engine.submit(Request(prompt_ids=prompt(30, 9), max_new_tokens=4)))
    assert len(engine.slots) == 3, "a fourth one takes the slot that has rested longest"


def test_eos_ends_a_text_and_may_be_ignored(make_engine: Callable[..., Engine]) -> None:
    request = Request(prompt_ids=prompt(5, 1), max_new_tokens=20, sampling=GREEDY)
    text = list(make_engine().submit(request))
    eos_id = text[6]
    handle = make_engine(eos_ids={eos_id}).submit(request)
    assert list(handle) == text[: text.index(eos_id) + 1]
    assert handle.finish_reason == "stop"
    ignoring = Request(prompt_ids=request.prompt_ids, max_new_tokens=20, sampling=GREEDY, ignore_eos=True)
    assert list(make_engine(eos_ids={eos_id}).submit(ignoring)) == text


def test_a_cancelled_text_ends_and_the_others_go_on(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_slots=2)
    first, second, waiting, last = requests(4, 3)
    long = Request(prompt_ids=first.prompt_ids, max_new_tokens=50, seed=1)
    handle, other, never = engine.submit(long), engine.submit(second), engine.submit(waiting)
    next(handle)
    handle.cancel()
    never.cancel()
    expected = [list(make_engine().submit(request)) for request in (second, last)]
    assert list(other) == expected[0]
    assert list(handle) == []
    assert handle.finish_reason == never.finish_reason == "cancelled"
    assert list(never) == []
    assert list(engine.submit(last)) == expected[1]


def test_a_handle_that_nobody_holds_gives_its_slot_back(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_slots=1)
    next(engine.submit(Request(prompt_ids=[1], max_new_tokens=10_000, context_overflow="slide")))
    assert len(list(engine.submit(Request(prompt_ids=[2], max_new_tokens=3)))) == 3


def test_log_probabilities_are_the_models(make_engine: Callable[..., Engine], model: Transformer) -> None:
    request = Request(prompt_ids=prompt(5, 1), max_new_tokens=6, sampling=SETTINGS[4], seed=1, logprobs=3)
    handle = make_engine().submit(request)
    ids = list(handle)
    assert [entry.token_id for entry in handle.logprobs] == ids
    expected = model(torch.tensor([[*request.prompt_ids, *ids]]))[0, 4:-1].log_softmax(-1)
    for entry, token_id, logprobs in zip(handle.logprobs, ids, expected, strict=True):
        assert entry.logprob == pytest.approx(float(logprobs[token_id]), abs=1e-4)
        assert [i for i, _ in entry.likeliest] == logprobs.topk(3).indices.tolist()
    assert make_engine().submit(requests(1, 1)[0]).logprobs == []


def test_a_full_context_stops_or_slides(make_engine: Callable[..., Engine], model: Transformer) -> None:
    engine, ids = make_engine(), prompt(90, 1)
    stopping = engine.submit(Request(prompt_ids=ids, max_new_tokens=200, sampling=GREEDY))
    text = list(stopping)
    assert (len(text), stopping.finish_reason) == (CONTEXT - 90, "context")
    sliding = engine.submit(Request(prompt_ids=ids, max_new_tokens=200, sampling=GREEDY, context_overflow="slide"))
    window, expected = ids, []
    for _ in range(200):
        if len(window) == CONTEXT:
            window = window[: CONTEXT // 16] + window[-CONTEXT // 2 :]
        expected.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, expected[-1]]
    assert list(sliding) == expected
    assert expected[: len(text)] == text
    assert sliding.finish_reason == "length"


def test_a_prompt_longer_than_the_context_is_refused_or_slides(make_engine: Callable[..., Engine]) -> None:
    ids = prompt(CONTEXT + 30, 1)
    with pytest.raises(UserError, match="prompt has 126 tokens and the model's context is 96"):
        make_engine().submit(Request(prompt_ids=ids, max_new_tokens=5))
    sliding = make_engine().submit(Request(prompt_ids=ids, max_new_tokens=5, seed=1, context_overflow="slide"))
    cut = make_engine().submit(Request(prompt_ids=slid(ids, CONTEXT), max_new_tokens=5, seed=1))
    assert list(sliding) == list(cut)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompt_ids": []}, "at least one id"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"context_overflow": "wrap"}, "context_overflow 'wrap'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": "a"}, "seed='a'"),
    ],
)
def test_what_no_model_can_do_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**{"prompt_ids": [1], "max_new_tokens": 1, **options})


def test_a_thread_of_its_own_serves_many(make_engine: Callable[..., Engine]) -> None:
    engine, asked = make_engine(max_slots=3), requests(8, 5)
    expected = [list(make_engine().submit(request)) for request in asked]
    engine.start()
    texts: dict[int, list[int]] = {}

    def ask(n: int) -> None:
        texts[n] = list(engine.submit(asked[n]))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [texts[n] for n in range(len(asked))] == expected
    endless = engine.submit(Request(prompt_ids=[1], max_new_tokens=10**6, context_overflow="slide"))
    next(endless)
    engine.close()
    list(endless)
    assert endless.finish_reason == "cancelled"


def test_threads_may_read_without_a_thread_of_the_engine(make_engine: Callable[..., Engine]) -> None:
    engine, asked = make_engine(), requests(6, 6)
    expected = [list(make_engine().submit(request)) for request in asked]
    handles = [engine.submit(request) for request in asked]
    texts: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=n, handle=handle: texts.update({n: list(handle)}))
        for n, handle in enumerate(handles)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [texts[n] for n in range(len(asked))] == expected


def test_ctrl_c_in_a_step_ends_the_text_and_the_engine_lives(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = make_engine(), Request(prompt_ids=[1, 2, 3], max_new_tokens=5, seed=1)
    handle, run = engine.submit(request), engine.backend.run
    next(handle)

    def interrupted(rows: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.backend, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(handle)
    monkeypatch.setattr(engine.backend, "run", run)
    assert list(handle) == []
    assert list(engine.submit(request)) == list(make_engine().submit(request))


def test_an_error_reaches_those_it_concerns_and_the_engine_lives(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = make_engine(), Request(prompt_ids=[1, 2, 3], max_new_tokens=5, seed=1)
    handle, run = engine.submit(request), engine.backend.run
    monkeypatch.setattr(engine.backend, "run", lambda rows: run(rows) * torch.nan)
    with pytest.raises(UserError, match="NaN or infinite"):
        next(handle)
    monkeypatch.setattr(engine.backend, "run", run)
    assert list(engine.submit(request)) == list(make_engine().submit(request))


def test_a_text_that_fails_leaves_no_nan_in_its_slot(make_engine: Callable[..., Engine]) -> None:
    """A GPU looks at all places of a slot; a NaN under the mask is a NaN."""
    engine = make_engine()
    handle = engine.submit(Request(prompt_ids=list(range(4, 44)), max_new_tokens=3))
    next(handle)
    tensors = (engine.backend.cache.keys_LBJSK, engine.backend.cache.values_LBJSK)
    for tensor in tensors:
        tensor[:, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        next(handle)
    assert all(tensor.isfinite().all() for tensor in tensors)


def read_in_threads(*handles: Handle) -> list[object]:
    """Return what each handle gives: its ids, or the error; a reader that hangs leaves None."""
    found: list[object] = [None] * len(handles)

    def read(n: int) -> None:
        try:
            found[n] = list(handles[n])
        except RuntimeError as problem:
            found[n] = str(problem)

    threads = [threading.Thread(target=read, args=(n,), daemon=True) for n in range(len(handles))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def fail(*_: object) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("call", ["reserve", "copy_beginning"])
def test_a_text_that_finds_no_memory_is_lost_alone(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(engine_module, "CHUNK", 4)
    engine, ids = make_engine(), prompt(40, 1)
    first = Request(prompt_ids=ids, max_new_tokens=50, sampling=GREEDY)
    expected = list(make_engine().submit(first))
    running = engine.submit(first)
    next(running)
    with monkeypatch.context() as patch:
        patch.setattr(engine.backend.cache, call, fail)
        joining = engine.submit(Request(prompt_ids=[*ids, 3], max_new_tokens=3))
        engine._admit()  # as the engine's thread would
    engine.start()
    assert read_in_threads(joining, running) == ["out of memory", expected[1:]]
    assert engine._thread
    assert engine._thread.is_alive()


def test_an_error_of_the_engine_itself_reaches_all_and_its_thread_lives(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(max_slots=1)
    asked = [Request(prompt_ids=[1, 2], max_new_tokens=5, sampling=GREEDY) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_plan", fail)
        handles = [engine.submit(request) for request in asked]  # one has a slot, the others wait
        engine.start()
        assert read_in_threads(*handles) == ["out of memory"] * 3
    assert read_in_threads(engine.submit(asked[0])) == [list(make_engine().submit(asked[0]))]


@pytest.mark.parametrize("token_id", [-1, V, 10**8, 1.5])
def test_a_prompt_of_ids_that_do_not_exist_is_refused(make_engine: Callable[..., Engine], token_id: int) -> None:
    with pytest.raises(UsageError, match=f"token id {token_id} does not exist: ids go from 0 to 699"):
        make_engine().submit(Request(prompt_ids=[1, token_id, 2], max_new_tokens=1))


def test_a_prompt_may_hold_ids_that_are_never_chosen(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(vocab_size=600)
    penalty = SamplingParams(temperature=0, repetition_penalty=1e6)
    ids = list(engine.submit(Request(prompt_ids=[1, 650, V - 1], max_new_tokens=30, sampling=penalty)))
    assert len(set(ids)) == 30
    assert max(ids) < 600


def test_room_grows_with_the_texts(backend: str) -> None:
    model = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=50, max_seq_len=5000))
    model.init_weights(seed=1)
    engine = Engine(model.eval().requires_grad_(False), backend=backend)
    list(engine.submit(Request(prompt_ids=[1], max_new_tokens=200, seed=1)))
    assert engine.backend.cache.n_places == 256
    request = Request(prompt_ids=[1], max_new_tokens=600, sampling=GREEDY)
    text = list(engine.submit(request))
    assert engine.backend.cache.n_places == 1024
    again = list(engine.submit(Request(prompt_ids=[1, *text[:500]], max_new_tokens=100, sampling=GREEDY)))
    assert again == text[500:]
