"""oneDNN's products are MKL's to rounding, and nothing else is touched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mini_llm.eval import products
from mini_llm.eval.language_model import LocalModel
from mini_llm.eval.scorer import score_pairs
from mini_llm.eval.trees import Pair

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch was built without oneDNN",
)
PAIRS: list[Pair] = [([1, 40, 77, 9], [5, 6]), ([1, 40, 77, 9], [7]), ([1, 8], [9, 10, 11]), ([2], [3])]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Let oneDNN count as the faster library; return the types of all products that it computed."""
    seen: list[torch.dtype] = []
    inner = torch.ops.mkldnn._linear_pointwise

    def counted(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(x.dtype)
        return inner(x, *rest)

    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return seen


def test_scores_are_the_same(local_model: LocalModel, calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    found = score_pairs(local_model.model, PAIRS)
    assert len(calls) > 7
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: False)
    expected = score_pairs(local_model.model, PAIRS)
    for one, other in zip(found, expected, strict=True):
        assert one.loglikelihood == pytest.approx(other.loglikelihood, rel=1e-6)
        assert one.is_greedy == other.is_greedy


@pytest.mark.parametrize("rows", [(7,), (2, 3), ()])
def test_any_shape_of_rows(rows: tuple[int, ...], calls: list) -> None:
    for layer in (nn.Linear(16, 24), nn.Linear(16, 24, bias=False)):
        x = torch.randn(*rows, 16)
        with torch.no_grad(), products.fast_products(layer):
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
            if rows:  # not contiguous
                x = torch.randn(16, *rows).movedim(0, -1)
                torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert len(calls) == 2 * (1 + bool(rows))


def test_what_it_does_not_know_is_left_alone(calls: list) -> None:
    layer, x = nn.Linear(16, 24), torch.randn(3, 16)
    with products.fast_products(layer):
        assert layer(x).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), products.fast_products(layer):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad(), products.fast_products(layer.double()):
        layer(x.double())
    with torch.no_grad(), products.fast_products(layer.float()):
        pass
    layer(x)
    assert calls == []
    assert "forward" not in layer.__dict__
