"""The whole line in one command: `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_llm.errors import UsageError


def demo(
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="Your own text instead (as for prepare); may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer, tokens and run.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(help="Training time in minutes.", min=0.05)] = 4.0,
    chat: Annotated[bool, typer.Option("--chat", help="Then teach it to answer, and talk with it.")] = False,
    chat_data: Annotated[
        list[str] | None,
        typer.Option(help="With --chat: conversations of yours, learned too (as for sft); may be repeated."),
    ] = None,
    chat_minutes: Annotated[float, typer.Option(help="With --chat: minutes of teaching.", min=0.05)] = 4.5,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and samples.", min=0, max=2**32 - 1)] = 1337,
) -> None:
    """Train a small model on real English in minutes, and read what it writes."""
    if not chat:
        if chat_data:
            raise UsageError("--chat-data is for a model that learns to answer", "say --chat too")
        from mini_llm.demo import run_demo

        run_demo(corpus=corpus, out=out, minutes=minutes, seed=seed)
        return
    from mini_llm.demo_chat import run_chat_demo

    asked = list(chat_data or [])
    run_chat_demo(corpus=corpus, out=out, minutes=minutes, chat_minutes=chat_minutes, chat_data=asked, seed=seed)
