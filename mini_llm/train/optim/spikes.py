"""Loss spikes: a batch whose loss or gradient is far above the usual is left out, so that it cannot spoil the weights.

PaLM's authors did so by hand (Chowdhery et al., arXiv 2204.02311, section 5.1).
The usual: a mean and a variance that forget, of the last fifty steps or so. They are part of the checkpoint, so that a
resumed run skips the same batches.
"""

from __future__ import annotations

import math

FORGET = 0.02  # weight of a new value: a memory of about 50 steps
WARMUP = 50  # steps before anything is judged: a variance of a few values means nothing
IN_A_ROW = 10  # steps that are not finite: then the weights are bad, not the batch


def find_spike(state: dict[str, float], threshold: float, loss: float, grad_norm: float) -> str | None:
    """Return why this step must be skipped, or None; then remember the step in `state`.

    A loss or norm that is not finite is a spike, unless `IN_A_ROW` of them came: that is no longer the batch's fault.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        state["not_finite"] = state.get("not_finite", 0) + 1
        return f"loss {loss}, gradient norm {grad_norm}" if state["not_finite"] < IN_A_ROW else None
    state["not_finite"] = 0
    reasons = [_compare(state, threshold, *pair) for pair in (("loss", loss), ("gradient norm", grad_norm))]
    state["steps"] = state.get("steps", 0) + 1
    return next((reason for reason in reasons if reason), None)


def _compare(state: dict[str, float], threshold: float, name: str, value: float) -> str | None:
    """Compare with the running mean, then let it follow."""
    steps = state.get("steps", 0)
    mean, variance = state.get(f"{name} mean", value), state.get(f"{name} variance", 0.0)
    limit = mean + threshold * math.sqrt(variance)
    is_spike = steps >= WARMUP and value > limit
    # A spike counts as if it had just reached the limit: one moves little, but a level that stays becomes the usual.
    counted = limit if is_spike else value
    share = max(FORGET, 1 / (steps + 1))  # at first a plain mean of all
    state[f"{name} mean"] = mean + share * (counted - mean)
    state[f"{name} variance"] = (1 - share) * (variance + share * (counted - mean) ** 2)
    if not is_spike:
        return None
    above = (value - mean) / math.sqrt(variance) if variance else math.inf
    return f"{name} {value:.4g} is {above:.1f} standard deviations above its mean of {mean:.4g}"
