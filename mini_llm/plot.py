"""Pictures of a run: the loss on seen and held-out text against the tokens trained on."""

from __future__ import annotations

from pathlib import Path

from mini_llm.errors import UserError
from mini_llm.train.metrics import read_metrics


def plot_loss(run: Path) -> Path:
    """Draw RUN/plots/loss.png from RUN/metrics.jsonl and return its path.

    Raises:
        UserError: matplotlib is missing, or the run has no metrics yet.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib", "pip install 'mini-llm[demo]'") from None
    rows = read_metrics(run)
    trained = [r for r in rows if "loss" in r]
    held_out = [r for r in rows if "val_loss" in r]
    if not trained:
        raise UserError(f"{run} has no metrics to plot yet", "train first: mini-llm train --config ...")
    tokens_per_step = trained[-1]["tokens"] / trained[-1]["step"]

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [r["tokens"] / 1e6 for r in trained], [r["loss"] for r in trained], color="#9bb7d4", lw=1, label="training"
    )
    axes.plot(
        [r["step"] * tokens_per_step / 1e6 for r in held_out],
        [r["val_loss"] for r in held_out],
        color="#c0392b",
        marker="o",
        ms=4,
        label="held out",
    )
    if held_out:
        last = held_out[-1]
        axes.set_title(f"held-out loss {last['val_loss']:.3f} nats/token = {last['val_bits_per_byte']:.3f} bits/byte")
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = run / "plots" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=160)
    return path
