"""Weights and settings of others: as in transformers 5 where a folder is sound, refused by name where it is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_llm.checkpoint import load_model, read_eos_ids, stored_dtype
from mini_llm.errors import UserError

IDS = torch.arange(3, 15)[None]


def hf_folder(folder: Path, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **heads, **changes})).eval()
    model.save_pretrained(folder)
    return model


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def logits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ours and those of transformers."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return load_model(folder, device="cpu", dtype=torch.float32)(IDS), theirs(IDS).logits


@pytest.mark.parametrize("kind", ["own head", "only head", "no prefix", "float64", "swish", "llama3 without context"])
def test_odd_but_sound_folders_compute_as_in_transformers(kind: str, tmp_path: Path) -> None:
    hf_folder(tmp_path, tie_word_embeddings=False)
    weights = load_file(tmp_path / "model.safetensors")
    rope = {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    changes: dict[str, Any] = {
        "own head": {"tie_word_embeddings": True},
        "only head": {"tie_word_embeddings": True},
        "swish": {"hidden_act": "swish"},
        "llama3 without context": {"rope_parameters": rope},
    }.get(kind, {})
    edit(tmp_path / "config.json", **changes)
    if kind == "only head":
        del weights["model.embed_tokens.weight"]
    if kind == "no prefix":
        weights = {name.removeprefix("model."): w for name, w in weights.items()}
    if kind == "float64":
        weights = {name: w.double() for name, w in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = logits(tmp_path)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    hf_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lm_head.weight holds {str(dtype).removeprefix('torch.')}"):
        load_model(tmp_path, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "gptq"}},
        {"quantization_config": {}},
        {"hidden_size": "32"},
        {"hidden_size": 32.0},
        {"tie_word_embeddings": "false"},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"partial_rotary_factor": 0.5},
        {"num_hidden_layers": 100_000},
        {"max_position_embeddings": 10**12},
    ],
    ids=str,
)
def test_a_config_that_means_something_else_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    hf_folder(tmp_path)
    edit(tmp_path / "config.json", **change)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path, device="cpu", dtype=torch.float32)


def test_the_ends_of_a_text(tmp_path: Path) -> None:
    hf_folder(tmp_path)
    path = tmp_path / "generation_config.json"
    for value, expected in ((None, [2]), (7, [7, 2]), ([7, 5], [7, 5, 2]), (-1, [2])):
        edit(path, eos_token_id=value)
        assert read_eos_ids(tmp_path) == expected
    for value in ("x", [2, True], 2.0, [[1]], {}):
        edit(path, eos_token_id=value)
        with pytest.raises(UserError, match="eos_token_id"):
            read_eos_ids(tmp_path)
    path.unlink()
    assert read_eos_ids(tmp_path) == [2]


def test_without_a_type_in_config_json_the_weights_say_it(tmp_path: Path) -> None:
    hf_folder(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert stored_dtype(tmp_path) == torch.bfloat16
