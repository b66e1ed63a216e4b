"""The weights of any Llama folder: read from safetensors alone, and refused by name where they are no weights.

What counts is what transformers 5 does with a sound folder; integers, booleans and 8-bit floats mean nothing without
the scales that their program keeps elsewhere, so they are not turned into numbers here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mini_llm.errors import UserError
from mini_llm.user_files import refuse_non_utf8, refuse_special

INDEX = "model.safetensors.index.json"
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_JSON = 100 * 10**6  # bytes; the largest index.json of a published model has 3 million


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing, truncated, changed or foreign."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: it is missing.
        DamagedCheckpoint: it cannot be read, is too long, or holds something else.
    """
    refuse_special(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise DamagedCheckpoint(f"{path} is damaged: it is longer than {MOST_JSON:,} characters")
        values = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path} is missing", "this is not a model folder") from None
    except OSError as problem:
        raise DamagedCheckpoint(f"cannot read {path}: {problem.strerror}") from None
    except (ValueError, RecursionError):
        raise DamagedCheckpoint(f"{path} is damaged: it is not JSON") from None
    if not isinstance(values, dict):
        raise DamagedCheckpoint(f"{path} is damaged: it holds no JSON object")
    return values


def weight_files(folder: Path) -> list[Path]:
    """Return `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises:
        UserError: there are none.
        DamagedCheckpoint: the index lists no files, or one that does not lie beside it.
    """
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).exists():
        raise UserError(f"no model.safetensors in {folder}", _other_weights(folder))
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DamagedCheckpoint(f"{folder / INDEX} is damaged: it has no weight_map of file names")
    for name in names.values():
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise DamagedCheckpoint(f"{folder / INDEX} lists {name[:200]!r}, which is no safetensors file beside it")
    return [folder / name for name in sorted({*names.values()})]


def _other_weights(folder: Path) -> str:
    """Return what helps where weights are missing."""
    if (folder / "shares.json").exists():
        return f"it is a checkpoint in shares: mini-llm export {folder} --consolidate --out DIR makes it one of a piece"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return "only safetensors weights are read, never pickles: save_pretrained of transformers 5 writes them"
    return "only safetensors weights are read, never pickles"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder's `weight_files`, under the names of LlamaForCausalLM.

    Raises:
        UserError: there are none.
        DamagedCheckpoint: a file is missing, truncated or no safetensors file, or a tensor is no weight.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_tensors(path).items():
            if name.endswith("rotary_emb.inv_freq"):  # folders of 2023 hold RoPE's angles; they follow from config.json
                continue
            if tensor.dtype not in WEIGHT_TYPES:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise DamagedCheckpoint(
                    f"{path}: {name} holds {kind} numbers, which are no weights without the scales of their program",
                    "use the model's folder in float32, float16 or bfloat16",
                )
            weights[name] = tensor
    if "embed_tokens.weight" in weights and not any(name.startswith("model.") for name in weights):
        # What LlamaModel, without its head, saves.
        weights = {name if name.startswith("lm_head.") else f"model.{name}": w for name, w in weights.items()}
    return weights


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one safetensors file, on the CPU.

    Raises:
        UserError: its name is not UTF-8.
        DamagedCheckpoint: the file is missing, truncated or no safetensors file.
    """
    refuse_special(path)
    refuse_non_utf8(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing") from None
    except PermissionError as problem:
        raise DamagedCheckpoint(f"cannot read {path}: {problem.strerror}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as problem:  # KeyError: a type that torch lacks
        raise DamagedCheckpoint(f"{path} is truncated or not a safetensors file ({problem})") from None


def refuse_features(values: dict[str, Any], where: str) -> None:
    """Refuse a config.json that asks for what this model lacks, by name.

    Raises:
        UserError: the first such key.
    """
    for flag in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if values.get(flag):
            raise UserError(f"{where}: {flag} is not supported")
    if values.get("quantization_config") is not None:
        raise UserError(f"{where}: quantization_config is not supported", "use the model's folder in 16 or 32 bits")
    if any(kind != "full_attention" for kind in values.get("layer_types") or ()):
        raise UserError(f"{where}: layer_types other than 'full_attention' are not supported")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
        raise UserError(f"{where}: hidden_act '{values['hidden_act']}' is not supported, only 'silu'")
    rope = values.get("rope_scaling") or values.get("rope_parameters")
    for found in (values, rope if isinstance(rope, dict) else {}):
        if found.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UserError(f"{where}: partial_rotary_factor is not supported")
