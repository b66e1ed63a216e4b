"""Attention within documents: rows hold several texts one after the other, and none of them sees another.

On a CPU each document goes through PyTorch's causal kernel alone, so that packing makes attention cheaper: the work is
the sum of the squares, not the square of the sum. Where blocks of products are much faster than that kernel, they take
all of a row and hide the others. A GPU has a kernel that does the same (flash_documents.py); elsewhere a mask says who
is seen. Positions run on through the row, because RoPE looks at distances only.
Letters: B batch, T tokens, H query heads, J key/value heads, K head width.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.model.causal_attention import attention_in_blocks, blocks, in_blocks
from mini_llm.model.flash_documents import document_edges, flash_by_document, has_flash

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def document_attention(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, documents_BT: Tensor) -> Tensor:
    """Return (B, H, T, K): each token's mean of the values of its own document up to its own.

    `documents_BT` holds a number for each token; tokens of one document lie together and have the same.
    """
    H, J = q_BHTK.shape[1], k_BJTK.shape[1]
    dtype = v_BJTK.dtype  # autocast's, where q and k became float32 again in RoPE
    if has_flash(q_BHTK, dtype):
        return flash_by_document(q_BHTK.to(dtype), k_BJTK.to(dtype), v_BJTK, *document_edges(documents_BT))[0]
    if q_BHTK.device.type != "cpu":
        mask_B1TT = document_mask(documents_BT)
        return F.scaled_dot_product_attention(
            q_BHTK.to(dtype), k_BJTK.to(dtype), v_BJTK, attn_mask=mask_B1TT, enable_gqa=H != J
        )
    if H != J:
        k_BJTK, v_BJTK = k_BJTK.repeat_interleave(H // J, dim=1), v_BJTK.repeat_interleave(H // J, dim=1)
    q_BHTK, k_BHTK = q_BHTK.to(dtype), k_BJTK.to(dtype)
    if blocks().documents and in_blocks(q_BHTK, dtype):
        return attention_in_blocks(q_BHTK, k_BHTK, v_BJTK, documents_BT)[0]
    return attention_by_document(q_BHTK, k_BHTK, v_BJTK, documents_BT)[0]


def document_mask(documents_BT: Tensor) -> Tensor:
    """Return who sees whom, (B, 1, T, T) of bool: the definition."""
    T = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return (same_BTT & torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril())[:, None]


@torch.library.custom_op("mini_llm::attention_by_document", mutates_args=())
def attention_by_document(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Return attention's result (B, H, T, K) and log sum exp of its scores (B, H, T), document after document.

    An operation of its own: torch.compile could not look into a loop whose length depends on the text.
    """
    out_BHTK = torch.empty(q_BHTK.shape, dtype=q_BHTK.dtype)
    lse_BHT = torch.empty(q_BHTK.shape[:3], dtype=torch.float32)
    for part in _documents(documents_BT):
        out_BHTK[part], lse_BHT[part] = _forward(q_BHTK[part], k_BHTK[part], v_BHTK[part], 0.0, True)
    return out_BHTK, lse_BHT


@torch.library.custom_op("mini_llm::attention_by_document_backward", mutates_args=())
def attention_by_document_backward(
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    documents_BT: Tensor,
    out_BHTK: Tensor,
    lse_BHT: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by q, k and v."""
    q_grad, k_grad, v_grad = (torch.empty(x.shape, dtype=x.dtype) for x in (q_BHTK, k_BHTK, v_BHTK))
    for part in _documents(documents_BT):
        inputs = (x[part] for x in (grad_BHTK, q_BHTK, k_BHTK, v_BHTK, out_BHTK, lse_BHT))
        q_grad[part], k_grad[part], v_grad[part] = _backward(*inputs, 0.0, True)
    return q_grad, k_grad, v_grad


def _documents(documents_BT: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the place (B, H, T) of each document."""
    T = documents_BT.shape[1]
    for row, numbers_T in enumerate(documents_BT):
        starts = (numbers_T[1:] != numbers_T[:-1]).nonzero().flatten() + 1
        edges = [0, *starts.tolist(), T]
        for start, end in pairwise(edges):
            yield slice(row, row + 1), slice(None), slice(start, end)


@attention_by_document.register_fake
def _(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    lse_BHT = q_BHTK.new_empty(q_BHTK.shape[:3], dtype=torch.float32)
    return q_BHTK.new_empty(q_BHTK.shape), lse_BHT


@attention_by_document_backward.register_fake
def _(_grad: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q_BHTK.new_empty(q_BHTK.shape), k_BHTK.new_empty(k_BHTK.shape), v_BHTK.new_empty(v_BHTK.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output)


def _autograd(ctx, grad_BHTK, _lse):  # type: ignore[no-untyped-def]
    return *attention_by_document_backward(grad_BHTK, *ctx.saved_tensors), None


attention_by_document.register_autograd(_autograd, setup_context=_keep)
