"""Which of `torchrun`'s processes this is; without it, the only one.

Messages and progress are the first process's business; the others say only what went wrong, with their number.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's number, from 0."""
    return _read("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return how many processes work together."""
    return max(1, _read("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def local_rank() -> int:
    """Return this process's number on its machine: the GPU that it takes."""
    return _read("LOCAL_RANK", 0)


def local_size() -> int:
    """Return how many of the processes are on this machine."""
    return min(world_size(), max(1, _read("LOCAL_WORLD_SIZE", world_size())))


def _read(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else default
