"""The model equals transformers' Llama and Qwen3, number by number, and starts from good weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from mini_llm.model.accounting import count_parameters, flops_per_token
from mini_llm.model.config import ModelConfig, RopeScaling
from mini_llm.model.transformer import Transformer

SMALL = {"dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 97, "max_seq_len": 128}
STRETCHED = RopeScaling(factor=4.0, original_max_position_embeddings=32)
SHAPES = {
    "mha": ModelConfig(**SMALL),
    "gqa": ModelConfig(**SMALL, n_kv_heads=2),
    "one key head": ModelConfig(**SMALL, n_kv_heads=1),
    "untied": ModelConfig(**SMALL, tie_embeddings=False),
    "llama 3 rope": ModelConfig(**SMALL, n_kv_heads=2, rope_theta=500_000.0, rope_scaling=STRETCHED),
    "qwen3": ModelConfig(**SMALL, n_kv_heads=2, head_dim=32, qk_norm=True, norm_eps=1e-6),
    "wide heads": ModelConfig(**SMALL, n_kv_heads=2, head_dim=24, hidden_dim=80),
}


def rough_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Return a model whose weights are far from their gentle start, norms included, so that errors show."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = 1 + 0.3 * noise if weight.ndim == 1 else 0.15 * noise
    return model.eval()


def reference_model(model: Transformer) -> torch.nn.Module:
    """Return transformers' model with the same shape and weights, and its plainest attention."""
    # A pad id would make transformers drop the gradient of that row of the embedding.
    values = model.config.to_hf(bos_id=1, eos_id=2, pad_id=None, dtype="float32")
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    return reference.eval()


def random_ids(config: ModelConfig, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_loss_and_every_gradient_equal_transformers(shape: str) -> None:
    model = rough_model(SHAPES[shape])
    reference = reference_model(model)
    ids = random_ids(model.config, 2, 100)

    logits = model(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    expected = reference(ids, labels=ids)
    expected.loss.backward()

    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=1e-4)
    wanted = dict(reference.named_parameters())
    assert {name for name, _ in model.named_parameters()} == set(wanted)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            weight.grad, wanted[name].grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_left_padded_logits_equal_transformers() -> None:
    model = rough_model(SHAPES["gqa"])
    ids = random_ids(model.config, 2, 12)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    positions = torch.where(mask == 1, mask.cumsum(1) - 1, -1)
    expected = reference_model(model)(ids, attention_mask=mask, position_ids=positions.clamp(min=0)).logits
    torch.testing.assert_close(model(ids, positions_BT=positions)[mask == 1], expected[mask == 1], atol=1e-4, rtol=1e-4)


def test_last_only_scores_the_last_token() -> None:
    model = rough_model(SHAPES["gqa"])
    ids = random_ids(model.config, 2, 9)
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


def test_no_token_sees_the_future() -> None:
    model = rough_model(SHAPES["gqa"])
    ids = random_ids(model.config, 1, 20)
    changed = ids.clone()
    changed[0, 11] = (ids[0, 11] + 1) % model.config.vocab_size
    same = (model(ids) == model(changed)).all(-1)[0]
    assert same[:11].all()
    assert not same[11:].any()


def test_the_default_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = Transformer(ModelConfig())
    assert sum(weight.numel() for weight in model.parameters()) == 50_049_408
    assert count_parameters(ModelConfig()) == 50_049_408


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3), (6, 6)]),
    head_dim=st.integers(1, 16).map(lambda half: 2 * half),
    dim=st.integers(1, 64),
    hidden_dim=st.integers(1, 64),
    n_layers=st.integers(1, 3),
    vocab_size=st.integers(1, 200),
    tied=st.booleans(),
    qk_norm=st.booleans(),
)
def test_the_formula_counts_the_real_parameters(
    heads: tuple[int, int], tied: bool, qk_norm: bool, **numbers: int
) -> None:
    config = ModelConfig(n_heads=heads[0], n_kv_heads=heads[1], tie_embeddings=tied, qk_norm=qk_norm, **numbers)
    with torch.device("meta"):
        model = Transformer(config)
    assert count_parameters(config) == sum(weight.numel() for weight in model.parameters())
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * 128
    assert flops_per_token(config, 128) == 6 * matrices + attention


def test_a_tied_head_is_the_embedding_itself() -> None:
    tied, untied = Transformer(SHAPES["mha"]), Transformer(SHAPES["untied"])
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_initial_weights_have_the_promised_spread() -> None:
    config = ModelConfig(dim=128, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=1000, qk_norm=True)
    model = Transformer(config)
    model.init_weights(seed=3)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            wanted = 0.02 / math.sqrt(8) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert weight.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(weight.mean().item()) < 0.05 * wanted, name


def test_the_seed_alone_decides_the_initial_weights() -> None:
    first, second, other = (Transformer(SHAPES["gqa"]) for _ in range(3))
    first.init_weights(seed=7)
    torch.manual_seed(99)
    second.init_weights(seed=7)
    other.init_weights(seed=8)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_dropout_acts_in_training_only() -> None:
    model = rough_model(ModelConfig(**SMALL, dropout=0.5))
    ids = random_ids(model.config, 1, 8)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
