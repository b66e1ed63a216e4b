"""Run folders as training writes them, made of numbers that are known."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return `make_run(name, steps=100, scale=1.0, timing=True)`: 64 tokens a step, held out every 20 steps.

    The training loss is scale * (2 + 7 exp(-step/10)); the held-out loss is lowest at step 80.
    """

    def make(name: str = "run-a", steps: int = 100, scale: float = 1.0, timing: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = []
        for step in range(0, steps + 1):
            loss = scale * (2 + 7 * math.exp(-step / 10))
            if step:
                rows.append(
                    {"step": step, "tokens": 64 * step, "loss": loss, "lr": 1e-3 * step / steps, "grad_norm": 0.5}
                )
            if step % 20 == 0:
                held_out = loss + 0.1 + (0.5 if step > 80 else 0)
                rows.append({"step": step, "val_loss": held_out, "val_bits_per_byte": held_out / 2})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if timing:
            lines = [json.dumps({"step": step, "tokens_per_second": 1000.0}) for step in range(1, steps + 1)]
            (folder / "timing.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make
