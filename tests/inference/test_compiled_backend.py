"""step.c: the scores of the uncached model for any shape, and the same bits in any company."""

import gc
import math
import platform
import random
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_llm.inference.backends import native
from mini_llm.inference.backends.compiled import CompiledBackend, quantize
from mini_llm.inference.backends.eager import EagerBackend, Rows
from mini_llm.model.config import ModelConfig, RopeScaling
from mini_llm.model.transformer import Transformer

pytestmark = pytest.mark.needs_compiler

V = 61
SHAPES = {
    "grouped": {},
    "qwen3": {"qk_norm": True, "head_dim": 16},
    "full registers and a rest": {"dim": 72, "n_heads": 3, "n_kv_heads": 1, "head_dim": 24, "hidden_dim": 100},
    "odd widths": {"dim": 30, "n_heads": 3, "n_kv_heads": 3, "hidden_dim": 50, "head_dim": 10},
    "untied, wide heads": {"tie_embeddings": False, "head_dim": 40, "n_kv_heads": 1},
    "llama 3.1": {"rope_theta": 500_000.0, "rope_scaling": RopeScaling(original_max_position_embeddings=16)},
}


def make(dtype: torch.dtype = torch.float32, **shape: object) -> Transformer:
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": V, "max_seq_len": 128}
    model = Transformer(ModelConfig(**{**values, **shape})).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=rng) * (0.3 if weight.ndim > 1 else 1))
    return model.to(dtype)


def read(backend: CompiledBackend | EagerBackend, ids: list[int], cuts: list[int]) -> torch.Tensor:
    """Read one text in pieces that end at `cuts`; return the scores after each token."""
    backend.cache.reserve(3, len(ids))
    scores, start = [], 0
    for end in [*cuts, len(ids)]:
        n = end - start
        if n > 0:
            scores.append(backend.run(Rows(ids[start:end], [1] * n, list(range(start, end)), list(range(n)))))
            start = end
    return torch.cat(scores)


def text(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(V), k=n)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_are_those_of_the_uncached_model(shape: dict[str, object]) -> None:
    model, ids = make(**shape), text(45)
    expected = model(torch.tensor([ids]))[0]
    for backend in (CompiledBackend(model), EagerBackend(model)):
        torch.testing.assert_close(read(backend, ids, [20, 21, 22, 40]), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bfloat16_weights_are_read_as_they_are(shape: dict[str, object]) -> None:
    rounded, ids = make(torch.bfloat16, **shape), text(30)
    expected = make(**shape)
    expected.load_state_dict({name: weight.float() for name, weight in rounded.state_dict().items()})
    scores = read(CompiledBackend(rounded), ids, [20])
    reference = expected(torch.tensor([ids]))[0]
    # What is left is the rounding of keys and values to bfloat16: 2^-9 of each.
    assert (scores - reference).norm() / reference.norm() < 0.01


@settings(max_examples=30)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.int8]), st.lists(st.integers(0, 40), max_size=5),
    st.integers(1, 2), st.sampled_from([*SHAPES]),
)  # fmt: skip
def test_no_bit_depends_on_company_cuts_or_threads(
    dtype: torch.dtype, cuts: list[int], threads: int, shape: str
) -> None:
    model, ids = make(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32, **SHAPES[shape]), text(41)
    before = torch.get_num_threads()
    try:
        backend = CompiledBackend(model, int8=dtype == torch.int8)
        expected = read(backend, ids, list(range(len(ids))))  # token by token
        torch.set_num_threads(threads)
        assert torch.equal(read(CompiledBackend(model, int8=dtype == torch.int8), ids, sorted(cuts)), expected)
        company = Rows([*text(40, 1), *ids[:30], 3], [0] * 40 + [1] * 30 + [2], [*range(40), *range(30), 0], [69])
        assert torch.equal(backend.run(company)[0], expected[29])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has registers of several widths")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
def test_narrower_registers_give_the_same_scores(without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, dtypes = text(30), (torch.float32, torch.bfloat16, torch.int8)
    stored = (torch.float32, torch.bfloat16, torch.float32)
    models = [make(dtype, **SHAPES["full registers and a rest"]) for dtype in stored]

    def scores() -> list[torch.Tensor]:
        backends = [CompiledBackend(m, int8=d == torch.int8) for m, d in zip(models, dtypes, strict=True)]
        return [read(backend, ids, [7, 8, 10]) for backend in backends]

    expected = scores()
    monkeypatch.setattr(native, "FLAGS", [[*native.TUNE, "-march=native", without]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for found, same in zip(scores(), expected, strict=True):
        torch.testing.assert_close(found, same, atol=2e-3, rtol=2e-3)
    assert len(list((tmp_path / "mini-llm").glob("*.so"))) == 1


def test_int8_is_what_its_rounded_weights_give() -> None:
    model, ids = make(), text(30)
    scores = read(CompiledBackend(model, int8=True), ids, [])
    for weight in model.parameters():
        if weight.ndim == 2:
            rounded, scale = quantize(weight)
            assert (rounded * scale[:, None] - weight).abs().max() <= scale.max() / 2 * 1.001
            weight.copy_(rounded * scale[:, None])
    reference = model(torch.tensor([ids]))[0]
    assert (scores - reference).norm() / reference.norm() < 0.01


def test_int8_does_not_hold_the_weights_that_it_was_made_of() -> None:
    model, ids = make(), text(5)
    backend, original = CompiledBackend(model, int8=True), weakref.ref(model.lm_head.weight)
    expected = read(CompiledBackend(model, int8=True), ids, [])
    del model
    gc.collect()
    assert original() is None
    assert torch.equal(read(backend, ids, []), expected)


def test_int8_multiplies_wide_rows_of_equal_sign_without_overflow() -> None:
    # 5,003 products of 127 and 32767 each exceed what 32 bits hold, and no vector divides them.
    wide = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 5003}
    model, ids = make(**wide), text(6)
    for name, weight in model.named_parameters():
        if "mlp" in name:
            weight.fill_(1.0)
    scores = read(CompiledBackend(model, int8=True), ids, [3])
    eager = read(EagerBackend(model), ids, [])
    assert (scores - eager).norm() / eager.norm() < 0.02


def test_an_infinite_activation_is_not_hidden_by_int8() -> None:
    for spoilt in (math.nan, math.inf):
        model, ids = make(), text(3)
        model.model.layers[0].input_layernorm.weight[1] = spoilt
        assert not read(CompiledBackend(model, int8=True), ids, []).isfinite().any()


def test_a_row_of_zeros_survives_int8() -> None:
    rounded, scale = quantize(torch.zeros(2, 3))
    assert not rounded.any()
    assert scale.isfinite().all()


def test_a_long_text_and_large_scores_stay_finite() -> None:
    model = make(max_seq_len=2000)
    model.model.norm.weight.mul_(100)
    backend = CompiledBackend(model)
    ids = text(1500)
    backend.cache.reserve(1, 1500)
    scores = backend.run(Rows(ids, [0] * 1500, list(range(1500)), [0, 1499]))
    torch.testing.assert_close(scores, model(torch.tensor([ids]))[0, [0, 1499]], atol=1e-2, rtol=1e-3)
