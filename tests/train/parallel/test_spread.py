"""How work is dealt out: the same rows for every world, shares where torch puts them, and no for what cannot be."""

import json
from itertools import pairwise

import pytest
import torch

from mini_llm.errors import UsageError
from mini_llm.shares import Box, ShareReader, index_of, share_name
from mini_llm.train.objective import Pretraining
from mini_llm.train.parallel.boxes import box_of
from mini_llm.train.parallel.spread import check_spread
from mini_llm.train.parallel.world import World
from mini_llm.weights import DamagedCheckpoint


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_the_rows_of_a_step_are_the_same_for_every_world(size, make_config) -> None:
    """Also where an epoch ends in the middle of a step, and where rows are shortened."""
    config = make_config(batch_size=6, gradient_accumulation_steps=2, length_warmup=0.3, max_iters=600)
    objective = Pretraining(config)
    steps = [
        0,
        1,
        300,
        *(step for step in range(150, 250) if int(objective.epoch(step)) < int(objective.epoch(step + 1))),
    ]
    assert len(steps) > 3
    for step in steps:
        rows = objective.rows(step)
        worlds = [World(rank, size) for rank in range(size)]
        assert torch.equal(torch.cat([world.own(rows) for world in worlds]), rows)
        parts = worlds[-1].n_micro_batches(config, len(rows))
        assert 12 // size // parts <= config.batch_size
        assert (12 // size) % parts == 0


def test_a_tensor_group_sees_the_same_rows() -> None:
    rows = torch.arange(8)
    assert [World(rank, 4, tensor=2).own(rows).tolist() for rank in range(4)] == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2


@pytest.mark.parametrize(
    ("words", "size", "says"),
    [
        ([], 2, "parallel.shard=ddp"),
        (["parallel.shard=ddp"], 3, "give a step 3 or 6 rows"),
        (["parallel.shard=full", "parallel.tensor=3"], 4, "tensor=3 does not divide 4"),
        (["parallel.shard=ddp", "parallel.tensor=2"], 4, "full or hybrid"),
        (["parallel.tensor=2"], 2, "tie_embeddings=false"),
        (["parallel.tensor=4", "model.tie_embeddings=false"], 4, "n_kv_heads=2"),
        (["parallel.shard=ddp", "dtype=float16"], 2, "float16"),
        (["parallel.shard=full", "eval_tasks=[piqa]"], 2, "eval_tasks"),
        (["parallel.shard=full", "milestones=true", "parallel.gather_up_to=0"], 2, "milestones"),
        (["parallel.tensor=2", "model.tie_embeddings=false", "sample_interval=5"], 2, "sample_interval"),
        (["parallel.shard=ddp", "fit_minutes=true", "max_minutes=1"], 2, "fit_minutes"),
    ],
)
def test_what_cannot_be_spread_is_refused_by_name(words, size, says, settings) -> None:
    from mini_llm.config import load_config
    from mini_llm.train.config import TrainConfig

    config = load_config(TrainConfig, None, [*settings(), *words])
    with pytest.raises(UsageError) as caught:
        check_spread(config, size, size)
    assert says in str(caught.value)


def test_a_share_is_where_torch_puts_it() -> None:
    """Against torch's own arithmetic, for every process of a grid, with even and uneven cuts."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.distributed.tensor.placement_types import _StridedShard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank in range(8):
        torch.distributed.init_process_group("fake", rank=rank, world_size=8, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", (4, 2))
            for shape in ((16, 8), (15, 6), (3, 2), (8,)):
                places = [(Shard(0), Replicate()), (_StridedShard(0, split_factor=2), Shard(0))]
                places += [(Shard(0), Shard(1))] if len(shape) == 2 else []
                for placements in places:
                    if isinstance(placements[0], _StridedShard) and shape[0] % 8:
                        continue  # torch leaves uneven strided shares out of its own arithmetic
                    size, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
                    whole = torch.zeros(shape)
                    shape_of = {"shape": whole.shape, "stride": whole.stride()}
                    tensor = DTensor.from_local(torch.zeros(size), mesh, placements, run_check=False, **shape_of)
                    box = box_of(tensor)
                    assert box.size == tuple(size), (rank, shape, placements)
                    assert 0 in size or box.offset == tuple(offset), (rank, shape, placements)
        finally:
            torch.distributed.destroy_process_group()


def write_shares(folder, whole: torch.Tensor, cuts: list[int]) -> None:
    from safetensors.torch import save_file

    (folder / "shares").mkdir()
    for rank, (begin, end) in enumerate(pairwise(cuts)):
        places = json.dumps({"a": [begin, 0]})
        save_file({"a": whole[begin:end].clone()}, folder / share_name(rank, len(cuts) - 1), {"places": places})
    index = index_of({"a": Box.whole(tuple(whole.shape))}, len(cuts) - 1)
    (folder / "shares.json").write_text(json.dumps(index), encoding="utf-8")


def test_any_block_is_read_from_shares_of_any_size(tmp_path) -> None:
    whole = torch.arange(70.0).view(10, 7)
    write_shares(tmp_path, whole, [0, 3, 4, 10])
    for near in (0, 2, 9):
        reader = ShareReader(tmp_path, near)
        for begin, height, left, width in ((0, 10, 0, 7), (2, 3, 1, 4), (5, 2, 6, 1), (0, 0, 0, 7), (3, 1, 0, 7)):
            box = Box((10, 7), (begin, left), (height, width))
            assert torch.equal(reader.read("a", box), whole[begin : begin + height, left : left + width])


def test_a_share_that_is_missing_or_damaged_is_named(tmp_path) -> None:
    write_shares(tmp_path, torch.arange(70.0).view(10, 7), [0, 3, 10])
    damaged = tmp_path / share_name(1, 2)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DamagedCheckpoint, match="00001-of-00002"):
        ShareReader(tmp_path).read("a", Box.whole((10, 7)))
    damaged.unlink()
    with pytest.raises(DamagedCheckpoint, match="00001-of-00002"):
        ShareReader(tmp_path).read("a", Box.whole((10, 7)))
    (tmp_path / "shares.json").write_text('{"files": ["../x"], "tensors": {}}', encoding="utf-8")
    with pytest.raises(DamagedCheckpoint, match=r"shares\.json"):
        ShareReader(tmp_path)


def test_computing_blocks_again_changes_no_bit(make_config, tmp_path) -> None:
    from mini_llm.train.train import train

    runs = [
        train(
            make_config(tmp_path / f"{again}", {"dropout": 0.1}, max_iters=3).model_copy(update={"parallel": parallel})
        )
        for again in (False, True)
        if (parallel := make_config().parallel.model_copy(update={"checkpoint_activations": again}))
    ]
    assert len({(run / "latest" / "model.safetensors").read_bytes() for run in runs}) == 1
