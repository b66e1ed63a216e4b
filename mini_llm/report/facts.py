"""What a run left behind, gathered with suspicion: any part may be missing, and then the report does without it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mini_llm import log
from mini_llm.checkpoint import read_model_config
from mini_llm.data.formats import format_of
from mini_llm.data.mixture import Mixture
from mini_llm.data.records import read_records
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.inference.generate import Generator
from mini_llm.model.accounting import count_parameters
from mini_llm.model.config import ModelConfig
from mini_llm.plot.curves import Run, read_runs
from mini_llm.pointers import resolve_checkpoint
from mini_llm.report.baselines import ngram_bits_per_byte, xz_bits_per_byte
from mini_llm.report.task_lines import is_finite, read_lines
from mini_llm.runs import run_name
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.budget import RECORD
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.run_folder import read_settings
from mini_llm.user_files import above

PROMPTS = ("", "The people of", "In the year", "The capital of France is", "Once upon a time", "Water boils when")
SETTINGS = ("config.yaml", "run-config.yaml")  # the second lies beside a model that has left its run
N_LEARNING = 3  # samples of those that the run wrote
T = TypeVar("T")


@dataclass
class Facts:
    """All that is known. None or empty: it is not."""

    name: str
    folder: Path
    config: TrainConfig | None = None
    planned: int | None = None  # steps
    shape: ModelConfig | None = None
    parameters: int | None = None
    checkpoint: str | None = None
    curves: Run | None = None
    mixture: Mixture | None = None  # the token stores; mostly one
    last: dict[str, float] = field(default_factory=dict)  # of each number in metrics.jsonl the newest
    licences: dict[str, list[str]] = field(default_factory=dict)  # source -> licences that its rows name
    xz: float | None = None
    ngram: float | None = None
    settings_name: str = "config.yaml"  # the file that `config` was read from
    lines: list[dict[str, Any]] = field(default_factory=list)  # of the tasks' table, as `eval` keeps them, with `limit`
    asked_of: str | None = None  # the checkpoint that the tasks were asked of, where it is not the last one
    learning: list[tuple[int, str, str]] = field(default_factory=list)  # step, prompt, text: what it wrote meanwhile
    samples: list[tuple[str, int, str]] = field(default_factory=list)  # prompt, seed, text
    tokens_per_second: float | None = None
    memory_gb: float | None = None
    mfu: float | None = None
    hours: float | None = None
    price: float | None = None  # of an hour
    missing: list[str] = field(default_factory=list)  # what could not be read, and why

    @property
    def tokens(self) -> float | None:
        """How many tokens the run has seen."""
        return None if self.curves is None else float(self.curves.tokens_at(self.curves.loss.steps[-1:])[0])

    @property
    def missing_sentences(self) -> list[str]:
        """What could not be read, for the caveats."""
        return [f"Missing here: {what}" for what in self.missing]


def find_folder(run: Path) -> Path:
    """Return the folder of a run; the demo's lies one deeper.

    Raises:
        UserError: there is no such folder.
    """
    places = (run, run / "run")
    folder = next((path for path in places if any((path / name).is_file() for name in SETTINGS)), run)
    if not folder.is_dir():
        hint = "give a run folder, as `mini-llm train` and `mini-llm demo` write them"
        raise UserError(f"no such run: {run}", above(run, hint))
    return folder


def gather(run: Path, *, price: float | None = None, samples: bool = True) -> Facts:
    """Return what is known of a run folder, or of a model folder with a run's numbers beside the weights.

    Raises:
        UserError: there is no such folder, or nothing of a run in it.
    """
    folder = find_folder(run)
    facts = Facts(run_name(folder), folder, price=price)
    facts.settings_name = next((name for name in SETTINGS if (folder / name).is_file()), SETTINGS[0])
    facts.config = _try(facts, "settings", lambda: read_settings(folder, facts.settings_name))
    facts.planned = _planned(folder, facts.config)
    facts.curves = _try(facts, "curves", lambda: read_runs([folder])[0])
    checkpoint = _try(facts, "checkpoint", lambda: resolve_checkpoint(folder))
    if facts.config is None and facts.curves is None and checkpoint is None:
        raise UserError(f"{folder} holds no run that can be read: {'; '.join(facts.missing)}")
    if checkpoint:
        facts.checkpoint = checkpoint.name
        facts.shape = _try(facts, "shape", lambda: read_model_config(checkpoint))
    elif facts.config:
        facts.shape = facts.config.model
    facts.parameters = count_parameters(facts.shape) if facts.shape else None
    _read_timing(facts)
    if facts.config is not None:
        data = facts.config.data_dir
        facts.mixture = _try(facts, "training text", lambda: Mixture.open(data))
    if facts.mixture is not None:
        _read_stores(facts, facts.mixture.stores)
    facts.lines, facts.asked_of = read_lines(folder / "eval", facts.checkpoint)
    facts.learning = _read_learning(folder)
    if checkpoint and samples:
        facts.samples = _try(facts, "samples", lambda: _write_samples(checkpoint)) or []
    return facts


def _try(facts: Facts, what: str, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (UserError, OSError, ValueError, KeyError, IndexError, MemoryError) as problem:
        reason = problem.message if isinstance(problem, UserError) else str(problem)
        facts.missing.append(f"{what}: {_without_places(' '.join(reason.split()))[:200]}")
        return None


def _read_stores(facts: Facts, stores: list[TokenStore]) -> None:
    paths = [source.path for store in stores for source in store.manifest.sources]
    facts.licences = {path: _licences(Path(path)) for path in paths}
    if len(stores) > 1:
        facts.missing.append("what xz and counted words make of the text: that is told of one store alone")
        for row in read_metrics(facts.folder):
            facts.last |= {key: value for key, value in row.items() if _is_number(value)}
    elif {"train", "val"} <= stores[0].manifest.splits.keys():
        facts.xz = _try(facts, "xz", lambda: xz_bits_per_byte(stores[0]))
        facts.ngram = _try(facts, "5-gram model", lambda: ngram_bits_per_byte(stores[0]))


def _without_places(text: str) -> str:
    """Return a text in which files have only their names: pages are passed on, and paths tell whose machine it was."""
    return re.sub(r"(?<![\w.<])~?/(?:[^/\s'\"]+/)*([^/\s'\"]+)", r"\1", text)


def _read_learning(folder: Path) -> list[tuple[int, str, str]]:
    """Return the first, a middle and the last sample that the run wrote after its one prompt."""
    rows = [row for row in read_metrics(folder, "samples") if isinstance(row.get("text"), str) and "step" in row]
    rows = [row for row in rows if is_finite(row["step"]) and isinstance(row.get("prompt"), str)]
    chosen = sorted({round(i * (len(rows) - 1) / (N_LEARNING - 1)) for i in range(N_LEARNING)}) if rows else []
    return [(int(rows[i]["step"]), rows[i]["prompt"], rows[i]["text"]) for i in chosen]


def _planned(folder: Path, config: TrainConfig | None) -> int | None:
    """Return how many steps the run was to have: its settings' number, or what `fit_minutes` made of it."""
    if config is None:
        return None
    if config.fit_minutes:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return int(json.loads((folder / RECORD).read_bytes())["max_iters"])
    return config.max_iters


def _read_timing(facts: Facts) -> None:
    rows = read_metrics(facts.folder, "timing")
    speeds = sorted(float(row["tokens_per_second"]) for row in rows if _is_number(row.get("tokens_per_second")))
    if speeds:
        facts.tokens_per_second = speeds[len(speeds) // 2]
    facts.memory_gb = max((float(row["memory_gb"]) for row in rows if _is_number(row.get("memory_gb"))), default=None)
    shares = sorted(float(row["mfu"]) for row in rows if _is_number(row.get("mfu")))
    facts.mfu = shares[len(shares) // 2] if shares else None
    if facts.tokens and facts.tokens_per_second:
        facts.hours = facts.tokens / facts.tokens_per_second / 3600


def _is_number(value: Any) -> bool:
    return is_finite(value) and value > 0


def _licences(path: Path) -> list[str]:
    """Return what the first 1,000 rows of a jsonl source name as their licence."""
    if (format_of(path) or ("",))[0] not in (".jsonl", ".ndjson") or not path.is_file():
        return []
    try:
        rows = itertools.islice(read_records(path), 1000)
        found = {str(row.get("license") or row.get("licence") or "")[:60] for _, row in rows}
    except UserError:
        return []
    return sorted(found - {""})


def _write_samples(checkpoint: Path) -> list[tuple[str, int, str]]:
    """Return what the model writes after a few beginnings, always the same ones, with the seeds that repeat it."""
    log.note("writing samples ...")
    generator, written = Generator(checkpoint), []
    for seed, prompt in enumerate(PROMPTS):
        temperature = 0.8 if seed < len(PROMPTS) - 2 else 0.0
        text = generator.generate(prompt, max_new_tokens=60, temperature=temperature, top_p=0.95, seed=seed)
        written.append((prompt, seed, text))
    return written
