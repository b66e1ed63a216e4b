"""Joined products, and RoPE token by token, compute what a GPU's user gets: the same loss and gradients."""

import pytest
import torch
from torch import nn

from mini_llm.model import joined, rope
from mini_llm.model.config import ModelConfig
from mini_llm.model.joined import products
from mini_llm.model.transformer import Transformer

SHAPES = {
    "gqa": {"n_kv_heads": 2},
    "qk_norm": {"qk_norm": True},
    "wide heads": {"head_dim": 24},
}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "JOINED", {"cpu"})
    monkeypatch.setattr(joined, "BY_TOKEN", {"cpu"})


def make_model(**shape: object) -> Transformer:
    model = Transformer(ModelConfig.model_validate({"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 90, **shape}))
    model.init_weights(seed=1)
    return model


def loss_and_gradients(model: Transformer, compiled: bool) -> list[torch.Tensor]:
    ids = torch.randint(90, (3, 40), generator=torch.Generator().manual_seed(0))

    def loss(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    torch.compiler.reset()
    found = (torch.compile(loss, backend="aot_eager") if compiled else loss)(ids)
    return [found, *torch.autograd.grad(found, list(model.parameters()))]


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_separate_products(shape: str, as_on_a_gpu: None) -> None:
    model = make_model(**SHAPES[shape])
    for a, b in zip(loss_and_gradients(model, True), loss_and_gradients(model, False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def count_products(*layers: nn.Module) -> int:
    """Return how many products a compiled graph has for them."""
    found: list[int] = []

    def look(graph: torch.fx.GraphModule, _inputs: object) -> object:
        found.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    torch.compile(lambda x: products(x, *layers), backend=look)(torch.ones(2, 3, 8))
    return found[0]


def test_plain_matrices_are_one_product_and_others_stay_alone(as_on_a_gpu: None) -> None:
    plain = [nn.Linear(8, n, bias=False) for n in (4, 6, 2)]

    class WithMore(nn.Linear):
        pass

    assert count_products(*plain) == 1
    assert count_products(plain[0], WithMore(8, 3, bias=False)) == 2


def test_a_cpu_goes_on_as_before() -> None:
    assert count_products(nn.Linear(8, 4, bias=False), nn.Linear(8, 6, bias=False)) == 2


def test_rope_by_token_has_the_same_bits_in_the_order_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(dim=64, n_heads=4, n_layers=1, vocab_size=90)
    x = torch.randn(2, 10, 4, 16).transpose(1, 2)
    cos, sin = rope.rope_tables(torch.arange(10)[None], config, torch.float32)
    by_head = rope.apply_rope(x, cos, sin)
    monkeypatch.setattr(joined, "BY_TOKEN", {"cpu"})
    by_token = rope.apply_rope(x, cos, sin)
    assert by_head.is_contiguous()
    assert torch.equal(by_token, by_head)
    assert by_token.transpose(1, 2).is_contiguous()
