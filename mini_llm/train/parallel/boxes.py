"""Where a process's share of a tensor lies, and how whole tensors become shares and shares whole again.

A share is a block: torch cuts a dimension into equal parts from the left, first for the tensor group, then for those
who share weights (which it calls strided sharding). Everything that looks into shares (saving, loading, Muon) goes by
`box_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mini_llm.shares import Box

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def box_of(tensor: Tensor, coordinate: Sequence[int] | None = None) -> Box:
    """Return the share of this process, or of the one at `coordinate` of the mesh; a plain tensor is a share whole."""
    offset, size = [0] * tensor.ndim, list(tensor.shape)
    if is_share(tensor):
        place = tensor.device_mesh.get_coordinate() if coordinate is None else coordinate
        assert place is not None
        # The mesh's last axis, the tensor group's, was cut first.
        for axis in reversed(range(tensor.device_mesh.ndim)):
            dim = getattr(tensor.placements[axis], "dim", None)
            if dim is not None:
                step = -(-size[dim] // tensor.device_mesh.size(axis))  # as torch.chunk cuts
                begin = min(place[axis] * step, size[dim])
                offset[dim], size[dim] = offset[dim] + begin, min(step, size[dim] - begin)
    return Box(tuple(tensor.shape), tuple(offset), tuple(size))


def is_share(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether this process has a share of the tensor alone; to import DTensor to ask would take a second."""
    return hasattr(tensor, "placements")


def how_shared(tensor: Tensor) -> Any:
    """Return what tensors of one shape that are cut in the same way have in common."""
    return tensor.placements if is_share(tensor) else None


def local(tensor: Tensor) -> Tensor:
    """Return this process's share; changing it changes the tensor."""
    if not is_share(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def is_written_here(tensor: Tensor, rank: int) -> bool:
    """Tell whether this process is the one of those with the same share that saves it."""
    if not is_share(tensor):
        return rank == 0
    place = tensor.device_mesh.get_coordinate()
    assert place is not None
    is_cut = [getattr(placement, "dim", None) is not None for placement in tensor.placements]
    is_first = all(cut or number == 0 for cut, number in zip(is_cut, place, strict=True))
    return is_first and local(tensor).numel() > 0


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered from all who have a share of it: call it in all of them, in the same order."""
    return tensor.full_tensor() if is_share(tensor) else tensor


def share_like(values: Tensor, like: Tensor) -> Tensor:
    """Return whole `values` spread as `like` is, on its device."""
    if is_share(values):
        return values
    if not is_share(like) or values.shape != like.shape:
        return values.to(like.device)
    share = torch.zeros_like(like)
    local(share).copy_(values[box_of(like).slices])
    return share


class WholeToShares(TorchFunctionMode):
    """While it is on, what whole tensors are copied to may be a share: it takes its own block.

    So whoever fills a model (`init_weights`, `load_state_dict`) need not know that it is spread.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.copy_ and is_share(args[0]) and not is_share(args[1]):
            if args[0].shape != args[1].shape:
                raise ValueError(f"a tensor of {tuple(args[1].shape)} is no {tuple(args[0].shape)}")
            local(args[0]).copy_(args[1][box_of(args[0]).slices])
            return args[0]
        return function(*args, **(kwargs or {}))
