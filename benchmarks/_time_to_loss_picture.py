"""The picture of time_to_loss.py: held-out loss over seconds, a panel a size, a line a contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_llm.plot.figure import COLOURS, GREY, MARKS, STYLE, have_matplotlib

ORDER = ("mini-llm", "nanogpt", "nanochat", "transformers", "litgpt")  # whose colour is whose, in every picture


def draw(sizes: dict[str, Any], path: Path) -> None:
    """Draw the runs that reach the target, mean of the seeds, into an SVG; nothing without matplotlib."""
    if not have_matplotlib():
        return
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(2.6 * len(sizes) + 1.2, 2.8), layout="constrained")
        for place, (size, found) in enumerate(sizes.items()):
            axes = figure.add_subplot(1, len(sizes), place + 1)
            axes.set_title(f"{size}: {found['budget'] / 1e6:.3g} million tokens of nanoGPT")
            axes.axhline(found["target"], color=GREY, linewidth=0.6, linestyle=":")
            for name, about in found["contenders"].items():
                means = [mean_of(point) for point in zip(*about["curves"], strict=True)]
                points = [(about["building"] + n / about["tokens_per_second"], loss) for n, loss in means]
                colour = COLOURS[ORDER.index(name) % len(COLOURS)]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=name)
                axes.plot(*points[-1], marker="o", markersize=3, color=colour)
            axes.set_xlabel("seconds")
            axes.set_ylabel("held-out loss (nats)" if place == 0 else "")
            if place == len(sizes) - 1:
                axes.legend(frameon=False)
        figure.savefig(path, metadata=MARKS[".svg"])


def mean_of(points: tuple[list[float], ...]) -> list[float]:
    """Return the mean of the same moment of several seeds: tokens, loss."""
    return [sum(values) / len(values) for values in zip(*points, strict=True)]
