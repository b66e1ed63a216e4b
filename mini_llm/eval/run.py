"""`mini-llm eval`: load the model, find the sets, ask, judge, look for overlap, show and keep."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_llm import log
from mini_llm.data.mixture import Mixture
from mini_llm.data.sources import read_documents
from mini_llm.data.store_check import sound
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.eval.evaluate import Questions, TaskResult, ask, prepare_all
from mini_llm.eval.language_model import LanguageModel, LoadedModel, LocalModel
from mini_llm.eval.overlap import mark_overlaps
from mini_llm.eval.results import as_json, markdown, write
from mini_llm.eval.server import ServerModel
from mini_llm.eval.sets import parse_data
from mini_llm.eval.task import find_tasks
from mini_llm.eval.text_loss import loss_of_documents, loss_of_store
from mini_llm.train.run.run_folder import read_settings
from mini_llm.user_files import writing_to

MOST_TOKENS = 500_000_000  # of a store that is searched for overlap unasked: about five minutes


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    model: str
    tasks: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    include: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    store: Path | None = None
    shots: int | None = None
    limit: int | None = None
    overlap: bool | None = None
    out: Path | None = None
    samples: bool = False
    tokenizer: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    run_task_code: bool = False


def run_evaluation(wishes: Wishes, tell: Callable[[dict[str, Any]], None]) -> None:
    """Evaluate and tell the results in lm-eval's shape; then they are kept in `--out`, or in the run's folder `eval/`.

    Raises:
        UserError: the model, a set or a text cannot be read, or the results cannot be written.
        UsageError: no such task.
    """
    started = time.time()
    folders, files = parse_data(wishes.data)
    tasks = find_tasks(wishes.tasks, wishes.include, run_code=wishes.run_task_code)
    questions = prepare_all(tasks, folders, files, shots=wishes.shots, limit=wishes.limit)
    model = load(wishes)
    run = run_of(model)
    stores = _stores(wishes, run)
    if not (tasks or wishes.texts or stores):
        raise UsageError("nothing to evaluate", "name tasks (--tasks piqa,arc_easy), a text (--text FILE) or a --store")
    losses = []
    for text in wishes.texts:
        documents = read_documents([text], description="foretelling the text")
        losses.append(loss_of_documents(model, documents, text).numbers())
    for store in stores:
        has_held_out = "val" in store.manifest.splits
        wanted = has_held_out if tasks or len(stores) > 1 else wishes.store or not wishes.texts
        if wanted and isinstance(model, LocalModel):
            losses.append(loss_of_store(model, store, None if wishes.store else 64))
    if any(not math.isfinite(loss["loss"]) for loss in losses):
        raise UserError(f"{wishes.model}: its loss is not a number: the weights are damaged")
    results = answer_all(model, questions)
    _look_for_overlap(results, stores, wishes)
    options = {"limit": wishes.limit, "num_fewshot": wishes.shots, "device": wishes.device, "dtype": wishes.dtype}
    found = as_json(results, model=wishes.model, options=options, seconds=time.time() - started)
    found["mini_llm"]["texts"] = losses
    if isinstance(model, LoadedModel):
        found["mini_llm"]["checkpoint"] = model.folder.name
    folder = wishes.out or (run / "eval" if run else None)
    tell(found)  # before it is kept: a disk that is full or read-only costs the file, and not the hours
    if folder:
        with writing_to(folder):
            log.info(f"kept: {write(folder, found, results, samples=wishes.samples)}")


def load(wishes: Wishes) -> LanguageModel:
    """Return the model: a server's, or one of a folder."""
    if wishes.model.startswith(("http://", "https://")):
        return ServerModel(wishes.model, wishes.tokenizer)
    return LocalModel.load(wishes.model, tokenizer=wishes.tokenizer, device=wishes.device, dtype=wishes.dtype)


def run_of(model: LanguageModel) -> Path | None:
    """Return the run folder that a checkpoint lies in, or the model's own if a run's numbers lie there; else None."""
    if not isinstance(model, LoadedModel):
        return None
    folder = model.folder.resolve()
    return next((run for run in (folder.parent.parent, folder) if (run / "metrics.jsonl").is_file()), None)


def _stores(wishes: Wishes, run: Path | None) -> list[TokenStore]:
    """Return the store that is named, or those that the run was trained on, if they are still there."""
    if wishes.store:
        return [sound(TokenStore.open(wishes.store))]
    if run is None:
        return []
    try:
        stores = Mixture.open(read_settings(run).data_dir).stores
    except UserError:
        return []
    try:
        return [sound(store) for store in stores]
    except UserError as problem:  # no reason not to ask the tasks
        log.warn(f"the text that the run was trained on is left out: {problem.message}")
        return []


def answer_all(model: LanguageModel, questions: Sequence[Questions]) -> list[TaskResult]:
    """Let the model answer all tasks' items, with progress."""
    total = sum(len(item.requests) for one in questions for item in one.items)
    with progress("answering", total) as more:
        return [ask(model, one, more) for one in questions]


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many requests are done: a bar on a terminal, elsewhere a line every 10 s."""
    done, shown = 0, time.monotonic()
    if log.console().is_terminal and total:
        from rich.progress import Progress

        with Progress(console=log.console()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.update(task, advance=n)
        return

    def more(n: int) -> None:
        nonlocal done, shown
        done += n
        if time.monotonic() - shown >= log.LINE_SECONDS:
            shown = time.monotonic()
            log.note(f"{what}: {done:,} of {total:,}")

    yield more


def _look_for_overlap(results: list[TaskResult], stores: list[TokenStore], wishes: Wishes) -> None:
    if wishes.overlap is False or not results:
        return
    if not stores:
        if wishes.overlap:
            raise UsageError("--overlap needs the training text", "name its token store: --store DIR")
        return
    tokens = sum(store.manifest.splits["train"].tokens for store in stores if "train" in store.manifest.splits)
    if wishes.overlap is None and tokens > MOST_TOKENS:
        where = ", ".join(str(store.folder) for store in stores)
        log.note(f"{where} has {tokens:,} tokens: it is searched for the items with --overlap")
        return
    mark_overlaps(results, *stores)


def show(found: dict[str, Any]) -> str:
    """Return the results for a person: losses of texts, then the table."""
    parts = []
    for loss in found["mini_llm"]["texts"]:
        perplexity = f"{loss['perplexity']:,.2f}" if loss["perplexity"] < 1e9 else f"{loss['perplexity']:.3g}"
        words = f"{loss['text']}: {loss['tokens']:,} tokens, {loss['loss']:.4f} nats/token, "
        words += f"perplexity {perplexity}, {loss['bits_per_byte']:.4f} bits/byte"
        other = loss.get("bits_per_byte_lm_eval", loss["bits_per_byte"])
        if abs(other - loss["bits_per_byte"]) >= 5e-5:
            words += f" (by lm-eval's rule, which foretells BOS too: {other:.4f})"
        parts.append("".join(c if c.isprintable() else " " for c in words))
    table = found["mini_llm"]["lines"]
    if table:
        parts.append(markdown(table))
        if (mean := found["mini_llm"]["mean_centred"]) is not None:
            parts.append(f"mean centred: {mean:+.4f} (0: guessing, 1: all right; acc_norm where there is one)")
        if any(line["overlap"] for line in table):
            parts.append(
                "overlap: items whose 13 words in a row stand in the training text, of those long enough to tell"
            )
    return "\n\n".join(parts)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results kept in a folder, oldest first; what is no results file is left out."""
    found = []
    for path in sorted(folder.glob("results_*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(values["mini_llm"]["lines"], list):
                found.append(values)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            log.warn(f"{path} is no results file of mini-llm eval: left out")
    return found
