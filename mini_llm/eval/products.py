"""Matrix products in float32 from the library that is fast on this processor: on AMD's with AVX-512, oneDNN.

PyTorch takes MKL's, which on AMD's processors use half of a register's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Let the model's linear layers take the faster library inside the block, where that is not MKL.

    Without gradients. Sums are the same to rounding (2e-7), not to the bit.
    """
    linear = (layer for layer in model.modules() if type(layer) is nn.Linear)
    layers = [layer for layer in linear if _is_plain(layer)] if _mkl_is_slow() else []
    for layer in layers:
        layer.__dict__["forward"] = partial(_product, layer)  # of this one alone; the class keeps its own
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _mkl_is_slow() -> bool:
    """Tell whether oneDNN is faster: 250 against 110 GFLOP/s on a core of Zen 5, and 4 to 11 % slower on Zen 3."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    is_amd = "amd" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _is_plain(layer: nn.Linear) -> bool:
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    weight = layer.weight  # of a spread model it is no plain one
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
    return found
