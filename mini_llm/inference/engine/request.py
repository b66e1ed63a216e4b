"""What is asked of the engine, and the handle by which the answer comes: one id after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from threading import Condition
from typing import Literal

from torch import Tensor

from mini_llm.errors import UsageError, UserError
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
    ignore_eos: bool = False  # go on after ids that end texts
    context_overflow: Overflow = "stop"  # where the context is full: stop, or keep its beginning and its last half

    def __post_init__(self) -> None:
        """Raise UsageError for what no model can do."""
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={self.max_new_tokens} must be 1 or more")
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
        for token_id in self.prompt_ids:
            if not (isinstance(token_id, Integral) and 0 <= token_id < config.vocab_size):
                raise UsageError(f"token id {token_id} does not exist: ids go from 0 to {config.vocab_size - 1}")
        if len(self.prompt_ids) >= config.max_seq_len and self.context_overflow == "stop":
            raise UserError(
                f"the prompt has {len(self.prompt_ids)} tokens and the model's context is {config.max_seq_len}: "
                "no room to go on",
                "use a shorter prompt, or let the context slide: --context-overflow slide",
            )
        check_ids(self.sampling, vocab_size)


@dataclass(frozen=True)
class Logprob:
    """How likely the model held a token, before temperature and filters: natural logarithms."""

    token_id: int
    logprob: float
    likeliest: list[tuple[int, float]]  # (id, logprob), best first


def logprob_of(token_id: int, logits_V: Tensor, n_likeliest: int) -> Logprob:
    """Return the token's log-probability and the `n_likeliest` tokens', under the model's plain softmax."""
    logprobs_V = logits_V.float().log_softmax(-1)
    best = logprobs_V.topk(min(n_likeliest, len(logprobs_V)))
    likeliest = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Logprob(token_id, float(logprobs_V[token_id]), likeliest)


class Job:
    """The engine's side of a request. The lock of the engine guards it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.seed = new_seed() if request.seed is None else request.seed
        self.ready: deque[int] = deque()  # computed, not yet taken
        self.logprobs: list[Logprob] = []
        self.written: list[int] = []  # all ids so far
        self.n_reused = 0
        self.ended: FinishReason | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.history: History | None = None

    @property
    def simple(self) -> bool:
        """Whether the next scores alone decide: neither the past nor anybody's curiosity is asked."""
        return self.history is None and self.request.logprobs is None


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
    def n_reused(self) -> int:
        """How many ids of the prompt need not be read: an earlier request left them in the cache."""
        return self._job.n_reused
