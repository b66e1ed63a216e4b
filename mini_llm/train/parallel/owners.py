"""Muon on shares: each matrix is made orthogonal whole, by one process, its owner.

Orthogonalisation mixes all rows and columns, so shares cannot do it alone, and for all to do all of it would waste
every process but one. Matrix j of those with one shape belongs to process j mod W: the shares of its update travel
there, and the shares of the result travel back, each in one exchange of all with all. Momentum stays where the shares
are. The idea of an owner is Dion's (arXiv 2504.05295) and Moonlight's (arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from mini_llm.train.parallel.boxes import Box, box_of, is_share

Orthogonalise = Callable[[Tensor], Tensor]


class Owners:
    """Deals the matrices of a step out to the processes that have shares, or copies, of them."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """`group`: who together have all shares; None is everybody."""
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def __call__(self, like: list[Tensor], updates: list[Tensor], orthogonalise: Orthogonalise) -> list[Tensor]:
        """Return this process's shares of the orthogonalised matrices, given its shares of `updates`.

        Args:
            like: the parameters, all of one shape: they tell how they are spread.
            updates: this process's share of each; of a copy, all of it.
            orthogonalise: of matrices (N, R, C).
        """
        boxes = [self._box(like[0], rank) for rank in range(self.size)]
        mine = range(self.rank, len(like), self.size)
        if is_share(like[0]):
            matrices = self._gather(updates, boxes, len(mine), like[0])
        else:
            matrices = [updates[j] for j in mine]
        done = orthogonalise(torch.stack(matrices)) if matrices else torch.empty(0, *like[0].shape)
        return self._hand_back(done.to(updates[0]), boxes, len(like))

    def _box(self, like: Tensor, rank: int) -> Box:
        if not is_share(like):
            return box_of(like)
        global_rank = dist.get_global_rank(self.group, rank) if self.group else rank
        place = (like.device_mesh.mesh == global_rank).nonzero()[0].tolist()
        return box_of(like, place)

    def _gather(self, updates: list[Tensor], boxes: list[Box], n_mine: int, like: Tensor) -> list[Tensor]:
        """Send each owner this process's shares of its matrices; return the whole matrices of which it is the owner."""
        nothing = updates[0].new_empty(0)
        sent = [torch.cat([nothing, *(u.flatten() for u in updates[o :: self.size])]) for o in range(self.size)]
        parts = self._exchange(sent, [n_mine * math.prod(box.size) for box in boxes])
        matrices = [updates[0].new_empty(like.shape) for _ in range(n_mine)]
        for box, part in zip(boxes, parts, strict=True):
            for matrix, block in zip(matrices, part.view(n_mine, *box.size), strict=True):
                matrix[box.slices] = block
        return matrices

    def _hand_back(self, done: Tensor, boxes: list[Box], n: int) -> list[Tensor]:
        """Send everybody its share of the results; return this process's shares, in the order of the matrices."""
        share, counts = boxes[self.rank].size, [len(range(o, n, self.size)) for o in range(self.size)]
        sent = [done[(slice(None), *box.slices)].flatten() for box in boxes]
        parts = self._exchange(sent, [count * math.prod(share) for count in counts])
        by_owner = [part.view(count, *share) for count, part in zip(counts, parts, strict=True)]
        return [by_owner[j % self.size][j // self.size] for j in range(n)]

    def _exchange(self, sent: list[Tensor], sizes: list[int]) -> list[Tensor]:
        received = sent[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(sent), sizes, [t.numel() for t in sent], group=self.group)
        return list(received.split(sizes))
