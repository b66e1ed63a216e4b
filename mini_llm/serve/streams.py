"""Streams that end when their reader does: each wait for tokens is raced against the client's leaving.

Without it a text that nobody waits for any more would run to its end: frameworks cancel only what is streaming, and
only while it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mini_llm.serve.bridge import Text, Token
from mini_llm.serve.problems import ApiError
from mini_llm.serve.shapes import event

Result = TypeVar("Result")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(receive: Receive, texts: Sequence[Text], work: Awaitable[Result]) -> Result:
    """Return what `work` returns; where the client leaves first, cancel it and its texts.

    Raises:
        ClientGone: it has left.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for either in (task, leaving):
            either.cancel()
        with contextlib.suppress(BaseException):
            await task
        for text in texts:
            text.release()


async def merged(texts: Sequence[Text], heartbeat: float) -> AsyncIterator[tuple[Text | None, list[Token]]]:
    """Yield (text, its new tokens) as they come, the last time with none or with the text's `finish_reason` set.

    (None, []) comes while all of them wait in the queue, each `heartbeat` seconds.
    """
    if len(texts) == 1:  # without a task for each chunk
        (text,) = texts
        while text.finish_reason is None:
            tokens = await text.tokens(heartbeat)
            if tokens or text.finish_reason is not None:
                yield text, tokens
            elif not text.handle.started:
                yield None, []
        return
    waits = {asyncio.ensure_future(text.tokens(heartbeat)): text for text in texts}
    try:
        while waits:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                text = waits.pop(task)
                tokens = task.result()
                if tokens or text.finish_reason is not None:
                    yield text, tokens
                elif not text.handle.started:
                    yield None, []
                if text.finish_reason is None:
                    waits[asyncio.ensure_future(text.tokens(heartbeat))] = text
    finally:
        for task in waits:
            task.cancel()


class EventStream(Response):
    """Server-sent events from an iterator; its texts are released however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], texts: Sequence[Text]) -> None:
        super().__init__(None, 200, {"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.texts = events, texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        with contextlib.suppress(ClientGone):
            await until_gone(receive, self.texts, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for data in self.events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except ApiError as problem:  # it is too late for a status
            await send({"type": "http.response.body", "body": event(problem.body()), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
