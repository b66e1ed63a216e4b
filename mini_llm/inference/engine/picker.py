"""From a step's scores to each text's next token: its own history, settings and dart.

Letters: M texts, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from mini_llm.errors import UserError
from mini_llm.inference.engine.draw import look_at_draw
from mini_llm.inference.engine.request import Job
from mini_llm.inference.engine.scores import logprobs_of
from mini_llm.inference.sampling.darts import dart
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import pick_each
from mini_llm.inference.sampling.sampling import RowParams, sample


def not_finite(source: Path | str, dtype: torch.dtype) -> UserError:
    """Return the error for scores that no token can be picked from."""
    overflow = ", or use dtype float32: float16 overflows" if dtype == torch.float16 else ""
    return UserError(
        f"the model in {source} computes NaN or infinite scores",
        f"its weights are damaged: use an earlier checkpoint of the run{overflow}",
    )


class Picker:
    """Picks for many texts at once; settings that have not changed since the last step are not laid out again."""

    def __init__(self) -> None:
        self._params: list[SamplingParams] = []
        self._rows: RowParams | None = None

    def pick(self, jobs: list[Job], logits_MV: Tensor) -> list[int]:
        """Return the next token of each job, given finite scores, and let the job remember it."""
        adjusted_MV = _adjusted(jobs, logits_MV)
        chosen = self._choose(jobs, adjusted_MV)
        note_logprobs(jobs, chosen, logits_MV)
        for row, (job, token_id) in enumerate(zip(jobs, chosen, strict=True)):
            if job.request.inspect is not None and job.request.max_new_tokens:
                thrown, sampling = dart(job.seed, len(job.written)), job.request.sampling
                scores = logits_MV[row], adjusted_MV[row]
                job.drawn.append(look_at_draw(token_id, *scores, sampling, thrown, job.request.inspect))
            if job.history is not None:
                job.history.add(token_id)
            if job.request.guide is not None:
                job.request.guide.accept(token_id)
        return chosen

    def _choose(self, jobs: list[Job], logits_MV: Tensor) -> list[int]:
        params = [job.request.sampling for job in jobs]
        if logits_MV.device.type == "mps" and not all(row.greedy for row in params):
            logits_MV = logits_MV.cpu()  # MPS has no float64
        device = logits_MV.device
        if device.type == "cpu":
            darts = [0.0 if job.request.sampling.greedy else dart(job.seed, len(job.written)) for job in jobs]
            return pick_each(logits_MV, params, darts)
        if self._rows is None or self._params != params:
            self._params, self._rows = params, RowParams.of(params, device)
        dtype = torch.float32 if device.type == "mps" else torch.float64  # on MPS all are greedy: no dart is thrown
        thrown_M = torch.tensor([dart(job.seed, len(job.written)) for job in jobs], dtype=dtype, device=device)
        return sample(logits_MV, self._rows, thrown_M).tolist()


def note_logprobs(jobs: list[Job], token_ids: list[int], logits_MV: Tensor) -> None:
    """Give the jobs that ask for it an entry for their new token; all of them share one softmax."""
    curious = [row for row, job in enumerate(jobs) if job.request.logprobs is not None and job.request.max_new_tokens]
    if curious:
        most = max(jobs[row].request.logprobs or 0 for row in curious)
        entries = logprobs_of([token_ids[row] for row in curious], logits_MV[curious], most)
        for row, entry in zip(curious, entries, strict=True):
            jobs[row].logprobs.append(entry.of(jobs[row].request.logprobs))


def _adjusted(jobs: list[Job], logits_MV: Tensor) -> Tensor:
    """Return the scores after each text's guide's mask, then its penalties, biases and bans."""
    if not any(job.history or job.request.guide for job in jobs):
        return logits_MV
    rows = []
    for job, logits_V in zip(jobs, logits_MV.float(), strict=True):
        guide, history = job.request.guide, job.history
        if guide is not None:
            logits_V = logits_V.masked_fill(~guide.allowed().to(logits_V.device), -math.inf)
        adjusted_V = logits_V if history is None else history.adjust(logits_V)
        if guide is not None and bool(adjusted_V.isneginf().all()):  # bans may not leave a text without a next token
            adjusted_V = logits_V
        rows.append(adjusted_V)
    return torch.stack(rows)
