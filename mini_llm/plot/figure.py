"""The picture of one run or several: loss above, learning rate, gradient norm and speed below. PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mini_llm.errors import UsageError, UserError
from mini_llm.files import MADE_HERE, check_page, new_file
from mini_llm.plot.curves import Curve, Run, smooth
from mini_llm.user_files import writing_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours (2008), which readers who see no red or no green tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
UNITS = {3: "thousand tokens", 6: "million tokens", 9: "billion tokens"}
MARKS: dict[str, dict[str, str | None]] = {
    ".png": {"Software": MADE_HERE},
    ".svg": {"Creator": MADE_HERE, "Date": None},
    ".pdf": {"Creator": MADE_HERE},
}
SUFFIXES = tuple(MARKS)
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mini-llm",  # the same file each time
    "pdf.fonttype": 42,
}


def have_matplotlib() -> bool:
    """Tell whether pictures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def picture_paths(out: Path) -> list[Path]:
    """Return the files to write for `--out`: the one that it names, or a PNG and an SVG.

    Raises:
        UsageError: another kind of picture.
    """
    if out.suffix in SUFFIXES:
        return [out]
    if out.suffix:
        raise UsageError(f"cannot draw {out.suffix} files", f"give --out a name that ends in {', '.join(SUFFIXES)}")
    return [out.with_name(out.name + suffix) for suffix in (".png", ".svg")]


def draw(runs: Sequence[Run], paths: Sequence[Path], x: str = "tokens") -> None:
    """Draw the runs into files, 7 x 5 inches, against "tokens" or "steps".

    Raises:
        UserError: matplotlib is missing, or a file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise UserError("pictures need matplotlib", "pip install 'mini-llm[demo]', or use --terminal") from None
    for path in paths:
        check_page(path)
    with rc_context(STYLE):  # type: ignore[arg-type]
        layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.05, hspace=0.04, wspace=0.04)
        figure = Figure(figsize=(7, 4.8), layout=layout)
        asked = any(run.tasks for run in runs)
        grid = figure.add_gridspec(2, 3 + asked, height_ratios=(2.1, 1))
        ruler = Ruler(runs, x)
        _draw_losses(figure.add_subplot(grid[0, :]), runs, ruler)
        small = (
            ("learning rate", [run.learning_rate for run in runs]),
            ("gradient norm", [run.gradient_norm for run in runs]),
            ("speed (tokens/s)", [run.tokens_per_second for run in runs]),
        )
        for place, (title, curves) in enumerate(small):
            _draw_small(figure.add_subplot(grid[1, place]), title, curves, runs, ruler)
        if asked:
            _draw_tasks(figure.add_subplot(grid[1, 3]), runs, ruler)
        for path in paths:
            with writing_to(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with new_file(path) as temporary:
                    figure.savefig(temporary, dpi=300, metadata=MARKS[path.suffix])


class Ruler:
    """The axis along the bottom: steps as they are, tokens in thousands, millions or billions."""

    def __init__(self, runs: Sequence[Run], x: str) -> None:
        self.x = x
        most = max(run.tokens_at(run.loss.steps[-1:])[0] for run in runs)
        self.size, unit = (
            next(
                (size, unit)
                for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1, ""))
                if most >= size
            )
            if most >= 1
            else (1, "")
        )
        self.tokens_label = f"tokens seen ({unit}s)" if unit else "tokens seen"
        self.label = self.tokens_label if x == "tokens" else "step"
        self.short_label = f"{unit} tokens".strip() if x == "tokens" else "step"

    def __call__(self, run: Run, curve: Curve) -> Any:
        """Return where the points of a curve stand on the axis."""
        return run.tokens_at(curve.steps) / self.size if self.x == "tokens" else curve.steps


def _draw_losses(axes: Axes, runs: Sequence[Run], ruler: Ruler) -> None:
    alone = len(runs) == 1
    for number, run in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        other = COLOURS[1] if alone else colour
        places = ruler(run, run.loss)
        axes.plot(places, run.loss.values, color=colour, alpha=0.22, lw=0.6)
        label = "training" if alone else None if len(run.held_out) else run.name
        axes.plot(places, smooth(run.loss.values), color=colour, lw=1.1, alpha=1 if alone else 0.6, label=label)
        if len(run.held_out):
            axes.plot(
                ruler(run, run.held_out),
                run.held_out.values,
                color=other,
                lw=1.1,
                marker="o" if len(run.held_out) <= 60 else "",
                ms=3.2,
                mec="white",
                mew=0.5,
                label="held out" if alone else run.name,
            )
    _mark_best(axes, runs, ruler)
    _zoom(axes, runs)
    axes.set_xlabel(ruler.label)
    axes.set_ylabel("loss (nats per token)")
    axes.margins(x=0.015)
    _grid(axes)
    title = None if alone else "dots: held out, pale: training"
    legend = axes.legend(loc="upper right", title=title, title_fontsize=7, alignment="right", borderaxespad=0.2)
    legend.get_frame().set(facecolor="white", edgecolor="none", alpha=1)  # no grid line through the text
    per_step = {run.tokens_per_step if run.has_even_steps else 0.0 for run in runs}
    if len(per_step) == 1 and 0.0 not in per_step:  # otherwise no second ruler fits all
        factor = per_step.pop() / ruler.size
        steps_above = ruler.x == "tokens"
        to, back = (lambda x: x / factor), (lambda x: x * factor)
        top = axes.secondary_xaxis("top", functions=(to, back) if steps_above else (back, to))
        top.set_xlabel("step" if steps_above else ruler.tokens_label)
        top.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if steps_above else f"{value:g}")
        top.spines["top"].set_visible(True)
    if ruler.x == "steps":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _mark_best(axes: Axes, runs: Sequence[Run], ruler: Ruler) -> None:
    """Ring the lowest held-out loss of all runs and say what it is."""
    candidates = [(run.held_out.values[best], run, best) for run in runs if (best := run.best()) is not None]
    if not candidates:
        return
    loss, run, best = min(candidates, key=lambda candidate: candidate[0])
    place = ruler(run, run.held_out)[best]
    colour = COLOURS[1] if len(runs) == 1 else COLOURS[next(i for i, r in enumerate(runs) if r is run) % len(COLOURS)]
    axes.plot([place], [loss], "o", ms=7, mfc="none", mec=colour, mew=0.9)
    bits = run.summary().get("best_val_bits_per_byte")
    text = f"best {loss:.3f}" + (f" ({bits:.3f} bits per byte)" if bits is not None else "")
    text += f"\nat step {run.held_out.steps[best]:,.0f}" + (f", {run.name}" if len(runs) > 1 else "")
    is_right = place > sum(axes.get_xlim()) / 2
    axes.annotate(
        text,
        (place, loss),
        xytext=(3 if is_right else -3, 30),
        textcoords="offset points",
        ha="right" if is_right else "left",
        fontsize=7.5,
        color=colour,
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 4, "relpos": (is_right, 0)},
    )


def _zoom(axes: Axes, runs: Sequence[Run]) -> None:
    """Cut off the first moments, which fall from ln V and would press all that matters into the lowest third."""
    later = [smooth(run.loss.values)[len(run.loss) // 33 :] for run in runs]
    later += [run.held_out.values[1:] for run in runs if len(run.held_out) > 2]
    low = min(part.min() for part in later)
    high = max(part.max() for part in later)
    if high > low:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.06 * (high - low))


def _draw_small(axes: Axes, title: str, curves: Sequence[Curve], runs: Sequence[Run], ruler: Ruler) -> None:
    axes.set_title(title, color=GREY)
    axes.set_xlabel(ruler.short_label)
    axes.margins(x=0.015)
    _grid(axes)
    if not any(len(curve) for curve in curves):
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for number, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        if not len(curve):
            continue
        colour, places = COLOURS[number % len(COLOURS)], ruler(run, curve)
        if title == "learning rate":  # schedules often coincide: the upper one is dashed
            axes.plot(places, curve.values, color=colour, lw=1.1, ls=(0, (5, 3)) if number else "-")
            continue
        axes.plot(places, curve.values, color=colour, alpha=0.22, lw=0.6)
        axes.plot(places, smooth(curve.values), color=colour, lw=1.1)
    if ruler.x == "steps":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if title == "gradient norm":  # the first steps' norms may be a hundred times the rest
        high = max(1.15 * smooth(curve.values)[len(curve) // 33 :].max() for curve in curves if len(curve))
        axes.set_ylim(0, high if high > 0 else 1)
        return
    axes.set_ylim(bottom=0)
    high = max(curve.values.max() for curve in curves if len(curve))
    power = int(np.floor(np.log10(1.1 * high))) if high > 0 else 0
    power = power if power < 0 else 3 * (power // 3)
    if power:
        axes.set_title(f"{title} ($\\times 10^{{{power}}}$)" if power < 0 else title.replace("tokens", UNITS[power]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / 10.0**power:g}")


def _draw_tasks(axes: Axes, runs: Sequence[Run], ruler: Ruler) -> None:
    """Draw the share of right answers of each task; of several runs, each in its own colour."""
    for number, run in enumerate(runs):
        for place, (name, curve) in enumerate(run.tasks.items()):
            colour = COLOURS[(place if len(runs) == 1 else number) % len(COLOURS)]
            label = name if len(runs) == 1 else None
            axes.plot(ruler(run, curve), 100 * curve.values, color=colour, lw=1.1, marker=".", ms=3, label=label)
    axes.set_title("tasks (% right)", color=GREY)
    axes.set_xlabel(ruler.short_label)
    axes.margins(x=0.015)
    _grid(axes)
    if len(runs) == 1:
        axes.legend(fontsize=5.5, frameon=False, handlelength=1, borderaxespad=0.1)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", lw=0.5)
    axes.set_axisbelow(True)
