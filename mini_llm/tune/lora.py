"""LoRA: the model stays as it is, and beside each of its matrices two thin ones learn what to add.

y = W x + scale * B (A x), with A (R, I) random and B (O, R) zero, so that the first step starts from the base itself.
Put on from outside: the model's own code knows nothing of it. Papers: arXiv 2106.09685; 2312.03732 (scale);
Schulman 2025, https://thinkingmachines.ai/blog/lora (all matrices, ten times the learning rate).
Letters: B batch, T tokens, O outputs, I inputs, R rank, V vocabulary, D width, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_llm.adapter import MATRICES, AdapterConfig, merged
from mini_llm.model.transformer import Transformer


class LoraLinear(nn.Module):
    """A matrix that is frozen, and what is learned beside it. `weight` is their sum: what readers of weights see."""

    frozen: Tensor

    def __init__(self, inner: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = inner.weight.shape
        self.register_buffer("frozen", inner.weight.detach(), persistent=False)
        self.scale = config.scale
        self.lora_A = nn.Linear(inputs, config.rank, bias=False)
        self.lora_B = nn.Linear(config.rank, outputs, bias=False)
        with torch.no_grad():  # kaiming_uniform(sqrt 5), as PEFT
            self.lora_A.weight.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
            self.lora_B.weight.zero_()

    @property
    def weight(self) -> Tensor:
        """The matrix (O, I) that a reader of the folder gets, float32."""
        return merged(self.frozen, self.lora_A.weight, self.lora_B.weight, self.scale)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (B, T, I) to (B, T, O)."""
        return F.linear(x_BTI, self.frozen) + self.scale * self.lora_B(self.lora_A(x_BTI))


class RowsEmbedding(nn.Module):
    """A table (V, D) that is frozen but for a few rows: those of tokens that the base has never seen."""

    frozen: Tensor
    ids: Tensor

    def __init__(self, weight_VD: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("frozen", weight_VD.detach(), persistent=False)
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(self.frozen[self.ids].clone())

    @property
    def weight(self) -> Tensor:
        """The table (V, D) with the rows as they are now."""
        return self.frozen.index_copy(0, self.ids, self.rows)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Look up ids (B, T) and return their vectors (B, T, D)."""
        return F.embedding(ids_BT, self.weight)


class RowsHead(nn.Module):
    """The head (V, D) of a table with trained rows: its own, or the embedding's."""

    def __init__(self, table: RowsEmbedding) -> None:
        super().__init__()
        self.table = table

    @property
    def weight(self) -> Tensor:
        """The head (V, D)."""
        return self.table.weight

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to scores (B, T, V)."""
        return F.linear(x_BTD, self.weight)


def add_lora(model: Transformer, config: AdapterConfig, seed: int) -> None:
    """Freeze `model`, and put on it what is trained instead: beside all matrices of the blocks, and `config.rows`."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.model.layers:
        for part in block.children():
            for name, inner in list(part.named_children()):
                if name in MATRICES and isinstance(inner, nn.Linear):
                    setattr(part, name, LoraLinear(inner, config, generator))
    if not config.rows:
        return
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    table = RowsEmbedding(embedding, config.rows["embed_tokens"])
    model.model.embed_tokens = table  # type: ignore[assignment]
    is_tied = model.config.tie_embeddings
    model.lm_head = RowsHead(table if is_tied else RowsEmbedding(head, config.rows["lm_head"]))  # type: ignore[assignment]


def adapter_tensors(model: Transformer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name in a PEFT folder, without its prefix; tensor) of all that is trained."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module, _, last = name.rpartition(".")
            module = module.removesuffix(".table")
            yield (f"{module}.token_adapter.trainable_tokens_delta" if last == "rows" else name), parameter


def plain_copy(model: Transformer) -> Transformer:
    """Return a plain model of the weights as they are now, for an engine to read; what is frozen is shared."""
    with torch.device("meta"):
        copy = Transformer(model.config)
    weights = {name: _weight_of(model, name) for name in copy.state_dict()}
    copy.load_state_dict(weights, assign=True)
    if model.config.tie_embeddings:
        copy.lm_head.weight = copy.model.embed_tokens.weight
    return copy.requires_grad_(False).eval()


def _weight_of(model: Transformer, name: str) -> Tensor:
    module = model.get_submodule(name.removesuffix(".weight"))
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.detach()
