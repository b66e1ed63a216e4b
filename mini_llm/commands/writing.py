"""From a model to text: `generate`, `chat`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_llm import log
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
from mini_llm.errors import UsageError
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
    from mini_llm.inference.questions import with_signs

    if prompt == "-":
        prompt = read_stdin()
    generator = Generator(run, tokenizer, device=device, dtype=dtype, backend=backend)
    generator.print_continuation(
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=[with_signs(text) for text in stop or []],
        seed=seed,
        context_overflow=context_overflow,
    )


@with_sampling
def chat(
    sampling: SamplingParams,
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder, a checkpoint or any model folder that chats.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Talk with a server of OpenAI's API instead; its key: MINI_LLM_API_KEY or OPENAI_API_KEY."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --url: the model's name there; default: its first.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    seed: Seed = None,
    context_overflow: Overflow = ContextOverflow.stop,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = BackendName.auto,
) -> None:
    """Talk with a model in the terminal; /help there shows what else it can do."""
    if (run is None) == (url is None):
        raise UsageError("name a RUN, or a server by --url http://..., one of them", "mini-llm chat runs/demo")
    if model is not None and url is None:
        raise UsageError("--model names a model of a server, --url http://...", "mini-llm chat runs/demo")
    from mini_llm.inference.questions import with_signs

    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed}
    options |= {"stop": [with_signs(text) for text in stop or []], "context_overflow": context_overflow}
    if url is not None:
        from mini_llm.inference.remote import RemoteConversation
        from mini_llm.inference.session import Session, talk

        talk(Session(RemoteConversation(url, model, system), options))
        return
    _prepare_for(device, backend)
    from mini_llm.inference.generate import Generator
    from mini_llm.inference.session import chat as converse
    from mini_llm.train.run.run_folder import is_pretraining

    def load(path: Path) -> Generator:
        return Generator(path, device=device, dtype=dtype, backend=backend)

    assert run is not None
    generator = load(run)
    if is_pretraining(generator.folder.resolve().parent.parent):
        log.warn(f"this model has learnt no dialogue; mini-llm generate {shlex.quote(str(run))} suits it better")
    converse(generator, system=system, load=lambda step: load(generator.sibling(step)), **options)
