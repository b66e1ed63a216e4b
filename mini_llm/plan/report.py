"""The plan of a run: what it needs in memory, operations, hours and money, and what to change when it is too big."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mini_llm.errors import UsageError
from mini_llm.model.accounting import (
    chinchilla_loss,
    compute_optimal_tokens,
    count_parameters,
    flops_per_token,
    kv_cache_bytes_per_token,
)
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.plan.machines import (
    GPU_MEMORY,
    GPUS_A_MACHINE,
    Machine,
    compute_dtype,
    data_sheet,
    this_cpu,
    this_gpu,
    usual_mfu,
)
from mini_llm.plan.memory import Memory, Scenario, predict_memory
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.out_of_memory import describe_batch, halve_batch

SMALLEST_OF_LAW = 40_000_000  # parameters; the law of the loss is fitted to models from 44 million on
USABLE = 0.92  # of a device's memory; the driver, libraries and fragments take the rest


@dataclass(frozen=True)
class Schedule:
    """How long and for how much money; what depends on something unknown is None."""

    tokens: int
    flops: float
    loss: float | None
    tokens_per_second: float | None  # of one device
    hours: float | None
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """All that `mini-llm plan` shows."""

    config: TrainConfig
    machine: Machine
    gpus: int
    mfu: float
    dtype: torch.dtype
    parameters: int
    flops_per_token: int
    memory: dict[str, Memory]  # scenario: bytes
    own_tokens: int  # what the config's max_iters steps see
    optimal_tokens: int
    schedule: Schedule
    kv_bytes_per_token: int
    advice: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as what JSON can hold."""
        model = self.config.model
        return {
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "machine": {**asdict(self.machine), "gpus": self.gpus, "mfu": self.mfu},
            "dtype": str(self.dtype).removeprefix("torch."),
            "memory_bytes": {name: memory.as_dict() for name, memory in self.memory.items()},
            "fits": {name: fits(memory, self.machine) for name, memory in self.memory.items()},
            "tokens": {
                "config": self.own_tokens,
                "compute_optimal": self.optimal_tokens,
                "planned": self.schedule.tokens,
            },
            "flops": self.schedule.flops,
            "tokens_per_second_per_device": self.schedule.tokens_per_second,
            "hours": self.schedule.hours,
            "cost": self.schedule.cost,
            "expected_loss": {"first": math.log(model.vocab_size), "last": self.schedule.loss},
            "kv_cache_bytes": {
                "per_token": self.kv_bytes_per_token,
                "full_context": self.kv_bytes_per_token * model.max_seq_len,
            },
            "advice": self.advice,
        }


def make_plan(
    config: TrainConfig,
    *,
    gpu: str | None = None,
    gpus: int = 1,
    mfu: float | None = None,
    price: float | None = None,
    tokens: int | None = None,
) -> Plan:
    """Return the plan of `config` on `gpus` devices, at `price` an hour each.

    Args:
        config: the run; its batch is that of all devices together.
        gpu: h100, h200, a100, 4090, 3070 or cpu; None is what this machine has.
        gpus: devices that share the work.
        mfu: share of the device's peak that the training reaches ("model FLOPs utilisation", arXiv 2204.02311); None is
            what published runs reach.
        price: money for one device and hour.
        tokens: how many to train on; None is 20 for each parameter.

    Raises:
        UsageError: several CPUs.
    """
    is_cpu = gpu == "cpu" or (gpu is None and (config.device == "cpu" or not torch.cuda.is_available()))
    if is_cpu and gpus > 1:
        raise UsageError(f"--gpus {gpus} needs a GPU to multiply", f"name one: --gpu {' or '.join(GPU_MEMORY)}")
    dtype = compute_dtype(config.dtype, is_cpu=is_cpu)
    machine = this_cpu(dtype) if is_cpu else data_sheet(gpu) if gpu else this_gpu()
    mfu = mfu or usual_mfu(machine)
    parameters = check_parameters(config.model)
    scenarios = [Scenario("as configured"), Scenario("+ checkpointing", checkpointing=True)]
    if gpus > 1:
        sharers = min(gpus, GPUS_A_MACHINE) if config.parallel.shard == "hybrid" else gpus
        scenarios += [
            Scenario(f"+ sharding over {sharers}", shards=sharers, tensor=config.parallel.tensor),
            Scenario("+ both", shards=sharers, checkpointing=True, tensor=config.parallel.tensor),
        ]
    tensor = config.parallel.tensor
    accumulation = max(1, config.gradient_accumulation_steps * tensor // gpus)  # of one device
    alone = config.model_copy(update={"gradient_accumulation_steps": accumulation})
    memory = {s.name: predict_memory(alone, dtype, s, on_cpu=is_cpu, room=machine.memory) for s in scenarios}
    smaller = fitting_batch(alone, dtype, machine) if config.auto_batch else None
    if smaller is not None:
        batch = Scenario("with auto_batch")
        memory[batch.name] = predict_memory(smaller, dtype, batch, on_cpu=is_cpu, room=machine.memory)
    planned = tokens or compute_optimal_tokens(config.model)
    flops = float(flops_per_token(config.model, config.block_size)) * planned
    peak = machine.peak if dtype != torch.float32 or is_cpu else None  # data sheets are about 16 bits
    speed = peak * mfu / flops_per_token(config.model, config.block_size) if peak else None
    hours = planned / (speed * gpus) / 3600 if speed else None
    return Plan(
        config=config,
        machine=machine,
        gpus=gpus,
        mfu=mfu,
        dtype=dtype,
        parameters=parameters,
        flops_per_token=flops_per_token(config.model, config.block_size),
        memory=memory,
        own_tokens=config.tokens_per_step * config.max_iters,
        optimal_tokens=compute_optimal_tokens(config.model),
        schedule=Schedule(
            planned,
            flops,
            chinchilla_loss(parameters, planned) if parameters >= SMALLEST_OF_LAW else None,
            speed,
            hours,
            hours * gpus * price if hours is not None and price is not None else None,
        ),
        kv_bytes_per_token=kv_cache_bytes_per_token(config.model, dtype.itemsize),
        advice=advise(config, dtype, machine, memory),
    )


def check_parameters(model: ModelConfig) -> int:
    """Return the number of parameters, counted on the model itself, which is built without memory ("meta" device)."""
    with torch.device("meta"):
        counted = sum(p.numel() for p in Transformer(model).parameters())
    assert counted == count_parameters(model), f"formula {count_parameters(model):,}, model {counted:,}"
    return counted


def fits(memory: Memory, machine: Machine) -> bool | None:
    """Tell whether the peak fits; None where the machine's memory is unknown."""
    return None if machine.memory is None else memory.peak <= USABLE * machine.memory


def as_asked(config: TrainConfig, memory: dict[str, Memory]) -> Memory:
    """Return the memory of the scenario that the config's own `parallel:` describes, on the planned GPUs."""
    saves = config.parallel.checkpoint_activations
    shares = next((name for name in memory if name.startswith("+ sharding")), None)
    if config.parallel.shard in ("full", "hybrid") and shares:
        return memory["+ both" if saves else shares]
    return memory["+ checkpointing" if saves else "as configured"]


def advise(config: TrainConfig, dtype: torch.dtype, machine: Machine, memory: dict[str, Memory]) -> list[str]:
    """Return what to change, most harmless first; empty when the run fits as it is."""
    if fits(as_asked(config, memory), machine) is not False:
        return []
    advice = []
    if config.auto_batch and (smaller := fitting_batch(config, dtype, machine)) is not None:
        return [f"{describe_batch(smaller)}  (auto_batch does so by itself)"]
    rows, accumulation = config.batch_size, config.gradient_accumulation_steps
    while rows > 1:
        rows, accumulation = (rows + 1) // 2, accumulation * 2
        if works(config, dtype, machine, batch_size=rows, gradient_accumulation_steps=accumulation):
            return [f"batch_size={rows} gradient_accumulation_steps={accumulation}  (the same step, less at once)"]
    one = {"batch_size": 1, "gradient_accumulation_steps": config.rows_per_step}
    if config.batch_size > 1:
        advice.append(f"batch_size=1 gradient_accumulation_steps={config.rows_per_step}  (needed, but not enough)")
    if config.optimizer == "adamw" and works(config, dtype, machine, **one, optimizer="muon"):
        return [*advice, "optimizer=muon  (one number of state for each weight instead of two)"]
    block = config.block_size
    while block > 512:
        block //= 2
        if works(config, dtype, machine, **one, block_size=block):
            return [*advice, f"block_size={block}  (shorter rows)"]
    shards = 2
    alone = config.model_copy(update=one)
    while shards <= 2**16 and not machine.is_cpu:
        scenario = Scenario("", shards=shards, checkpointing=True)
        if fits(predict_memory(alone, dtype, scenario, on_cpu=machine.is_cpu, room=machine.memory), machine):
            return [
                *advice,
                f"--gpus {shards}  (torchrun, parallel.shard=full parallel.checkpoint_activations=true)",
            ]
        shards *= 2
    return [*advice, "a smaller model: see the other files of configs/, or set model.n_layers and model.dim"]


def works(config: TrainConfig, dtype: torch.dtype, machine: Machine, **changes: Any) -> bool:
    """Tell whether the run fits on one device after `changes`."""
    changed = config.model_copy(update=changes)
    memory = predict_memory(changed, dtype, Scenario("as configured"), on_cpu=machine.is_cpu, room=machine.memory)
    return bool(fits(memory, machine))


def fitting_batch(config: TrainConfig, dtype: torch.dtype, machine: Machine) -> TrainConfig | None:
    """Return the settings that `auto_batch` ends with; None where the run fits as it is, or no batch does."""
    smaller: TrainConfig | None = config
    if machine.memory is None or works(config, dtype, machine):
        return None
    while smaller is not None and not works(smaller, dtype, machine):
        smaller = halve_batch(smaller)
    return smaller
