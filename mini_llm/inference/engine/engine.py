"""The engine: many texts, one model. At each step every text gets its next token; texts join and leave at any step.

    engine = Engine(model, eos_ids={2})
    for token_id in engine.submit(Request(prompt_ids=[1, 5, 9], max_new_tokens=20, seed=1)): ...

Ids in, ids out. Nobody waits for the others to finish: a text takes a free slot of the cache, a long prompt is read in
chunks between the others' tokens, and what an earlier text left in a slot is not read again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from mini_llm.inference.backends.eager import Rows
from mini_llm.inference.backends.pick import pick_backend
from mini_llm.inference.engine.burst import write_burst
from mini_llm.inference.engine.picker import Picker, not_finite
from mini_llm.inference.engine.request import FinishReason, Handle, Job, Request
from mini_llm.inference.engine.slots import WORTH_KEEPING, Slot, choose_slot, slid
from mini_llm.inference.sampling.history import History
from mini_llm.model.transformer import Transformer

CHUNK = 128  # tokens of a prompt that are read in one step


class Engine:
    """A model that goes on from lists of ids, many at once.

    Args:
        model: on its device, in eval mode.
        vocab_size: ids from here on are never chosen; a model may have more rows than its tokenizer has tokens.
        eos_ids: after one of these, nothing follows.
        source: where the weights are from, for error messages.
        backend: auto, eager, compiled or cuda-graphs.
        max_slots: so many texts are computed at once; more of them wait.
        kept_slots: as long as there are no more, a new text does not overwrite an old one, which may go on.
        int8: weights are rounded to 8 bits, a scale for each output.

    `on_step`, if it is set, is called after each step, by the thread that steps: handles may have more to take. It gets
    the seconds that the step took, or None where there was nothing to compute.
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
        kept_slots: int = 4,
        int8: bool = False,
    ) -> None:
        self.config = model.config
        self.vocab_size = vocab_size or model.config.vocab_size
        self.eos_ids = eos_ids
        self.source = source
        self.max_slots, self.kept_slots = max_slots, kept_slots
        self.backend = pick_backend(backend, model, vocab_size=self.vocab_size, int8=int8)
        self.slots: list[Slot] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()  # guards jobs and the queue; told when ids have come
        self._stepping = threading.Lock()  # one step at a time
        self._thread: threading.Thread | None = None
        self._closing = False
        self._submitted = 0
        self._picker = Picker()
        self.on_step: Callable[[float | None], None] | None = None

    @property
    def n_waiting(self) -> int:
        """How many texts have no slot yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """How many texts have a slot."""
        return sum(slot.job is not None for slot in list(self.slots))

    def submit(self, request: Request) -> Handle:
        """Queue a request and return the handle of its ids; from any thread.

        Raises:
            UserError: the prompt fills the context, and may not slide.
            UsageError: an id that does not exist, or all are banned.
        """
        request.check(self.config, self.vocab_size)
        job = Job(request)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
        return Handle(job, self._advance, self._changed)

    def _advance(self, job: Job) -> None:
        """Make progress on behalf of a handle that has nothing to give: wait for the thread, or step."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: job.ready or job.ended or job.error)
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
        if self.on_step:
            self.on_step(None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or any(slot.job for slot in self.slots))
                if self._closing:
                    return
            self.step()

    def step(self) -> bool:
        """Read a chunk of one prompt and the last token of each text; choose the texts' next tokens.

        Returns whether there was anything to do. What goes wrong is raised where the texts' handles are read: of those
        that were computed, or of all where it is not these.
        """
        with self._stepping:
            work, began = None, time.perf_counter()
            try:
                self._drop_cancelled()
                self._admit()
                work = self._plan()
                if rest := write_burst(self, work):
                    self._compute(rest)
            except Exception as problem:
                self._fail(problem, None if work is None else [slot for slot, _ in work])
            except BaseException:  # Ctrl-C ends the texts; what is known of them stays true
                with self._changed:
                    for slot in self.slots:
                        self._end(slot, "cancelled")
                raise
            finally:
                if self.on_step:
                    self.on_step(time.perf_counter() - began if work else None)
            return work != []

    def _fail(self, problem: Exception, slots: list[Slot] | None) -> None:
        """Let the texts in these slots end with an error; None: all texts, those too that wait."""
        with self._changed:
            for slot in self.slots if slots is None else slots:
                if slot.job is not None:
                    slot.job.error, slot.job, slot.known = problem, None, []
                    self.backend.cache.clear(slot.index)
            while slots is None and self._waiting:
                self._waiting.popleft().error = problem
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
                if not self._waiting or self.n_running >= self.max_slots:
                    return
                ids = list(self._waiting[0].request.prompt_ids)
                if len(ids) >= self.config.max_seq_len and self._waiting[0].request.context_overflow == "slide":
                    ids = slid(ids, self.config.max_seq_len)
                slot = choose_slot(self.slots, ids, kept=self.kept_slots, max_slots=self.max_slots)
                slot.job, slot.used = self._waiting.popleft(), self._submitted
                slot.job.started = True
                self._submitted += 1
            try:
                self._begin(slot, ids)
            except Exception as problem:  # no memory, most likely: the others go on
                self._fail(problem, [slot])

    def _begin(self, slot: Slot, ids: list[int]) -> None:
        """Let a slot's text begin after what this slot, or another one, has read of it already."""
        job = slot.text
        if job.request.sampling.looks_back:
            job.history = History(job.request.sampling, job.request.prompt_ids, self.vocab_size, self.backend.device)
        unscored = ids if job.request.score_from is None else ids[: job.request.score_from]
        donor = max(self.slots, key=lambda other: self._reusable(other, unscored))
        n, n_donor = self._reusable(slot, unscored), self._reusable(donor, unscored)
        if n_donor >= n + WORTH_KEEPING:
            n, slot.known = n_donor, []
            self.reserve(n)
            self.backend.cache.copy_beginning(donor.index, slot.index, n)
        slot.begin(ids, n)
        job.n_reused = n

    def _reusable(self, slot: Slot, ids: list[int]) -> int:
        """Return how many of `ids` need not be read where `slot` holds them; see `Backend.whole_chunks`."""
        n = slot.in_common(ids)
        return min(n, slot.whole) // CHUNK * CHUNK if self.backend.whole_chunks else n

    def _plan(self) -> list[tuple[Slot, int]]:
        """Return which slots read how many ids: one for each text, and prompts of up to a chunk in all.

        The longest waiting one gets a chunk, others join where they fit: a prompt is cut alike, whoever else is there.
        """
        busy = [slot for slot in self.slots if slot.job is not None]
        work, room = [(slot, 1) for slot in busy if len(slot.unread) == 1], CHUNK
        for slot in sorted((slot for slot in busy if len(slot.unread) > 1), key=lambda slot: slot.used):
            n = min(CHUNK, len(slot.unread))
            if n <= room:
                work.append((slot, n))
                room -= n
        return work

    def _compute(self, work: list[tuple[Slot, int]]) -> None:
        rows, asked = Rows([], [], [], []), []
        for slot, n in work:
            start, first = len(slot.known), len(rows.ids)
            rows.ids.extend(slot.unread[:n])
            rows.slots.extend([slot.index] * n)
            rows.positions.extend(range(start, start + n))
            asked.append(slot.text.rows_asked(start, n, last=n == len(slot.unread)))
            rows.wanted.extend(first + row for row in asked[-1])
        self.reserve(1 + max(rows.positions))
        logits_MV = self.backend.run(rows)
        if rows.wanted:
            logits_MV = logits_MV[:, : self.vocab_size]
            if not math.isfinite(logits_MV.sum().item()):  # a NaN or an infinity spoils the sum
                raise not_finite(self.source, self.backend.dtype)
        done, last_rows, row = [], [], 0
        for (slot, n), own in zip(work, asked, strict=True):
            if slot.text.request.score_from is not None:
                slot.text.score_prompt(len(slot.known) + own.start, logits_MV[row : row + len(own)])
            row += len(own)
            slot.known += slot.unread[:n]
            slot.unread = slot.unread[n:]
            slot.whole += n if n == CHUNK else 0  # only the last chunk of a prompt is shorter
            if not slot.unread:
                done.append(slot)
                last_rows.append(row - 1)
        if done:
            logits_MV = logits_MV if len(done) == len(rows.wanted) else logits_MV[last_rows]
            self.deliver(done, self._picker.pick([slot.text for slot in done], logits_MV))

    def reserve(self, n_places: int) -> None:
        """Make room in the cache for `n_places` tokens of each text."""
        self.backend.cache.reserve(len(self.slots), n_places)

    def deliver(self, slots: list[Slot], token_ids: list[int]) -> None:
        """Hand each token to its text; end the texts that are finished."""
        with self._changed:
            for slot, token_id in zip(slots, token_ids, strict=True):
                job = slot.text
                if job.request.max_new_tokens == 0:
                    self._end(slot, "length")
                    continue
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
                        slot.begin(ids, self._reusable(slot, ids))
            self._changed.notify_all()

    def _end(self, slot: Slot, reason: FinishReason) -> None:
        if slot.job is not None:
            slot.job.ended, slot.job, slot.unread = reason, None, []
