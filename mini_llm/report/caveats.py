"""Caveats: what the numbers themselves say against the model, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mini_llm.model.accounting import flops_per_token
from mini_llm.report.facts import Facts

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, arXiv 2203.15556


def caveats(facts: Facts) -> list[str]:
    """Return what a reader should know before trusting the page."""
    return [*_of_tasks(facts), *_of_training(facts), *_of_data(facts), *facts.missing_sentences]


def _of_tasks(facts: Facts) -> Iterator[str]:
    if not facts.lines:
        yield "No standard task was evaluated, so nothing is known of the model beyond its own kind of text."
        return
    lines = facts.lines
    at_chance = sorted({line["task"] for line in lines if line.get("above_chance") is False})
    above = {line["task"] for line in lines if line.get("above_chance")}
    if names := [name for name in at_chance if name not in above]:
        yield f"Not above chance: {', '.join(names)}. The model has not learned what these ask."
    if partly := sorted({line["task"] for line in lines if line["items"] < line["of"]}):
        yield f"Only some of the items were asked of {', '.join(partly)}: compare on the same items alone."
    if seen := [
        f"{line['task']} ({line['overlap']['found']})" for line in lines if (line["overlap"] or {}).get("found")
    ]:
        yield f"The training text holds items of {', '.join(dict.fromkeys(seen))}: these scores may be remembered."
    if any(line["overlap"] is None for line in lines):
        yield "The training text was not searched for the items of all tasks."
    if facts.asked_of:
        yield f"The tasks were asked of {facts.asked_of}, not of the last checkpoint."


def _of_training(facts: Facts) -> Iterator[str]:
    run = facts.curves
    if run is None or facts.tokens is None:
        return
    if facts.parameters and facts.tokens < TOKENS_PER_PARAMETER * facts.parameters:
        each = facts.tokens / facts.parameters
        yield f"It saw {each:.1f} tokens a parameter; {TOKENS_PER_PARAMETER} are the usual measure."
    best = run.best()
    if best is not None and best < len(run.held_out) - 1:
        last, lowest = run.held_out.values[-1], run.held_out.values[best]
        if last > lowest * 1.01:
            yield f"The held-out loss rose again after step {run.held_out.steps[best]:,.0f}: it learns by heart."
    if facts.planned and run.loss.steps[-1] < facts.planned:
        yield f"The run is not finished: step {run.loss.steps[-1]:,.0f} of {facts.planned:,}."
    if facts.ngram is not None and len(run.bits_per_byte) and np.min(run.bits_per_byte.values) >= facts.ngram:
        yield "A table of five-token counts foretells this text as well: the model has not learned more than that."


def _of_data(facts: Facts) -> Iterator[str]:
    if (mixture := facts.mixture) is None:
        return
    if facts.licences and not any(facts.licences.values()):
        yield "The sources name no licence: whether the model may be passed on is for you to find out."
    for store, name, count in zip(mixture.stores, mixture.names, mixture.counts, strict=True):
        of = f" of {name}" if len(mixture.stores) > 1 else ""
        val, train = (store.manifest.splits.get(side) for side in ("val", "train"))
        if val and val.text_bytes < 100_000:
            yield f"The held-out text{of} has {val.text_bytes:,} bytes: its loss is a rough number."
        if facts.tokens and facts.config and train:
            epochs = facts.tokens * count / sum(mixture.counts) / train.tokens
            if epochs > 4:
                yield (
                    f"Each token{of} was seen {epochs:.1f} times; beyond four, repetition teaches little "
                    f"(arXiv 2305.16264)."
                )


def compute(facts: Facts) -> float | None:
    """Return the operations of the whole run, in FLOP."""
    if facts.shape is None or facts.tokens is None or facts.config is None:
        return None
    return facts.tokens * flops_per_token(facts.shape, facts.config.block_size)
