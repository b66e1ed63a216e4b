"""Attention in blocks equals float64's softmax(q k^T) v, PyTorch's kernel, and its gradients, for any row length."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model import causal_attention as module
from mini_llm.model.causal_attention import attention_in_blocks, causal_attention
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer


@pytest.fixture(autouse=True, params=[64, 128])
def short_rows_too(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows of a test's length take the blocks, in each machine's form."""
    monkeypatch.setattr(module, "blocks", lambda: module.Blocks(request.param, 65, 1024, 512))


def inputs(T: int, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    """Queries, keys, values and a gradient, laid out as projections leave them: tokens before heads."""
    torch.manual_seed(T)
    return [torch.randn(2, T, n, 16).transpose(1, 2) for n in (heads, kv_heads, kv_heads, heads)]


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


def result_and_gradients(function, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("T", [65, 128, 200])
def test_equals_the_definition_in_float64(T: int, kv_heads: int) -> None:
    *qkv, grad = inputs(T, kv_heads=kv_heads)
    assert module.in_blocks(qkv[0], torch.float32)
    exact = result_and_gradients(by_definition, [t.double() for t in qkv], grad)
    for ours, expected in zip(result_and_gradients(causal_attention, qkv, grad), exact, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_is_as_exact_as_pytorchs_kernel_in_bfloat16() -> None:
    *qkv, grad = [t.bfloat16() for t in inputs(256, kv_heads=4)]
    exact = result_and_gradients(by_definition, [t.double() for t in qkv], grad)
    blocks = result_and_gradients(causal_attention, qkv, grad)
    fused = result_and_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), qkv, grad)
    for ours, theirs, expected in zip(blocks, fused, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        error, their_error = ((x.double() - expected).norm() / expected.norm() for x in (ours, theirs))
        assert error <= max(2 * their_error, 0.01)


def test_the_operation_keeps_torchs_rules() -> None:
    *qkv, _ = inputs(70, kv_heads=4)
    qkv = [t.clone().requires_grad_() for t in qkv]
    torch.library.opcheck(attention_in_blocks, tuple(qkv), test_utils=("test_schema", "test_faketensor"))


def test_short_rows_long_rows_and_no_gradient_take_pytorchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def takes_blocks(T: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> bool:
        return module.in_blocks(torch.empty(1, 1, T, 8, device=device), dtype)

    monkeypatch.setattr(module, "_form", None)
    monkeypatch.setattr(module, "mkl_is_slow", lambda: True)
    lengths = (32, 64, 1024, 1025)
    assert [takes_blocks(T) for T in lengths] == [False, True, True, False]
    assert [takes_blocks(T, torch.bfloat16) for T in lengths] == [False, True, True, False]
    monkeypatch.setattr(module, "_form", None)
    monkeypatch.setattr(module, "mkl_is_slow", lambda: False)
    lengths = (256, 384, 512, 1024, 1025)
    assert [takes_blocks(T) for T in lengths] == [False, True, True, True, False]
    assert [takes_blocks(T, torch.bfloat16) for T in lengths] == [False, True, True, False, False]
    assert not takes_blocks(512, device="meta")
    with torch.no_grad():
        assert not takes_blocks(512)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_models_loss_and_gradients_equal_the_other_paths(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=100, qk_norm=True))
    model.init_weights(1)
    ids = torch.randint(0, 100, (2, 100))

    def loss(blocks: bool) -> tuple[float, Tensor]:
        monkeypatch.setattr(module, "in_blocks", lambda *_, blocks=blocks: blocks)
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(ids)
        value = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        value.backward()
        return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (ours, grad), (theirs, expected) = loss(True), loss(False)
    assert ours == pytest.approx(theirs, rel=tolerance / 10)
    assert (grad - expected).norm() <= tolerance * expected.norm()
