"""A model folder: what training writes, and what every reader takes. It is a Hugging Face Llama folder.

`config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json tokenizer.model README.md`,
and `checksums.json`, by which a damaged file is refused by name. Nothing is ever unpickled. An adapter's folder
(adapter.py) is read as the model that it makes of its base.
"""

from __future__ import annotations

import errno
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mini_llm import log
from mini_llm.adapter import ADAPTER_WEIGHTS, BASE, check_base, put_on, stack_of
from mini_llm.device import DTYPES
from mini_llm.errors import UserError
from mini_llm.files import Kind, new_folder, sha256_of
from mini_llm.hub import TOKENIZER_FILES
from mini_llm.model.accounting import count_parameters
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import ADAPTER_CONFIG, is_adapter
from mini_llm.shares import INDEX as SHARES
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import refuse_non_utf8
from mini_llm.weights import INDEX, DamagedCheckpoint, read_json, read_weights, weight_files

CHECKSUMS = "checksums.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TRAINING_STATE = "training_state/"  # what training alone needs; see train/run/resume.py
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "README.md", CHECKSUMS, *TOKENIZER_FILES)
STORED_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE)
CHECKPOINT_FOLDER = Kind(
    "a checkpoint",
    re.compile(
        "|".join(map(re.escape, (*MODEL_FILES, *ADAPTER_FILES, SHARES)))
        + r"|training_state/((optimizer\.safetensors)|(state\.json))?"
        + r"|shares/([0-9]{5,}-of-[0-9]{5,}\.safetensors(\.half|\.sha256)?)?"
    ),
)


# --- writing ---------------------------------------------------------------------------------------------------------


def save_model(folder: Path, model: Transformer, tokenizer: Tokenizer, *, dtype: torch.dtype | None = None) -> None:
    """Write the whole model folder, atomically. `dtype` converts the weights; by default they stay as they are.

    Raises:
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    weights = {name: w.to("cpu", dtype).contiguous() for name, w in model_weights(model).items()}
    with new_folder(folder, CHECKPOINT_FOLDER) as temporary:
        write_model_files(temporary, weights, model.config, tokenizer)
        write_checksums(temporary)


def model_weights(model: Transformer) -> dict[str, torch.Tensor]:
    """Return the weights under the names they are stored by; a tied head is stored once, as the embedding."""
    tied = {"lm_head.weight"} if model.config.tie_embeddings else set()
    return {name: w.detach().contiguous() for name, w in model.state_dict().items() if name not in tied}


def write_model_files(
    folder: Path, weights: dict[str, torch.Tensor], config: ModelConfig, tokenizer: Tokenizer | None
) -> None:
    """Fill an existing `folder` with all files of a model folder but the checksums; None: no tokenizer is known.

    `weights` are in host memory.
    """
    write_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_descriptions(folder, config, tokenizer, next(iter(weights.values())).dtype)


def write_descriptions(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None, stored: torch.dtype) -> None:
    """Fill an existing `folder` with the files of a model folder that say what weights of type `stored` mean."""
    ids = {name: getattr(tokenizer, name, None) for name in ("bos_id", "eos_id", "pad_id")}
    _write_json(folder / "config.json", config.to_hf(**ids, dtype=str(stored).removeprefix("torch.")))
    generation = {
        "bos_token_id": ids["bos_id"],
        "eos_token_id": tokenizer.eos_ids if tokenizer else None,
        "pad_token_id": ids["pad_id"],
    }
    _write_json(folder / "generation_config.json", {**generation, "_from_model_config": False})
    if tokenizer:
        tokenizer.copy_to(folder)
    (folder / "README.md").write_text(_model_card(config, has_tokenizer=tokenizer is not None), encoding="utf-8")


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full, or another limit is reached; safetensors itself raises an error of its own.
        UserError: the name is not UTF-8.
    """
    refuse_non_utf8(path)
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as problem:
        number = re.search(r"os error (\d+)", str(problem))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(problem), str(path)) from None


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write the SHA-256 of every file below `folder` into its `checksums.json`; those that are `known` are not read."""
    known = known or {}
    names = sorted(str(f.relative_to(folder).as_posix()) for f in folder.rglob("*") if f.is_file())
    _write_json(folder / CHECKSUMS, {name: known.get(name) or sha256_of(folder / name) for name in names})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _model_card(config: ModelConfig, *, has_tokenizer: bool) -> str:
    missing = "" if has_tokenizer else "\nThis folder holds no tokenizer: add `--tokenizer DIR` to the command.\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [mini-llm, {"qwen3" if config.qk_norm else "llama"}]
---
# A model trained with Mini-LLM

{count_parameters(config):,} parameters: {config.n_layers} layers, width {config.dim}, {config.n_heads} heads
({config.n_kv_heads} for keys and values), MLP {config.hidden_dim}, {config.vocab_size:,} tokens,
context {config.max_seq_len:,}.

    mini-llm generate THIS_FOLDER --prompt "Once upon a time"

or, in Python, `AutoModelForCausalLM.from_pretrained(THIS_FOLDER)` and `AutoTokenizer.from_pretrained(THIS_FOLDER)`.
{missing}"""


# --- reading ---------------------------------------------------------------------------------------------------------


def verify_checkpoint(folder: Path, *, training_state: bool = False, part: tuple[int, int] = (0, 1)) -> None:
    """Compare every file with `checksums.json`, where there is one (a folder from elsewhere has none).

    The files that training alone needs are left out, which for writing may be missing, unless `training_state` is true.
    Of several processes, `part` (i, n) reads every n-th file, from the i-th on.

    Raises:
        DamagedCheckpoint: a file is missing or differs, or is not listed, by name.
    """
    if not (folder / CHECKSUMS).exists():
        return
    listed = read_json(folder / CHECKSUMS)
    sums = {name: sha for name, sha in listed.items() if training_state or not name.startswith(TRAINING_STATE)}
    names = ("config.json", "tokenizer.json", "generation_config.json", INDEX, *ADAPTER_FILES)
    read = [folder / name for name in names]
    read += [] if {"model.safetensors", SHARES} & sums.keys() or is_adapter(folder) else weight_files(folder)
    read += [folder / TRAINING_STATE / name for name in ("state.json", "optimizer.safetensors") if training_state]
    for path in read:
        if path.is_file() and path.relative_to(folder).as_posix() not in sums:
            raise DamagedCheckpoint(f"{folder / CHECKSUMS} does not list {path.name}", _after_damage(folder))
    for number, (name, expected) in enumerate(sums.items()):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedCheckpoint(f"{folder / CHECKSUMS} lists {name[:200]!r}, which leads out of the folder")
        if not (folder / name).is_file():
            raise DamagedCheckpoint(f"{folder / name} is missing", "use another checkpoint of the same run")
        if number % part[1] != part[0]:
            continue
        try:
            is_same = sha256_of(folder / name) == expected
        except OSError as problem:
            raise DamagedCheckpoint(f"cannot read {folder / name}: {problem.strerror}") from None
        if not is_same:
            what = f"{folder / name} is damaged: its SHA-256 is not the one in {CHECKSUMS}"
            raise DamagedCheckpoint(what, _after_damage(folder))


def _after_damage(folder: Path) -> str:
    return f"use another checkpoint of the same run, or delete {folder / CHECKSUMS} if you changed the file yourself"


def read_model_config(folder: Path) -> ModelConfig:
    """Return the shape of the model in `folder`; an adapter has that of its base.

    Raises:
        UserError: config.json is missing, damaged, or of an unsupported architecture; or an adapter's base is missing.
    """
    folder, _ = stack_of(folder)
    return ModelConfig.from_hf(read_json(folder / "config.json"), where=str(folder / "config.json"))


def read_eos_ids(folder: Path) -> list[int]:
    """Return the ids that end a text by generation_config.json and config.json: a chat model has more than one.

    Raises:
        UserError: they are neither a number nor a list of numbers.
    """
    ids: list[int] = []
    folder, _ = stack_of(folder)
    for path in (folder / "generation_config.json", folder / "config.json"):
        found = read_json(path).get("eos_token_id") if path.exists() else None
        listed = found if isinstance(found, list) else [] if found is None else [found]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in listed):
            raise UserError(f"{path}: eos_token_id must be a token's id or a list of ids, not {str(found)[:80]!r}")
        ids += [i for i in listed if i >= 0]
    return ids


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the type of the stored weights: what config.json says, else that of the first one; else float32.

    An adapter's model has the type of its base.
    """
    folder, _ = stack_of(folder)
    values = read_json(folder / "config.json")
    if name := values.get("dtype") or values.get("torch_dtype"):
        return DTYPES.get(str(name), torch.float32)
    try:
        with safe_open(weight_files(folder)[0], framework="pt") as file:
            types = [STORED_NAMES.get(file.get_slice(name).get_dtype()) for name in file.keys()]  # noqa: SIM118
    except (UserError, SafetensorError, OSError):  # `read_weights` says what is wrong
        return torch.float32
    return next((found for found in types if found), torch.float32)


def load_model(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Transformer:
    """Load the model of any Llama (or Qwen3) folder, verified, in eval mode; an adapter's is its base and what it adds.

    Raises:
        UserError: a file is missing, truncated, damaged or does not fit config.json; it is named. An adapter's base is
            missing, or is another.
    """
    folder, adapters = stack_of(folder)
    verify_checkpoint(folder)
    config, weights = read_model_config(folder), read_weights(folder)
    if config.tie_embeddings and _has_own_head(weights):
        # Frequent after fine-tuning, and what transformers 5 does.
        log.warn(f"{folder}: config.json ties the head to the embedding, but stores another one: the stored is used")
        config = config.model_copy(update={"tie_embeddings": False})
    if config.tie_embeddings and (one := weights.get(EMBEDDING, weights.get(HEAD))) is not None:
        weights |= {EMBEDDING: one, HEAD: one}
    for base, adapter in pairwise([folder, *adapters]):
        verify_checkpoint(adapter)
        check_base(adapter, base)
        put_on(weights, adapter)
    model = _empty_model(config, len(weights), folder)
    _check_weights(model, weights, folder)
    model.load_state_dict({name: w.to(device, dtype) for name, w in weights.items()}, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def _has_own_head(weights: dict[str, torch.Tensor]) -> bool:
    if EMBEDDING not in weights or HEAD not in weights:
        return False
    head, embedding = weights[HEAD], weights[EMBEDDING]
    return head.shape != embedding.shape or not torch.equal(head, embedding.to(head.dtype))


def _empty_model(config: ModelConfig, n_tensors: int, folder: Path) -> Transformer:
    """Return a model without memory for its weights; a config.json that asks for the impossible is refused."""
    try:
        if config.n_layers > n_tensors:
            raise ValueError(f"{config.n_layers} layers, {n_tensors} tensors")
        with torch.device("meta"):
            return Transformer(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as problem:
        reason = str(problem).splitlines()[0]
        raise DamagedCheckpoint(f"the weights in {folder} do not fit its config.json ({reason})") from None


def _check_weights(model: Transformer, weights: dict[str, torch.Tensor], folder: Path) -> None:
    expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    found = {name: tuple(w.shape) for name, w in weights.items()}
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {found[name]}, config.json says {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DamagedCheckpoint(f"the weights in {folder} do not fit: {'; '.join(sorted(problems)[:3])}{more}")
