"""Matrices that meet the same vectors, as one: a compiled step on a GPU does one product where there were three.

Queries, keys and values are three products of the same x, gate and up two. Joined in the graph, while the weights keep
their names, they are one launch instead of three and x is read once; backward, one sum replaces two additions. A CPU's
products fill its units alone and gain nothing (docs/LOG.md). Letters: B batch, T tokens, D width, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

JOINED = {"cuda"}  # kinds of devices; a benchmark empties it to compare


def products(x_BTD: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Return what each layer makes of x, (B, T, O) each.

    One after the other wherever one is more than a plain matrix: an adapter is beside it, or processes share it.
    """
    if not (torch.compiler.is_compiling() and x_BTD.device.type in JOINED and all(map(_is_plain, layers))):
        return tuple(layer(x_BTD) for layer in layers)
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    return F.linear(x_BTD, torch.cat(weights)).split([len(w) for w in weights], dim=-1)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
