"""The shape of a model: the numbers that, with the weights, are all there is to it.

Reads and writes Hugging Face's `config.json` of LlamaForCausalLM (and Qwen3ForCausalLM when `qk_norm` is set).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator

from mini_llm.config import Config, explain
from mini_llm.errors import UserError

# Far above any model there is; a number beyond is a slip or an attack, and would end in a hang or without memory.
MOST_DIM = 2**17
MOST_LAYERS = 1000
MOST_HEADS = 2**12
MOST_CONTEXT = 2**27
MOST_IDS = 2**24


class RopeScaling(Config):
    """Llama 3's stretching of RoPE to long contexts ("The Llama 3 Herd of Models", arXiv 2407.21783)."""

    factor: float = Field(default=8.0, ge=1, le=1e6)  # how many times longer than the context of pre-training
    low_freq_factor: float = Field(default=1.0, ge=1e-6, le=1e6)  # waves longer than original/low are slowed by it
    high_freq_factor: float = Field(default=4.0, ge=1e-6, le=1e6)  # waves shorter than original/high stay as they are
    original_max_position_embeddings: int = Field(default=8192, ge=1, le=MOST_CONTEXT)

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must be above low_freq_factor={self.low_freq_factor}"
            )
        return self


class ModelConfig(Config):
    """A decoder-only transformer in the shape of Llama 3 (arXiv 2407.21783)."""

    dim: int = Field(default=384, ge=1, le=MOST_DIM)  # D: width of the residual stream
    n_layers: int = Field(default=16, ge=1, le=MOST_LAYERS)  # L: transformer blocks
    n_heads: int = Field(default=6, ge=1, le=MOST_HEADS)  # H: query heads
    n_kv_heads: int = Field(default=0, ge=1, le=MOST_HEADS)  # J: key/value heads, each for H/J query heads; unset: H
    head_dim: int = Field(default=0, ge=2, le=MOST_DIM)  # K: width of one head; unset: dim / n_heads
    hidden_dim: int = Field(default=0, ge=1, le=8 * MOST_DIM)  # F: width inside the MLP; unset: 4 * dim, rounded up
    multiple_of: int = Field(default=32, ge=1, le=8 * MOST_DIM)  # of what hidden_dim is rounded up to
    vocab_size: int = Field(default=32000, ge=1, le=MOST_IDS)  # V
    max_seq_len: int = Field(default=2048, ge=1, le=MOST_CONTEXT)  # the longest sequence that the model is meant for
    dropout: float = Field(default=0.0, ge=0, lt=1)  # on embeddings and residual branches, in training only
    norm_eps: float = Field(default=1e-5, ge=1e-30, le=1)
    rope_theta: float = Field(default=10000.0, ge=1, le=1e15)
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True  # the head shares the embedding's matrix
    qk_norm: bool = False  # RMSNorm on each head's queries and keys, as in Qwen3 (arXiv 2505.09388)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        dim, n_heads = values.get("dim", 384), values.get("n_heads", 6)
        multiple_of = values.get("multiple_of", 32)
        if values.get("n_kv_heads") is None:
            values["n_kv_heads"] = n_heads
        if not all(isinstance(number, int) and number > 0 for number in (dim, n_heads, multiple_of)):
            return values  # the fields' own checks say what is wrong
        if values.get("head_dim") is None:
            if dim % n_heads:
                raise ValueError(f"dim={dim} must be a multiple of n_heads={n_heads}, or head_dim must be set")
            values["head_dim"] = dim // n_heads
        if values.get("hidden_dim") is None:
            values["hidden_dim"] = -(-4 * dim // multiple_of) * multiple_of
        return values

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: RoPE turns pairs of numbers")
        return self

    def to_hf(self, *, bos_id: int | None, eos_id: int | None, pad_id: int | None, dtype: str) -> dict[str, Any]:
        """Return the `config.json` of transformers for this shape; `dtype` names the stored weights' type."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling:
            rope = {"rope_type": "llama3", "rope_theta": self.rope_theta, **self.rope_scaling.model_dump()}
        return {
            "architectures": ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_seq_len,
            "rms_norm_eps": self.norm_eps,
            "initializer_range": 0.02,
            "attention_bias": False,
            "attention_dropout": 0.0,
            **({} if self.qk_norm else {"mlp_bias": False}),
            "rope_parameters": rope,
            "rope_theta": self.rope_theta,  # transformers 4, vLLM and llama.cpp look here
            "rope_scaling": rope if self.rope_scaling else None,
            "tie_word_embeddings": self.tie_embeddings,
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            "use_cache": True,
            "dtype": dtype,
        }

    @classmethod
    def from_hf(cls, values: dict[str, Any], where: str) -> ModelConfig:
        """Read transformers' `config.json`, of version 4 or 5.

        Raises:
            UserError: another architecture, or a feature that this model lacks, by name.
        """
        kind = values.get("model_type")
        if kind not in ("llama", "qwen3"):
            raise UserError(f"{where}: model_type '{kind}' is not supported", "Mini-LLM reads Llama and Qwen3 folders")
        from mini_llm.weights import refuse_features

        refuse_features(values, where)
        # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling, which wins where both are.
        rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise UserError(f"{where}: the RoPE parameters must be an object, not {type(rope).__name__}")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "llama3"):
            raise UserError(f"{where}: RoPE scaling of type '{rope_type}' is not supported, only 'llama3'")
        try:
            scaling = None
            if rope_type == "llama3":
                context = values.get("max_position_embeddings", 2048)  # where nothing says what the old one was
                rope = {"original_max_position_embeddings": context, **rope}
                scaling = RopeScaling.model_validate({key: rope[key] for key in RopeScaling.model_fields}, strict=True)
            return cls.model_validate(
                {
                    "dim": values["hidden_size"],
                    "n_layers": values["num_hidden_layers"],
                    "n_heads": values["num_attention_heads"],
                    "n_kv_heads": values.get("num_key_value_heads"),
                    "head_dim": values.get("head_dim") or (128 if kind == "qwen3" else None),
                    "hidden_dim": values["intermediate_size"],
                    "vocab_size": values["vocab_size"],
                    "max_seq_len": values.get("max_position_embeddings", 2048),
                    "norm_eps": values.get("rms_norm_eps", 1e-6),
                    "rope_theta": rope.get("rope_theta", values.get("rope_theta", 10000.0)),
                    "rope_scaling": scaling,
                    "tie_embeddings": values.get("tie_word_embeddings", False),
                    "qk_norm": kind == "qwen3",
                },
                strict=True,  # as transformers 5: "32" and 32.0 are no sizes
            )
        except KeyError as missing:
            raise UserError(f"{where}: the key {missing} is missing") from None
        except ValidationError as problem:
            raise UserError(explain(problem, source=where)) from None
