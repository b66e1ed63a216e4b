"""The whole line in one command: `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="Your own text instead (as for prepare); may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer, tokens and run.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(help="Training time in minutes.", min=0.05)] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and samples.", min=0, max=2**32 - 1)] = 1337,
) -> None:
    """Train a small model on real English in minutes, and read what it writes."""
    from mini_llm.demo import run_demo

    run_demo(corpus=corpus, out=out, minutes=minutes, seed=seed)
