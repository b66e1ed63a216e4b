"""From a few small runs to what a big one will reach: `ladder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mini_llm import log, output
from mini_llm.commands.arguments import ConfigOption, SettingsArgument

if TYPE_CHECKING:
    from mini_llm.plan.ladder import Found
    from mini_llm.plot.ladder import Foretold, Rung


def ladder(
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    sizes: Annotated[
        str, typer.Option(help="Weights in the blocks of each rung; the head comes on top.")
    ] = "0.5M,1M,2M,5M",
    minutes: Annotated[float, typer.Option(help="About how long all rungs may take.", min=0.1, max=1e6)] = 30,
    out: Annotated[Path, typer.Option(help="Where finished rungs are kept; the same command goes on.")] = Path(
        "runs/ladder"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a few small models, fit their loss against compute, and say what the run of this config will reach."""
    from mini_llm.config import load_config
    from mini_llm.train.config import TrainConfig

    resolved = load_config(TrainConfig, config, settings or [])
    from mini_llm.plan.ladder import climb, parse_sizes

    found = climb(resolved, parse_sizes(sizes), minutes, out)
    from mini_llm.plot.figure import have_matplotlib
    from mini_llm.plot.ladder import draw_ladder

    rungs, big = curves(found)
    if as_json:
        output.line(json.dumps(found.as_dict()))
    else:
        show(found, rungs, big)
    if have_matplotlib():
        paths = [out / "ladder.png", out / "ladder.svg"]
        draw_ladder(rungs, big, paths)
        log.info(f"picture: {', '.join(map(str, paths))}")
    else:
        log.note("no picture: matplotlib is missing (pip install 'mini-llm[demo]')")


def curves(found: Found) -> tuple[list[Rung], Foretold]:
    """Return what is drawn: for each size its runs and the law's line, and the big run."""
    from mini_llm.model.accounting import flops_per_token
    from mini_llm.plan.ladder import budget, products, smaller
    from mini_llm.plot.ladder import Foretold, Rung

    model, block, most = found.config.model, found.config.block_size, budget(found.config)
    rungs = []
    for size in sorted({rung.size for rung in found.rungs}):
        shape = smaller(model, size)
        cost, weights = flops_per_token(shape, block), products(shape)
        runs = [r for r in found.rungs if r.size == size and r.factor == found.factor and r.loss < float("inf")]
        least = min(r.tokens for r in found.rungs)
        tokens = [least * (max(most, 2 * least) / least) ** (place / 40) for place in range(41)]
        line = [(cost * t, found.law.loss(weights, t)) for t in tokens]
        name = f"{shape.n_layers} x {shape.dim}"
        rungs.append(Rung(name, [cost * r.tokens for r in runs], [r.loss for r in runs], line))
    return rungs, Foretold(flops_per_token(model, block) * most, found.loss, found.low, found.high)


def show(found: Found, rungs: list[Rung], big: Foretold) -> None:
    """Print the curve, the law, and what it means for the big run."""
    from mini_llm.plan.ladder import budget
    from mini_llm.plot.ladder import ladder_lines

    console = output.console()
    for line in ladder_lines(rungs, big, min(100, console.width)):
        console.print(line, markup=False, highlight=False)
    law, model, shape = found.law, found.config.model, found.shape
    output.line(
        f"\nloss = {law.floor:.3f} + {law.room:.4g} / N^{law.room_power:.2f} + {law.data:.4g} / D^{law.data_power:.2f}"
        f"   (N weights, D tokens; {100 * law.error:.2f} % off at its points)"
    )
    output.line(
        f"{model.n_layers} x {model.dim} after {budget(found.config):,} tokens: {found.loss:.3f} nats/token "
        f"({found.low:.3f} to {found.high:.3f} where one rung is left out)"
    )
    output.line(
        f"the same operations go furthest as {shape.n_layers} x {shape.dim} on {found.shape_tokens:,} tokens: "
        f"{found.shape_loss:.3f}"
    )
    output.line(f"rates: {found.factor:g} times the config's were best on the smallest rung")
