"""An average of the weights over the last steps: the noise of single steps cancels, what they agree on stays.

Exponential moving average (Polyak and Juditsky 1992, https://doi.org/10.1137/0330046); evaluated and exported instead
of the weights that go on training. It lives in the optimizers' state, so that checkpoints hold it as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Averages every parameter of `optimizers`. With `decay` 0 it is the weights themselves, and costs nothing.

    `decay` is the share that the average keeps in a step: 0.99 averages over about the last 100.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], decay: float) -> None:
        self.optimizers, self.decay = optimizers, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps. Early averages are short: the random start must not linger."""
        if not self.decay:
            return
        for p, state in self._states():
            if "average" not in state:
                state["average"] = p.detach().clone()
        pairs = list(self._averages())
        torch._foreach_lerp_(
            [average for _, average in pairs], [p for p, _ in pairs], 1 - min(self.decay, step / (step + 10))
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the block runs, the model holds the averages, and the optimizers' state the weights that train."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restored(self) -> None:
        """Go back to the weights that train, after a checkpoint was loaded: it was written `in_place`."""
        self._swap()
        if not self.decay:  # this run averages no more
            for _, state in self._states():
                state.pop("average", None)

    @torch.no_grad()
    def _swap(self) -> None:
        for p, average in self._averages():
            training = p.clone()
            p.copy_(average)
            average.copy_(training)

    def _states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Each parameter with its optimizer's state; AdamW takes a state that is not empty for one that it made."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield from ((p, optimizer.state[p]) for p in group["params"] if optimizer.state.get(p))

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((p.detach(), state["average"]) for p, state in self._states() if "average" in state)
