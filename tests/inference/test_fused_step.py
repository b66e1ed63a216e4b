"""The step of a GPU on a CPU: the scores of the uncached model, weights held once, and as few kernels as it says."""

import re
from typing import Any

import pytest
import torch
from random_model import V, make_model
from torch.utils._python_dispatch import TorchDispatchMode

from mini_llm.inference.backends import fused_step
from mini_llm.inference.backends.fused_step import FusedWeights, decode_logits
from mini_llm.inference.backends.slot_cache import SlotCache


@pytest.mark.parametrize("shape", [{}, {"qk_norm": True, "head_dim": 16}, {"n_kv_heads": 4}])
def test_a_recorded_step_has_the_scores_of_the_uncached_model(shape: dict[str, object]) -> None:
    model = make_model(**shape)
    cache, weights = SlotCache(model.config, torch.device("cpu"), torch.float32), FusedWeights(model)
    cache.reserve(3, 64)
    ids = torch.randint(V, (3, 20), generator=torch.Generator().manual_seed(2))
    expected = model(ids)
    for step in range(20):
        positions = torch.full((3,), step)
        scores = decode_logits(weights, cache, ids[:, step], positions, n_places=32)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected[:, step], atol=1e-4, rtol=1e-4)


def test_weights_are_held_once_and_are_still_the_models() -> None:
    model, ids = make_model(), torch.arange(20)[None]
    expected, before = model(ids), {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = FusedWeights(model)
    for layer, qkv, gate_up in zip(model.model.layers, weights.qkv, weights.gate_up, strict=True):
        parts = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
        assert {part.weight.untyped_storage().data_ptr() for part in parts} == {qkv.untyped_storage().data_ptr()}
        parts = [layer.mlp.gate_proj, layer.mlp.up_proj]
        assert {part.weight.untyped_storage().data_ptr() for part in parts} == {gate_up.untyped_storage().data_ptr()}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model(ids), expected)


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something; the others look at the same numbers in another shape."""

    VIEWS = "view|expand|slice|select|transpose|numpy_T|unsqueeze|split_with_sizes|chunk|alias|reshape"

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += not re.fullmatch(rf"aten\.({self.VIEWS})\..*", str(function))
        return function(*args, **(kwargs or {}))


def test_a_layer_has_as_few_kernels_as_the_module_says() -> None:
    counted = []
    for n_layers in (1, 2):
        model = make_model(n_layers=n_layers, n_kv_heads=4).to("meta")
        cache = SlotCache(model.config, torch.device("meta"), torch.float32)
        cache.reserve(2, 64)
        zeros = torch.zeros(2, dtype=torch.long, device="meta")
        weights = FusedWeights(model)
        with torch.inference_mode(), Kernels() as kernels:
            decode_logits(weights, cache, zeros, zeros, 64)
        counted.append(kernels.n)
    assert fused_step.__doc__
    assert f"A layer is {counted[1] - counted[0]} kernels" in fused_step.__doc__
