"""Rows of several stores, mixed by weight: which row comes from which store is a function of the seed and its number.

All rows are counted in blocks of a thousand. In each block every store has its number of rows, exactly; the cipher of
dataloader.py says in which places. So the rows of each store come in the very order that they have alone, each
store in its own epochs, and there is no position to save.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mini_llm.data.mixture import Mixture
from mini_llm.data.store_shares import BLOCK
from mini_llm.train.rows.dataloader import TrainLoader, permute

PLACES = 1  # tells these random numbers from those of a store's epochs


class MixedLoader(TrainLoader):
    """The loader of a mixture; an epoch of it is as many rows as all its stores have together."""

    def __init__(self, mixture: Mixture, *, block_size: int, rows_per_step: int, seed: int, align_documents: bool):
        """Prepare to cut every store as `TrainLoader` does.

        Raises:
            UserError: a store is shorter than one row.
        """
        self.names, self.counts = mixture.names, np.array(mixture.counts)
        self.loaders = [
            TrainLoader(
                store.split("train"),
                block_size=block_size,
                rows_per_step=rows_per_step,
                seed=seed,
                align_documents=align_documents,
            )
            for store in mixture.stores
        ]
        self.block_size, self.rows_per_step, self.seed, self.first_row = block_size, rows_per_step, seed, 0
        self.rows_per_epoch = sum(loader.rows_per_epoch for loader in self.loaders)
        self._places = lru_cache(maxsize=4)(self._dealt_out)

    def rows_at(self, rows_R: np.ndarray) -> Tensor:
        """Return the rows of these numbers (R, T+1), whichever store they come from."""
        dealt = [self._places(int(block)) for block in rows_R // BLOCK]
        store_R = np.array([stores[row % BLOCK] for (stores, _), row in zip(dealt, rows_R, strict=True)])
        number_R = np.array([numbers[row % BLOCK] for (_, numbers), row in zip(dealt, rows_R, strict=True)])
        rows = torch.empty(len(rows_R), self.block_size + 1, dtype=torch.int64)
        for index in np.unique(store_R):
            mine_R = store_R == index
            rows[torch.from_numpy(mine_R)] = self.loaders[index].rows_at(number_R[mine_R])
        return rows

    def epochs(self, row: int) -> dict[str, float]:
        """Return how many times all rows of each store have been seen before row `row` of all."""
        block, place = divmod(row, BLOCK)
        begun = np.bincount(self._places(block)[0][:place], minlength=len(self.counts))
        seen = (int(block) * self.counts + begun).tolist()
        return {n: r / x.rows_per_epoch for n, r, x in zip(self.names, seen, self.loaders, strict=True)}

    def _dealt_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return of each place in a block the store, and the number of its row among all of that store's."""
        keys = np.random.SeedSequence([self.seed, block, PLACES]).generate_state(4, np.uint64)
        order = permute(np.arange(BLOCK), BLOCK, keys)
        stores = np.searchsorted(np.cumsum(self.counts), order, side="right")
        numbers = np.empty(BLOCK, dtype=np.int64)
        for index, count in enumerate(self.counts.tolist()):
            numbers[stores == index] = block * count + np.arange(count)
        return stores, numbers


def loader_of(
    mixture: Mixture, *, block_size: int, rows_per_step: int, seed: int, align_documents: bool = False
) -> TrainLoader:
    """Return the loader of a mixture; of one store, `TrainLoader` itself.

    Raises:
        UserError: a store has no training text, or less than one row of it.
    """
    how = {"block_size": block_size, "rows_per_step": rows_per_step, "seed": seed}
    if len(mixture.stores) == 1:
        return TrainLoader(mixture.stores[0].split("train"), **how, align_documents=align_documents)
    return MixedLoader(mixture, **how, align_documents=align_documents)
