"""The page: headline, curves, tasks, samples, data, settings, cost, commands, caveats; each only if it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mini_llm import __version__
from mini_llm.data.mixture import Mixture
from mini_llm.data.store_shares import BLOCK
from mini_llm.data.token_store import Source
from mini_llm.eval.results import mean_centred
from mini_llm.report.blocks import Block, Code, Heading, Items, Quote, Table, Words
from mini_llm.report.caveats import caveats, compute
from mini_llm.report.facts import Facts
from mini_llm.report.svg import Line, Picture
from mini_llm.train.config import TrainConfig

MOST_SOURCES = 8  # that are listed
REFERENCES = Path(__file__).with_name("reference_scores.json")


def page(facts: Facts) -> list[Block]:
    """Return the report's blocks."""
    blocks: list[Block] = [Heading(f"Report: {facts.name}", 1), Words(headline(facts), lead=True)]
    sections = (_model, _curves, _tasks, _samples, _data, _settings, _cost, _commands)
    for section in sections:
        blocks += section(facts)
    blocks += [Heading("Caveats"), Items(caveats(facts) or ["The numbers say nothing against it."])]
    return [*blocks, Words(f"Made by mini-llm {__version__} from the files of the run.")]


def headline(facts: Facts) -> str:
    """Return what was learned in one honest sentence: bits a byte beside a compressor's and a table of counts'."""
    run = facts.curves
    if run is None or not len(run.bits_per_byte):
        return "How well this model foretells text was not measured."
    best = float(run.bits_per_byte.values.min())
    rivals = [f"`xz -9` needs {facts.xz:.3f}"] if facts.xz is not None else []
    rivals += [f"an interpolated 5-gram model of the same tokens {facts.ngram:.3f}"] if facts.ngram is not None else []
    beside = f", where {' and '.join(rivals)}" if rivals else ""
    return f"On held-out text it needs {best:.3f} bits a byte{beside}."


def _model(facts: Facts) -> Iterator[Block]:
    if (shape := facts.shape) is None or facts.parameters is None:
        return
    tied = "one matrix for embedding and head" if shape.tie_embeddings else "embedding and head apart"
    yield Words(
        f"{facts.parameters:,} parameters: {shape.n_layers} layers of width {shape.dim}, {shape.n_heads} heads "
        f"({shape.n_kv_heads} for keys and values), {shape.vocab_size:,} tokens, {tied}, context {shape.max_seq_len:,}."
    )


def _curves(facts: Facts) -> Iterator[Block]:
    if (run := facts.curves) is None:
        return
    yield Heading("Curves")

    def line(name: str, curve: Any, factor: float = 1.0) -> Line:
        return Line(name, run.tokens_at(curve.steps) / 1e6, curve.values * factor)

    losses = [line("training", run.loss)] + ([line("held out", run.held_out)] if len(run.held_out) else [])
    yield Picture("loss (nats a token)", "million tokens", losses)
    if run.tasks:
        shares = [line(name, curve, 100.0) for name, curve in run.tasks.items() if len(curve)]
        yield Picture("tasks asked while training (% right)", "million tokens", shares)
    if len(run.learning_rate):
        yield Picture("learning rate", "million tokens", [line("rate", run.learning_rate)])


def _tasks(facts: Facts) -> Iterator[Block]:
    if not facts.lines:
        return
    yield Heading("Tasks")
    rows = [["task", "items", "examples", "measure", "value", "±", "chance", "centred", "overlap", "", "published"]]
    for one in facts.lines:
        is_share = one["chance"] is not None
        overlap = one["overlap"]
        rows.append(
            [
                one["task"],
                f"{one['items']:,}" if one["items"] == one["of"] else f"{one['items']:,} of {one['of']:,}",
                str(one["shots"]),
                one["metric"] + ("" if one["filter"] == "none" else f" ({one['filter']})"),
                f"{100 * one['value']:.1f} %" if is_share else f"{one['value']:.4g}",
                "" if one["stderr"] is None else f"{100 * one['stderr']:.1f}" if is_share else f"{one['stderr']:.2g}",
                f"{100 * one['chance']:.1f} %" if is_share else "",
                f"{one['centred']:+.3f}" if is_share else "",
                f"{overlap['found']} of {overlap['checked']}" if overlap else "not searched",
                "not above chance" if one["above_chance"] is False else "",
                published(one),
            ]
        )
    yield Table(rows)
    if (mean := mean_centred(facts.lines)) is not None:
        yield Words(f"Mean centred value: {mean:+.3f} (0 is guessing, 1 is all right).")
    if any(row[-1] for row in rows[1:]):
        sources = _references()["sources"].values()
        yield Words(
            f"Published scores are shown where task, measure and number of examples agree: {'; '.join(sources)}."
        )


def published(line: dict[str, Any]) -> str:
    """Return the published scores that a line of the table may be compared with."""
    if line["filter"] != "none" or line["items"] < line["of"]:
        return ""
    keys = ("task", "metric", "shots")
    fitting = [score for score in _references()["scores"] if all(score[key] == line[key] for key in keys)]
    return ", ".join(f"{score['model']} {score['value']:.1f}" for score in fitting)


@cache
def _references() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(REFERENCES.read_text(encoding="utf-8"))
    return found


def _samples(facts: Facts) -> Iterator[Block]:
    if facts.samples or facts.learning:
        yield Heading("Samples")
    if facts.samples:
        yield from _written(facts)
    for step, prompt, text in facts.learning:
        yield Words(f"While it learned, at step {step:,}, after {prompt!r}:")
        yield Quote(text)


def _written(facts: Facts) -> Iterator[Block]:
    yield Words("The same beginnings for every model; the first is empty. None was chosen.")
    for prompt, seed, text in facts.samples:
        greedy = seed >= len(facts.samples) - 2
        how = "temperature 0" if greedy else f"temperature 0.8, top_p 0.95, seed {seed}"
        yield Words(f"After {prompt!r} ({how}):" if prompt else f"From nothing ({how}):")
        yield Quote(text)


def _data(facts: Facts) -> Iterator[Block]:
    if (mixture := facts.mixture) is None:
        return
    yield Heading("Data")
    if len(mixture.stores) > 1:
        yield Table(_shares(facts, mixture))
    rows = [["part", "documents", "tokens", "bytes of text"]]
    for store, of in zip(mixture.stores, mixture.names, strict=True):
        for name, split in store.manifest.splits.items():
            part = f"{of}, {name}" if len(mixture.stores) > 1 else name
            rows.append([part, f"{split.documents:,}", f"{split.tokens:,}", f"{split.text_bytes:,}"])
    yield Table(rows)
    rows, sources = [["source", "bytes", "licence named in its rows"]], _sources(facts)
    for source in sources[:MOST_SOURCES]:
        rows.append(
            [Path(source.path).name, f"{source.bytes:,}", ", ".join(facts.licences.get(source.path) or ["none"])]
        )
    yield Table(rows)
    if (more := len(sources) - MOST_SOURCES) > 0:
        yield Words(f"and {more:,} more sources.")


def _shares(facts: Facts, mixture: Mixture) -> list[list[str]]:
    """Return the stores of a mixture as rows of a table: what each gave, and how well it was learned."""
    rows = [["store", "share of the rows", "epochs", "held-out nats per token"]]
    for name, count in zip(mixture.names, mixture.counts, strict=True):
        numbers = (facts.last.get(f"epoch/{name}"), facts.last.get(f"val_loss/{name}"))
        rows.append([name, f"{count / BLOCK:.1%}", *("" if n is None else f"{n:.4g}" for n in numbers)])
    return rows


def _sources(facts: Facts) -> list[Source]:
    return [s for store in (facts.mixture.stores if facts.mixture else ()) for s in store.manifest.sources]


def _settings(facts: Facts) -> Iterator[Block]:
    if facts.config is None:
        return
    yield Heading("Settings that differ from the defaults")
    yield Code("\n".join(changes(facts.config)) or "none")


def changes(config: TrainConfig) -> list[str]:
    """Return `key: value` of every setting that is not the default."""
    default, found = TrainConfig.model_validate({}), []
    mine, usual = config.model_dump(), default.model_dump()
    for key, value in mine.items():
        if key == "model":
            found += [f"model.{k}: {v}" for k, v in value.items() if v != usual["model"][k]]
        elif value != usual[key] and key not in ("data_dir", "out_dir", "eval_tasks_data"):
            is_place = key == "init_from" and not str(value).startswith(
                "hf://"
            )  # of whose machine is nobody's business
            found.append(f"{key}: {Path(value).name if is_place else value}")
    return found


def _cost(facts: Facts) -> Iterator[Block]:
    rows = []
    if facts.curves is not None:
        rows.append(["tokens seen", f"{facts.tokens:,.0f} in {facts.curves.loss.steps[-1]:,.0f} steps"])
    if (flops := compute(facts)) is not None:
        rows.append(["computation", f"{flops:.2e} FLOP"])
    if facts.tokens_per_second:
        mfu = f", {facts.mfu:.0%} of the machine's peak" if facts.mfu else ""
        rows.append(["speed", f"{facts.tokens_per_second:,.0f} tokens/s{mfu}"])
    if facts.hours:
        rows.append(["time in steps", f"{facts.hours:.2f} h" if facts.hours >= 1 else f"{60 * facts.hours:.1f} min"])
    if facts.hours and facts.price is not None:
        rows.append(["cost", f"{facts.hours * facts.price:,.2f} at {facts.price:g} an hour"])
    if facts.memory_gb:
        rows.append(["memory", f"{facts.memory_gb:.2f} GB"])
    if rows:
        yield Heading("Speed, memory, cost")
        yield Table([["", ""], *rows])


def _commands(facts: Facts) -> Iterator[Block]:
    yield Heading("Again")
    lines = []
    mixture, many = facts.mixture, facts.config is not None and len(facts.config.stores) > 1
    for store, of in zip(mixture.stores, mixture.names, strict=True) if mixture else ():
        names = [Path(source.path).name for source in store.manifest.sources[:3]]
        more = " ..." if len(store.manifest.sources) > 3 else ""
        out = of if many else "data/tokens"
        lines.append(f"mini-llm prepare {' '.join(names)}{more} --tokenizer TOKENIZER --out {out}")
    if facts.config is not None:
        data = "" if many else " data_dir=data/tokens"
        config = f"{facts.name}/{facts.settings_name}"
        lines.append(f"mini-llm train --config {config}{data} out_dir=runs/again")
    asks: dict[tuple[Any, int], list[str]] = {}
    for one in facts.lines:
        asks.setdefault((one["limit"], one["shots"]), []).append(one["task"])
    for (limit, shots), tasks in asks.items():
        options = (f" --limit {limit}" if limit else "") + (f" --shots {shots}" if shots else "")
        lines.append(f"mini-llm eval runs/again --tasks {','.join(dict.fromkeys(tasks))} --data sets{options}")
    yield Code("\n".join([*lines, f"mini-llm report {facts.name}"]))
