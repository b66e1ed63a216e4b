"""A model card from what a run has left on the disk: data, settings, curve, samples, how to use it, and what to doubt.

Every number is read, none is guessed; what is missing is left out. The licence is the owner's to choose.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UserError
from mini_llm.export.card_scores import TaskScores, doubts, is_number, plain, read_scores, score_table
from mini_llm.model.accounting import count_parameters
from mini_llm.model.config import ModelConfig
from mini_llm.tokens_seen import tokens_seen

SHOWN = (
    "batch_size", "gradient_accumulation_steps", "block_size", "max_iters", "optimizer", "learning_rate", "lr_schedule",
    "weight_decay", "dtype", "seed",
)  # fmt: skip
MOST_ROWS = 8  # of the curve
FEW_TOKENS = 20  # a parameter: what compute-optimal training uses (Hoffmann et al. 2022, arXiv 2203.15556)


@dataclass(frozen=True)
class RunRecord:
    """What a run folder tells; empty where it tells nothing, or where there is only a model folder."""

    settings: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    step: int | None = None  # of the checkpoint
    evaluation: list[TaskScores] = field(default_factory=list)


def run_of(folder: Path) -> Path | None:
    """Return the run folder that a checkpoint belongs to, or None."""
    run = folder.resolve().parent.parent
    return run if folder.resolve().parent.name in ("checkpoints", "milestones") else None


def read_record(folder: Path) -> RunRecord:
    """Return what the run of a checkpoint has left, up to that checkpoint's step."""
    run = run_of(folder)
    if run is None:
        return RunRecord()
    step = int(digits) if (digits := folder.resolve().name.rpartition("-")[2]).isdigit() else None
    settings: Any = {}
    if (run / "config.yaml").is_file():
        try:
            settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError):
            settings = {}
    metrics, samples = (_lines(run / name, step) for name in ("metrics.jsonl", "samples.jsonl"))
    return RunRecord(
        settings if isinstance(settings, dict) else {},
        metrics,
        samples,
        step,
        read_scores(run / "eval", folder.resolve().name),
    )


def model_card(
    name: str, config: ModelConfig, record: RunRecord, *, license: str | None = None, gguf: str | None = None
) -> str:
    """Return README.md for a repository `name` (USER/NAME) on the hub. `gguf` names a GGUF file that lies in it."""
    tokens = _tokens(record)
    parts = [
        _front_matter(config, record, license),
        f"# {name.rpartition('/')[2]}\n\n{_shape(config)}",
        _use(name, gguf),
        _data(record, tokens),
        _settings(record),
        _curve(record),
        score_table(record.evaluation),
        _samples(record),
        _caveats(config, record, tokens, license),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _front_matter(config: ModelConfig, record: RunRecord, license: str | None) -> str:
    base = str(record.settings.get("init_from") or "")
    values: dict[str, Any] = {
        **({"license": license} if license else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mini-llm", "qwen3" if config.qk_norm else "llama"],
    }
    if base.startswith("hf://"):
        values |= {"base_model": base[5:].partition("@")[0], "base_model_relation": "finetune"}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _shape(config: ModelConfig) -> str:
    return (
        f"{count_parameters(config):,} parameters, trained with Mini-LLM: {config.n_layers} layers, width "
        f"{config.dim}, {config.n_heads} heads ({config.n_kv_heads} for keys and values), MLP {config.hidden_dim}, "
        f"{config.vocab_size:,} tokens, context {config.max_seq_len:,}."
    )


def _use(name: str, gguf: str | None) -> str:
    lines = f"""## How to use it

```bash
mini-llm generate hf://{name} --prompt "Once upon a time"
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```
"""
    return lines + (f"\n```bash\nllama-cli -hf {name} --hf-file {gguf}\n```\n" if gguf else "")


def _data(record: RunRecord, tokens: int | None) -> str:
    if not record.settings:
        return ""
    lines = ["## Data\n"]
    try:
        data = record.settings.get("data_dir")
        paths = [share["path"] for share in data] if isinstance(data, list) else [data]
        stores = [TokenStore.open(str(path)) for path in paths]
    except (UserError, LookupError, TypeError):  # moved, or on another machine
        lines.append("The token store is not where it was: sources are not listed.")
    else:
        splits = [split for store in stores for split in store.manifest.splits.items()]
        counts = ", ".join(f"{split.tokens:,} tokens for {name}" for name, split in splits)
        # Base names alone: paths tell who has what on which machine.
        names = sorted({Path(source.path).name for store in stores for source in store.manifest.sources})
        lines.append(f"{counts}. Files: {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}.")
    if tokens:
        lines.append(f"Seen in training: {tokens:,} tokens.")
    return "\n".join(lines)


def _settings(record: RunRecord) -> str:
    rows = [f"| {key} | {record.settings[key]} |" for key in SHOWN if key in record.settings]
    return "\n".join(["## Settings\n", "| setting | value |", "|---|---|", *rows]) if rows else ""


def _curve(record: RunRecord) -> str:
    points = _evaluations(record)
    if not points:
        return ""
    kept = sorted({round(i * (len(points) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)})
    rows = [f"| {points[i][0]:,} | {points[i][1]:.4f} | {_number(points[i][2])} |" for i in kept]
    head = ["## Held-out loss\n", "| step | nats per token | bits per byte |", "|---|---|---|"]
    return "\n".join([*head, *rows])


def _samples(record: RunRecord) -> str:
    if not record.samples:
        return ""
    sample = record.samples[-1]
    text = "\n".join(f"> {plain(line)}" for line in f"{sample.get('prompt', '')}{sample['text']}".splitlines())
    return f"## A sample\n\nNot chosen: the run's last one, of step {sample['step']:,}.\n\n{text}"


def _caveats(config: ModelConfig, record: RunRecord, tokens: int | None, license: str | None) -> str:
    n = count_parameters(config)
    found = ["It continues text; nothing was done to make it truthful, harmless or helpful."]
    if tokens and tokens < FEW_TOKENS * n:
        found.append(f"{tokens / n:.1f} tokens for each parameter; {FEW_TOKENS} would be compute-optimal.")
    points = _evaluations(record)
    if points and (best := min(points, key=lambda point: point[1]))[1] < points[-1][1]:
        found.append(f"The held-out loss was lowest at step {best[0]:,} ({best[1]:.4f}); later it rose.")
    if not points:
        found.append("There is no held-out loss on record.")
    found += doubts(record.evaluation)
    if license is None:
        found.append("Its owner has named no licence, so by default all rights are reserved.")
    return "## What to doubt\n\n" + "\n".join(f"- {line}" for line in found)


def _evaluations(record: RunRecord) -> list[tuple[int, float, float | None]]:
    rows = (row for row in record.metrics if is_number(row.get("val_loss")))
    return [(row["step"], row["val_loss"], row.get("val_bits_per_byte")) for row in rows]


def _tokens(record: RunRecord) -> int | None:
    per_step = None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        keys = ("batch_size", "gradient_accumulation_steps", "block_size")
        per_step = math.prod(int(record.settings[key]) for key in keys)
    return tokens_seen(record.metrics, record.step, per_step) if record.step else None


def _lines(path: Path, up_to: int | None) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a run that was killed
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int) and values["step"] <= (up_to or 10**18):
            found.append(values)
    return found


def _number(value: float | None) -> str:
    return f"{value:.4f}" if is_number(value) and value is not None else ""
