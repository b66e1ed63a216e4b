"""What can be spread over how many processes, and as which grid: refused by name before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mini_llm.errors import UsageError
from mini_llm.model.accounting import count_parameters
from mini_llm.train.config import TrainConfig


def make_mesh(config: TrainConfig, device_type: str, size: int, local_size: int) -> DeviceMesh | None:
    """Return the grid of processes: (copies, shares, tensor), of which only what is in use has an axis."""
    shard, tensor = config.parallel.shard, config.parallel.tensor
    data = size // tensor
    axes: dict[str, int] = {}
    if shard == "hybrid":
        axes = {"copies": size // local_size, "shares": local_size // tensor}
    elif shard == "full":
        axes = {"shares": data}
    if tensor > 1:
        axes["tensor"] = tensor
    return init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes)) if axes else None


def check_spread(config: TrainConfig, size: int, local_size: int) -> None:
    """Refuse settings that mean nothing, or would go wrong, with `size` processes, `local_size` of them here.

    Raises:
        UsageError: the first such setting, with one that works.
    """
    parallel, rows = config.parallel, config.rows_per_step
    shard, tensor = parallel.shard, parallel.tensor
    if size % tensor:
        raise UsageError(f"parallel.tensor={tensor} does not divide {size} processes")
    data = size // tensor
    if shard == "none" and data > 1:
        hint = "parallel.shard=ddp (each holds the whole model), or parallel.shard=full (each holds a share of it)"
        raise UsageError(f"{data} processes would each train a model of their own with parallel.shard=none", hint)
    if shard == "ddp" and tensor > 1:
        raise UsageError("parallel.shard=ddp copies whole models: with parallel.tensor it is full or hybrid")
    if shard == "hybrid" and (local_size % tensor or size % local_size):
        raise UsageError(f"parallel.shard=hybrid needs {local_size} processes on every machine, in tensor groups")
    if tensor > 1:
        _check_tensor(config)
    if rows % data:
        good = sorted({max(1, rows // data) * data, -(-rows // data) * data})
        raise UsageError(
            f"a step's {rows} rows (batch_size * gradient_accumulation_steps) cannot be dealt out to {data} processes",
            f"give a step {' or '.join(map(str, good))} rows",
        )
    refused: Sequence[tuple[bool, str]] = (
        (config.device.startswith("cuda:"), "device: each process takes a GPU of its own, so device=cuda"),
        (config.fit_minutes, "fit_minutes: it goes by one process's clock; set max_iters"),
        (config.dtype == "float16", "dtype=float16: its scale would differ between processes; bfloat16 needs none"),
        (shard != "ddp" and bool(config.eval_tasks), "eval_tasks: give them to mini-llm eval afterwards"),
        (config.milestones and keeps_shares(config), "milestones: each process saves a share of the weights"),
    )
    for is_given, what in refused:
        if is_given:
            raise UsageError(f"with {size} processes and parallel.shard={shard}, leave out {what}")


def _check_tensor(config: TrainConfig) -> None:
    tensor, model = config.parallel.tensor, config.model
    for name in ("n_heads", "n_kv_heads", "hidden_dim", "vocab_size"):
        if getattr(model, name) % tensor:
            raise UsageError(f"model.{name}={getattr(model, name)} cannot be shared by parallel.tensor={tensor}")
    if model.tie_embeddings:
        raise UsageError(
            "parallel.tensor needs a head of its own: model.tie_embeddings=false",
            "a model small enough for a tied head needs no tensor parallelism: parallel.shard=full",
        )
    if config.sample_interval is not None:
        raise UsageError("parallel.tensor has no samples: sample_interval=null, and generate from a checkpoint")


def keeps_shares(config: TrainConfig) -> bool:
    """Tell whether checkpoints are written in shares, one a process, because they are too large for one."""
    is_spread = config.parallel.shard in ("full", "hybrid") or config.parallel.tensor > 1
    return is_spread and count_parameters(config.model) > config.parallel.gather_up_to
