"""What a run leaves to be read: one JSON object a line.

`metrics.jsonl` holds what the arithmetic decides (loss, rate, gradient norm): it is the same in every repetition,
resumed or not; so does `samples.jsonl`. `timing.jsonl` holds what the machine decides (tokens/s, MFU, memory).
TensorBoard and W&B get the numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.config import dump_config
from mini_llm.errors import UserError
from mini_llm.files import write_text
from mini_llm.train.config import TrainConfig
from mini_llm.user_files import refuse_special


class MetricsLog:
    """Writes the run's numbers, beginning after `step`: lines of later steps, from before an interruption, go."""

    def __init__(self, run: Path, config: TrainConfig, step: int) -> None:
        self.run = run
        names = ["metrics", "timing", *(["samples"] if config.sample_interval else [])]
        for name in names:
            _cut(run / f"{name}.jsonl", step)
        self._files = {name: (run / f"{name}.jsonl").open("a", encoding="utf-8") for name in names}
        self._tensorboard = _open_tensorboard(run, step) if config.tensorboard else None
        self._wandb = _open_wandb(run, config) if config.wandb_log else None

    def write(self, step: int, metrics: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        """Add a line for `step` to metrics.jsonl and, with `timing`, to timing.jsonl.

        Raises:
            OSError: the disk is full.
        """
        self._line("metrics", {"step": step, **metrics})
        if timing:
            self._line("timing", {"step": step, **timing})
        numbers = {k: v for k, v in {**metrics, **(timing or {})}.items() if isinstance(v, (int, float))}
        if self._tensorboard:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def write_sample(self, step: int, prompt: str, text: str) -> None:
        """Add a line to samples.jsonl.

        Raises:
            OSError: the disk is full.
        """
        self._line("samples", {"step": step, "prompt": prompt, "text": text})

    def _line(self, name: str, values: dict[str, Any]) -> None:
        # JSON has no NaN: an infinite gradient norm, which float16 has now and then, is written as null.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._files[name].write(json.dumps(plain) + "\n")
        self._files[name].flush()

    def sync(self) -> None:
        """Wait until the disk has all lines: those of the steps before a checkpoint must not be lost after it."""
        for name, file in self._files.items():
            os.fsync(file.fileno())
            if not os.fstat(file.fileno()).st_nlink:  # what is written to it goes nowhere
                path = self.run / f"{name}.jsonl"
                log.warn(f"{path} was deleted: what it held is lost, and it begins anew")
                self.run.mkdir(parents=True, exist_ok=True)
                file.close()
                self._files[name] = path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Finish all files."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a line that found the disk full is tried once more here
                file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


class NoLog(MetricsLog):
    """What the other processes of a run have instead: the first one writes."""

    def __init__(self) -> None:
        self._tensorboard = self._wandb = None
        self._files = {}

    def _line(self, name: str, values: dict[str, Any]) -> None:
        pass


def read_metrics(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, timing.jsonl or samples.jsonl; those that are damaged are left out."""
    return _read(run / f"{name}.jsonl")[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the sound lines, and the numbers of the others: a kill or a bad disk spoils a line, not a run."""
    refuse_special(path)
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int) or abs(row["step"]) >= 2**63:
                raise TypeError
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(number)
    return rows, damaged


def _cut(path: Path, step: int) -> None:
    """Keep the lines up to `step`, but not its evaluation: a resumed run begins by evaluating where that is due."""
    rows, damaged = _read(path)
    if damaged and step:
        log.warn(f"{path}: line {', '.join(map(str, damaged[:5]))} of a damaged or killed run was left out")
    kept = [r for r in rows if r["step"] < step or (r["step"] == step and not _is_of_evaluation(r))]
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))


def _is_of_evaluation(row: dict[str, Any]) -> bool:
    return any(key in ("val_loss", "text") or key.startswith("tasks/") for key in row)


def _open_tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard=true needs TensorBoard", "pip install 'mini-llm[log]'") from None
    return SummaryWriter(run / "tensorboard", purge_step=step + 1 if step else None)


def _open_wandb(run: Path, config: TrainConfig) -> Any:
    try:
        import wandb
    except ImportError as problem:
        if problem.name in (None, "wandb"):
            raise UserError("wandb_log=true needs Weights & Biases", "pip install 'mini-llm[log]'") from None
        raise UserError(f"wandb is installed but cannot be imported: {problem}", "pip install -U wandb") from None
    import yaml

    id_file = run / "wandb_id.txt"  # a resumed run goes on in its own curve, whatever other runs are called
    if not id_file.exists():
        write_text(id_file, secrets.token_hex(8))
    try:
        return wandb.init(
            project=config.wandb_project,
            name=config.wandb_run_name or run.name,
            config=yaml.safe_load(dump_config(config)),
            dir=str(run),
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
        )
    except Exception as problem:  # no key, no network: its errors have no common class
        hint = "wandb login, or without an account: WANDB_MODE=offline, or wandb_log=false"
        raise UserError(f"Weights & Biases does not start: {problem}", hint) from None
