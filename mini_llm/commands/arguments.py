"""Arguments and options that several verbs share, so that each is worded once."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCES",
        help="Files, folders, quoted globs, hf://datasets/USER/NAME, https:// or s3:// addresses: "
        ".txt .md .jsonl .parquet .arrow, each also .gz .xz .zst.",
    ),
]
TextColumn = Annotated[str, typer.Option(help="The key of jsonl, or column of parquet, that holds the text.")]
SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings over the file's, e.g. learning_rate=1e-3 model.dim=256."),
]
Resume = Annotated[
    bool | None, typer.Option("--resume/--no-resume", help="Go on from the run's last checkpoint (the default).")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and exit.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Do one step at full size, say what the run would take, write nothing.")
]
ConfigOption = Annotated[Path | None, typer.Option(help="YAML file; the shipped ones are in configs/.")]


class ContextOverflow(StrEnum):
    """What to do where the context is full."""

    stop = "stop"
    slide = "slide"


class BackendName(StrEnum):
    """How a step is computed."""

    auto = "auto"
    eager = "eager"
    compiled = "compiled"
    cuda_graphs = "cuda-graphs"


Stop = Annotated[
    list[str] | None,
    typer.Option(help=r"Stop before this text, where \n is a new line, \t a tab and \\ a backslash; may be repeated."),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text; default: a new one each time.", min=0)]
MaxNewTokens = Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)]
Overflow = Annotated[
    ContextOverflow, typer.Option(help="A full context ends the text, or slides: its beginning and last half stay.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or int8 (weights in 8 bits).")]
Backend = Annotated[BackendName, typer.Option(help="How to compute; auto takes the fastest that works.")]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, a checkpoint, any Llama folder, or hf://USER/NAME.")
]


def words_of(settings: list[str] | None, **flags: Any) -> list[str]:
    """Return KEY=VALUE words: those that were typed, then one for each flag of the same name that was given."""
    given = {key: value for key, value in flags.items() if value or (key == "resume" and value is not None)}
    return [*(settings or []), *(f"{key}={json.dumps(value)}" for key, value in given.items())]
