"""What an answer is worth, what advantage it has, and what PPO's clip makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from mini_llm.tune.clip import clipped
from mini_llm.tune.rewards import advantages, reward


def test_an_answer_that_was_cut_off_is_worth_nothing() -> None:
    assert reward("exact", "c a t", "c a t", finished=True) == 1.0
    assert reward("exact", "c a t", "c a t", finished=False) == 0.0
    assert reward("number", "7 + 5 = 12", "12", finished=True) == 1.0
    assert reward("number", "7 + 5 = 13", "12", finished=True) == 0.0


def test_advantages_are_what_is_better_than_the_group() -> None:
    assert advantages([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]
    assert sum(advantages([0.3, 1.0, 0.7])) == pytest.approx(0)
    third = 0.1 + 0.2  # sums of it round: a mean would not equal it
    assert advantages([third] * 7) == [0.0] * 7


# One token each: advantage, log p now, log p when written, and the weight by hand: ratio * A, or 0 where clipped.
REFERENCE = [
    (1.0, -1.0, -1.0, 1.0),  # nothing has moved
    (0.5, math.log(0.6), math.log(0.5), 0.6),  # 1.2 times as likely: within 1.28
    (0.5, math.log(0.65), math.log(0.5), 0.0),  # 1.3 times: enough
    (-0.5, math.log(0.65), math.log(0.5), -0.65),  # became likelier though worse: pulled back
    (-0.5, math.log(0.45), math.log(0.5), -0.45),  # 0.9: within 0.8
    (-0.5, math.log(0.35), math.log(0.5), 0.0),  # 0.7: enough
    (0.5, math.log(0.35), math.log(0.5), 0.35),  # became less likely though better
    (0.0, -5.0, -1.0, 0.0),
]


def test_clipped_weights_are_those_by_hand() -> None:
    advantage, now, old, expected = torch.tensor(REFERENCE).T
    weights, is_clipped = clipped(advantage, now, old, 0.2, 0.28)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    assert is_clipped.tolist() == [False, False, True, False, False, True, False, False]


def test_their_gradient_is_that_of_trl() -> None:
    """TRL's GRPOTrainer (1.16): -min(coef_1 A, clamp(coef_1, 1 - epsilon_low, 1 + epsilon_high) A) of each token."""
    draw = torch.Generator().manual_seed(0)
    advantage = torch.randn(4000, generator=draw, dtype=torch.float64)
    old = -torch.rand(4000, generator=draw, dtype=torch.float64) * 3
    now = (old + torch.randn(4000, generator=draw, dtype=torch.float64) * 0.4).requires_grad_()
    coef_1 = torch.exp(now - old)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.28)
    (gradient,) = torch.autograd.grad(-torch.min(coef_1 * advantage, coef_2 * advantage).sum(), now)
    weights, is_clipped = clipped(advantage, now.detach(), old, 0.2, 0.28)
    torch.testing.assert_close(gradient, -weights, rtol=1e-9, atol=1e-12)
    # As TRL counts it: low where the advantage is negative, high where it is positive.
    low, high = (coef_1 < 1 - 0.2) & (advantage < 0), (coef_1 > 1 + 0.28) & (advantage > 0)
    assert is_clipped.equal(low | high)
    assert 0.1 < is_clipped.double().mean() < 0.6
