"""`auto` takes what the machine really has; what it lacks is refused by name."""

import builtins
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mini_llm import device as device_module
from mini_llm.device import (
    DTYPES,
    attention_kernels,
    has_fast_bfloat16,
    memory_gb,
    peak_flops,
    pick_device,
    pick_dtype,
)
from mini_llm.errors import UsageError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `machine(cuda=0, mps=False, capability=(9, 0), cpu={...})`: pretend to be on such a machine."""

    def pretend(cuda: int = 0, mps: bool = False, capability: tuple[int, int] = (9, 0), **cpu: Any) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)

    return pretend


def test_auto_takes_cuda_then_mps_then_the_cpu(machine: Any) -> None:
    machine(cuda=2, mps=True)
    assert pick_device("auto").type == "cuda"
    machine(mps=True)
    assert pick_device("auto").type == "mps"
    machine()
    assert pick_device("auto").type == "cpu"


def test_a_device_can_be_named(machine: Any) -> None:
    machine(cuda=2)
    assert pick_device("cpu") == CPU
    assert pick_device("cuda") == CUDA
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda:2", "mps", "meta", "xpu"])
def test_what_is_not_here_is_refused(name: str, machine: Any) -> None:
    machine(cuda=2)
    with pytest.raises(UsageError, match=f"'{name}' is not available here"):
        pick_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:-1", "cuda:x", "CPU", "../cpu", "cuda:99999999999"])
def test_a_name_that_is_none_is_refused(name: str, machine: Any) -> None:
    machine(cuda=2)
    with pytest.raises(UsageError, match=f"device '{name}' is not"):
        pick_device(name)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9B45"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),  # half as fast as float32 there
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),  # Arm
    ],
)
def test_auto_on_a_cpu_asks_for_its_instructions(cpu: dict[str, Any], expected: torch.dtype, machine: Any) -> None:
    machine(**cpu)
    assert pick_dtype("auto", CPU) == expected
    assert has_fast_bfloat16(CPU) is (expected == torch.bfloat16)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_on_a_gpu_asks_for_its_generation(
    capability: tuple[int, int], expected: torch.dtype, machine: Any
) -> None:
    machine(cuda=1, capability=capability)
    assert pick_dtype("auto", CUDA) == expected


def test_auto_elsewhere_is_float32(machine: Any) -> None:
    machine(mps=True)
    assert pick_dtype("auto", torch.device("mps")) == torch.float32


def test_a_torch_that_cannot_tell_gets_float32(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert pick_dtype("auto", CPU) == torch.float32


def test_a_precision_can_be_named() -> None:
    for name, dtype in DTYPES.items():
        assert pick_dtype(name, CPU) == dtype
    for name in ("float64", "bf16", ""):
        with pytest.raises(UsageError, match=f"dtype '{name}' is not one of auto, float32, bfloat16, float16, or int8"):
            pick_dtype(name, CPU)


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA L4", 121e12),
        ("T1000", None),
    ],
)
def test_peaks_of_gpus(card: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert peak_flops(CUDA, torch.bfloat16) == peak
    assert peak_flops(CUDA, torch.float32) is None


def test_the_peak_of_this_cpu_is_measured() -> None:
    peak = peak_flops(CPU, torch.float32)
    assert peak is not None
    assert 1e8 < peak < 1e14
    assert peak_flops(torch.device("mps"), torch.float32) is None


def test_memory_is_what_the_process_took_at_most() -> None:
    before = memory_gb(CPU)
    block = torch.ones(50_000_000)  # 0.2 GB
    assert memory_gb(CPU) >= before
    assert memory_gb(CPU) > block.numel() * 4 / 1e9


def test_without_the_resource_module_memory_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **more: Any) -> Any:
        if name == "resource":
            raise ImportError
        return real(name, *args, **more)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delitem(sys.modules, "resource", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert device_module.memory_gb(CPU) == 0.0


def test_cudnns_attention_comes_first_on_hopper_alone_and_never_where_bits_must_repeat(machine: Any) -> None:
    def order(device: torch.device, deterministic: bool) -> int:
        with attention_kernels(device, deterministic=deterministic):
            return torch._C._get_sdp_priority_order()[0]

    usual = torch._C._get_sdp_priority_order()[0]
    cudnn = int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value)
    machine(cuda=1, capability=(9, 0))
    assert order(CUDA, False) == cudnn != usual
    assert order(CUDA, True) == usual
    assert order(CPU, False) == usual
    machine(cuda=1, capability=(8, 0))
    assert order(CUDA, False) == usual
    assert torch._C._get_sdp_priority_order()[0] == usual


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """In a process of its own, because it cannot be undone: a freed block of 80 MB gives 64 MB without a page fault."""
    program = """
import resource, torch
from mini_llm.device import reuse_freed_memory
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(n).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(20_000_000)
without = faults(16_000_000)
kept = reuse_freed_memory()
faults(20_000_000)
print(int(kept), without, faults(16_000_000))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    kept, without, now = map(int, result.stdout.split())
    assert kept
    assert now < 100 < without


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP's threads, counted by Linux")
def test_a_thread_that_rests_keeps_no_others() -> None:
    code = """
import os, threading
import torch
from mini_llm.device import passing_threads
n_threads, loaded, seen = lambda: len(os.listdir("/proc/self/task")), threading.Event(), threading.Event()
def load():
    with passing_threads():
        torch.ones(300, 300) @ torch.ones(300, 300)
        torch.ones(10**6).exp()
        print(n_threads() - before, end=" ")
    loaded.set()
    seen.wait()
torch.ones(10**6).exp()
before = n_threads()
thread = threading.Thread(target=load)
thread.start()
loaded.wait()
print(n_threads() - before)
seen.set()
thread.join()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    most, left = map(int, result.stdout.split())
    assert most > left == 1


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let MKL count as slow; give PyTorch's setting back afterwards."""
    setting = torch.backends.mkldnn.matmul
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    before, setting.fp32_precision = setting.fp32_precision, "none"
    monkeypatch.setattr(device_module, "mkl_is_slow", lambda: True)
    yield setting
    setting.fp32_precision = before


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 130, 5), (64, 384, 1536), (512, 1536, 384), (128, 64, 8192)])
def test_fast_products_are_float32_in_every_form(libraries: Any, m: int, k: int, n: int) -> None:
    """Forward, both halves of backward, sums and batches: within float32's digits of float64's."""
    device_module.use_fast_products()
    x, w, g = (torch.randn(2, *size, generator=torch.Generator().manual_seed(0)) for size in ((m, k), (n, k), (m, n)))
    sums, room = torch.randn(n, k), torch.empty(m, n)
    pairs = [
        (torch.nn.functional.linear(x, w[0]), x.double() @ w[0].double().T),
        (torch.mm(x[0], w[0].T, out=room), x[0].double() @ w[0].double().T),
        (g[0] @ w[0], g[0].double() @ w[0].double()),
        (g[0].T @ x[0], g[0].double().T @ x[0].double()),
        (sums.clone().addmm_(g[0].T, x[0]), sums.double() + g[0].double().T @ x[0].double()),
        (torch.bmm(x, w.mT), x.double() @ w.double().mT),
        (torch.baddbmm(g, x, w.mT, beta=-3, alpha=2), -3 * g.double() + 2 * x.double() @ w.double().mT),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * max(m, k, n) ** 0.5)


def test_products_that_would_round_are_given_up(libraries: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__

    def rounds(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a.bfloat16().float() if a.dtype == torch.float32 else a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounds)
    assert not device_module.use_fast_products()
    assert libraries.fp32_precision == "none"


def test_a_users_choice_of_products_stays(libraries: Any) -> None:
    libraries.fp32_precision = "ieee"
    assert not device_module.use_fast_products()
    assert libraries.fp32_precision == "ieee"
