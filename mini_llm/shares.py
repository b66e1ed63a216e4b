"""A checkpoint in shares: each process of a large run writes its own blocks, and any number of processes reads them.

`shares.json` lists the tensors with their shapes, and the files. A file is safetensors; its metadata say where each of
its blocks lies. Nothing is pickled. `mini-llm export --consolidate` makes whole tensors of them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mini_llm.weights import DamagedCheckpoint, read_json

INDEX, FOLDER = "shares.json", "shares"
PLACES = "places"  # in a file's metadata: JSON of {tensor: offset}


@dataclass(frozen=True)
class Box:
    """A block of a tensor of `shape`: where it begins and how large it is, in each dimension."""

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The block as an index into the whole tensor."""
        return tuple(slice(o, o + s) for o, s in zip(self.offset, self.size, strict=True))

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the block that is all of a tensor."""
        return cls(shape, (0,) * len(shape), shape)


def share_name(rank: int, size: int) -> str:
    """Return the name of a process's file, below the checkpoint's folder."""
    return f"{FOLDER}/{rank:05d}-of-{size:05d}.safetensors"


def index_of(boxes: dict[str, Box], size: int) -> dict[str, Any]:
    """Return what `shares.json` holds, given blocks of all tensors."""
    return {
        "files": [share_name(rank, size) for rank in range(size)],
        "tensors": {name: list(box.shape) for name, box in boxes.items()},
    }


class ShareReader:
    """Reads blocks of tensors from a checkpoint in shares, those of file `near` and its neighbours first."""

    def __init__(self, folder: Path, near: int = 0) -> None:
        """Read the index.

        Raises:
            DamagedCheckpoint: it is no index.
        """
        self.folder, index = folder, read_json(folder / INDEX)
        try:
            self.shapes = {str(name): tuple(map(int, shape)) for name, shape in index["tensors"].items()}
            files = [str(name) for name in index["files"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DamagedCheckpoint(f"{folder / INDEX} is damaged: it lists no tensors and files") from None
        if files != [share_name(rank, len(files)) for rank in range(len(files))]:
            raise DamagedCheckpoint(f"{folder / INDEX} is damaged: it lists other files than shares")
        self._unread = [folder / files[n] for n in sorted(range(len(files)), key=lambda n: (abs(n - near), n))]
        self._places: dict[str, list[tuple[Path, Box]]] = {}  # of the files that have been looked into

    def read(self, name: str, box: Box) -> torch.Tensor:
        """Return the block `box` of a tensor.

        Raises:
            KeyError: there is no such tensor.
            DamagedCheckpoint: a file is missing or damaged, or has not all of it.
        """
        if self.shapes[name] != box.shape:
            raise ValueError(f"{name} is {self.shapes[name]}, not {box.shape}")
        values, missing, seen = None, math.prod(box.size), 0
        while missing or values is None:
            known = self._places.get(name, [])
            for path, part in known[seen:]:
                if (both := _common(part, box)) is not None:
                    block = _read_block(path, name, part, both)
                    if values is None:
                        values = torch.empty(box.size, dtype=block.dtype)
                    values[_within(both, box)] = block
                    missing -= math.prod(both.size)
            seen = len(known)
            if not missing:
                break
            if not self._unread:
                raise DamagedCheckpoint(f"{self.folder / FOLDER} has not all of {name}")
            self._look_into(self._unread.pop(0))
        return torch.empty(box.size) if values is None else values

    def _look_into(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                places = json.loads((file.metadata() or {})[PLACES])
                for name in file.keys():  # noqa: SIM118
                    size = tuple(file.get_slice(name).get_shape())
                    self._places.setdefault(name, []).append((path, Box(self.shapes[name], tuple(places[name]), size)))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise DamagedCheckpoint(f"{path} is missing, truncated or no share of a checkpoint ({problem})") from None


def _read_block(path: Path, name: str, part: Box, both: Box) -> torch.Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            if not part.shape:
                return file.get_tensor(name)
            return file.get_slice(name)[_within(both, part)]
    except (SafetensorError, OSError, IndexError) as problem:
        raise DamagedCheckpoint(f"{path} is truncated or no share of a checkpoint ({problem})") from None


def _within(inner: Box, outer: Box) -> tuple[slice, ...]:
    """Return where `inner` lies in `outer`, as an index into that."""
    places = zip(inner.offset, outer.offset, inner.size, strict=True)
    return tuple(slice(o - b, o - b + s) for o, b, s in places)


def _common(a: Box, b: Box) -> Box | None:
    """Return the block that lies in both, if there is one."""
    offset = tuple(map(max, a.offset, b.offset))
    ends = [min(o + s, p + t) for o, s, p, t in zip(a.offset, a.size, b.offset, b.size, strict=True)]
    size = tuple(end - o for end, o in zip(ends, offset, strict=True))
    return Box(a.shape, offset, size) if all(s > 0 for s in size) else None
