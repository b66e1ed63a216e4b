"""The step on CUDA: a decoding step is recorded once as a graph and replayed; sampling is part of it.

A model of 16 layers has some 260 kernels a token, 300 where it is sampled. Launched one by one from Python they take
milliseconds, replayed as a graph a fraction of one. So shapes are fixed (fused_step.py), and what changes from step to
step (ids, positions, settings, seeds) lies in tensors at fixed addresses. The chosen ids are written to where the next
step reads them, so that several steps run before the host looks. Scores are those of a text alone within rounding, not
to the last bit: a product of another width may be summed in another order. Letters: B slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mini_llm import log
from mini_llm.inference.backends.eager import EagerBackend
from mini_llm.inference.backends.fused_step import FusedWeights, decode_logits
from mini_llm.inference.backends.slot_cache import SlotCache, bucket
from mini_llm.inference.engine.slots import Slot
from mini_llm.inference.sampling.darts import as_int64, darts
from mini_llm.inference.sampling.sampling import RowParams, sample
from mini_llm.model.transformer import Transformer

BURST = 8  # tokens that are written before the host looks at them
WARM_UP = 3  # steps before a recording; what they write lies beyond the texts' ends, as a burst does


@dataclass
class Recorded:
    """A graph and the tensors that it reads and writes.

    `inputs` hold what changes from step to step, in rows: the ids, their positions, how many tokens each text has
    written (the number of its next dart), and the seeds.
    """

    inputs: Tensor  # (4, B)
    params: RowParams
    chosen: Tensor  # (B,)
    replay: Callable[[], None]


class CudaGraphsBackend(EagerBackend):
    """Prompts as plain PyTorch, single tokens as graphs; a graph that cannot be recorded gives way to plain PyTorch."""

    name = "cuda-graphs"

    def __init__(self, model: Transformer, vocab_size: int) -> None:
        super().__init__(model)
        self.whole_chunks = False  # to read less is worth more here than the last bits, which company changes too
        self.cache = SlotCache(model.config, self.device, self.dtype, spare=max(BURST, WARM_UP))
        self.weights, self.vocab_size = FusedWeights(model), vocab_size
        self.works = True
        self._graphs: dict[tuple[object, ...], Recorded] = {}
        self._pool: Any = None  # the memory of all graphs: one replays at a time
        self._stream: torch.cuda.Stream | None = None
        self._storage = 0

    @torch.inference_mode()
    def burst(self, slots: list[Slot], n_steps: int) -> list[list[int]] | None:
        """Write up to `BURST` tokens of some slots' texts, each with one unread id; nobody looks in between.

        Returns the ids by step, in the order of `slots`, -1 where scores are not finite; None where graphs do not work.
        The cache has room for each text and its `n_steps` tokens.
        """
        try:
            return self._burst(slots, n_steps)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as problem:  # so PyTorch refuses a recording, for many reasons
            self.works = False
            log.warn(f"CUDA graphs do not work here, texts are computed slower: {str(problem).splitlines()[0][:200]}")
            return None

    def _burst(self, slots: list[Slot], n_steps: int) -> list[list[int]]:
        if self._storage != self.cache.keys_LBJSK.data_ptr():  # the cache has moved: old graphs write elsewhere
            self._graphs.clear()
            self._pool, self._storage = None, self.cache.keys_LBJSK.data_ptr()
        inputs_4B, params = self._lay_out(slots)
        n_places = min(bucket(n_steps + max(len(slot.known) for slot in slots)), self.cache.n_places)
        used = [getattr(params, name) is not None for name in ("top_k", "top_p", "min_p", "typical_p")]
        key = (inputs_4B.shape[1], n_places, params.all_greedy, params.any_greedy, *used)
        if key not in self._graphs:
            self._graphs[key] = self._record(inputs_4B.clone(), params, n_places)
        recorded = self._graphs[key]
        recorded.inputs.copy_(inputs_4B)
        for field in fields(RowParams):
            if isinstance(value := getattr(params, field.name), Tensor):
                getattr(recorded.params, field.name).copy_(value)
        steps = []
        for _ in range(n_steps):
            recorded.replay()
            steps.append(recorded.chosen.clone())
        indices = [slot.index for slot in slots]
        return [[chosen[index] for index in indices] for chosen in torch.stack(steps).tolist()]

    def _lay_out(self, slots: list[Slot]) -> tuple[Tensor, RowParams]:
        """Return the inputs (4, B) and settings of the first B slots: a power of two that covers `slots`.

        So a lone text does not pay for those that were there before, and there are few widths to record. The others of
        these slots rest: they write to places that nobody looks at.
        """
        n_slots = 1 << max(slot.index for slot in slots).bit_length()
        rows, settings = [[0, self.cache.n_places, 0, 0]] * n_slots, [slots[0].text.request.sampling] * n_slots
        for slot in slots:
            job = slot.text
            rows[slot.index] = [slot.unread[0], len(slot.known), len(job.written), as_int64(job.seed)]
            settings[slot.index] = job.request.sampling
        return torch.tensor(rows, device=self.device).T.contiguous(), RowParams.of(settings, self.device)

    def _record(self, inputs_4B: Tensor, params: RowParams, n_places: int) -> Recorded:
        ids_B, positions_B, written_B, seeds_B = inputs_4B
        chosen_B = torch.zeros_like(ids_B)

        def step() -> None:
            logits_BV = decode_logits(self.weights, self.cache, ids_B, positions_B, n_places)
            thrown_B = written_B if params.all_greedy else darts(seeds_B, written_B)  # where all are greedy, none is
            picked_B = sample(logits_BV[:, : self.vocab_size], params, thrown_B)
            chosen_B.copy_(torch.where(logits_BV.sum(-1).isfinite(), picked_B, -1))
            ids_B.copy_(chosen_B.clamp(min=0))
            inputs_4B[1:3].add_(1)

        return Recorded(inputs_4B, params, chosen_B, self._capture(step))

    def _capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Record `step` and return its replay."""
        with torch.cuda.device(self.device):
            before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
            stream = self._stream = self._stream or torch.cuda.Stream()  # graphs of one stream share their memory
            stream.wait_stream(before)
            with torch.cuda.stream(stream):  # memory is taken and kernels are chosen before the recording
                for _ in range(WARM_UP):
                    step()
            before.wait_stream(stream)
            try:  # thread_local: what the program's other threads ask of the GPU does not end the recording
                with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                    step()
            finally:
                torch.cuda.set_stream(before)  # a recording that fails would leave its own
        self._pool = graph.pool()
        return graph.replay
