"""Matrix products in float32 from the library that is fast on this processor: on AMD's with AVX-512, oneDNN.

PyTorch takes MKL's, which on AMD's processors use half of a register's width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode


def fast_products() -> AbstractContextManager[Any]:
    """Return the context in which `nn.Linear` takes the faster library; one that does nothing where that is MKL.

    Without gradients. Sums are the same to rounding (2e-7), not to the bit.
    """
    return _OneDNN() if _mkl_is_slow() else nullcontext()


def _mkl_is_slow() -> bool:
    """Tell whether oneDNN is faster: 250 against 110 GFLOP/s on a core of Zen 5, and 4 to 11 % slower on Zen 3."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    is_amd = "amd" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and not torch.is_autocast_enabled("cpu")


class _OneDNN(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear and not kwargs and _is_plain(*args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def _is_plain(x: Tensor, weight: Tensor, _bias: Tensor | None = None) -> bool:
    return (
        type(x) in (Tensor, Parameter)
        and type(weight) in (Tensor, Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
    )
