"""Causal attention of whole rows, in the form that the device computes fastest; its one meaning is softmax(q k^T) v.

GPUs have PyTorch's fused kernels. On a CPU, plain matrix products over blocks of queries are faster for rows of usual
length: a block meets the keys up to its own end, so that nearly half of the products are never computed, and what
softmax gave is kept for backward. The price is memory: 2*B*H*T^2 bytes a layer in float32.
Letters: B batch, T tokens, H query heads, J key/value heads, K head width; N = B*H, C queries of a block, S its keys.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.device import mkl_is_slow


class Blocks(NamedTuple):
    """How many queries make a block, and in which rows; outside, PyTorch's kernel is as fast (docs/LOG.md)."""

    queries: int  # their scores stay in the cache for the next product
    shortest: int
    longest: int
    longest_low: int  # in bfloat16
    documents: bool = False  # of rows that hold several, too: 3.2 ms, 8 rows of 256 in documents of 50, for 13.3


USUAL = Blocks(64, 384, 1024, 512)
WITH_ONEDNN = Blocks(128, 64, 1024, 1024, documents=True)  # 3 times as fast as that kernel at 256 tokens


_form: Blocks | None = None


def blocks() -> Blocks:
    """Return the form for this machine; torch.compile cannot follow the question, so a model asks when it is made."""
    global _form
    if _form is None:
        _form = WITH_ONEDNN if mkl_is_slow() else USUAL
    return _form


def causal_attention(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor) -> Tensor:
    """Return (B, H, T, K): each token's mean of the values up to its own, weighted by softmax(q k^T / sqrt(K)).

    In blocks on a CPU while a gradient is wanted (within 1e-5 of the other path in float32, see docs/numerics.md); all
    else is `scaled_dot_product_attention`.
    """
    H, J = q_BHTK.shape[1], k_BJTK.shape[1]
    dtype = v_BJTK.dtype  # autocast's, where q and k became float32 again in RoPE
    if not in_blocks(q_BHTK, dtype):
        return F.scaled_dot_product_attention(q_BHTK, k_BJTK, v_BJTK, is_causal=True, enable_gqa=H != J)
    if H != J:
        k_BJTK, v_BJTK = k_BJTK.repeat_interleave(H // J, dim=1), v_BJTK.repeat_interleave(H // J, dim=1)
    return attention_in_blocks(q_BHTK.to(dtype), k_BJTK.to(dtype), v_BJTK)[0]


def in_blocks(q_BHTK: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether blocks of plain products in `dtype` are the faster form."""
    return q_BHTK.device.type == "cpu" and torch.is_grad_enabled() and _suits_blocks(q_BHTK.shape[2], dtype)


def _suits_blocks(T: int, dtype: torch.dtype) -> bool:
    form = blocks()
    return form.shortest <= T <= (form.longest if dtype == torch.float32 else form.longest_low)


def kept_weights(T: int, dtype: torch.dtype) -> int:
    """Return how many weights of a head and row a CPU keeps for the backward pass."""
    return _weights_in_all(1, T) if _suits_blocks(T, dtype) else 0


@torch.library.custom_op("mini_llm::attention_in_blocks", mutates_args=())
def attention_in_blocks(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, documents_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention's result (B, H, T, K) and its weights, block after block, for `attention_in_blocks_backward`.

    With `documents_BT`, a number for each token, none sees another document. An operation of its own, because
    torch.compile would turn it into the kernel that it replaces.
    """
    q_NTK, k_NTK, v_NTK = (x.flatten(0, 1) for x in (q_BHTK, k_BHTK, v_BHTK))
    N, T, K = q_NTK.shape
    out_NTK, weights = torch.empty_like(q_NTK), q_NTK.new_empty(_weights_in_all(N, T))
    size = blocks().queries
    room = q_NTK.new_empty(N * size * K)
    future_CC = q_NTK.new_full((size, size), -math.inf).triu(1)
    for start, end, p_NCS in _blocks(weights, N, T):
        torch.baddbmm(p_NCS, q_NTK[:, start:end], k_NTK[:, :end].mT, beta=0, alpha=K**-0.5, out=p_NCS)
        p_NCS[:, :, start:] += future_CC[: end - start, : end - start]
        if documents_BT is not None:
            others_BCS = documents_BT[:, start:end, None] != documents_BT[:, None, :end]
            p_NCS.unflatten(0, q_BHTK.shape[:2]).masked_fill_(others_BCS[:, None], -math.inf)
        torch.softmax(p_NCS, -1, out=p_NCS)
        _put(out_NTK[:, start:end], p_NCS, v_NTK[:, :end], room)
    return out_NTK.view(q_BHTK.shape), weights


@torch.library.custom_op("mini_llm::attention_in_blocks_backward", mutates_args=())
def attention_in_blocks_backward(
    grad_BHTK: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by q, k and v: of p v, of softmax (p * (g - sum p g)), and of q k^T / sqrt(K)."""
    g_NTK, q_NTK, k_NTK, v_NTK = (x.flatten(0, 1) for x in (grad_BHTK, q_BHTK, k_BHTK, v_BHTK))
    N, T, K = q_NTK.shape
    q_grad, k_grad, v_grad = torch.empty_like(q_NTK), torch.zeros_like(k_NTK), torch.zeros_like(v_NTK)
    room, scores_room = q_NTK.new_empty(N * T * K), q_NTK.new_empty(N * blocks().queries * T)
    for start, end, p_NCS in _blocks(weights, N, T):
        g_NCK = g_NTK[:, start:end]
        _add(v_grad[:, :end], p_NCS.mT, g_NCK, room)
        s_grad_NCS = scores_room[: p_NCS.numel()].view(p_NCS.shape)
        torch.bmm(g_NCK, v_NTK[:, :end].mT, out=s_grad_NCS)
        torch._softmax_backward_data(s_grad_NCS, p_NCS, -1, p_NCS.dtype, grad_input=s_grad_NCS)
        _put(q_grad[:, start:end], s_grad_NCS, k_NTK[:, :end], room, K**-0.5)
        _add(k_grad[:, :end], s_grad_NCS.mT, q_NTK[:, start:end], room, K**-0.5)
    return q_grad.view(q_BHTK.shape), k_grad.view(k_BHTK.shape), v_grad.view(v_BHTK.shape)


def _put(place: Tensor, a: Tensor, b: Tensor, room: Tensor, factor: float = 1.0) -> None:
    """Let `place` be factor * a b; by way of contiguous memory, since only into that a whole batch takes one call."""
    product = room[: place.numel()].view(place.shape)
    place.copy_(torch.baddbmm(product, a, b, beta=0, alpha=factor, out=product))


def _add(place: Tensor, a: Tensor, b: Tensor, room: Tensor, factor: float = 1.0) -> None:
    """Add factor * a b to `place`, likewise; bfloat16 would be rounded once more and be no faster."""
    if place.dtype != torch.float32:
        place.baddbmm_(a, b, alpha=factor)
        return
    product = room[: place.numel()].view(place.shape)
    place.add_(torch.bmm(a, b, out=product), alpha=factor)


def _blocks(weights: Tensor, N: int, T: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield each block's first and last query (exclusive), and its part (N, C, S) of `weights`."""
    offset = 0
    for start, end in _edges(T):
        size = N * (end - start) * end
        yield start, end, weights[offset : offset + size].view(N, end - start, end)
        offset += size


def _weights_in_all(N: int, T: int) -> int:
    return sum(N * (end - start) * end for start, end in _edges(T))


def _edges(T: int) -> Iterator[tuple[int, int]]:
    queries = blocks().queries
    for start in range(0, T, queries):
        yield start, min(start + queries, T)


@attention_in_blocks.register_fake
def _(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, documents_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q_BHTK.shape
    return q_BHTK.new_empty(q_BHTK.shape), q_BHTK.new_empty(_weights_in_all(B * H, T))


@attention_in_blocks_backward.register_fake
def _(
    grad_BHTK: Tensor, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BHTK.new_empty(q_BHTK.shape), k_BHTK.new_empty(k_BHTK.shape), v_BHTK.new_empty(v_BHTK.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:3], output[1])


def _backward(ctx, grad_BHTK, _weights):  # type: ignore[no-untyped-def]
    return *attention_in_blocks_backward(grad_BHTK, *ctx.saved_tensors), None


attention_in_blocks.register_autograd(_backward, setup_context=_keep)
