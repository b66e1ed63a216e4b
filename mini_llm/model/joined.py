"""Side by side: products of the same vectors as one product, and halves laid out as a GPU's attention wants them.

Queries, keys and values are three products of the same x, gate and up two. Joined in the graph of a compiled step,
while the weights keep their names, they are one launch instead of three and x is read once; backward, one sum replaces
two additions. A CPU's products fill its units alone and gain nothing (docs/LOG.md).
Letters: B batch, T tokens, D width, O outputs, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Kinds of devices; a benchmark empties them to compare.
JOINED = {"cuda"}
BY_TOKEN = {"cuda"}  # whose attention answers in the layout of the queries


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


def halves(first_BHTK: Tensor, second_BHTK: Tensor) -> Tensor:
    """Return both in one, side by side: queries or keys after RoPE.

    On a GPU in the order of tokens, which the products before and after have: attention copies its result and two
    gradients otherwise. A CPU's attention in blocks wants it head by head.
    """
    if first_BHTK.device.type not in BY_TOKEN:
        return torch.cat((first_BHTK, second_BHTK), dim=-1)
    return torch.cat((first_BHTK.transpose(1, 2), second_BHTK.transpose(1, 2)), dim=-1).transpose(1, 2)
