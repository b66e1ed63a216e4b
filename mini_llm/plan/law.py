"""The law: loss falls along a curve of parameters and tokens, so that a few small runs foretell a large one.

L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022, arXiv 2203.15556): E is what no model can know, the second term
what a model of N weights has no room for, the third what D tokens cannot teach.
Letters: P points, N weights of matrix products, D tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POWERS = np.arange(0.10, 0.91, 0.04)  # of a and b
USUAL = 0.36  # near what Besiroglu et al. 2024 (arXiv 2404.10102) found for both
PULL = 2e-4  # towards it, in squares of relative error: few points leave a direction open, and it decides that alone


@dataclass(frozen=True)
class Point:
    """One finished run."""

    parameters: int  # N: weights of matrix products, the head's among them
    tokens: int  # D
    loss: float  # held-out, nats per token


@dataclass(frozen=True)
class Law:
    """The fitted curve, and how far it is from its points."""

    floor: float  # E
    room: float  # A
    room_power: float  # a
    data: float  # B
    data_power: float  # b
    error: float  # root of the mean square of relative errors at the points

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss of N weights after D tokens, nats per token."""
        return float(self.floor + self.room / parameters**self.room_power + self.data / tokens**self.data_power)


def fit(points: Sequence[Point]) -> Law:
    """Return the law nearest to the points, by relative error: every a, b on a grid, the rest by least squares.

    Raises:
        ValueError: fewer than two sizes or two budgets of tokens: nothing tells their terms apart.
    """
    if len({p.parameters for p in points}) < 2 or len({p.tokens for p in points}) < 2:
        raise ValueError("a law needs two sizes and two budgets of tokens at least")
    n_P, d_P, loss_P = (np.array([getattr(p, key) for p in points], float) for key in ("parameters", "tokens", "loss"))
    n_mean, d_mean = math.exp(np.log(n_P).mean()), math.exp(np.log(d_P).mean())
    best: tuple[float, np.ndarray, float, float] | None = None
    for a, b in itertools.product(POWERS, POWERS):
        columns = np.stack([np.ones_like(n_P), (n_P / n_mean) ** -a, (d_P / d_mean) ** -b], axis=1)
        weights = not_negative(columns / loss_P[:, None], np.ones_like(loss_P))
        errors = columns @ weights / loss_P - 1
        score = float((errors**2).mean()) + PULL * ((a - USUAL) ** 2 + (b - USUAL) ** 2)
        if best is None or score < best[0]:
            best = score, weights, float(a), float(b)
            error = float(np.sqrt((errors**2).mean()))
    assert best is not None
    _, (floor, room, data), a, b = best
    return Law(float(floor), float(room * n_mean**a), a, float(data * d_mean**b), b, error)


def not_negative(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the weights >= 0 of a few columns that come nearest to `target`: every subset of them is tried."""
    count = columns.shape[1]
    best, lowest = np.zeros(count), math.inf
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            found = np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
            distance = float(((columns[:, chosen] @ found - target) ** 2).sum())
            if (found >= 0).all() and distance < lowest:
                best, lowest = np.zeros(count), distance
                best[list(chosen)] = found
    return best


def foretell(points: Sequence[Point], parameters: float, tokens: float) -> tuple[float, float, float]:
    """Return the loss that the law says, and the lowest and highest that it says where any one point is left out."""
    said = fit(points).loss(parameters, tokens)
    others = [said]
    for left_out in range(len(points)):
        rest = [point for place, point in enumerate(points) if place != left_out]
        if len({p.parameters for p in rest}) > 1 and len({p.tokens for p in rest}) > 1:
            others.append(fit(rest).loss(parameters, tokens))
    return said, min(others), max(others)
