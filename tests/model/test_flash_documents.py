"""The GPU's way to attention within documents, with PyTorch's kernel replaced by its meaning: a loop over documents."""

from itertools import pairwise

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor

from mini_llm.model import document_attention, flash_documents

DOCUMENTS = torch.tensor([[0] * 1 + [1] * 63 + [2] * 76 + [3] * 60, [5] * 200, [5] * 120 + [6] * 80])
BEGINS = [0, 1, 64, 140, 200, 400, 520]


def by_document(q: Tensor, k: Tensor, v: Tensor, edges: Tensor) -> Tensor:
    """Return (tokens, H, K) as the kernel does: each part of the line alone, grouped heads as they are."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (q, k, v)), is_causal=True)
        for a, b in pairwise(edges.tolist())
    ]
    return torch.cat(parts, dim=1).transpose(0, 1).contiguous()


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, edges: Tensor) -> list[Tensor]:
    """Return those of `by_document` by hand: autograd does not reach into an operation."""
    groups, J, scale = q.shape[1] // k.shape[1], k.shape[1], q.shape[-1] ** -0.5
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    found: list[list[Tensor]] = [[], [], []]
    for a, b in pairwise(edges.tolist()):
        g_HTK, q_HTK, k_HTK, v_HTK = (x[a:b].transpose(0, 1) for x in (grad, q, k, v))
        hidden_TT = torch.ones(b - a, b - a, dtype=torch.bool).triu(1)
        p_HTT = (q_HTK @ k_HTK.mT * scale).masked_fill(hidden_TT, -torch.inf).softmax(-1)
        p_grad_HTT = g_HTK @ v_HTK.mT
        s_grad_HTT = p_HTT * (p_grad_HTT - (p_grad_HTT * p_HTT).sum(-1, keepdim=True)) * scale
        for parts, part in zip(found, (s_grad_HTT @ k_HTK, s_grad_HTT.mT @ q_HTK, p_HTT.mT @ g_HTK), strict=True):
            parts.append(part.transpose(0, 1))
    q_grad, *others = (torch.cat(parts) for parts in found)
    return [q_grad.contiguous(), *(x.view(len(x), J, groups, -1).sum(2) for x in others)]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let every tensor pass for one on a GPU with the kernel; return the edges that the kernel is given."""
    found: list[Tensor] = []

    def forward(q, k, v, edges, also_edges, longest, _, dropout, is_causal, _debug):  # type: ignore[no-untyped-def]
        assert (edges is also_edges, longest, dropout, is_causal) == (True, 200, 0.0, True)
        found.append(edges.clone())
        lse, state = torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)
        return by_document(q, k, v, edges), lse, state, torch.empty(0), torch.empty(0)

    def backward(grad, q, k, v, _out, lse, edges, *others):  # type: ignore[no-untyped-def]
        assert lse.shape == (q.shape[1], len(q))
        assert others[-2].dtype == torch.uint64
        return gradients(grad, q, k, v, edges)

    monkeypatch.setattr(flash_documents, "_forward", forward)
    monkeypatch.setattr(flash_documents, "_backward", backward)
    monkeypatch.setattr(document_attention, "has_flash", lambda _q, _dtype: True)
    return found


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 200, heads, 16, dtype=dtype).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)]


def test_edges_end_with_each_row() -> None:
    edges, n = flash_documents.document_edges(DOCUMENTS)
    assert (edges[: int(n)].tolist(), n.device.type, edges.dtype) == (BEGINS, "cpu", torch.int32)
    assert edges[int(n) :].unique().tolist() == [600]
    alone, one = flash_documents.document_edges(torch.tensor([[3]]))
    assert (alone.tolist(), int(one)) == ([0, 1], 1)
    every, many = flash_documents.document_edges(torch.arange(5)[None])
    assert (every.tolist(), int(many)) == ([0, 1, 2, 3, 4, 5], 5)


@pytest.mark.parametrize("compiled", [False, True])
def test_equals_the_other_way_with_all_gradients(compiled: bool, calls: list[Tensor]) -> None:
    ours, theirs = inputs(), inputs()
    function = document_attention.document_attention
    function = torch.compile(function, fullgraph=True, backend="inductor") if compiled else function
    found = function(*ours, DOCUMENTS)
    expected = document_attention.attention_by_document(
        theirs[0], *(x.repeat_interleave(2, 1) for x in theirs[1:]), DOCUMENTS
    )[0]
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape)
    for a, b in zip(torch.autograd.grad(found, ours, grad), torch.autograd.grad(expected, theirs, grad), strict=True):
        torch.testing.assert_close(a, b)
    assert [edges.tolist() for edges in calls] == [[*BEGINS, 600]]


def test_all_layers_of_a_compiled_model_share_the_edges() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def look(graph: torch.fx.GraphModule, _inputs: object):  # type: ignore[no-untyped-def]
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def layers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(3):
            q = document_attention.document_attention(q, k, v, DOCUMENTS)
        return q

    from torch._dynamo.backends.common import aot_autograd

    inductors = aot_autograd(fw_compiler=look, partition_fn=min_cut_rematerialization_partition)
    torch.compile(layers, fullgraph=True, backend=inductors)(*inputs()).sum().backward()
    counts = [[str(node.target).count("document_edges.default") for node in graph.graph.nodes] for graph in graphs]
    assert [sum(count) for count in counts] == [1, 0], "forward asks once, backward never"


def test_the_operations_keep_torchs_rules() -> None:
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(flash_documents.document_edges, (DOCUMENTS,), test_utils=tests[:2])
    edges = flash_documents.document_edges(DOCUMENTS)
    torch.library.opcheck(flash_documents.flash_by_document, (*inputs(), *edges), test_utils=tests)


def test_a_cpu_and_float32_have_no_such_kernel() -> None:
    q = torch.zeros(1, 1, 8, 16)
    assert not flash_documents.has_flash(q, torch.bfloat16)
    assert not flash_documents.has_flash(q.to("meta"), torch.float32)
