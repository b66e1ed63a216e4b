"""Attention within documents on a GPU: FlashAttention's kernel for texts of any length, laid end to end.

The rows of a batch become one line of B*T tokens, and `edges_N` says where on it each document begins: what others
would have hidden by a mask is never computed. See document_attention.py, which chooses; float32 and old GPUs have no
such kernel. Papers: arXiv 2205.14135, 2307.08691. Letters: B batch, T tokens, H query heads, J key/value heads, K head
width, N = B*T + 1.
"""

import torch
from torch import Tensor

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward
OLDEST = (8, 0)  # compute capability of an A100, the first that the kernel is written for
WIDEST = 256  # of a head, which must be a multiple of 8


def has_flash(q_BHTK: Tensor, dtype: torch.dtype) -> bool:
    """Return whether the kernel computes these heads in `dtype` where they are."""
    width = q_BHTK.shape[-1]
    if not q_BHTK.is_cuda or torch.version.hip is not None or dtype not in (torch.bfloat16, torch.float16):
        return False
    return width % 8 == 0 and width <= WIDEST and torch.cuda.get_device_capability(q_BHTK.device) >= OLDEST


@torch.library.custom_op("mini_llm::document_edges", mutates_args=())
def document_edges(documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return where documents begin on the line of all rows, (N,) int32, B*T behind the last, and how many they are.

    The number lies on the CPU, which waits for it here: torch.compile lets all layers share one such wait. An operation
    of its own, since how many there are differs from step to step.
    """
    B, T = documents_BT.shape
    begins_BT = torch.ones(B, T, dtype=torch.bool, device=documents_BT.device)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    begins_M = begins_BT.flatten().nonzero().flatten()
    edges_N = torch.full((B * T + 1,), B * T, dtype=torch.int32, device=documents_BT.device)
    edges_N[: len(begins_M)] = begins_M
    return edges_N, torch.tensor(len(begins_M))


@torch.library.custom_op("mini_llm::flash_by_document", mutates_args=())
def flash_by_document(
    q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, edges_N: Tensor, n: Tensor
) -> tuple[Tensor, Tensor]:
    """Return attention's result (B, H, T, K) and log sum exp of its scores (H, B*T).

    Args:
        q_BHTK, k_BJTK, v_BJTK: all bfloat16 or all float16.
        edges_N, n: as `document_edges` returns them.
    """
    T, lines = q_BHTK.shape[2], [_line(x) for x in (q_BHTK, k_BJTK, v_BJTK)]
    edges = edges_N[: int(n) + 1]
    out, lse, *_ = _forward(*lines, edges, edges, T, T, 0.0, True, False)
    return _rows(out, q_BHTK), lse


@torch.library.custom_op("mini_llm::flash_by_document_backward", mutates_args=())
def flash_by_document_backward(
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BJTK: Tensor,
    v_BJTK: Tensor,
    edges_N: Tensor,
    n: Tensor,
    out_BHTK: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by q, k and v."""
    T, device = q_BHTK.shape[2], q_BHTK.device
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=device), torch.empty(0, device=device)
    grad, *qkv, out = (_line(x) for x in (grad_BHTK, q_BHTK, k_BJTK, v_BJTK, out_BHTK))
    edges = edges_N[: int(n) + 1]
    grads = _backward(grad, *qkv, out, lse, edges, edges, T, T, 0.0, True, *no_dropout)
    q_grad, k_grad, v_grad = (_rows(g, like) for g, like in zip(grads, (q_BHTK, k_BJTK, v_BJTK), strict=True))
    return q_grad, k_grad, v_grad


def _line(x_BHTK: Tensor) -> Tensor:
    """Return (B*T, H, K)."""
    return x_BHTK.transpose(1, 2).flatten(0, 1).contiguous()


def _rows(x: Tensor, like_BHTK: Tensor) -> Tensor:
    """Return (B*T, H, K) as (B, H, T, K)."""
    B, H, T, K = like_BHTK.shape
    return x.view(B, T, H, K).transpose(1, 2)


def _new_rows(like_BHTK: Tensor) -> Tensor:
    B, H, T, K = like_BHTK.shape
    return like_BHTK.new_empty(B, T, H, K).transpose(1, 2)


@document_edges.register_fake
def _(documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    size = documents_BT.shape[0] * documents_BT.shape[1] + 1
    return documents_BT.new_empty(size, dtype=torch.int32), torch.empty((), dtype=torch.int64, device="cpu")


@flash_by_document.register_fake
def _(q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, edges_N: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, _K = q_BHTK.shape
    return _new_rows(q_BHTK), q_BHTK.new_empty(H, B * T, dtype=torch.float32)


@flash_by_document_backward.register_fake
def _(_grad: Tensor, q_BHTK: Tensor, k_BJTK: Tensor, v_BJTK: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _new_rows(q_BHTK), _new_rows(k_BJTK), _new_rows(v_BJTK)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output)


def _autograd(ctx, grad_BHTK, _lse):  # type: ignore[no-untyped-def]
    return *flash_by_document_backward(grad_BHTK, *ctx.saved_tensors), None, None


flash_by_document.register_autograd(_autograd, setup_context=_keep)
