"""Curves as inline SVG, without a library: axes at round numbers, a line a curve, its name beside the last point."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 60, 130, 24, 40
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")  # Okabe and Ito 2008
MOST_POINTS = 400  # of a curve: more than there are pixels to tell apart


@dataclass(frozen=True)
class Line:
    """A curve: name, places and values."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Picture:
    """Curves over one axis."""

    title: str
    x_label: str
    lines: Sequence[Line]

    def points(self) -> list[list[str]]:
        """Return at most ten points of the curve with the fewest, as a table, the other curves' nearest beside."""
        least = min(self.lines, key=lambda line: len(line.x))
        chosen = sorted({round(i * (len(least.x) - 1) / 9) for i in range(10)})
        rows = [[self.x_label, *(line.name for line in self.lines)]]
        for place in chosen:
            x = least.x[place]
            rows.append([f"{x:,.4g}", *(f"{line.y[int(np.abs(line.x - x).argmin())]:.4g}" for line in self.lines)])
        return rows


def draw(picture: Picture) -> str:
    """Return the picture as an <svg> element; it says in words what it shows."""
    lines = [line for line in picture.lines if len(line.x)]
    x_low, x_high = 0.0, max(float(line.x.max()) for line in lines) or 1.0
    # The first moments fall from ln V and would press all that matters into the lowest third.
    later = np.concatenate([line.y[len(line.y) // 20 :] for line in lines])
    y_low, y_high = float(later.min()), float(later.max())
    y_low, y_high = (y_low, y_high) if y_high > y_low else (y_low - 0.5, y_high + 0.5)

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return right, TOP + (y_high - min(y, y_high)) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="14" font-size="13">{html.escape(picture.title)}</text>']
    for y in ticks(y_low, y_high):
        _, down = place(0, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down + 4:.1f}" font-size="11" text-anchor="end">{y:.6g}</text>')
    for x in ticks(x_low, x_high):
        across, _ = place(x, y_low)
        label = f'font-size="11" text-anchor="middle">{x:,.6g}'
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 16}" {label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = f'font-size="11" text-anchor="middle">{html.escape(picture.x_label)}'
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" {label}</text>')
    used: list[float] = []
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        step = max(1, len(line.x) // MOST_POINTS)
        points = [place(float(x), float(y)) for x, y in zip(line.x[::step], line.y[::step], strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        down = points[-1][1]
        while any(abs(down - other) < 13 for other in used):  # names do not lie on each other
            down += 13
        used.append(down)
        name = f'font-size="11" style="fill:{colour}">{html.escape(line.name)}'
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{down + 4:.1f}" {name}</text>')
    label = f"{picture.title}: " + ", ".join(f"{line.name} ends at {line.y[-1]:.4g}" for line in lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]
