"""A tiny model with weights large enough that its tokens differ: for tests that compare paths."""

import torch

from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer

V = 700


def make_model(**shape: object) -> Transformer:
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": V, "max_seq_len": 64}
    model = Transformer(ModelConfig(**{**values, **shape})).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=rng) * (0.3 if weight.ndim > 1 else 1))
    return model
