"""The engine: many texts, one model. At each step every text gets its next token; texts join and leave at any step.

    engine = Engine(model, eos_ids={2})
    handle = engine.submit(Request(prompt_ids=[1, 5, 9], max_new_tokens=20, seed=1))
    for token_id in handle: ...

Ids in, ids out. Nobody waits for the others to finish: a text takes a free slot of the cache, a long prompt is read in
chunks between the others' tokens, and what an earlier text left in a slot is not read again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mini_llm.errors import UserError
from mini_llm.inference.backends import pick_backend
from mini_llm.inference.darts import dart
from mini_llm.inference.eager import Rows
from mini_llm.inference.history import History
from mini_llm.inference.params import SamplingParams
from mini_llm.inference.request import FinishReason, Handle, Job, Logprob, Request
from mini_llm.inference.sampling import RowParams, sample
from mini_llm.model.transformer import Transformer

CHUNK = 128  # tokens of a prompt that are read in one step
WORTH_KEEPING = 16  # a beginning in common of so many tokens is worth a slot of its own
KEPT_SLOTS = 4  # as long as there are no more, a new conversation does not overwrite an old one


@dataclass(eq=False)
class Slot:
    """A place for one text, and what the cache holds of it, also after the text has ended."""

    index: int
    known: list[int] = field(default_factory=list)  # ids whose keys and values are in the cache
    unread: list[int] = field(default_factory=list)  # ids to be read next
    job: Job | None = None
    used: int = 0  # when, in submissions

    def in_common(self, ids: list[int]) -> int:
        """Return how many of `ids`, but the last, the cache holds already: the last one's scores are what comes next."""
        n = 0
        while n < min(len(self.known), len(ids) - 1) and self.known[n] == ids[n]:
            n += 1
        return n


class Engine:
    """A model that goes on from lists of ids, many at once.

    Args:
        model: on its device, in eval mode.
        vocab_size: ids from here on are never chosen; a model may have more rows than its tokenizer has tokens.
        eos_ids: after one of these, nothing follows.
        source: where the weights are from, for error messages.
        backend: auto, eager, compiled or cuda-graphs.
        max_slots: so many texts are computed at once; more of them wait.
        int8: weights are rounded to 8 bits, a scale for each output.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        vocab_size: int | None = None,
        eos_ids: Collection[int] = (),
        source: Path | str = "memory",
        backend: str = "auto",
        max_slots: int = 32,
        int8: bool = False,
    ) -> None:
        self.config = model.config
        self.vocab_size = vocab_size or model.config.vocab_size
        self.eos_ids = eos_ids
        self.source = source
        self.max_slots = max_slots
        self.backend = pick_backend(backend, model, int8=int8)
        self.slots: list[Slot] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()  # guards jobs and the queue; told when ids have come
        self._stepping = threading.Lock()  # one step at a time
        self._thread: threading.Thread | None = None
        self._closing = False
        self._submitted = 0
        self._rows: tuple[list[SamplingParams], RowParams] | None = None

    # --- asking --------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Handle:
        """Queue a request and return the handle of its ids; from any thread.

        Raises:
            UserError: the prompt fills the context, and may not slide.
            UsageError: a biased or banned id that does not exist.
        """
        context = self.config.max_seq_len
        if len(request.prompt_ids) >= context and request.context_overflow == "stop":
            raise UserError(
                f"the prompt has {len(request.prompt_ids)} tokens and the model's context is {context}: "
                "no room to go on",
                "use a shorter prompt, or let the context slide: --context-overflow slide",
            )
        job = Job(request)
        if request.sampling.looks_back:
            job.history = History(request.sampling, request.prompt_ids, self.vocab_size, self.backend.device)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
        return Handle(job, self._advance, self._changed)

    def _advance(self, job: Job) -> None:
        """Make progress on behalf of a handle that has nothing to give: wait for the thread, or step."""
        with self._changed:
            if self._thread is not None:
                while not (job.ready or job.ended or job.error):
                    self._changed.wait()
                return
        self.step()

    def start(self) -> None:
        """Run the steps in a thread of their own, until `close`."""
        assert self._thread is None, "the engine has been started already"
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mini-llm engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and all texts that are not finished with the reason `cancelled`."""
        thread = self._thread
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        with self._changed:
            self._thread = None
            for job in [*self._waiting, *(slot.job for slot in self.slots if slot.job)]:
                job.cancelled = True
        self._drop_cancelled()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or any(slot.job for slot in self.slots)):
                    self._changed.wait()
                if self._closing:
                    return
            self.step()

    # --- one step ------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Read a chunk of one prompt and the last token of each text; choose the texts' next tokens.

        Returns whether there was anything to do. What goes wrong is raised where the texts' handles are read.
        """
        with self._stepping:
            self._drop_cancelled()
            self._admit()
            work = self._plan()
            if not work:
                return False
            try:
                self._compute(work)
            except Exception as problem:
                self._fail([slot for slot, _ in work], problem)
            except BaseException:  # Ctrl-C ends the texts; what is known of them stays true
                with self._changed:
                    for slot, _ in work:
                        self._end(slot, "cancelled")
                raise
            return True

    def _fail(self, slots: list[Slot], problem: Exception) -> None:
        with self._changed:
            for slot in slots:
                if slot.job is not None:
                    slot.job.error, slot.job, slot.known = problem, None, []
            self._changed.notify_all()

    def _drop_cancelled(self) -> None:
        with self._changed:
            for slot in self.slots:
                if slot.job is not None and slot.job.cancelled:
                    self._end(slot, "cancelled")
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
                job.ended = "cancelled"
            self._changed.notify_all()

    def _admit(self) -> None:
        """Give waiting texts a slot, as long as there are free ones."""
        while True:
            with self._changed:
                if not self._waiting or sum(slot.job is not None for slot in self.slots) >= self.max_slots:
                    return
                job = self._waiting.popleft()
                ids = list(job.request.prompt_ids)
                if len(ids) >= self.config.max_seq_len:
                    ids = slid(ids, self.config.max_seq_len)
                slot = self._choose_slot(ids)
                slot.job, slot.used = job, self._submitted
                self._submitted += 1
            donor = max(self.slots, key=lambda other: other.in_common(ids))
            n = slot.in_common(ids)
            if donor.in_common(ids) >= n + WORTH_KEEPING:
                n = donor.in_common(ids)
                slot.known = []
                self._reserve(n)
                self.backend.cache.copy_beginning(donor.index, slot.index, n)
            slot.known, slot.unread = ids[:n], ids[n:]
            job.n_reused = n

    def _choose_slot(self, ids: list[int]) -> Slot:
        """Return the free slot that holds most of `ids`; of equals, the one that has rested longest, or a new one."""
        free = [slot for slot in self.slots if slot.job is None]
        best = max(free, key=lambda slot: (slot.in_common(ids), -slot.used), default=None)
        fits = best is not None and (not best.known or best.in_common(ids) >= min(WORTH_KEEPING, len(ids) - 1))
        n_slots = len(self.slots)
        if best is None or not fits and n_slots < min(KEPT_SLOTS, self.max_slots):
            best = Slot(n_slots)
            self.slots.append(best)
        return best

    def _plan(self) -> list[tuple[Slot, int]]:
        """Return which slots read how many ids: one each, but for the longest waiting prompt, which gets a chunk."""
        busy = [slot for slot in self.slots if slot.job is not None]
        prompts = sorted((slot for slot in busy if len(slot.unread) > 1), key=lambda slot: slot.used)
        work = [(slot, 1) for slot in busy if len(slot.unread) == 1]
        return work + [(slot, min(CHUNK, len(slot.unread))) for slot in prompts[:1]]

    def _compute(self, work: list[tuple[Slot, int]]) -> None:
        rows, done = Rows([], [], [], []), []
        for slot, n in work:
            start = len(slot.known)
            rows.ids.extend(slot.unread[:n])
            rows.slots.extend([slot.index] * n)
            rows.positions.extend(range(start, start + n))
            if n == len(slot.unread):
                rows.wanted.append(len(rows.ids) - 1)
                done.append(slot)
        self._reserve(1 + max(rows.positions))
        with torch.inference_mode():
            logits_MV = self.backend.run(rows)[:, : self.vocab_size] if done else self.backend.run(rows)
            for slot, n in work:
                slot.known += slot.unread[:n]
                slot.unread = slot.unread[n:]
            if done:
                self._deliver(done, self._choose(done, logits_MV), logits_MV)

    def _reserve(self, n_places: int) -> None:
        self.backend.cache.reserve(len(self.slots), n_places)

    def _choose(self, slots: list[Slot], logits_MV: Tensor) -> list[int]:
        """Return the next token of each slot."""
        if not logits_MV.sum(-1).isfinite().all():  # one number a row: a NaN or an infinity spoils the sum
            overflow = ", or use dtype float32: float16 overflows" if self.backend.dtype == torch.float16 else ""
            raise UserError(
                f"the model in {self.source} computes NaN or infinite scores",
                f"its weights are damaged: use an earlier checkpoint of the run{overflow}",
            )
        jobs = [slot.job for slot in slots if slot.job]
        if logits_MV.device.type == "mps" and not all(job.request.sampling.greedy for job in jobs):
            logits_MV = logits_MV.cpu()  # MPS has no float64
        if any(job.history for job in jobs):
            rows = [job.history.adjust(row.to(job.history.seen_V.device)) if job.history else row.float()
                    for job, row in zip(jobs, logits_MV, strict=True)]  # fmt: skip
            logits_MV = torch.stack([row.to(logits_MV.device) for row in rows])
        params = [job.request.sampling for job in jobs]
        if self._rows is None or self._rows[0] != params:
            self._rows = (params, RowParams.of(params, logits_MV.device))
        darts = [dart(job.seed, len(job.written)) for job in jobs]
        dtype = torch.float32 if logits_MV.device.type == "mps" else torch.float64
        return sample(logits_MV, self._rows[1], torch.tensor(darts, dtype=dtype, device=logits_MV.device)).tolist()

    def _deliver(self, slots: list[Slot], token_ids: list[int], logits_MV: Tensor) -> None:
        """Hand each token to its text; end the texts that are finished."""
        with self._changed:
            for slot, token_id, logits_V in zip(slots, token_ids, logits_MV, strict=True):
                job = slot.job
                assert job is not None
                if job.request.logprobs is not None:
                    job.logprobs.append(logprob_of(token_id, logits_V, job.request.logprobs))
                if job.history is not None:
                    job.history.add(token_id)
                job.written.append(token_id)
                job.ready.append(token_id)
                slot.unread = [token_id]
                if token_id in self.eos_ids and not job.request.ignore_eos:
                    self._end(slot, "stop")
                elif len(job.written) >= job.request.max_new_tokens:
                    self._end(slot, "length")
                elif len(slot.known) + 1 >= self.config.max_seq_len:
                    if job.request.context_overflow == "stop":
                        self._end(slot, "context")
                    else:
                        ids = slid(slot.known + slot.unread, self.config.max_seq_len)
                        n = slot.in_common(ids)
                        slot.known, slot.unread = ids[:n], ids[n:]
            self._changed.notify_all()

    def _end(self, slot: Slot, reason: FinishReason) -> None:
        if slot.job is not None:
            slot.job.ended, slot.job, slot.unread = reason, None, []


def slid(ids: list[int], context: int) -> list[int]:
    """Return what is kept of a text that has filled the context: its first tokens (1/16 of it) and its last half.

    The beginning stays because attention leans on it (arXiv 2309.17453); the half is read again at its new positions.
    """
    return ids[: context // 16] + ids[-max(1, context // 2) :]


def logprob_of(token_id: int, logits_V: Tensor, n_likeliest: int) -> Logprob:
    """Return the token's log-probability and the `n_likeliest` tokens', under the model's plain softmax."""
    logprobs_V = logits_V.float().log_softmax(-1)
    best = logprobs_V.topk(min(n_likeliest, len(logprobs_V)))
    likeliest = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Logprob(token_id, float(logprobs_V[token_id]), likeliest)
