"""The command line's verbs that look at things: plan, plot, tokenizer report, import-seed."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm import log
from mini_llm.errors import UsageError, UserError
from mini_llm.files import write_text

REPORT_BYTES = 50 * 10**6


class Gpu(StrEnum):
    """The devices that `plan` knows."""

    h100 = "h100"
    h200 = "h200"
    a100 = "a100"
    rtx4090 = "4090"
    cpu = "cpu"


def plan(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings over the file's, as for train.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the shipped ones are in configs/.")] = None,
    gpu: Annotated[Gpu | None, typer.Option(help="The device; default: what this machine has.")] = None,
    gpus: Annotated[int, typer.Option(help="How many of them share the work.", min=1)] = 1,
    mfu: Annotated[
        float, typer.Option(help="Share of the device's peak that training reaches.", min=0.01, max=1)
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Price of one device for an hour.", min=0)] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on; default: 20 a parameter.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run needs before it starts: memory by part, hours, cost, and what to change when it does not fit."""
    from mini_llm.config import load_config
    from mini_llm.train.config import TrainConfig

    resolved = load_config(TrainConfig, config, settings or [])
    from mini_llm.plan.report import make_plan
    from mini_llm.plan.show import show

    made = make_plan(resolved, gpu=gpu and gpu.value, gpus=gpus, mfu=mfu, price=price, tokens=tokens)
    if as_json:
        print(json.dumps(made.as_dict()))
    else:
        show(made)


def import_seed(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="ckpt.pt of the published seed, or its model.safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="The seed's tokenizer: a folder (Tokenizer/BPE), tokenizer.json or spm.model.")
    ] = None,
) -> None:
    """Turn a checkpoint of the published 50M seed into a model folder, and prove that its logits stay the same."""
    from mini_llm.export.seed import import_seed as run

    run(checkpoint, out, tokenizer)
    if tokenizer:
        log.info(f"next: mini-llm generate {out} --prompt 'Once upon a time'")


class XAxis(StrEnum):
    """What curves are drawn against."""

    tokens = "tokens"
    steps = "steps"


def plot(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Run folders, in one picture; default: the newest run under runs/."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write: .png, .svg or .pdf; without an ending a .png and an .svg. "
            "[default: RUN/plots/curves, or plots/compare for several]"
        ),
    ] = None,
    x: Annotated[XAxis, typer.Option(help="The axis along the bottom.")] = XAxis.tokens,
    terminal: Annotated[bool, typer.Option("--terminal", help="Only the curve here, no picture.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print numbers as JSON, no curve.")] = False,
) -> None:
    """Draw loss, learning rate, gradient norm and speed: a curve here, and a picture fit for a paper."""
    from mini_llm.plot.curves import read_runs
    from mini_llm.plot.figure import draw, have_matplotlib, picture_paths
    from mini_llm.plot.terminal import print_curve
    from mini_llm.runs import newest_run

    if terminal and out:
        raise UsageError("--terminal draws no picture, so there is nothing to write to --out", "leave one of them out")
    found = read_runs(runs or [newest_run("metrics.jsonl")])
    paths = picture_paths(out or (found[0].folder / "plots" / "curves" if len(found) == 1 else Path("plots/compare")))
    if json_output:
        print(json.dumps({"runs": [run.summary() for run in found]}))
    else:
        print_curve(found, x)
    if terminal:
        return
    if not out and not have_matplotlib():
        log.note("no picture: matplotlib is missing (pip install 'mini-llm[demo]')")
        return
    draw(found, paths, x)
    log.info(f"picture: {', '.join(map(str, paths))}")


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

    subjects = load_subjects(folders)
    texts, source = list(SAMPLES.values()), "the built-in samples"
    if text:
        texts = _first_texts(text)
        source = f"{', '.join(text)} ({sum(len(t.encode('utf-8', 'replace')) for t in texts) / 1e6:,.2f} MB)"
    found = [measure(subject, texts) for subject in subjects]
    if out:
        try:
            write_text(out, page(subjects, found, source))
        except OSError as problem:
            raise UserError(f"cannot write {out}: {problem.strerror}", "choose another --out") from None
        log.info(f"report: {out}")
    if json_output:
        print(json.dumps(as_json(found, source)))
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
