"""Rows that are more than ids: several tensors, each with the rows first, that are cut and moved together."""

from __future__ import annotations

from dataclasses import fields
from typing import Self

import torch
from torch import Tensor


class TensorRows:
    """Base of dataclasses whose fields are tensors (R, ...); does what `objective.Rows` asks for."""

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._tensors()[0])

    def split(self, n_rows: int) -> list[Self]:
        """Return them in parts of `n_rows`."""
        return [type(self)(*parts) for parts in zip(*(t.split(n_rows) for t in self._tensors()), strict=True)]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return them on `device`."""
        return type(self)(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def pin_memory(self) -> Self:
        """Return them in memory that a GPU can read by itself."""
        return type(self)(*(tensor.pin_memory() for tensor in self._tensors()))
