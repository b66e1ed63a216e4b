"""From the engine's thread to the event loop: what begins or ends is told at once, what grows forty times a second.

A step of a small model takes a millisecond on all cores, and whoever is woken takes one of them away: woken at each
step, loop and client halved the engine's speed and more (docs/LOG.md). So the engine wakes the loop only where it
rests; as long as texts grow, the loop looks by itself, no oftener than a reader can see.
The engine knows nothing of clients; here a text that nobody reads any more is cancelled, and no more are let in than
may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mini_llm.inference.continuation import Assembler, StopStrings, decoder_after
from mini_llm.inference.engine.draw import Drawn
from mini_llm.inference.engine.request import FinishReason, Request
from mini_llm.inference.engine.scores import Logprob
from mini_llm.inference.generate import Generator
from mini_llm.serve.metrics import Metrics
from mini_llm.serve.problems import ApiError, models_busy, report, shutting_down
from mini_llm.serve.settings import ServeSettings

# Seconds from one look at texts that grow to the next, at least so many and so many for each text: forty times a second
# flows for who reads it. A look costs loop and client 0.6 ms of a core, each further text 0.1 more.
FRAME, FRAME_EACH = 0.025, 0.0015


@dataclass(frozen=True)
class Token:
    """One new token: what may be shown since the one before, and what the model thought of it."""

    token_id: int
    piece: str
    offset: int  # characters of the text before it
    logprob: Logprob | None
    drawn: Drawn | None


class Text:
    """One text on its way to one reader, who calls `tokens()` until it returns none."""

    def __init__(self, bridge: Bridge, request: Request, stops: Sequence[str]) -> None:
        self._bridge, self.request = bridge, request
        generator = bridge.generator
        decoder = decoder_after(generator.tokenizer, request.prompt_ids)
        eos_ids = () if request.ignore_eos else generator.engine.eos_ids
        self._text = Assembler(decoder, StopStrings(stops), eos_ids)
        self._changed = asyncio.Event()
        self._seen_first = self._seen_last = False
        self._offered: float | None = None  # at which look, if it has not been taken since
        self._offset = 0
        self.handle = generator.engine.submit(request)
        self.began = self._taken = time.monotonic()
        self.first_at: float | None = None
        self.tail = ""  # what was held back until the end
        self.finish_reason: FinishReason | None = None
        self.dropped: str | None = None  # why we have cancelled it
        self.number, self.sent = 0, False  # among the request's texts; whether a piece has gone out

    @property
    def n_tokens(self) -> int:
        """How many tokens have been taken."""
        return self._text.n_tokens

    async def tokens(self, timeout: float | None = None) -> list[Token]:
        """Return what has come, at least one token; none when all has, or after `timeout` seconds.

        Raises:
            ApiError: the engine failed, or the text was dropped.
        """
        while self.finish_reason is None:
            if not self._changed.is_set() and not self.handle.done:  # what comes between two looks waits for the next
                try:
                    async with asyncio.timeout(timeout):  # `wait_for` would make a task for each chunk
                        await self._changed.wait()
                except TimeoutError:
                    return []
            self._changed.clear()
            if found := self._take():
                return found
        return []

    def _take(self) -> list[Token]:
        if self.finish_reason is not None:
            return []
        try:
            ids, self._offered = self.handle.take(), None
        except Exception as problem:
            self._end("cancelled")
            report(problem, "engine")
            raise _failure(problem) from None
        found = []
        for token_id in ids:
            n, offset = self.n_tokens, self._offset
            piece = self._text.push(token_id)
            self._offset += len(piece)
            logprob = self.handle.logprobs[n] if self.request.logprobs is not None else None
            drawn = self.handle.drawn[n] if self.request.inspect is not None else None
            found.append(Token(token_id, piece, offset, logprob, drawn))
            if self._text.ended:
                self._check_guide()
                self._end("stop")
                break
        if found:
            self._bridge.metrics.saw_tokens(self, len(found))
            self._taken = time.monotonic()
        elif self.handle.done and not self.handle.n_unread:
            self._finish()
        return found

    def _finish(self) -> None:
        reason = self.handle.finish_reason or "length"
        if self.dropped or reason == "cancelled":  # by us, or the engine was closed
            self._end("cancelled")
            if self.dropped == "unread":
                raise ApiError(503, "the text was dropped: nobody read it", code="not_read")
            raise shutting_down()
        self._check_guide()
        self.tail = self._text.finish()
        self._end("stop" if self._text.ended else reason)

    def _check_guide(self) -> None:
        problem = self.request.guide.problem if self.request.guide is not None else None
        if problem is not None:
            self._end("cancelled")
            raise ApiError(400, f"the schema cannot be followed to its end: {problem}", code="schema_too_complex")

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self.release()

    @property
    def turns(self) -> bool:
        """Whether it has begun or ended since it was looked at."""
        if self.handle.done:
            return not self._seen_last
        return not self._seen_first and self.handle.n_unread > 0

    def notice(self, *, looking: bool = True) -> None:
        """See whether there is more; at a look, let go of a text that has not been read since the look before.

        Beginnings and ends come in between: there its reader may have been told this moment.
        """
        n_unread, done, limits = self.handle.n_unread, self.handle.done, self._bridge.settings
        self._seen_first |= n_unread > 0
        self._seen_last |= done
        if n_unread or done:
            self._changed.set()
        if not looking:
            return
        if self._offered is None:
            self._offered = time.monotonic() if n_unread else None
            return
        too_many = n_unread > limits.unread_ids and not done
        if (too_many or time.monotonic() - self._offered > limits.stall_seconds) and not self.dropped:
            self.drop("unread")

    def drop(self, why: str) -> None:
        """Cancel it on our side; its reader is told."""
        self.dropped = why
        self.handle.cancel()
        self._bridge.metrics.cancelled(why)
        self._changed.set()

    def release(self) -> None:
        """Leave the engine, finished or not; harmless when done twice."""
        if self in self._bridge.texts:
            self._bridge.texts.remove(self)
            if self.finish_reason is None and not self.dropped:
                self._bridge.metrics.cancelled("client")
            self._bridge.leave(time.monotonic() - self.began)
        self.handle.cancel()

    @property
    def queue_place(self) -> int:
        """How many texts go first; 0: it is being computed, or is the next."""
        if self.handle.started:
            return 0
        earlier = self._bridge.texts[: self._bridge.texts.index(self)] if self in self._bridge.texts else []
        return sum(not text.handle.started for text in earlier)


class Bridge:
    """One engine in its thread, and the texts that are asked of it."""

    def __init__(self, generator: Generator, settings: ServeSettings, metrics: Metrics) -> None:
        self.generator, self.settings, self.metrics = generator, settings, metrics
        self.texts: list[Text] = []
        self.used_at = time.monotonic()
        self.retired = False  # it leaves the memory
        self._seconds: deque[float] = deque([1.0], maxlen=32)  # that the last texts took
        self._loop = asyncio.get_running_loop()
        self._called = self._looking = self._moved = False
        generator.engine.on_step = self._stepped
        generator.engine.start()

    def submit(self, requests: Sequence[Request], stops: Sequence[str]) -> list[Text]:
        """Queue texts, all of them or none.

        Raises:
            ApiError: the queue is full, or the model has left the memory since it was asked for.
            UserError: the engine refuses one.
        """
        if self.retired:
            raise models_busy()
        self.used_at = time.monotonic()
        if len(self.texts) + len(requests) > self.settings.capacity:
            waiting = len(self.texts) + len(requests) - self.settings.max_slots
            seconds = math.ceil(waiting / self.settings.max_slots * sum(self._seconds) / len(self._seconds))
            headers = {"Retry-After": str(min(60, max(1, seconds))), "x-should-retry": "true"}
            raise ApiError(429, "the queue is full, try again later", code="queue_full", headers=headers)
        texts: list[Text] = []
        try:
            for request in requests:
                texts.append(Text(self, request, stops))
                self.texts.append(texts[-1])
        except BaseException:
            for text in texts:
                text.release()
            raise
        return texts

    def leave(self, seconds: float) -> None:
        """Note how long a text took."""
        self.used_at = time.monotonic()
        self._seconds.append(seconds)

    def close(self) -> None:
        """End the engine's thread; blocks until the step that runs is done."""
        self.retired = True
        self.generator.engine.close()

    def _stepped(self, seconds: float | None) -> None:
        """Wake the loop, from the engine's thread, where it rests or a text begins or ends; once, until it has come."""
        self._moved = True
        if seconds is not None:
            self.metrics.step_seconds.observe(seconds)
        if not self._called and (not self._looking or any(text.turns for text in list(self.texts))):
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._woken)

    def _woken(self) -> None:
        self._called = False
        if not self._looking:
            self._look()
            return
        for text in list(self.texts):
            if text.turns:
                text.notice(looking=False)

    def _look(self) -> None:
        """Look at all texts, and again in a while."""
        self._looking, self._moved = True, False
        for text in list(self.texts):
            text.notice()
        self._loop.call_later(max(FRAME, FRAME_EACH * len(self.texts)), self._look_again)

    def _look_again(self) -> None:
        """Go on as long as texts grow; a step that ends from here on wakes us, or has ended before we ask."""
        self._looking = False
        if self._moved:
            self._look()


def _failure(problem: Exception) -> ApiError:
    """Return what a client may know of a failure in the engine: neither paths nor traces."""
    if isinstance(problem, MemoryError) or "out of memory" in str(problem).lower():
        return ApiError(503, "there is no memory for this text", code="out_of_memory")
    return ApiError(500, "the model failed to compute this text; its weights may be damaged", code="engine_failed")
