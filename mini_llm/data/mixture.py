"""A mixture of token stores, opened: what each gives, and one hash for all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from mini_llm.data.store_check import StoreCheck, sound
from mini_llm.data.store_shares import StoreShare, share_out, shares_of
from mini_llm.data.token_store import PREPARE, TokenStore
from mini_llm.errors import UserError


class Mixture:
    """Stores opened for reading, with their weights; one store alone is a mixture too."""

    def __init__(self, shares: Sequence[StoreShare], stores: Sequence[TokenStore]) -> None:
        self.stores = list(stores)
        self.counts = share_out([share.weight for share in shares])  # rows of each in BLOCK
        self.names = short_names([share.path for share in shares])

    @classmethod
    def open(cls, data_dir: str | Sequence[StoreShare]) -> Mixture:
        """Open all stores of the setting `data_dir`.

        Raises:
            UserError: as `TokenStore.open`, or two of them were written by different tokenizers.
        """
        shares = shares_of(data_dir)
        stores = [TokenStore.open(share.path) for share in shares]
        first = stores[0]
        for store in stores[1:]:
            if store.manifest.tokenizer_hash != first.manifest.tokenizer_hash:
                raise UserError(
                    f"{store.folder} was written by another tokenizer than {first.folder}: a mixture has one",
                    f"write it again: mini-llm prepare SOURCES --tokenizer {first.tokenizer_folder} "
                    f"--out {store.folder}",
                )
        return cls(shares, stores)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the tokenizer and of what is learned from: the texts, and how many rows each gives.

        Raises:
            UserError: a store has no training text.
        """
        each = [store.fingerprints for store in self.stores]
        if len(each) == 1:
            return each[0]
        texts = [[one["text"], count] for one, count in zip(each, self.counts, strict=True)]
        return {"tokenizer": each[0]["tokenizer"], "text": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}

    @cached_property
    def _checks(self) -> list[StoreCheck]:
        return [StoreCheck(store) for store in self.stores]

    def poll_checks(self, *, wait: bool) -> None:
        """Look whether the stores have been found sound, which is begun at the first call; see `StoreCheck.poll`.

        Raises:
            UserError: one was changed after it was written.
        """
        for check in self._checks:
            check.poll(wait=wait)

    def verify(self) -> None:
        """Compare every byte with its checksum, before any is used, where that is new and takes a minute at most.

        Raises:
            UserError: a shard is damaged.
        """
        for store in self.stores:
            sound(store)

    def held_out(self) -> list[tuple[TokenStore, str, int]]:
        """Return the stores that have held-out text, with name and weight.

        Raises:
            UserError: none has.
        """
        parts = zip(self.stores, self.names, self.counts, strict=True)
        if found := [part for part in parts if "val" in part[0].manifest.splits]:
            return found
        if len(self.stores) == 1:
            self.stores[0].split("val")  # it says so in its own words
        hint = PREPARE.format(self.stores[0].folder) + " --val-fraction 0.01"
        raise UserError("none of the mixture's stores has a val split", hint)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart: `web/tokens` and `books/tokens`."""
    parts = [Path(path).absolute().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(paths)
