"""Where to compute and in which precision: `auto` looks at what the machine really has."""

import contextlib
import ctypes
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mini_llm.errors import UsageError
from mini_llm.memory import address_space

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; auto takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device '{name}' is not one of auto, cpu, cuda, cuda:N, mps") from None
    found = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not found.get(device.type, False):
        raise UsageError(f"device '{name}' is not available here", "use device auto or cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of matrix products; `auto` is bfloat16 only where the hardware is faster in it.

    Most CPUs and GPUs before Ampere are slower in it than in float32; those GPUs get float16 instead.

    Raises:
        UsageError: an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UsageError(f"dtype '{name}' is not one of auto, {', '.join(DTYPES)}, or int8 (to write text only)")
        return DTYPES[name]
    if has_fast_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether `device` multiplies matrices faster in bfloat16 than in float32.

    Of Intel's processors those with AMX do. Their AVX512-BF16 alone has half the speed of float32 (measured: 165
    against 320 GFLOP/s on two cores of a Sapphire Rapids whose AMX the hypervisor hides).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        is_intel = "intel" in str(features.get("cpu_name", "")).lower()
        return bool(features.get("amx_bf16") or features.get("bf16") or (features.get("avx512_bf16") and not is_intel))
    return False


# Dense tensor-core peaks from the makers' data sheets, FLOP/s in bfloat16 or float16; the first name that fits counts.
GPU_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "3090": 71e12,
    "3070": 40.6e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s that MFU is a share of: a GPU's data sheet, or what a CPU's matrix products reach right now.

    None where neither is known (MPS, other GPUs, float32 on a GPU).
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        return next((peak for key, peak in GPU_PEAKS.items() if re.search(rf"\b{key}\b", name)), None)
    if device.type != "cpu":
        return None
    # The small ones first: a processor without float16 takes 4 s for one large product, and its figure is no other.
    small = _products_per_second(256, dtype)
    return small if small < 5e9 else max(small, _products_per_second(1024, dtype))


def _products_per_second(n: int, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of six products of (n, n) matrices on the CPU."""
    a, seconds = torch.randn(n, n).to(dtype), []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def attention_kernels(device: torch.device, *, deterministic: bool) -> AbstractContextManager[None]:
    """Return the context in which PyTorch tries cuDNN's attention first, on Hopper; elsewhere one that does nothing.

    Nor where the bits must repeat: cuDNN's backward adds in no fixed order.
    """
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    if deterministic or not is_hopper:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def reuse_freed_memory() -> bool:
    """Let glibc keep the large blocks that a step frees for the next step; tell whether it does so here.

    By default it hands every block above 32 MB back to the system at once, and the next step gets it anew, page by
    page, each filled with zeros: 65,000 page faults for the scores of 2,048 tokens among 32,000.

    Not where the address space is limited (ulimit -v): a block that is kept has small things behind it, and nobody else
    finds room there. After one attempt too large, even one row was (oneDNN has programs to make). There every block
    above 128 KB goes back.
    """
    libc = _glibc()
    if libc is None:
        return False
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # malloc.h
    if address_space() is not None:
        libc.mallopt(m_mmap_threshold, 2**17)  # its default, but it would follow what is freed, up to 32 MB
        return False
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1))


def give_back_freed_memory() -> None:
    """Let glibc hand the system what `reuse_freed_memory` has kept, before an attempt that needs less."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is GNU's, whose allocator can be told what to keep; else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


@contextlib.contextmanager
def passing_threads() -> Iterator[None]:
    """Let GNU OpenMP end the threads that have computed for this one meanwhile, for this one stays and rests.

    Where it keeps more threads than there are cores, those of everybody wait for each other asleep instead of awake:
    beside the resting threads that had loaded the weights, a step of a millisecond took 3.6 (docs/LOG.md).
    """
    try:
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError):  # another system or OpenMP, or one of before 2019
            ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).omp_pause_resource_all(1)


def use_fast_products() -> bool:
    """Let oneDNN compute the CPU's float32 matrix products where MKL is slow; tell whether it does.

    On AMD's processors MKL uses half of an AVX-512 register: 210 GFLOP/s on two cores of a Zen 5, oneDNN 450. On Zen 3,
    without such registers, MKL is 4 to 11 % faster. PyTorch asks oneDNN only with leave to round to bfloat16; oneDNN
    takes it on AMX alone, and one product shows that it does not here.
    """
    products: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not mkl_is_slow() or getattr(products, "fp32_precision", None) not in ("none", "bf16"):  # the user's choice
        return False
    before, products.fp32_precision = products.fp32_precision, "bf16"
    x = torch.linspace(1, 2, 128 * 128).view(128, 128)
    if torch.allclose((x @ x).double(), x.double() @ x.double(), rtol=1e-5):  # bfloat16 errs by 1e-3
        return True
    products.fp32_precision = before
    return False


def mkl_is_slow() -> bool:
    """Tell whether this is an AMD processor with AVX-512."""
    is_amd = "amd" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
    return is_amd and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def forget_peak_memory(device: torch.device) -> None:
    """Let `memory_gb` count from what is used now; without effect on MPS and on systems other than Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # another system; not permitted in some containers
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_gb(device: torch.device) -> float:
    """Return the most memory used so far, in GB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    if sys.platform == "linux":  # getrusage would count what the process that started this one had taken
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
