"""The loss head in one kernel: Triton's interpreter runs it here, against the steps and float64; a GPU in tests/gpu."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from mini_llm.train import head_loss as head

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton, which comes with torch's CUDA build, is not installed"
)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sys.modules.pop("mini_llm.train.head_kernel", None)
    yield importlib.import_module("mini_llm.train.head_kernel")
    sys.modules.pop("mini_llm.train.head_kernel", None)


@pytest.fixture(autouse=True)
def forget_what_was_tried() -> Iterator[None]:
    head._tried_kernel.cache_clear()
    yield
    head._tried_kernel.cache_clear()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 130, 4097])
def test_one_kernel_gives_what_the_steps_give(dtype: torch.dtype, size: int, kernel: ModuleType) -> None:
    random = torch.Generator().manual_seed(0)
    scores = (torch.randn(5, size, generator=random) * 8).to(dtype)
    scores[0] = -3e4  # all alike and far below
    scores[1, size // 2] = 9e4  # all that counts
    targets = torch.randint(size, (5, 1), generator=random)
    exact = scores.double()
    losses, gradient = kernel.scores_to_gradient(found := scores.clone(), targets)
    assert gradient.data_ptr() == found.data_ptr(), "in place"
    in_steps, gradient_in_steps = head._steps(room := scores.clone())(room, targets)
    torch.testing.assert_close(losses, in_steps[:, 0], rtol=1e-6, atol=4e-3)  # a last bit of 3e4
    torch.testing.assert_close(gradient, gradient_in_steps, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)
    one_hot = torch.zeros_like(exact).scatter_(1, targets, 1)
    torch.testing.assert_close(losses.double(), -exact.log_softmax(-1).gather(1, targets)[:, 0], rtol=1e-6, atol=1e-5)
    far = 8e-3 if dtype == torch.bfloat16 else 1e-5  # the interpreter cuts bits off instead of rounding
    torch.testing.assert_close(gradient.double(), exact.softmax(-1) - one_hot, rtol=far, atol=1e-7)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_takes_it_chunk_by_chunk(
    dtype: torch.dtype, kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 8 * 4 * 130})  # 8 rows of 21: the last chunk is short
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(21, 16, generator=random), torch.randn(130, 16, generator=random)
    targets = torch.randint(130, (21,), generator=random)
    in_steps = head.head_loss(x, weight, targets, dtype)
    monkeypatch.setattr(head, "IN_ONE_KERNEL", {"cpu"})
    calls = []
    row = kernel.scores_to_gradient
    monkeypatch.setattr(kernel, "scores_to_gradient", lambda *given: calls.append(len(given[0])) or row(*given))
    in_one = head.head_loss(x, weight, targets, dtype)
    assert calls == [1, 8, 8, 5], "tried once, then each chunk"
    for a, b in zip(in_one, in_steps, strict=True):
        assert (a - b).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-6) * b.norm()


def test_without_it_the_steps_do_the_work_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mini_llm.train.head_kernel", None)  # its import fails, as where triton is missing
    x, weight, targets = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6,))
    expected = head.head_loss(x, weight, targets, torch.float32)
    monkeypatch.setattr(head, "IN_ONE_KERNEL", {"cpu"})
    for _ in range(2):
        found = head.head_loss(x, weight, targets, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert capsys.readouterr().err.count("kernel does not work here") == 1
