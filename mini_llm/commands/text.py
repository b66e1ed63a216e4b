"""From raw text to tokens: `tokenizer train`, `tokenizer report`, `prepare`."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm import log, output
from mini_llm.commands.arguments import SourcesArgument, TextColumn
from mini_llm.files import check_page, write_text
from mini_llm.user_files import writing_to

REPORT_BYTES = 50 * 10**6


class ModelType(StrEnum):
    """SentencePiece's two algorithms."""

    bpe = "bpe"
    unigram = "unigram"


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
    from mini_llm.data.sources import Corpus
    from mini_llm.tokenizer.train import train_tokenizer

    # Unigram holds far more than the text in memory: 60 MB took 1.4 GB and 94 s, where BPE took 200 MB in 15 s.
    sample_bytes = 10**6 * (sample_mb or {"bpe": 200, "unigram": 50}[model_type])
    corpus = Corpus(sources, text_column)
    documents = (piece.text for piece in corpus.pieces("reading"))
    train_tokenizer(documents, out, vocab_size=vocab_size, model_type=model_type, sample_bytes=sample_bytes, seed=seed)
    log.info(corpus.reading.line())
    log.info(f"next: mini-llm prepare {shlex.join(sources)} --tokenizer {shlex.quote(str(out))} --out data/tokens")


def tokenizer_report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Tokenizer folders: ours or any Llama-like model's.")
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text to measure on, any source that `prepare` takes; may be repeated. [default: samples]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown page to write, instead of printing here.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Compare tokenizers: length, waste, speed, losses, and how they cut prose, code, emoji, Hindi and more."""
    from mini_llm.tokenizer.report import as_json, load_subjects, measure, print_report
    from mini_llm.tokenizer.report_page import page
    from mini_llm.tokenizer.samples import SAMPLES

    if out:
        check_page(out)
    subjects = load_subjects(folders)
    texts, source = list(SAMPLES.values()), "the built-in samples"
    if text:
        texts = _first_texts(text)
        source = f"{', '.join(text)} ({sum(len(t.encode('utf-8', 'replace')) for t in texts) / 1e6:,.2f} MB)"
    found = [measure(subject, texts) for subject in subjects]
    if out:
        with writing_to(out):
            write_text(out, page(subjects, found, source))
        log.info(f"report: {out}")
    if json_output:
        output.line(json.dumps(as_json(found, source)))
    elif not out:
        print_report(subjects, found, source)


def _first_texts(sources: list[str]) -> list[str]:
    """Return the first 50 MB of the sources' documents: enough for any rate, and it fits into memory."""
    from mini_llm.data.sources import read_documents

    texts, n_bytes = [], 0
    for document in read_documents(sources, description="reading"):
        texts.append(document)
        n_bytes += len(document)
        if n_bytes > REPORT_BYTES:
            log.note(f"measuring on the first {REPORT_BYTES // 10**6} MB")
            break
    return texts


def prepare(
    sources: SourcesArgument,
    tokenizer: Annotated[
        Path, typer.Option(help="Tokenizer folder (of `tokenizer train`, a model, a run), or hf://USER/NAME.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the token store to.")],
    val_fraction: Annotated[float, typer.Option(help="Share of documents held out.", min=0.0, max=0.5)] = 0.01,
    workers: Annotated[int | None, typer.Option(help="Processes that tokenize; default: all cores.", min=1)] = None,
    text_column: TextColumn = "text",
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop once there are so many: a piece of a large data set of the hub.", min=1)
    ] = None,
    decontaminate: Annotated[
        str | None,
        typer.Option(metavar="SETS", help="Leave out documents that share 13 words in a row with these tasks."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR | TASK=FILE", help="Where those sets are. [default: the hub]")
    ] = None,
) -> None:
    """Turn text into a memory-mapped token store, with a held-out split."""
    from mini_llm.data.prepare import prepare as run

    if any((tokenizer / pointer).exists() for pointer in ("latest", "run/latest")):  # a run: its checkpoint has it
        from mini_llm.pointers import resolve_checkpoint

        tokenizer = resolve_checkpoint(tokenizer)
    leaves_out = None
    if decontaminate:
        from mini_llm.eval.overlap import overlap_with

        leaves_out = overlap_with([name.strip() for name in decontaminate.split(",") if name.strip()], list(data or []))
    options = {"val_fraction": val_fraction, "workers": workers, "text_column": text_column, "max_tokens": max_tokens}
    store = run(sources, tokenizer, out, leaves_out=leaves_out, **options)  # type: ignore[arg-type]
    if val_fraction and (held_out := store.split("val").n_tokens) <= 1024:  # the block_size of mini-50m.yaml
        log.warn(f"{held_out} held-out tokens make no row of 1,024: raise --val-fraction or prepare more text")
        return
    log.info(f"next: mini-llm train --config configs/mini-50m.yaml {shlex.quote(f'data_dir={out}')}")
