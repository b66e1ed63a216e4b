"""From a model to text: `generate`, `chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mini_llm.commands.arguments import (
    Backend,
    BackendName,
    ContextOverflow,
    Device,
    Dtype,
    MaxNewTokens,
    Overflow,
    RunArgument,
    Seed,
    Stop,
)
from mini_llm.commands.options import with_sampling
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.output import read_stdin


def _prepare_for(device: str, backend: BackendName) -> None:
    """Let the other core compile what a CPU will need, before torch is imported."""
    from mini_llm.inference.backends.native import compile_meanwhile

    if device in ("auto", "cpu") and backend in (BackendName.auto, BackendName.compiled):
        compile_meanwhile()


@with_sampling
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="The text to go on from; '-' reads stdin.")],
    sampling: SamplingParams,
    max_new_tokens: MaxNewTokens = 200,
    stop: Stop = None,
    seed: Seed = None,
    context_overflow: Overflow = ContextOverflow.stop,
    device: Device = "auto",
    dtype: Dtype = "auto",
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer's folder; default: the model's own.")] = None,
    backend: Backend = BackendName.auto,
) -> None:
    """Continue a prompt, streaming the text (prompt included) to stdout."""
    _prepare_for(device, backend)
    from mini_llm.inference.generate import Generator

    if prompt == "-":
        prompt = read_stdin()
    generator = Generator(run, tokenizer, device=device, dtype=dtype, backend=backend)
    generator.print_continuation(
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or [],
        seed=seed,
        context_overflow=context_overflow,
    )


@with_sampling
def chat(
    run: RunArgument,
    sampling: SamplingParams,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    seed: Seed = None,
    context_overflow: Overflow = ContextOverflow.stop,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = BackendName.auto,
) -> None:
    """Talk with a model in the terminal."""
    _prepare_for(device, backend)
    from mini_llm.inference.chat import chat as talk
    from mini_llm.inference.generate import Generator

    generator = Generator(run, device=device, dtype=dtype, backend=backend)
    talk(
        generator,
        system=system,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or [],
        seed=seed,
        context_overflow=context_overflow,
    )
