"""What `data_dir` may hold: the path of a token store, or several with weights, which become whole rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from mini_llm.config import Config, PathText

BLOCK = 1000  # rows, among which each store has its part exactly: a tenth of a percent is the smallest
MOST_STORES = 100


class StoreShare(Config):
    """One store of a mixture."""

    path: PathText  # token store, from `mini-llm prepare`
    weight: float = Field(1.0, gt=0, le=1e9)  # its part of the rows, measured by the sum of all weights


def share_out(weights: Sequence[float], total: int = BLOCK) -> list[int]:
    """Return `total` in whole parts as near to the weights as can be: the largest remainders are rounded up."""
    exact = [total * weight / math.fsum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _check_shares(shares: tuple[StoreShare, ...]) -> tuple[StoreShare, ...]:
    for share, rows in zip(shares, share_out([share.weight for share in shares]), strict=True):
        if not rows:
            raise ValueError(f"weight={share.weight:g} of {share.path} is no row in {BLOCK:,}: leave the store out")
    paths = [str(Path(share.path).absolute()) for share in shares]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(f"{twice} stands twice: add up its weights")
    return shares


def _kind(value: Any) -> str:
    return "(stores)" if isinstance(value, list | tuple) else "(path)"  # `config.explain` leaves these words out


Shares = Annotated[
    tuple[StoreShare, ...], Field(min_length=1, max_length=MOST_STORES), AfterValidator(_check_shares), Tag("(stores)")
]
DataDir = Annotated[Annotated[PathText, Tag("(path)")] | Shares, Discriminator(_kind)]  # a path, or [{path, weight}]


def shares_of(data_dir: str | Sequence[StoreShare]) -> list[StoreShare]:
    """Return the setting `data_dir` as a list; a path alone is a mixture of one."""
    return [StoreShare(path=data_dir, weight=1.0)] if isinstance(data_dir, str) else list(data_dir)
