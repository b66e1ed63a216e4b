"""The machines to plan for: memory and speed, from data sheets or from this machine itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mini_llm.device import DTYPES, GPU_PEAKS, has_fast_bfloat16, peak_flops
from mini_llm.memory import cpu_memory

# Bytes that a GPU's maker names; the driver and CUDA's context take about half a gigabyte of them.
GPUS_A_MACHINE = 8  # within which `parallel.shard=hybrid` shares
GPU_MEMORY = {"h100": 80e9, "h200": 141e9, "a100": 80e9, "4090": 24e9, "3070": 8e9}

# Share of the peak that published runs reach: 38 to 48 % on H100, 50 to 58 % on A100 (docs/scaling.md).
USUAL_MFU = {"A100": 0.5}
USUAL_MFU_ELSEWHERE = 0.4


@dataclass(frozen=True)
class Machine:
    """One device. `memory` in bytes, `peak` in FLOP/s of matrix products; None where nobody knows."""

    name: str
    memory: float | None
    peak: float | None
    is_cpu: bool


def data_sheet(gpu: str) -> Machine:
    """Return a GPU of `GPU_MEMORY`, with its dense bfloat16 peak."""
    return Machine(gpu.upper(), GPU_MEMORY[gpu], GPU_PEAKS[gpu.upper()], is_cpu=False)


def this_cpu(dtype: torch.dtype) -> Machine:
    """Return this machine's processor: its memory, and the speed that its matrix products reach now."""
    return Machine("this machine's CPU", cpu_memory(), peak_flops(torch.device("cpu"), dtype), is_cpu=True)


def this_gpu() -> Machine:
    """Return this machine's CUDA GPU."""
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    return Machine(properties.name, properties.total_memory, peak_flops(device, torch.bfloat16), is_cpu=False)


def compute_dtype(name: str, *, is_cpu: bool) -> torch.dtype:
    """Return the type of matrix products for the config's `dtype` on the planned device, which may not be here."""
    if name != "auto":
        return DTYPES[name]
    has_it = has_fast_bfloat16(torch.device("cpu")) if is_cpu else True  # every planned GPU is Ampere or newer
    return torch.bfloat16 if has_it else torch.float32


def usual_mfu(machine: Machine) -> float:
    """Return the share of its peak that training usually reaches on such a machine."""
    return next((mfu for name, mfu in USUAL_MFU.items() if name in machine.name), USUAL_MFU_ELSEWHERE)
