"""The picture of a ladder: held-out loss against operations, a line a size, the law through them, and what is foretold.

Operations run along a logarithmic axis: a power of compute is a straight line there, down to the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini_llm.files import check_page, new_file
from mini_llm.plot.figure import COLOURS, GREY, MARKS, STYLE
from mini_llm.plot.terminal import HEIGHT, MARGIN, Canvas, canvas_rows
from mini_llm.user_files import writing_to


@dataclass(frozen=True)
class Rung:
    """A size's runs, measured, and the law's line for it; places are operations, values nats per token."""

    name: str
    operations: list[float]
    losses: list[float]
    line: list[tuple[float, float]]


@dataclass(frozen=True)
class Foretold:
    """The big run, before it is run."""

    operations: float
    loss: float
    low: float
    high: float


def draw_ladder(rungs: Sequence[Rung], big: Foretold, paths: Sequence[Path]) -> None:
    """Draw the ladder into files, 5 x 3.4 inches.

    Raises:
        UserError: a file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for path in paths:
        check_page(path)
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for number, rung in enumerate(rungs):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(*zip(*rung.line, strict=True), color=colour, linewidth=0.8)
            axes.plot(rung.operations, rung.losses, "o", color=colour, markersize=4, label=rung.name)
        spread = [[big.loss - big.low], [big.high - big.loss]]
        axes.errorbar([big.operations], [big.loss], yerr=spread, fmt="*", color=GREY, markersize=9, label="foretold")
        axes.set_xlabel("operations (forward and backward)")
        axes.set_ylabel("held-out loss (nats per token)")
        axes.legend(frameon=False)
        for path in paths:
            with writing_to(path), new_file(path) as temporary:
                figure.savefig(temporary, dpi=300, metadata=MARKS[path.suffix])


def ladder_lines(rungs: Sequence[Rung], big: Foretold, width: int) -> list[str]:
    """Return the same for a terminal, at most `width` characters wide: dots the law, o a run, * the big one."""
    places = [math.log10(x) for rung in rungs for x in rung.operations] + [math.log10(big.operations)]
    values = [y for rung in rungs for y in rung.losses] + [big.low, big.high]
    pad = 0.05 * (max(values) - min(values)) or 0.1
    x_range = min(places) - 0.05, max(places) + 0.05
    canvas = Canvas(max(10, width - MARGIN - 2), HEIGHT, x_range, (min(values) - pad, max(values) + pad))
    for rung in rungs:
        xs, ys = (np.array(part) for part in zip(*rung.line, strict=True))
        canvas.line(np.log10(xs), ys, "")
        canvas.mark(np.log10(np.array(rung.operations)), np.array(rung.losses), "o", "")
    canvas.mark(np.array([math.log10(big.operations)]), np.array([big.loss]), "*", "")
    low, high = (f"{10**x:.0e}" for x in x_range)
    foot = f"{low}{'operations':^{max(10, canvas.width - len(low) - len(high))}}{high}"
    return [
        "held-out loss (nats per token)",
        *(row.plain.rstrip() for row in canvas_rows(canvas)),
        " " * MARGIN + "└" + "─" * canvas.width,
        " " * (MARGIN + 1) + foot,
    ]
