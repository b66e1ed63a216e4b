"""From tokens to a model: `plan`, `train`, `plot`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mini_llm import log, output, ranks
from mini_llm.commands.arguments import ConfigOption, DryRun, PrintConfig, Resume, SettingsArgument
from mini_llm.errors import UsageError


class Gpu(StrEnum):
    """The devices that `plan` knows."""

    h100 = "h100"
    h200 = "h200"
    a100 = "a100"
    rtx4090 = "4090"
    rtx3070 = "3070"
    cpu = "cpu"


def plan(
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    gpu: Annotated[Gpu | None, typer.Option(help="The device; default: what this machine has.")] = None,
    gpus: Annotated[int, typer.Option(help="How many of them share the work.", min=1)] = 1,
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of the device's peak that training reaches; default: 0.4, A100 0.5.", min=0.01, max=1),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one device for an hour.", min=0)] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on; default: 20 a parameter.", min=1)] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Build the shares of --gpus on this machine, count them, trace a step.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run needs before it starts: memory by part, hours, cost, and what to change when it does not fit."""
    from mini_llm.config import load_config
    from mini_llm.train.config import TrainConfig

    resolved = load_config(TrainConfig, config, settings or [])
    from mini_llm.plan.report import make_plan
    from mini_llm.plan.show import show

    if prove and gpu is None:
        gpu = Gpu.h100  # the shares are the same on any
    made = make_plan(resolved, gpu=gpu and gpu.value, gpus=gpus, mfu=mfu, price=price, tokens=tokens)
    proof = None
    if prove:
        from mini_llm.plan.prove import prove as prove_plan

        proof = prove_plan(resolved, gpus)
    if as_json:
        output.line(json.dumps(made.as_dict() | ({"proof": proof.as_dict()} if proof else {})))
    else:
        show(made, proof)
    if proof and not proof.holds:
        raise typer.Exit(1)


def train(
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    resume: Resume = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
) -> None:
    """Train a model. Stopped anywhere, the same command goes on, exactly where it was."""
    from mini_llm.config import dump_config, load_config
    from mini_llm.train.config import TrainConfig

    overrides = list(settings or []) + ([] if resume is None else [f"resume={str(resume).lower()}"])
    resolved = load_config(TrainConfig, config, overrides)
    from mini_llm.train.run.moved import follow_moved

    resolved = follow_moved(resolved, config, overrides)
    if print_config:
        output.write(dump_config(resolved))
        return
    from mini_llm.tune.midtraining import objective_of

    if dry_run:
        from mini_llm.train.dry_run import dry_run as rehearse

        found = rehearse(resolved, objective_of(resolved))
        if ranks.rank() == 0:
            output.line(found)
        return
    from mini_llm.eval.while_training import task_probe
    from mini_llm.train.train import train as run

    run(resolved, make_objective=objective_of(resolved), make_probe=task_probe)


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
        output.line(json.dumps({"runs": [run.summary() for run in found]}))
    else:
        print_curve(found, x)
    if terminal:
        return
    if not out and not have_matplotlib():
        log.note("no picture: matplotlib is missing (pip install 'mini-llm[demo]')")
        return
    draw(found, paths, x)
    log.info(f"picture: {', '.join(map(str, paths))}")
