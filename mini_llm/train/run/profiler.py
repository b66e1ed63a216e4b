"""Where a step's time goes: a few steps under torch's profiler, as a trace to look at and a table to read.

RUN/profile/trace.json.gz opens in https://ui.perfetto.dev or chrome://tracing.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from mini_llm import log
from mini_llm.files import write_text

Result = TypeVar("Result")

WARMUP = 3  # steps before the trace: they allocate, compile and fill caches
STEPS = 3  # steps in the trace

# The first that is found in an operation's name, or in that of one it was called by ("within"), is its kind.
WITHIN = (("loader", r"^mini_llm: batch$"), ("optimizer", r"^Optimizer\.step"))
KINDS = (
    ("attention", r"scaled_dot_product|flash|efficient_attention|attention"),
    ("matrix products", r"\b(mm|addmm|bmm|baddbmm|matmul|linear|einsum)\b|_mkl_|mkldnn|gemm|cutlass|cublas|nvjet"),
    ("softmax and loss", r"softmax|nll_loss|cross_entropy"),
    ("gradient's length", r"_foreach_norm|_foreach_mul|linalg_vector_norm|clip_grad"),
    ("embedding", r"embedding|index_put|index_select|gather|scatter"),
    ("compiled, fused", r"Compiled|CompiledFxGraph|inductor|triton|graph_\d+_"),
    ("copies", r"copy|\bto\b|_to_copy|contiguous|clone|cat\b|stack|Memcpy|Memset|fill_|zero_"),
    ("elementwise", r"aten::|elementwise|reduce_kernel|Backward|autograd"),
)


class StepProfiler:
    """Calls each step; after `WARMUP` of them it traces `STEPS`."""

    def __init__(self, run: Path, device: torch.device) -> None:
        self.folder, self.device = run / "profile", device
        self._calls, self._seconds = 0, 0.0
        self._profile: Any = None

    def step(self, do_step: Callable[[], Result]) -> Result:
        """Return `do_step()`, traced where it is its turn."""
        if self._calls == WARMUP:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities)
            self._profile.start()
        start = self._now()
        result = do_step()
        if self._profile:
            self._seconds += self._now() - start
        self._calls += 1
        return result

    def report(self) -> bool:
        """Write and show what was traced, once all of it was; tell whether that was now."""
        if self._profile is None or self._calls < WARMUP + STEPS:
            return False
        self._profile.stop()
        self.folder.mkdir(exist_ok=True)
        trace = self.folder / "trace.json.gz"
        self._profile.export_chrome_trace(str(trace))
        text = time_table(time_by_kind(self._profile.events(), self.device), self._seconds, STEPS)
        write_text(self.folder / "table.txt", text + "\n")
        log.info(f"{text}\ntrace of these steps, for https://ui.perfetto.dev: {trace}")
        self._profile = None
        return True

    def close(self) -> None:
        """End a trace that a shorter run has cut; without effect afterwards."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if self._calls < WARMUP + STEPS:
            log.warn(f"no profile: it takes {WARMUP + STEPS} steps")

    def _now(self) -> float:
        if self._profile and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def time_by_kind(events: Any, device: torch.device) -> dict[str, float]:
    """Return seconds by kind of operation: of the GPU where there is one, else of the CPU. No second counts twice."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        is_host = event.device_type == torch.autograd.DeviceType.CPU
        if not is_host:  # a kernel is counted with the operation that launched it
            continue
        microseconds = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
        if microseconds > 0:
            seconds[_kind(event)] += microseconds / 1e6
    return dict(seconds)


def _kind(event: Any) -> str:
    ancestor = event
    while ancestor is not None:
        for kind, pattern in WITHIN:
            if re.search(pattern, ancestor.name):
                return kind
        ancestor = ancestor.cpu_parent
    return next((kind for kind, pattern in KINDS if re.search(pattern, event.name)), "other")


def time_table(seconds: dict[str, float], wall: float, steps: int) -> str:
    """Return the table, the largest share first; `wall` is what a clock says of all steps together."""
    rest = max(0.0, wall - sum(seconds.values()))
    rows = [*sorted(seconds.items(), key=lambda pair: -pair[1]), ("between operations", rest)]
    lines = [f"where a step's time goes ({steps} steps of {1000 * wall / steps:,.1f} ms, tracing included):"]
    for kind, value in rows:
        share = value / wall if wall else 0.0
        lines.append(f"  {kind:<18} {share:6.1%} {1000 * value / steps:10,.2f} ms  {'█' * round(40 * share)}")
    return "\n".join(lines)
