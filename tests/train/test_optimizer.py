"""AdamW against arithmetic by hand, Muon against torch's own, and every parameter in exactly one group."""

import math
from typing import Any

import pytest
import torch

from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.optimizer import Muon, build_optimizers, orthogonalise


def model(**shape: Any) -> Transformer:
    config = ModelConfig(**{"dim": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 50, "max_seq_len": 32, **shape})
    result = Transformer(config)
    result.init_weights(0)
    return result


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": False}, {"qk_norm": True}])
def test_every_parameter_once_and_norms_without_decay(optimizer: str, shape: dict[str, Any]) -> None:
    m = model(**shape)
    optimizers = build_optimizers(m, TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.3}))
    groups = [group for o in optimizers for group in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in m.parameters())  # a tied matrix is one parameter
    assert len(set(held)) == len(held)
    for group in groups:
        assert group["peak"] == group["lr"]
        for p in group["params"]:
            assert group["weight_decay"] == (0.3 if p.ndim == 2 else 0.0)


def test_muon_holds_the_matrices_inside_the_blocks_alone() -> None:
    m = model(tie_embeddings=False, qk_norm=True)
    settings = {"optimizer": "muon", "muon_learning_rate": 0.5, "learning_rate": 0.25, "muon_momentum": 0.75}
    adamw, muon = build_optimizers(m, TrainConfig.model_validate(settings | {"cautious_decay": True}))
    assert isinstance(muon, Muon)
    assert muon.cautious
    assert {group["momentum"] for group in muon.param_groups} == {0.75}
    names = {id(p): name for name, p in m.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {n for n, p in m.named_parameters() if "layers" in n and p.ndim == 2}
    assert {group["lr"] for group in muon.param_groups} == {0.5}
    assert {group["lr"] for group in adamw.param_groups} == {0.25}


def test_adamw_has_the_settings_and_is_fused_on_this_device() -> None:
    config = TrainConfig.model_validate({"beta1": 0.8, "beta2": 0.9, "learning_rate": 0.125, "min_lr": 0})
    (adamw,) = build_optimizers(model(), config)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["fused"] is True
    assert adamw.defaults["betas"] == (0.8, 0.9)
    assert adamw.defaults["lr"] == 0.125


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_rates_of_a_base_width_go_to_other_widths(optimizer: str, tied: bool) -> None:
    """Four times as wide: a quarter of AdamW's rate for what sums over the width; embedding, norms and Muon stay."""
    m = model(dim=64, tie_embeddings=tied)
    settings = {"optimizer": optimizer, "learning_rate": 0.5, "muon_learning_rate": 0.25, "base_dim": 16}
    optimizers = build_optimizers(m, TrainConfig.model_validate(settings))
    peak = {id(p): group["peak"] for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, p in m.named_parameters():
        if "layers" in name and p.ndim == 2:
            assert peak[id(p)] == (0.25 if optimizer == "muon" else 0.125), name
        else:
            assert peak[id(p)] == (0.125 if name == "lm_head.weight" else 0.5), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_embedding_and_head_have_parts_of_the_rate(optimizer: str) -> None:
    m = model(tie_embeddings=False)
    scales = {"embedding_rate_scale": 0.5, "head_rate_scale": 0.25, "block_size": 32}
    settings = {"optimizer": optimizer, "learning_rate": 0.5, "muon_learning_rate": 0.125, "model": m.config, **scales}
    optimizers = build_optimizers(m, TrainConfig.model_validate(settings))
    peak = {id(p): group["peak"] for o in optimizers for group in o.param_groups for p in group["params"]}
    own = {"model.embed_tokens.weight": 0.25, "lm_head.weight": 0.125}
    for name, p in m.named_parameters():
        in_muon = optimizer == "muon" and "layers" in name and p.ndim == 2
        assert peak[id(p)] == own.get(name, 0.125 if in_muon else 0.5), name
    with pytest.raises(ValueError, match="needs a head of its own"):
        TrainConfig.model_validate({"head_rate_scale": 0.5, "model": {"tie_embeddings": True}})


def test_two_steps_of_adamw_by_hand() -> None:
    m = model()
    config = TrainConfig.model_validate({"learning_rate": 0.1, "weight_decay": 0.5, "beta1": 0.9, "beta2": 0.99})
    (adamw,) = build_optimizers(m, config)
    p = m.model.layers[0].self_attn.q_proj.weight  # type: ignore[union-attr]
    assert isinstance(p, torch.Tensor)
    w = p[0, 0].item()
    first = second = 0.0
    for step, g in enumerate((0.5, -0.2), start=1):
        p.grad = torch.full_like(p, g)
        adamw.step()
        first, second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g * g
        w *= 1 - 0.1 * 0.5
        w -= 0.1 * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.99**step)) + 1e-8)
        assert p[0, 0].item() == pytest.approx(w, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_equals_torchs_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps on tall, wide and square matrices. torch's iterates in bfloat16; for float32 it is told not to."""
    from torch.optim import _muon  # type: ignore[attr-defined]

    shapes = [(24, 8), (8, 24), (16, 16), (24, 8), (1, 5)]
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    if dtype == torch.float32:
        monkeypatch.setattr(_muon.torch.Tensor, "bfloat16", lambda self: self.clone())
    settings: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.2, "momentum": 0.9}
    muon = Muon(ours, **settings, dtype=dtype)
    reference = torch.optim.Muon(theirs, **settings, nesterov=True, adjust_lr_fn="original")
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        reference.step()
    # Five updates of about 0.05 each: bfloat16's 8 bits leave 0.004 of each, a batched product sums in another order.
    tolerance = 2e-3 if dtype == torch.bfloat16 else 1e-5
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def test_cautious_decay_spares_the_weights_that_grow() -> None:
    """A weight that the step moves away from zero is moved by that alone; the others decay too."""
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 9), torch.randn(6, 9)
    after = {}
    for name, settings in {"none": {"weight_decay": 0.0}, "all": {}, "cautious": {"cautious": True}}.items():
        p = torch.nn.Parameter(start.clone())
        p.grad = gradient.clone()
        Muon([p], lr=0.1, **{"weight_decay": 0.5, "dtype": torch.float32, **settings}).step()  # type: ignore[arg-type]
        after[name] = p.detach()
    shrinks = (after["none"] - start) * start < 0
    assert 0.2 < shrinks.float().mean() < 0.8
    torch.testing.assert_close(after["cautious"], torch.where(shrinks, after["all"], after["none"]))
    assert not torch.equal(after["all"], after["cautious"])


def test_muon_passes_over_what_has_no_gradient() -> None:
    with_gradient, without = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    with_gradient.grad = torch.randn(4, 4)
    Muon([with_gradient, without], lr=0.1).step()
    assert torch.equal(without, torch.ones(4, 4))
    assert not torch.equal(with_gradient, torch.ones(4, 4))


@pytest.mark.parametrize("shape", [(1, 32, 8), (3, 8, 32), (2, 16, 16)])
def test_orthogonalise_sets_all_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    result = orthogonalise(x)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(result.flatten(1), (u @ vh).flatten(1))
    assert cosine.min() > 0.95


def test_orthogonalise_leaves_zeros_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


@pytest.mark.parametrize("condition", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("shape", [(2, 64, 16), (2, 16, 64), (1, 16, 32)])
def test_long_matrices_take_a_shorter_way_to_the_same_result(shape: tuple[int, int, int], condition: float) -> None:
    """The polynomial of the Gram matrix against the rounds themselves in float64, also with singular values near 0.

    5e-4 is a twentieth of what bfloat16 leaves, in which Muon works on GPUs.
    """
    torch.manual_seed(0)
    u, values, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    x = (u * torch.logspace(0, math.log10(condition), values.shape[-1], dtype=torch.float64)) @ vh
    torch.testing.assert_close(orthogonalise(x.float()).double(), orthogonalise(x), rtol=0, atol=5e-4)
