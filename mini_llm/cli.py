"""The command line: one verb for each arrow of text -> tokenizer -> tokens -> training -> generation -> chat.

Verbs import what they need when they run, so that `mini-llm --help` starts without torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm import __version__, cli_study, log
from mini_llm.errors import Interrupted, UserError
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.options import with_sampling

app = typer.Typer(
    help="Build a language model from scratch: raw text in, a talking model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: mini-llm demo",
)
tokenizer_app = typer.Typer(help="Train a tokenizer on your text, or compare some.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")


class ModelType(StrEnum):
    """SentencePiece's two algorithms."""

    bpe = "bpe"
    unigram = "unigram"


SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCES",
        help="Files, folders or quoted globs: .txt .md .jsonl .parquet, each also .gz .xz .zst.",
    ),
]
TextColumn = Annotated[str, typer.Option(help="The key of jsonl, or column of parquet, that holds the text.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mini-llm {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    # For GNU OpenMP, before torch loads it: a thread that waits for another soon gives its core away. By default it
    # spins 300,000 times, and beside another busy program a text came a third as fast (docs/LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@app.command()
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


@tokenizer_app.command("train")
def tokenizer_train(
    sources: SourcesArgument,
    out: Annotated[Path, typer.Option(help="Folder to write the tokenizer to.")],
    vocab_size: Annotated[int, typer.Option(help="Number of tokens, special ones included.", min=1)] = 32000,
    model_type: Annotated[ModelType, typer.Option(help="The algorithm that picks the pieces.")] = ModelType.bpe,
    text_column: TextColumn = "text",
    sample_mb: Annotated[
        int | None,
        typer.Option(
            help="Learn from a random sample of about this many MB. [default: 200 for bpe, 50 for unigram]", min=1
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.", min=0)] = 1337,
) -> None:
    """Train a SentencePiece tokenizer that loses nothing, and write it in Hugging Face's format too."""
    from mini_llm.data.sources import read_documents
    from mini_llm.tokenizer.train import train_tokenizer

    # Unigram holds far more than the text in memory: 60 MB took 1.4 GB and 94 s, where BPE took 200 MB in 15 s.
    sample_bytes = 10**6 * (sample_mb or {"bpe": 200, "unigram": 50}[model_type])
    documents = read_documents(sources, text_column=text_column, description="reading")
    train_tokenizer(documents, out, vocab_size=vocab_size, model_type=model_type, sample_bytes=sample_bytes, seed=seed)
    log.info(f"next: mini-llm prepare {' '.join(sources)} --tokenizer {out} --out data/tokens")


@app.command()
def prepare(
    sources: SourcesArgument,
    tokenizer: Annotated[
        Path, typer.Option(help="Tokenizer folder (from `tokenizer train`, or any Hugging Face one).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the token store to.")],
    val_fraction: Annotated[float, typer.Option(help="Share of documents held out.", min=0.0, max=0.5)] = 0.01,
    workers: Annotated[int | None, typer.Option(help="Threads that tokenize; default: all cores.", min=1)] = None,
    text_column: TextColumn = "text",
) -> None:
    """Turn text into a memory-mapped token store, with a held-out split."""
    from mini_llm.data.prepare import prepare as run

    store = run(sources, tokenizer, out, val_fraction=val_fraction, workers=workers, text_column=text_column)
    if val_fraction and (held_out := store.split("val").n_tokens) <= 1024:  # the block_size of mini-50m.yaml
        log.warn(f"{held_out} held-out tokens make no row of 1,024: raise --val-fraction or prepare more text")
    log.info(f"next: mini-llm train --config configs/mini-50m.yaml data_dir={out}")


@app.command(context_settings={"allow_extra_args": False})
def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings over the file's, e.g. learning_rate=1e-3 model.dim=256."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the shipped ones are in configs/.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help="Go on from the run's last checkpoint (the default).")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and exit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do one step at full size, say what the run would take, write nothing.")
    ] = False,
) -> None:
    """Train a model. Stopped anywhere, the same command goes on, exactly where it was."""
    from mini_llm.config import dump_config, load_config
    from mini_llm.train.config import TrainConfig

    overrides = list(settings or []) + ([] if resume is None else [f"resume={str(resume).lower()}"])
    resolved = load_config(TrainConfig, config, overrides)
    if print_config:
        print(dump_config(resolved), end="")
        return
    if dry_run:
        from mini_llm.train.dry_run import dry_run as rehearse

        print(rehearse(resolved))
        return
    from mini_llm.train.train import train as run

    run(resolved)


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


Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text; default: a new one each time.", min=0)]
MaxNewTokens = Annotated[int, typer.Option(help="The longest answer, in tokens.", min=1)]
Overflow = Annotated[
    ContextOverflow, typer.Option(help="A full context ends the text, or slides: its beginning and last half stay.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, or int8 (weights in 8 bits).")]
Backend = Annotated[BackendName, typer.Option(help="How to compute; auto takes the fastest that works.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, a checkpoint or any Llama folder.")]


def _prepare_for(device: str, backend: BackendName) -> None:
    """Let the other core compile what a CPU will need, before torch is imported."""
    from mini_llm.inference.backends.native import compile_meanwhile

    if device in ("auto", "cpu") and backend in (BackendName.auto, BackendName.compiled):
        compile_meanwhile()


@app.command()
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
        prompt = sys.stdin.read()
    generator = Generator(run, tokenizer, device=device, dtype=dtype, backend=backend)
    generator.print_continuation(
        prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or [],
        seed=seed,
        context_overflow=context_overflow,
    )


@app.command()
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


tokenizer_app.command("report")(cli_study.tokenizer_report)
app.command()(cli_study.plan)
app.command()(cli_study.plot)
app.command()(cli_study.import_seed)


def main() -> None:
    """Run the command line, as `mini-llm` and `python -m mini_llm` do."""
    with exit_codes():
        app()


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what goes wrong in the block into a message and an exit code.

    0 done, 1 it failed, 2 the command was wrong, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream in (sys.stdin, sys.stdout):  # bytes that are not UTF-8 come in, or a narrow terminal cannot show a 😀
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    except UserError as problem:
        log.error(problem.message, problem.hint)
        sys.exit(problem.exit_code)
    except Interrupted as stop:
        log.info(stop.message)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `mini-llm generate ... | head`
        sys.stderr.close()
        sys.exit(141)
