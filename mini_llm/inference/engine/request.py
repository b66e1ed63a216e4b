"""What is asked of the engine, and the handle by which the answer comes: one id after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from threading import Condition
from typing import Literal, Protocol

from torch import Tensor

from mini_llm.errors import UsageError, UserError
from mini_llm.inference.engine.draw import Drawn
from mini_llm.inference.engine.scores import Logprob, logprobs_of
from mini_llm.inference.sampling.darts import new_seed
from mini_llm.inference.sampling.history import History, check_ids
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.model.config import ModelConfig

Overflow = Literal["stop", "slide"]
FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Ids to go on from, and how."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None  # the same seed writes the same ids, whatever else is computed meanwhile; None: a new one
    logprobs: int | None = None  # with each id its log-probability, and those of so many of the likeliest
    score_from: int | None = None  # the same for the prompt's ids from this index on, 1 or more: they are read anew
    inspect: int | None = None  # with each id how it was drawn, beside so many of the likeliest
    guide: Guide | None = None  # rules out tokens before anything else does; log-probabilities do not know of it
    ignore_eos: bool = False  # go on after ids that end texts
    context_overflow: Overflow = "stop"  # where the context is full: stop, or keep its beginning and its last half

    def __post_init__(self) -> None:
        """Raise UsageError for what no model can do."""
        least = 1 if self.score_from is None else 0
        if self.max_new_tokens < least:
            raise UsageError(f"max_new_tokens={self.max_new_tokens} must be {least} or more")
        if self.score_from is not None and (self.score_from < 1 or self.context_overflow == "slide"):
            raise UsageError(f"score_from={self.score_from} must be 1 or more, in a context that does not slide")
        if self.logprobs is not None and self.logprobs < 0:
            raise UsageError(f"logprobs={self.logprobs} must be 0 or more")
        if self.context_overflow not in ("stop", "slide"):
            raise UsageError(f"context_overflow '{self.context_overflow}' is not one of stop, slide")
        if not (self.seed is None or isinstance(self.seed, int)):
            raise UsageError(f"seed={self.seed!r} must be a whole number")
        if not self.prompt_ids:
            raise UsageError("a request needs at least one id to go on from")

    def check(self, config: ModelConfig, vocab_size: int) -> None:
        """Refuse what this model cannot do, or its tokenizer of `vocab_size` tokens; see `Engine.submit`."""
        n_ids = config.vocab_size if self.score_from is None else vocab_size
        for token_id in self.prompt_ids:
            if not (isinstance(token_id, Integral) and 0 <= token_id < n_ids):
                raise UsageError(f"token id {token_id} does not exist: ids go from 0 to {n_ids - 1}")
        longest = config.max_seq_len - (self.score_from is None)  # the scores after the last place may be asked for
        if len(self.prompt_ids) > longest and self.context_overflow == "stop":
            raise UserError(
                f"the prompt has {len(self.prompt_ids)} tokens and the model's context is {config.max_seq_len}: "
                "no room to go on",
                "use a shorter prompt; generate and chat can let the context slide: --context-overflow slide",
            )
        check_ids(self.sampling, vocab_size)


class Guide(Protocol):
    """What decides which tokens may come next, for instance a grammar; it has a state and belongs to one text."""

    @property
    def problem(self) -> str | None:
        """Why the text that it held had to end early; None where it did not."""
        ...

    def allowed(self) -> Tensor:
        """Return which tokens may come next: bool (V), on the CPU, at least one of them true."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen, the ones that end texts too."""
        ...


class Job:
    """The engine's side of a request. The lock of the engine guards it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.seed = new_seed() if request.seed is None else request.seed
        self.ready: deque[int] = deque()  # computed, not yet taken
        self.logprobs: list[Logprob] = []
        self.prompt_logprobs: list[Logprob] = []
        self.drawn: list[Drawn] = []
        self.started = False  # has, or had, a slot
        self.written: list[int] = []  # all ids so far
        self.n_reused = 0
        self.ended: FinishReason | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.history: History | None = None

    @property
    def simple(self) -> bool:
        """Whether the next scores alone decide: neither the past, a guide nor anybody's curiosity is asked."""
        asked = self.request
        curious = (asked.logprobs, asked.score_from, asked.inspect, asked.guide, self.history)
        return all(wish is None for wish in curious)

    def rows_asked(self, start: int, n: int, last: bool) -> range:
        """Return which of the n rows from place `start` on, that this text reads, it wants the next scores of.

        The last row of what is unread always (`last`); of a prompt that is scored also those before its ids.
        """
        if self.request.score_from is None:
            return range(n - last, n)
        return range(min(n, max(0, self.request.score_from - 1 - start)), n)

    def score_prompt(self, place: int, logits_MV: Tensor) -> None:
        """Take, of a prompt to be scored, the scores after the ids from `place` on, as far as ids of it follow them."""
        if ids := list(self.request.prompt_ids[place + 1 : place + 1 + len(logits_MV)]):
            self.prompt_logprobs += logprobs_of(ids, logits_MV[: len(ids)], self.request.logprobs or 0)


class Handle(Iterator[int]):
    """The ids that follow a prompt. An eos id, if one comes, is the last; then ask `finish_reason`.

    Iterating computes what is missing, unless the engine runs in a thread of its own: then it waits. A handle that
    nobody holds any more is cancelled.
    """

    def __init__(self, job: Job, advance: Callable[[Job], None], lock: Condition) -> None:
        self._job, self._advance, self._lock = job, advance, lock

    def __next__(self) -> int:
        while True:
            with self._lock:
                if self._job.ready:
                    return self._job.ready.popleft()
                if self._job.error is not None:
                    raise self._job.error
                if self._job.ended is not None:
                    raise StopIteration
            self._advance(self._job)

    def cancel(self) -> None:
        """End the text here; ids that are computed already still come."""
        self._job.cancelled = True

    def __del__(self) -> None:
        self._job.cancelled = True

    @property
    def seed(self) -> int:
        """The seed that is used: the request's, or the one that was drawn."""
        return self._job.seed

    def take(self, most: int | None = None) -> list[int]:
        """Return the ids that are ready, without waiting; at most `most` of them.

        Raises:
            Exception: what went wrong in the step, when all ids before it were taken.
        """
        with self._lock:
            ready = self._job.ready
            if not ready and self._job.error is not None:
                raise self._job.error
            return [ready.popleft() for _ in range(len(ready) if most is None else min(most, len(ready)))]

    @property
    def n_unread(self) -> int:
        """How many ids are computed and not taken."""
        return len(self._job.ready)

    @property
    def prompt_ids(self) -> Sequence[int]:
        """What was asked to be gone on from."""
        return self._job.request.prompt_ids

    @property
    def drawn(self) -> list[Drawn]:
        """One entry for each id so far, where the request has `inspect`."""
        return self._job.drawn

    @property
    def done(self) -> bool:
        """Whether no more ids will be computed."""
        return self._job.ended is not None or self._job.error is not None

    @property
    def started(self) -> bool:
        """Whether it has left the queue."""
        return self._job.started

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why there is no more: an eos id (stop), max_new_tokens (length), a full context, or `cancel`. None: go on."""
        with self._lock:
            return None if self._job.ready else self._job.ended

    @property
    def logprobs(self) -> list[Logprob]:
        """One entry for each id so far, where the request asks for them."""
        return self._job.logprobs

    @property
    def prompt_logprobs(self) -> list[Logprob]:
        """One entry for each id of the prompt from `score_from` on, as far as it is read."""
        return self._job.prompt_logprobs

    @property
    def n_reused(self) -> int:
        """How many ids of the prompt need not be read: an earlier request left them in the cache."""
        return self._job.n_reused
