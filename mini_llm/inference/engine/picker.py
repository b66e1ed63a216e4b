"""From a step's scores to each text's next token: its own history, settings and dart.

Letters: M texts, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mini_llm.errors import UserError
from mini_llm.inference.engine.request import Job
from mini_llm.inference.sampling.darts import dart
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.inference.sampling.row_sampling import pick_one
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
        """Return the next token of each job, given finite scores."""
        params = [job.request.sampling for job in jobs]
        if logits_MV.device.type == "mps" and not all(row.greedy for row in params):
            logits_MV = logits_MV.cpu()  # MPS has no float64
        device = logits_MV.device
        if any(job.history for job in jobs):
            adjusted = [
                job.history.adjust(logits_V.to(job.history.seen_V.device)) if job.history else logits_V
                for job, logits_V in zip(jobs, logits_MV, strict=True)
            ]
            logits_MV = torch.stack([logits_V.to(device).float() for logits_V in adjusted])
        if device.type == "cpu":
            darts = [0.0 if job.request.sampling.greedy else dart(job.seed, len(job.written)) for job in jobs]
            return [pick_one(*row) for row in zip(logits_MV.float(), params, darts, strict=True)]
        if self._rows is None or self._params != params:
            self._params, self._rows = params, RowParams.of(params, device)
        dtype = torch.float32 if device.type == "mps" else torch.float64  # on MPS all are greedy: no dart is thrown
        thrown_M = torch.tensor([dart(job.seed, len(job.written)) for job in jobs], dtype=dtype, device=device)
        return sample(logits_MV, self._rows, thrown_M).tolist()
