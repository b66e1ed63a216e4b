"""Muon on shares is Muon: every matrix whole, at one owner, to the sixth digit; shares are never taken for wholes."""

import pytest
import torch

from mini_llm.train.optim.optimizer import Muon, orthogonalise

SHAPES = [
    (32, 32),
    (16, 64),
    (64, 16),
    (15, 33),
    (1, 8),
    (16, 64),
    (16, 64),
]  # long, tall, uneven, one row


def made(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return tuple([torch.randn(shape, generator=draw) for shape in SHAPES] for _ in range(2))


def stepped(parameters, gradients, owners=None) -> None:
    muon = Muon(parameters, lr=0.1, weight_decay=0.1, dtype=torch.float32, owners=owners, cautious=True)
    for _ in range(3):
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient.clone()
        muon.step()


def steps_of_shares(dims: list[int], copies: int) -> list[list[float]]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from mini_llm.train.parallel.owners import Owners

    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (copies, size // copies), mesh_dim_names=("copies", "shares"))
    group = dist.new_subgroups(size // copies)[0] if copies > 1 else None
    weights, gradients = made()
    parameters, shares = [], []
    for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        placements = [Replicate(), Shard(dims[number % len(dims)])]
        parameters.append(torch.nn.Parameter(distribute_tensor(weight, mesh, placements)))
        shares.append(distribute_tensor(gradient, mesh, placements))
    with pytest.raises(TypeError, match="owners"):
        stepped(parameters, shares)
    with pytest.raises(TypeError, match="share"):
        orthogonalise(torch.stack(shares[5:]))
    stepped(parameters, shares, Owners(group))
    return [p.full_tensor().tolist() for p in parameters]


def steps_of_copies() -> list[list[float]]:
    from mini_llm.train.parallel.owners import Owners

    weights, gradients = made()
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    stepped(parameters, gradients, Owners())
    return [p.tolist() for p in parameters]


@pytest.mark.parametrize(
    ("size", "function", "arguments"),
    [
        (2, steps_of_shares, ([0], 1)),
        (3, steps_of_shares, ([0, 1], 1)),
        (4, steps_of_shares, ([0], 2)),
        (2, steps_of_copies, ()),
    ],
    ids=["shares", "both-sides", "hybrid", "copies"],
)
def test_each_process_owns_some_matrices_and_all_get_the_same(size, function, arguments, on_ranks) -> None:
    weights, gradients = made()
    alone = [torch.nn.Parameter(weight) for weight in weights]
    stepped(alone, gradients)
    for found in on_ranks(size, function, *arguments):
        for p, values in zip(alone, found, strict=True):
            torch.testing.assert_close(torch.tensor(values), p.detach(), rtol=0, atol=1e-6)
