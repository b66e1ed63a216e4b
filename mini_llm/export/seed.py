"""A checkpoint of the published 50M seed becomes a native folder: other names, RoPE's other layout, the same logits.

The seed's `ckpt.pt` is a pickle. It is read without executing anything: tensors, numbers and text, and the seed's
settings as a plain record. What else it holds is refused by name.
Letters: B batch, T tokens, D width, H query heads, J key/value heads, K head width.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mini_llm import log
from mini_llm.checkpoint import model_weights, write_checksums, write_model_files
from mini_llm.config import explain
from mini_llm.errors import UserError
from mini_llm.export.seed_reference import seed_logits
from mini_llm.export.seed_tokenizer import seed_tokenizer
from mini_llm.files import check_replaceable, new_folder
from mini_llm.model.accounting import count_parameters
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.user_files import writing_to
from mini_llm.weights import read_tensors

TOLERANCE = 1e-5  # largest difference of two logits, as a share of the largest logit; both sides compute in float64
PROOF_TOKENS = 128
NORM_EPS, ROPE_THETA = 1e-6, 10000.0  # constants of the seed's code
ANGLES = "rope.freqs_cis"  # a buffer (tokens, K/2) of complex numbers
NAMES = {
    "tok_embeddings.emb.weight": "model.embed_tokens.weight",
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
NOT_A_SEED = "import-seed reads ckpt.pt of the published Mini-LLM, or its model.safetensors with config.json beside it"


class ModelArgs:
    """Stands in for the seed's class of settings, `model.config.ModelArgs`: a record without code."""


def import_seed(checkpoint: Path, out: Path, tokenizer: Path | None = None) -> float:
    """Write the model folder `out` and return the largest difference between the seed's logits and ours.

    Without `tokenizer` (a folder with tokenizer.json, or the seed's spm.model) the folder holds none.

    Raises:
        UserError: the file is missing, damaged, holds code or another model, or the logits differ; nothing is written.
    """
    check_replaceable(out, None)
    weights, settings = read_seed(checkpoint)
    config = seed_config(weights, settings, checkpoint)
    model = _native_model(weights, config, checkpoint)
    difference = _prove(weights, model, checkpoint)
    with seed_tokenizer(tokenizer, config.vocab_size) as found, writing_to(out), new_folder(out) as folder:
        write_model_files(folder, model_weights(model), model.config, found)
        write_checksums(folder)
    log.info(f"{count_parameters(config):,} parameters: {out}")
    return difference


def read_seed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights, under the seed's names, and the settings. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, or holds more than data.
    """
    if path.is_dir():
        path = next((path / name for name in ("ckpt.pt", "model.safetensors") if (path / name).exists()), path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}", NOT_A_SEED)
    if path.suffix == ".safetensors":
        weights, settings = read_tensors(path), _read_settings(path.with_name("config.json"))
    else:
        found = _unpickle(path)
        weights = found.get("model", found)
        settings = found.get("model_args") or found.get("config") or {}
    settings = settings if isinstance(settings, dict) else vars(settings)
    settings = settings.get("model", settings)  # the seed's YAML has them in a section
    if not isinstance(weights, dict) or not isinstance(settings, dict):
        raise UserError(f"{path} holds no state dict", NOT_A_SEED)
    return {str(name).removeprefix("_orig_mod."): _checked(name, w, path) for name, w in weights.items()}, settings


def _unpickle(path: Path) -> dict[Any, Any]:
    try:
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:  # torch checks no checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        with torch.serialization.safe_globals([(ModelArgs, "model.config.ModelArgs")]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        # torch names what it refuses: "GLOBAL posix.system was not an allowed global by default"
        name = re.search(r"(?:GLOBAL|[Uu]nsupported (?:global|class)[: ]+\w*) ?([\w.]+)", str(problem))
        if name:
            raise UserError(
                f"{path} holds {name[1]}, which could execute code: not loaded", "import-seed reads data alone"
            ) from None
        raise UserError(
            f"{path} is no checkpoint of PyTorch, or holds more than data: not loaded", NOT_A_SEED
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as bad:
        reason = str(bad).splitlines()[0][:200] if str(bad) else type(bad).__name__
        raise UserError(f"{path} is truncated, or no checkpoint of PyTorch ({reason})", NOT_A_SEED) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, not a checkpoint", NOT_A_SEED)
    return found


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError):
        raise UserError(f"{path} is damaged: it is not JSON") from None


def _checked(name: object, weight: object, path: Path) -> Tensor:
    # A view with stride 0 would let a file of a kilobyte ask for terabytes.
    if not isinstance(weight, Tensor) or not weight.is_contiguous():
        raise UserError(f"{path}: '{name}' is not a plain tensor", NOT_A_SEED)
    if not weight.isfinite().all():
        raise UserError(f"{path}: {name} holds NaN or infinity, so this model can say nothing")
    return weight


def seed_config(weights: dict[str, Tensor], settings: dict[str, Any], path: Path) -> ModelConfig:
    """Return the shape, read from the tensors; `settings` must agree, and give what tensors cannot show.

    Raises:
        UserError: tensors are missing or contradict the settings.
    """
    names = {_native_name(name): name for name in weights}
    try:
        embedding = weights[names["model.embed_tokens.weight"]]
        hidden = weights[names["model.layers.0.mlp.gate_proj.weight"]].shape[0]
        keys = weights[names["model.layers.0.self_attn.k_proj.weight"]].shape[0]
        vocab_size, dim = embedding.shape
    except (KeyError, ValueError, IndexError) as problem:
        raise UserError(f"{path} is no checkpoint of the seed: {problem} is missing", NOT_A_SEED) from None
    angles = weights.get(ANGLES)
    if angles is not None and angles.ndim == 2 and angles.shape[1]:
        max_seq_len, head_dim = angles.shape[0], 2 * angles.shape[1]
    elif settings.get("n_heads"):
        max_seq_len, head_dim = settings.get("max_seq_len", 2048), dim // max(1, int(settings["n_heads"]))
    else:
        raise UserError(f"{path} does not say how many heads it has: neither model_args nor {ANGLES}", NOT_A_SEED)
    found = {
        "dim": dim,
        "n_layers": 1 + max(int(match[1]) for name in weights if (match := re.match(r"layers\.(\d{1,4})\.", name))),
        "n_heads": dim // max(1, head_dim),
        "n_kv_heads": keys // max(1, head_dim),
        "vocab_size": vocab_size,
        "max_seq_len": max_seq_len,
    }
    for key, value in found.items():
        if settings.get(key, value) != value:
            raise UserError(f"{path}: the settings say {key}={settings[key]}, the weights {value}")
    tied = "lm_head.weight" not in names or torch.equal(weights[names["lm_head.weight"]], embedding)
    constants = {"hidden_dim": hidden, "norm_eps": NORM_EPS, "rope_theta": ROPE_THETA, "tie_embeddings": tied}
    try:
        return ModelConfig.model_validate(
            {**found, **constants, "head_dim": head_dim, "dropout": settings.get("dropout", 0.0)}
        )
    except ValidationError as problem:
        raise UserError(explain(problem, source=str(path))) from None


def _native_name(name: str) -> str:
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name):
        return f"model.layers.{match[1]}.{NAMES.get(match[2], match[2])}.weight"
    return NAMES.get(name, name)


def to_half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key matrix (heads * K, D) from RoPE's interleaved layout to the half-split one.

    The seed turns the pairs (0, 1), (2, 3) ... of a head, ours (0, K/2), (1, 1 + K/2) ... Rows move, nothing else:
    queries and keys move alike, so that their products stay.
    """
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _native_model(weights: dict[str, Tensor], config: ModelConfig, path: Path) -> Transformer:
    native = {}
    for name, weight in weights.items():
        if name == ANGLES:
            continue
        new_name = _native_name(name)
        is_turned = new_name.endswith(("q_proj.weight", "k_proj.weight")) and weight.ndim == 2
        native[new_name] = to_half_split(weight, config.head_dim) if is_turned else weight
    if config.tie_embeddings:
        native["lm_head.weight"] = native["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = Transformer(config)
    try:
        model.load_state_dict(native, assign=True)
    except RuntimeError as problem:
        lines = [" ".join(line.split()) for line in str(problem).splitlines()[1:4]]
        raise UserError(f"{path} is no checkpoint of the seed: {'; '.join(lines)}", NOT_A_SEED) from None
    if config.tie_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


@torch.no_grad()
def _prove(weights: dict[str, Tensor], model: Transformer, path: Path) -> float:
    """Compare the seed's logits with ours on random ids, uncached; raise UserError where they differ."""
    config = model.config
    dtype = model.lm_head.weight.dtype
    length = min(PROOF_TOKENS, config.max_seq_len)
    ids_BT = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    expected = seed_logits(weights, ids_BT, n_heads=config.n_heads, theta=ROPE_THETA, eps=NORM_EPS)
    found = model.double()(ids_BT)
    model.to(dtype)  # exact: every float32 is a float64
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"{path}: logits differ by {difference:.3g} (largest logit {largest:.3g}): nothing was written",
            "this checkpoint computes otherwise than the published seed (another RoPE base or norm?)",
        )
    log.info(f"proof: {length} random ids, uncached, float64: largest logit {largest:.4g}, difference {difference:.2g}")
    return difference
