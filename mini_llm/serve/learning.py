"""GET /run and below: the run itself, read from its folder at each request, so that a run that trains is seen to grow.

Every file may be missing, half written or pruned meanwhile: then there is less to tell, never an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from pathlib import Path
from typing import Any

from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.model.accounting import count_parameters
from mini_llm.serve.catalog import Catalog, Served, has_learnt_dialogue
from mini_llm.tokens_seen import tokens_seen
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.run_folder import read_settings

MOST_LINES = 2000  # of a curve: more than a screen has pixels
LIVE_SECONDS = 60.0  # a run that has written so lately trains
PROMPT_CHARS, N_PROMPTS = 60, 3


async def card(catalog: Catalog) -> dict[str, Any]:
    """Return what the page says of the model before anything is asked."""
    return await asyncio.to_thread(_card, catalog, await catalog.get())


def _card(catalog: Catalog, served: Served) -> dict[str, Any]:
    model, run = served.generator.model, catalog.run
    settings = _settings(run)
    rows = _rows(run, "metrics")
    evaluations = [row for row in rows if isinstance(row.get("val_loss"), (int, float))]
    step = served.step if served.step is not None else (rows[-1]["step"] if rows else None)
    shape, per_step = model.config, settings.tokens_per_step if settings else None
    return {
        "object": "run",
        "model": catalog.name,
        "is_run": run is not None,
        "learnt_dialogue": has_learnt_dialogue(served, run),
        "parameters": count_parameters(shape),
        "context": served.context,
        "vocab_size": served.generator.tokenizer.vocab_size,
        "layers": shape.n_layers, "width": shape.dim, "heads": shape.n_heads, "kv_heads": shape.n_kv_heads,
        "dtype": str(served.generator.engine.backend.dtype).removeprefix("torch."),
        "backend": served.generator.engine.backend.name,
        "step": step,
        "max_iters": settings.max_iters if settings else None,
        "tokens_seen": None if step is None else tokens_seen(rows, step, per_step),
        "loss": next((row["loss"] for row in reversed(rows) if isinstance(row.get("loss"), (int, float))), None),
        "val_loss": evaluations[-1]["val_loss"] if evaluations else None,
        "val_bits_per_byte": evaluations[-1].get("val_bits_per_byte") if evaluations else None,
        "training": _is_training(run),
        "prompts": _prompts(settings),
    }  # fmt: skip


def metrics(catalog: Catalog, after: int) -> dict[str, Any]:
    """Return the lines of metrics.jsonl of steps above `after`, thinned out where there are very many."""
    rows = [row for row in _rows(catalog.run, "metrics") if row["step"] > after]
    every = max(1, -(-len(rows) // MOST_LINES))
    kept = [row for n, row in enumerate(rows) if n % every == 0 or "val_loss" in row or n == len(rows) - 1]
    return {"object": "list", "training": _is_training(catalog.run), "data": kept}


def samples(catalog: Catalog) -> dict[str, Any]:
    """Return all samples that were written while training, oldest first: step, prompt, text."""
    return {"object": "list", "data": _rows(catalog.run, "samples")[-MOST_LINES:]}


def checkpoints(catalog: Catalog) -> dict[str, Any]:
    """Return every step that can be asked for by name, oldest first, with its loss where it is known."""
    losses = {row["step"]: row for row in _rows(catalog.run, "metrics") if "val_loss" in row}
    data = []
    with contextlib.suppress(UserError, OSError):
        for entry in catalog.entries():
            row = losses.get(entry.step, {})
            found = {"val_loss": row.get("val_loss"), "val_bits_per_byte": row.get("val_bits_per_byte")}
            data.append({**entry.as_dict(), **found})
    return {"object": "list", "data": data}


def _rows(run: Path | None, name: str) -> list[dict[str, Any]]:
    if run is None:
        return []
    try:
        return read_metrics(run, name)
    except OSError:
        return []


def _settings(run: Path | None) -> TrainConfig | None:
    if run is None:
        return None
    try:
        return read_settings(run)
    except UserError:
        return None


def _is_training(run: Path | None) -> bool:
    if run is None:
        return False
    try:
        return time.time() - (run / "metrics.jsonl").stat().st_mtime < LIVE_SECONDS
    except OSError:
        return False


def _prompts(settings: TrainConfig | None) -> list[str]:
    """Return the first words of three held-out documents, if the run's tokens lie where they were."""
    if settings is None:
        return []
    try:
        return _first_words(Path(settings.stores[0].path))
    except (UserError, OSError, ValueError):
        return []


@functools.lru_cache(maxsize=1)  # the page asks every 3 s while a run trains; a store is never rewritten
def _first_words(data_dir: Path) -> list[str]:
    from mini_llm.tokenizer.tokenizer import Tokenizer

    store = TokenStore.open(data_dir)
    tokenizer, split = Tokenizer.load(store.tokenizer_folder), store.split("val")
    starts = [n * split.n_tokens // N_PROMPTS for n in range(N_PROMPTS)]
    texts = [tokenizer.decode(split.read(start, min(64, split.n_tokens - start)).tolist()) for start in starts]
    firsts = [" ".join(text.split()[1:])[:PROMPT_CHARS].rsplit(" ", 1)[0] for text in texts]
    return [words for words in firsts if words]
