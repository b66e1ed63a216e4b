"""A curve in the terminal: eight dots to a character (braille), as wide as the window, plain in a pipe.

It needs no matplotlib, so that a run on a server without a screen can be looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import numpy as np

from mini_llm.plot.curves import Curve, Run, smooth
from mini_llm.terminal import safe_console

if TYPE_CHECKING:
    from rich.text import Text

# The bit of each dot of a braille character: four rows, two columns; U+2800 is the empty one.
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
STYLES = ("blue", "red", "green", "magenta", "yellow", "cyan")
MARKS = "●▲■◆▼★"
# Where there is no UTF-8.
ASCII = str.maketrans(MARKS + "│└─┤", "o^#*v+|+-+") | dict.fromkeys(range(10241, 10496), ".")
MARGIN = 8  # characters left of the axis
HEIGHT = 16


class Canvas:
    """A grid of characters: dots from lines, marks on top."""

    def __init__(self, width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.width, self.height = width, height
        self.x_range, self.y_range = x_range, y_range
        self.bits = np.zeros((height, width), dtype=int)
        self.styles = np.full((height, width), "", dtype=object)
        self.marks = np.full((height, width), "", dtype=object)

    def line(self, xs: np.ndarray, ys: np.ndarray, style: str) -> None:
        """Draw a function of x through the points (xs rising)."""
        low, high = self.x_range
        columns = np.arange(2 * self.width)
        at = low + (columns + 0.5) / (2 * self.width) * (high - low)
        rows = self._row(np.interp(at, xs, ys), 4 * self.height)
        inside = (at >= xs[0] - (high - low) / (2 * self.width)) & (at <= xs[-1] + (high - low) / (2 * self.width))
        before = None
        for column in columns[inside]:
            start, end = sorted((rows[column], rows[column] if before is None else before))
            for row in range(max(0, start), min(4 * self.height - 1, end) + 1):
                self.bits[row // 4, column // 2] |= DOTS[row % 4, column % 2]
                self.styles[row // 4, column // 2] = style
            before = rows[column]

    def mark(self, xs: np.ndarray, ys: np.ndarray, mark: str, style: str) -> None:
        """Put a character at each point."""
        low, high = self.x_range
        columns = np.clip(((xs - low) / (high - low) * self.width).astype(int), 0, self.width - 1)
        for column, row in zip(columns, self._row(ys, self.height), strict=True):
            if 0 <= row < self.height:
                self.marks[row, column], self.styles[row, column] = mark, style

    def _row(self, ys: np.ndarray, rows: int) -> np.ndarray:
        low, high = self.y_range
        return np.clip(np.floor((high - ys) / (high - low) * rows), -1, rows).astype(int)


def curve_lines(runs: Sequence[Run], width: int, x: str = "tokens") -> list[Text]:
    """Return the loss of the runs as lines of at most `width` characters: dots for training, marks for held out."""
    from rich.text import Text

    def places(run: Run, curve: Curve) -> np.ndarray:
        return run.tokens_at(curve.steps) if x == "tokens" else curve.steps

    trained = [smooth(run.loss.values) for run in runs]
    later = [values[len(values) // 33 :] for values in trained]  # the first steps fall out at the top
    later += [run.held_out.values[1:] for run in runs if len(run.held_out) > 1]
    y_low, y_high = min(part.min() for part in later), max(part.max() for part in later)
    pad = 0.03 * (y_high - y_low) or 0.1
    x_high = max(places(run, run.loss)[-1] for run in runs)
    x_low = min(0.0, *(places(run, run.loss)[0] for run in runs))
    canvas = Canvas(max(10, width - MARGIN - 2), HEIGHT, (x_low, max(x_high, x_low + 1)), (y_low - pad, y_high + pad))
    for number, (run, values) in enumerate(zip(runs, trained, strict=True)):
        canvas.line(places(run, run.loss), values, STYLES[number % len(STYLES)])
    for number, run in enumerate(runs):
        style = STYLES[1] if len(runs) == 1 else STYLES[number % len(STYLES)]
        canvas.mark(places(run, run.held_out), run.held_out.values, MARKS[number % len(MARKS)], style)
    return [
        *_legend(runs, width),
        *canvas_rows(canvas),
        Text(" " * MARGIN + "└" + "─" * canvas.width),
        _x_labels(canvas, "tokens" if x == "tokens" else "steps"),
    ]


def print_curve(runs: Sequence[Run], x: str = "tokens", file: TextIO | None = None) -> None:
    """Print the curve to stdout: in colours on a terminal, plain in a pipe, as ASCII where there is no UTF-8."""
    from rich.text import Text

    file = file or sys.stdout
    console = safe_console(file=file)
    has_unicode = (file.encoding or "utf-8").lower().replace("-", "") == "utf8"
    for line in curve_lines(runs, console.width, x):
        if not has_unicode:
            line = Text(line.plain.translate(ASCII))
        line.rstrip()
        console.print(line)


def _legend(runs: Sequence[Run], width: int) -> list[Text]:
    from rich.text import Text

    lines = [Text("loss (nats per token): dots training, marks held out"[:width], style="bold")]
    for number, run in enumerate(runs):
        numbers = run.summary()
        best = (
            f", best {numbers['best_val_loss']:.3f} at step {numbers['best_step']:,}" if run.best() is not None else ""
        )
        bits = (
            f" = {numbers['best_val_bits_per_byte']:.3f} bits per byte" if "best_val_bits_per_byte" in numbers else ""
        )
        style = STYLES[1] if len(runs) == 1 else STYLES[number % len(STYLES)]
        text = f"{MARKS[number % len(MARKS)]} {run.name}: {numbers['loss']:.3f} training{best}{bits}"
        lines.append(Text(text[:width], style=style))
    return lines


def canvas_rows(canvas: Canvas) -> list[Text]:
    """Return a canvas as lines, with values along its left side."""
    from rich.text import Text

    low, high = canvas.y_range
    lines = []
    for row in range(canvas.height):
        is_tick = row % 5 == 0
        value = high - (row + 0.5) / canvas.height * (high - low)
        line = Text(f"{value:>{MARGIN - 1}.3g} ┤" if is_tick else " " * MARGIN + "│")
        for column in range(canvas.width):
            mark = canvas.marks[row, column] or chr(0x2800 + canvas.bits[row, column])
            line.append(" " if mark == "\u2800" else mark, style=canvas.styles[row, column] or None)
        lines.append(line)
    return lines


def _x_labels(canvas: Canvas, unit: str) -> Text:
    from rich.text import Text

    low, high = canvas.x_range
    labels = [_short(low), _short((low + high) / 2), f"{_short(high)} {unit}"]
    gap = canvas.width - sum(map(len, labels))
    if gap < 4:
        return Text(" " * MARGIN + " " + labels[-1].rjust(canvas.width))
    left = max(1, canvas.width // 2 - len(labels[0]) - len(labels[1]) // 2)
    middle = labels[0] + " " * left + labels[1]
    return Text(" " * MARGIN + " " + middle + labels[2].rjust(canvas.width - len(middle)))


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
