"""Texts that begin alike become a tree: what they share is read once, and a mask says which token sees which.

Four endings of one question are four branches of its trunk. In one row of the model stand trunk and branches one after
the other; a token sees its ancestors alone, at the positions that it would have in its own text.
Letters: B trees, T tokens of the largest, W tokens whose successors are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

Pair = tuple[list[int], list[int]]  # the ids of a context, and those that follow it

MOST_NODES = 2048  # of a tree of several texts: attention costs their square
FULL_ROW = 128  # tokens up to which strangers share a row: less padding, and their few common tokens are read once


@dataclass
class Tree:
    """Token ids in which later texts branch off from earlier ones."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)  # a token's position in its own text
    branches: list[tuple[int, int, int]] = field(default_factory=list)  # (start, end, parent; -1: none)
    asked: list[tuple[int, list[int], list[int]]] = field(default_factory=list)  # (number, nodes, their next ids)
    path: list[int] = field(default_factory=list)  # the nodes of the last text

    def shares(self, inputs: Sequence[int]) -> int:
        """Return how many tokens `inputs` has in common with the last text's beginning."""
        for n, (node, token) in enumerate(zip(self.path, inputs, strict=False)):
            if self.ids[node] != token:
                return n
        return min(len(self.path), len(inputs))

    def add(self, number: int, inputs: list[int], targets: list[int], shared: int) -> None:
        """Add a text; `targets` are the ids that follow its last tokens, `shared` is what `shares` says of it."""
        start = len(self.ids)
        parent = self.path[shared - 1] if shared else -1
        self.ids += inputs[shared:]
        self.depths += range(shared, len(inputs))
        if len(self.ids) > start:
            self.branches.append((start, len(self.ids), parent))
        self.path = self.path[:shared] + list(range(start, len(self.ids)))
        self.asked.append((number, self.path[len(inputs) - len(targets) :], targets))

    @property
    def is_chain(self) -> bool:
        """Whether nothing branches off: plain causal attention will do."""
        return len(self.branches) == 1

    def see(self, mask_TT: np.ndarray) -> None:
        """Let each token see itself and its ancestors in an empty mask (T, T); padding sees itself."""
        np.fill_diagonal(mask_TT, True)
        for start, end, parent in self.branches:
            if parent >= 0:
                mask_TT[start:end, : parent + 1] = mask_TT[parent, : parent + 1]
            mask_TT[start:end, start:end] = np.tri(end - start, dtype=bool)


def plant(pairs: Sequence[Pair], max_length: int) -> list[Tree]:
    """Return trees in which every pair stands once, largest first.

    Of a text longer than the context its end is kept: the last `max_length` + 1 ids of which all but the last are read.
    """
    texts = []
    for number, (context, continuation) in enumerate(pairs):
        whole = (context + continuation)[-(max_length + 1) :]
        assert 0 < len(continuation) < len(context + continuation), "a pair needs something on both sides"
        texts.append((whole[:-1], number, continuation[-(len(whole) - 1) :]))
    texts.sort()
    trees: list[Tree] = []
    for inputs, number, targets in texts:
        # Unless half is shared, two long rows are cheaper than one whose tokens meet the other text's for nothing.
        shared = trees[-1].shares(inputs) if trees else 0
        room = MOST_NODES if 2 * shared >= len(inputs) else FULL_ROW
        if not trees or len(trees[-1].ids) + len(inputs) - shared > room:
            trees.append(Tree())
            shared = 0
        trees[-1].add(number, inputs, targets, shared)
    return sorted(trees, key=lambda tree: -len(tree.ids))


def batches(trees: Sequence[Tree], most_tokens: int) -> Iterator[list[Tree]]:
    """Yield trees of similar size together, as many as fit into `most_tokens` with padding; at least one."""
    start = 0
    while start < len(trees):
        end = start + max(1, most_tokens // len(trees[start].ids))
        yield list(trees[start:end])
        start = end
