"""Attention within documents equals float64's masked softmax, result and gradients, in each machine's form."""

import math

import pytest
import torch
from torch import Tensor

from mini_llm.model import causal_attention, document_attention

FORMS = {"documents": causal_attention.USUAL, "blocks": causal_attention.WITH_ONEDNN}
DOCUMENTS = torch.tensor([[0] * 1 + [1] * 63 + [2] * 76 + [3] * 60, [5] * 200])


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for module in (causal_attention, document_attention):
        monkeypatch.setattr(module, "blocks", lambda: FORMS[request.param])
    return str(request.param)


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 200, heads, 16, dtype=dtype).transpose(1, 2) for heads in (4, 2, 2, 4)]


def by_definition(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~document_attention.document_mask(documents), -math.inf).softmax(-1) @ v


def result_and_gradients(function, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves, DOCUMENTS)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_equals_the_definition_in_float64(form: str, dtype: torch.dtype, tolerance: float) -> None:
    *qkv, grad = inputs(dtype)
    assert causal_attention.in_blocks(qkv[0], dtype) is (form == "blocks")
    exact = result_and_gradients(by_definition, [t.double() for t in qkv], grad)
    found = result_and_gradients(document_attention.document_attention, qkv, grad)
    for ours, expected in zip(found, exact, strict=True):
        assert (ours.double() - expected).norm() <= tolerance * expected.norm()


def test_another_document_changes_no_bit(form: str) -> None:
    q, k, v, _ = inputs()
    before = document_attention.document_attention(q.requires_grad_(), k, v, DOCUMENTS)
    for x in (k, v):
        x[0, :, 140:] = 1e6
    after = document_attention.document_attention(q, k, v, DOCUMENTS)
    assert torch.equal(before[0, :, :140], after[0, :, :140])
    assert not torch.equal(before[0, :, 140:], after[0, :, 140:])


def test_the_operation_in_blocks_keeps_torchs_rules(form: str) -> None:
    q, k, v, _ = inputs()
    qkv = [x.repeat_interleave(4 // x.shape[1], 1).clone().requires_grad_() for x in (q, k, v)]
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(causal_attention.attention_in_blocks, (*qkv, DOCUMENTS), test_utils=utilities)
