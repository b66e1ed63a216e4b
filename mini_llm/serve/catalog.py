"""The models by name: a run's newest checkpoint, its best, and every step that lies on the disk, loaded when asked for.

A run that trains moves on meanwhile: `latest` is followed at each request, and a checkpoint that is pruned while it is
read is looked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mini_llm.checkpoint import read_model_config
from mini_llm.device import passing_threads
from mini_llm.errors import UserError
from mini_llm.inference.generate import Generator
from mini_llm.pointers import ADAPTER_CONFIG, read_pointer, resolve_checkpoint
from mini_llm.serve.bridge import Bridge
from mini_llm.serve.metrics import Metrics
from mini_llm.serve.problems import ApiError, models_busy
from mini_llm.serve.settings import ServeSettings
from mini_llm.tokenizer.template import named_templates
from mini_llm.train.run.run_folder import is_pretraining

MARKS = ("config.json", ADAPTER_CONFIG)  # how a model's folder is known
TRIES = 3  # to load what `latest` leads to, while a run moves on


@dataclass(frozen=True)
class Entry:
    """A model that may be asked for."""

    id: str
    folder: Path
    kind: str  # latest, best, checkpoint, milestone, model or adapter
    step: int | None

    def as_dict(self) -> dict[str, object]:
        """Return what /v1/models says of it."""
        try:
            created = int(next(self.folder / name for name in MARKS if (self.folder / name).is_file()).stat().st_mtime)
            context = read_model_config(self.folder).max_seq_len
        except (OSError, UserError, StopIteration):  # pruned meanwhile
            created, context = 0, None
        return {
            "id": self.id,
            "object": "model",
            "created": created,
            "owned_by": "mini-llm",
            "max_model_len": context,
            "kind": self.kind,
            "step": self.step,
        }


class Served:
    """A model in memory, and its engine at work."""

    def __init__(self, folder: Path, generator: Generator, bridge: Bridge) -> None:
        self.folder, self.generator, self.bridge = folder, generator, bridge

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.generator.model.config.max_seq_len

    @property
    def vocab_size(self) -> int:
        """Ids from here on do not exist: the model has no row for them, or the tokenizer no token."""
        return self.generator.engine.vocab_size

    @property
    def step(self) -> int | None:
        """The step of training that it is from, if it is a run's."""
        return step_of(self.folder)

    @cached_property
    def guide_tokenizer(self) -> object:
        """The tokenizer as the grammars' library reads it."""
        from mini_llm.serve.structured import guide_tokenizer

        return guide_tokenizer(self.generator.tokenizer)


class Catalog:
    """What lies on the disk, and what of it is in memory."""

    def __init__(self, path: Path, settings: ServeSettings, metrics: Metrics) -> None:
        self.path, self.settings, self.metrics = path, settings, metrics
        self.run = run_of(path)
        self.name = settings.name or default_name(path)
        self.loaded: dict[Path, Served] = {}
        self.problem: UserError | OSError | None = None  # why a model could not be read, the last time
        self._lock = asyncio.Lock()
        self._last: Served | None = None  # what the bare name was answered with

    def entries(self) -> list[Entry]:
        """Return all models, the newest checkpoint first, the adapters last."""
        adapters = [
            Entry(name, folder := resolve_checkpoint(path), "adapter", step_of(folder))
            for name, path in self.settings.adapters
        ]
        return self._of_run() + adapters

    def _of_run(self) -> list[Entry]:
        found = [Entry(self.name, folder := resolve_checkpoint(self.path), "latest", step_of(folder))]
        if self.run is None or any((self.path / name).is_file() for name in MARKS):
            return [Entry(self.name, found[0].folder, "model", found[0].step)]
        best = self.run / "best"
        if best.is_symlink() or best.is_file():
            folder = self.run / read_pointer(best)
            found.append(Entry(f"{self.name}@best", folder, "best", step_of(folder)))
        steps: dict[int, Entry] = {}
        for kind in ("milestone", "checkpoint"):  # a step that is both is read from the checkpoint
            for folder in (self.run / f"{kind}s").glob("step-*"):
                if (step := step_of(folder)) is not None:
                    steps[step] = Entry(f"{self.name}@{step}", folder, kind, step)
        return found + [steps[step] for step in sorted(steps)]

    def find(self, name: str | None) -> Entry:
        """Return the model of that name; none, or an empty one, means the newest checkpoint.

        Raises:
            ApiError: there is none.
        """
        try:
            entries = self.entries()
        except (UserError, OSError):
            raise ApiError(503, "the run has no checkpoint that can be read", code="no_checkpoint") from None
        for entry in entries:
            if entry.id == (name or self.name):
                return entry
        raise ApiError(
            404, f"the model '{name}' does not exist; GET /v1/models lists those that do", param="model",
            code="model_not_found",
        )  # fmt: skip

    async def get(self, name: str | None = None) -> Served:
        """Return a model, loaded and at work.

        Raises:
            ApiError: there is none of that name, it cannot be read, or too many are in use.
        """
        if name not in (None, "", self.name):
            inside = self.run or self.path
            known = [s for s in self.loaded.values() if f"{self.name}@{s.step}" == name and inside in s.folder.parents]
            if known and not known[0].folder.exists():  # pruned, but still in memory
                return known[0]
        async with self._lock:
            for _ in range(TRIES):
                try:
                    entry = self.find(name)
                    served = self.loaded.get(entry.folder) or await self._load(entry.folder)
                except (UserError, OSError) as problem:
                    self.problem = problem
                    await asyncio.sleep(0.05)
                    continue
                except ApiError as refusal:
                    if refusal.code != "no_checkpoint":
                        raise
                    break
                served.bridge.used_at = time.monotonic()
                if entry.kind in ("latest", "model"):
                    self._last = served
                return served
        if name in (None, "", self.name) and self._last is not None:
            return self._last
        raise ApiError(503, "this model cannot be read from the disk", param="model", code="model_not_loaded")

    async def _load(self, folder: Path) -> Served:
        await self._make_room()
        s = self.settings
        generator = await asyncio.to_thread(_ready, folder, s)
        self.loaded[folder] = Served(folder, generator, Bridge(generator, s, self.metrics))
        return self.loaded[folder]

    async def _make_room(self) -> None:
        while len(self.loaded) >= self.settings.max_models:
            idle = [served for served in self.loaded.values() if not served.bridge.texts]
            if not idle:
                raise models_busy()
            oldest = min(idle, key=lambda served: served.bridge.used_at)
            del self.loaded[oldest.folder]
            oldest.bridge.retired = True  # at once: a request may have it in hand that has submitted nothing yet
            await asyncio.to_thread(oldest.bridge.close)

    def close(self) -> None:
        """End all engines."""
        for served in self.loaded.values():
            served.bridge.close()

    @property
    def n_texts(self) -> int:
        """How many texts run or wait."""
        return sum(len(served.bridge.texts) for served in self.loaded.values())


@passing_threads()
def _ready(folder: Path, s: ServeSettings) -> Generator:
    generator = Generator(folder, None, s.device, s.dtype, backend=s.backend, max_slots=s.max_slots)
    with contextlib.suppress(UserError):  # no template, or a damaged one: those who want to chat are told
        generator.ready_to_chat()
    return generator


def run_of(path: Path) -> Path | None:
    """Return the run folder that `path` is, holds or lies in, or None."""
    for folder in (path, path / "run", *path.resolve().parents[:2]):
        if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
            return folder
    return None


def default_name(path: Path) -> str:
    """Return what to call the model of a path: by its run's folder, or by its own."""
    resolved = path.resolve()
    if resolved.name.startswith("step-") or resolved.name in ("run", "latest", "best", "checkpoints", "milestones"):
        return default_name(resolved.parent)
    return resolved.name or "model"


def step_of(folder: Path) -> int | None:
    """Return the step that a checkpoint's folder is named by."""
    number = folder.name.removeprefix("step-")
    return int(number) if folder.name.startswith("step-") and number.isdigit() else None


def has_learnt_dialogue(served: Served, run: Path | None) -> bool:
    """Tell whether the model was trained on conversations: its folder says so, or it comes from elsewhere.

    A run of ours that saw plain text alone has the markers in its tokenizer, and has never met them.
    """
    tokenizer = served.generator.tokenizer
    has_template = bool(named_templates(tokenizer.folder, tokenizer.config))
    return has_template and (run is None or not is_pretraining(run))
