"""The model's shape: defaults, refusals that name both numbers, and config.json of transformers 4 and 5."""

from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoConfig

from mini_llm.errors import UserError
from mini_llm.model.config import ModelConfig, RopeScaling

# SmolLM2-135M's shape, as each version of transformers writes it.
COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VERSION_4 = {**COMMON, "rope_theta": 100000, "rope_scaling": None, "torch_dtype": "bfloat16"}
VERSION_5 = {**COMMON, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "dtype": "bfloat16"}
LLAMA_3_SCALING = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_what_is_unset_follows_from_the_rest() -> None:
    config = ModelConfig(dim=96, n_heads=6, multiple_of=50)
    assert (config.n_kv_heads, config.head_dim, config.hidden_dim) == (6, 16, 400)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_heads": 6, "n_kv_heads": 4}, "n_heads=6 must be a multiple of n_kv_heads=4"),
        ({"dim": 100, "n_heads": 6}, "dim=100 must be a multiple of n_heads=6"),
        ({"dim": 18, "n_heads": 6}, "head_dim=3 must be even"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"dim": 0}, "dim"),
        ({"n_layers": -1}, "n_layers"),
        ({"n_heads": 0}, "n_heads"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"norm_eps": 0}, "norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"n_layers": True}, "n_layers must be int, not true"),
        ({"layers": 4}, "layers"),
        ({"rope_scaling": {"low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "must be above low_freq_factor=4.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_its_numbers(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**values)


def test_both_versions_of_config_json_read_the_same() -> None:
    expected = ModelConfig(
        dim=576, n_layers=30, n_heads=9, n_kv_heads=3, hidden_dim=1536, vocab_size=49152, max_seq_len=8192,
        rope_theta=100000.0,
    )  # fmt: skip
    assert ModelConfig.from_hf(VERSION_4, "here") == ModelConfig.from_hf(VERSION_5, "here") == expected


def test_llama_3_scaling_is_read_from_both_versions() -> None:
    old = {**COMMON, "rope_theta": 500000.0, "rope_scaling": LLAMA_3_SCALING}
    new = {**COMMON, "rope_parameters": {**LLAMA_3_SCALING, "rope_theta": 500000.0}}
    config = ModelConfig.from_hf(old, "here")
    assert config == ModelConfig.from_hf(new, "here")
    assert config.rope_scaling == RopeScaling(factor=32.0)
    assert config.rope_theta == 500000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported"),
        ({"model_type": None}, "model_type 'None' is not supported"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"mlp_bias": True}, "mlp_bias is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling of type 'linear' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling of type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "the key 'factor' is missing"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "RoPE scaling of type 'yarn' is not supported",  # transformers takes the second
        ),
        ({"num_key_value_heads": 4}, "n_heads=9 must be a multiple of n_kv_heads=4"),
        ({"rope_scaling": [2.0]}, "RoPE parameters must be an object, not list"),
        ({"hidden_size": "wide"}, r"dim: .*valid integer.* \(given 'wide'\)"),
        ({"vocab_size": None}, r"vocab_size: .*valid integer"),
    ],
)
def test_what_this_model_lacks_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ModelConfig.from_hf({**VERSION_4, **change}, "folder/config.json")
    assert caught.value.message.startswith("folder/config.json: ")
    assert "pydantic" not in caught.value.message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="the key 'hidden_size' is missing"):
        ModelConfig.from_hf({"model_type": "llama"}, "here")


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(n_kv_heads=2, tie_embeddings=False, rope_scaling=RopeScaling(factor=8.0)),
        ModelConfig(head_dim=128, qk_norm=True, rope_theta=1e6, norm_eps=1e-6),
    ],
)
def test_config_json_goes_through_transformers_and_back(config: ModelConfig) -> None:
    written = config.to_hf(bos_id=1, eos_id=2, pad_id=3, dtype="bfloat16")
    assert ModelConfig.from_hf(written, "ours") == config
    theirs = AutoConfig.for_model(**written).to_dict()
    assert ModelConfig.from_hf(theirs, "theirs") == config
    assert (theirs["bos_token_id"], theirs["eos_token_id"], theirs["pad_token_id"]) == (1, 2, 3)


def test_values_that_config_json_does_not_hold_take_transformers_defaults() -> None:
    minimal = {
        k: v for k, v in COMMON.items() if k not in ("rms_norm_eps", "tie_word_embeddings", "num_key_value_heads")
    }
    ours = ModelConfig.from_hf(minimal, "here")
    theirs = AutoConfig.for_model(**minimal)
    assert (ours.norm_eps, ours.tie_embeddings, ours.n_kv_heads) == (
        theirs.rms_norm_eps, theirs.tie_word_embeddings, theirs.num_key_value_heads,
    )  # fmt: skip
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
