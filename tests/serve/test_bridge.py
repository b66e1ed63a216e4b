"""Between engine and loop: what begins or ends is told at once, what grows waits for the next look."""

import asyncio
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mini_llm.inference.engine.request import Request
from mini_llm.serve import bridge as bridge_module
from mini_llm.serve.bridge import Bridge, Text
from mini_llm.serve.catalog import Catalog, Served
from mini_llm.serve.metrics import Metrics
from mini_llm.serve.problems import ApiError
from mini_llm.serve.settings import ServeSettings
from mini_llm.tokenizer.tokenizer import Tokenizer


class Handle:
    """The engine's side of a text, moved by hand."""

    def __init__(self) -> None:
        self.ready: deque[int] = deque()
        self.done, self.started, self.n_reused = False, True, 0
        self.finish_reason: str | None = None
        self.cancelled = False

    @property
    def n_unread(self) -> int:
        return len(self.ready)

    def take(self) -> list[int]:
        taken = list(self.ready)
        self.ready.clear()
        return taken

    def cancel(self) -> None:
        self.cancelled = True


class Engine:
    """Steps when it is told, and counts how often it wakes the loop."""

    def __init__(self) -> None:
        self.eos_ids: tuple[int, ...] = ()
        self.handles: list[Handle] = []
        self.on_step: Any = None

    def start(self) -> None:
        pass

    def submit(self, _request: Request) -> Handle:
        self.handles.append(Handle())
        return self.handles[-1]

    def step(self, *numbers: int, ends: bool = False) -> None:
        """Give a token to the texts of these numbers."""
        for number in numbers:
            handle = self.handles[number]
            handle.ready.append(70)
            if ends:
                handle.done, handle.finish_reason = True, "length"
        self.on_step(0.002)


class World:
    """A bridge over that engine, in a running loop."""

    def __init__(self, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, *, frame: float) -> None:
        monkeypatch.setattr(bridge_module, "FRAME", frame)
        self.engine, self.n_calls = Engine(), 0
        generator: Any = SimpleNamespace(engine=self.engine, tokenizer=tokenizer)
        self.bridge = Bridge(generator, ServeSettings(), Metrics())
        loop: Any = asyncio.get_running_loop()

        def call(work: Any) -> None:
            self.n_calls += 1
            loop.call_soon(work)

        self.bridge._loop = SimpleNamespace(call_soon_threadsafe=call, call_later=loop.call_later)  # type: ignore[assignment]

    def text(self) -> Text:
        return self.bridge.submit([Request(prompt_ids=[5], max_new_tokens=1000)], [])[0]


def test_what_grows_is_not_told_step_by_step(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        world = World(tokenizer, monkeypatch, frame=0.05)
        text = world.text()
        world.engine.step(0)
        assert len(await text.tokens()) == 1  # the first at once
        for _ in range(100):
            world.engine.step(0)
        assert world.n_calls == 1
        assert len(await text.tokens()) == 100
        assert world.n_calls == 1  # the loop looked by itself
        await asyncio.sleep(0.15)  # nothing grows: it rests
        world.engine.step(0)
        assert world.n_calls == 2
        assert len(await text.tokens()) == 1

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_beginnings_and_ends_do_not_wait_for_a_look(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        world = World(tokenizer, monkeypatch, frame=60)
        first, second = world.text(), world.text()
        world.engine.step(0)
        assert len(await first.tokens()) == 1
        world.engine.step(0, 1)
        assert len(await second.tokens()) == 1
        assert first.handle.n_unread == 1  # that one has begun already: it waits
        world.engine.step(0, ends=True)
        assert len(await first.tokens()) == 2
        assert await first.tokens() == []
        assert first.finish_reason == "length"
        assert world.n_calls == 3

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_many_ids_between_two_looks_are_no_reader_that_does_not_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        world = World(tokenizer, monkeypatch, frame=0.02)
        text = world.text()
        for _ in range(1000):
            world.engine.step(0)
        assert len(await text.tokens()) == 1000
        for _ in range(1000):
            world.engine.step(0)
        await asyncio.sleep(0.1)  # told once, and not taken
        assert not text.dropped
        world.engine.step(0)
        await asyncio.sleep(0.1)
        assert text.dropped == "unread"
        assert world.engine.handles[0].cancelled
        world.engine.handles[0].done, world.engine.handles[0].finish_reason = True, "cancelled"
        await text.tokens()
        with pytest.raises(ApiError, match="nobody read it"):
            await text.tokens()

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_beginning_and_a_look_at_once_are_no_reader_that_does_not_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model writes hundreds of ids while the loop is busy: its reader had no time to come."""

    async def scene() -> None:
        world = World(tokenizer, monkeypatch, frame=60)
        first, second = world.text(), world.text()
        world.engine.step(0)
        assert len(await first.tokens()) == 1
        reader = asyncio.create_task(second.tokens())
        await asyncio.sleep(0)
        for _ in range(1000):
            world.engine.step(1)
        asyncio.get_running_loop().call_soon(world.bridge._look_again)
        assert len(await reader) == 1000
        assert not second.dropped

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_it_is_seconds_unread_that_count_and_not_those_in_the_queue(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        clock = [0.0]
        monkeypatch.setattr(bridge_module.time, "monotonic", lambda: clock[0])
        world = World(tokenizer, monkeypatch, frame=60)
        text = world.text()
        clock[0] = 2 * ServeSettings().stall_seconds
        world.engine.step(0)
        await asyncio.sleep(0)
        text.notice()
        text.notice()
        assert not text.dropped
        clock[0] += ServeSettings().stall_seconds + 1
        text.notice()
        assert text.dropped == "unread"

    asyncio.run(scene())


def test_a_model_that_makes_room_takes_no_text_any_more(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scene() -> None:
        world, busy = (World(tokenizer, monkeypatch, frame=60) for _ in range(2))
        catalog = Catalog(tmp_path, ServeSettings(max_models=2), Metrics())
        for number, one in enumerate((world, busy)):
            catalog.loaded[Path(str(number))] = Served(Path(str(number)), one.bridge.generator, one.bridge)
        busy.text()
        refusals: list[ApiError] = []

        async def close(_work: Any) -> None:  # a request has the model in hand while its engine ends
            with pytest.raises(ApiError) as refusal:
                world.text()
            refusals.append(refusal.value)

        monkeypatch.setattr(asyncio, "to_thread", close)
        await catalog._make_room()
        assert [(error.status, error.code) for error in refusals] == [(503, "models_busy")]
        assert not world.engine.handles
        assert list(catalog.loaded) == [Path("1")]

    asyncio.run(asyncio.wait_for(scene(), 10))
