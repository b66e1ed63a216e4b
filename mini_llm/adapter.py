"""An adapter folder: what LoRA has learned, without the model that it changes. It is a PEFT folder.

`adapter_config.json adapter_model.safetensors`, and of ours `base.json`, by which a wrong or changed base is refused.
It is read as base + adapter: a matrix W becomes W + scale * B A in float32, and is rounded once.
Papers: arXiv 2106.09685 (LoRA), 2312.03732 (rsLoRA). Letters: O outputs, I inputs, R rank, N rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_llm.errors import UserError
from mini_llm.files import sha256_of
from mini_llm.pointers import ADAPTER_CONFIG, is_adapter, resolve_checkpoint
from mini_llm.weights import DamagedCheckpoint, read_json, read_tensors, weight_files

ADAPTER_WEIGHTS, BASE = "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."  # of PEFT's names; without it, PEFT loads nothing and only warns
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MOST_STACKED = 8  # adapters on adapters
# What PEFT can do besides, and this does not: all of it changes what a folder's tensors mean.
UNSUPPORTED = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "layer_replication",
    "target_parameters", "use_qalora",
)  # fmt: skip
_LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.default)?\.weight")
_ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says that matters."""

    rank: int
    alpha: float
    rslora: bool
    rows: dict[str, list[int]]  # "embed_tokens", "lm_head": which rows were trained whole

    @property
    def scale(self) -> float:
        """What B A is multiplied by. With rsLoRA, alpha / sqrt(rank), a larger rank does not learn more slowly."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def to_peft(self, base: str, revision: str | None) -> dict[str, Any]:
        """Return adapter_config.json for an adapter of `base`, a path or a name on the hub."""
        tied = set(self.rows) == {"embed_tokens"}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.rslora,
            "target_modules": list(MATRICES),
            "trainable_token_indices": self.rows["embed_tokens"] if tied else self.rows or None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Read `folder`'s adapter_config.json.

        Raises:
            UserError: it is no LoRA, or one with more to it than matrices and rows; damaged ones are named too.
        """
        path = folder / ADAPTER_CONFIG
        values = read_json(path)
        if values.get("peft_type") != "LORA":
            raise UserError(f"{path}: peft_type {str(values.get('peft_type'))[:40]!r} is not supported, only 'LORA'")
        more = [key for key in UNSUPPORTED if values.get(key)]
        more += [] if values.get("bias", "none") == "none" else ["bias"]
        if more:
            raise UserError(
                f"{path}: {', '.join(more)} is not supported", "merge it into its model with peft's merge_and_unload"
            )
        rows = values.get("trainable_token_indices") or {}
        rows = rows if isinstance(rows, dict) else {"embed_tokens": rows}
        try:
            found = cls(int(values["r"]), float(values["lora_alpha"]), bool(values.get("use_rslora")), dict(rows))
            sound = found.rank > 0 and math.isfinite(found.alpha)
            sound &= all(type(i) is int and i >= 0 for ids in rows.values() for i in ids)
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise DamagedCheckpoint(f"{path} is damaged: r, lora_alpha or trainable_token_indices is no number")
        return found


@dataclass(frozen=True)
class Base:
    """The model that an adapter changes: what base.json says, or, where there is none, adapter_config.json alone."""

    name: str  # a path, as it was given, or a name on the hub
    beside: str | None  # the path from the adapter's folder: both may have been moved
    sha256: str | None  # of its weights, see `fingerprint`

    @classmethod
    def of(cls, folder: Path) -> Base:
        """Return the base of the adapter in `folder`.

        Raises:
            UserError: nothing says which.
        """
        values = read_json(folder / BASE) if (folder / BASE).is_file() else {}
        config = read_json(folder / ADAPTER_CONFIG)
        name, revision = config.get("base_model_name_or_path"), config.get("revision")
        beside, sha256 = values.get("beside"), values.get("sha256")
        if not isinstance(name, str) or not name or not all(isinstance(v, str | None) for v in (beside, sha256)):
            raise UserError(f"{folder / ADAPTER_CONFIG} does not say which model it is for (base_model_name_or_path)")
        return cls(f"{name}@{revision}" if isinstance(revision, str) else name, beside, sha256)

    def find(self, folder: Path) -> Path:
        """Return its model folder, for the adapter in `folder`.

        Raises:
            UserError: it is not there any more, or the hub does not have it.
        """
        places = [folder.resolve() / self.beside] if self.beside else []
        for place in (*places, Path(self.name)):
            if place.exists():
                return resolve_checkpoint(place)
        if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?", self.name) and self.beside is None:
            return resolve_checkpoint(f"hf://{self.name}")
        raise UserError(
            f"{folder} is an adapter, and the model that it changes is not at {self.name} any more",
            f"put it back, or write its new path into base_model_name_or_path of {folder / ADAPTER_CONFIG} "
            "and delete checksums.json beside it",
        )


def stack_of(folder: Path) -> tuple[Path, list[Path]]:
    """Return the plain model below `folder`, and the adapters to put on it, in that order; none for a plain model.

    Raises:
        UserError: a base is missing, or adapters lead round in a circle.
    """
    adapters: list[Path] = []
    while is_adapter(folder):
        if len(adapters) >= MOST_STACKED:
            raise UserError(f"{adapters[0]} is an adapter on more than {MOST_STACKED} others", "merge some of them")
        adapters.insert(0, folder)
        folder = Base.of(folder).find(folder)
    return folder, adapters


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a folder's weights: its safetensors file, or the names and sums of several.

    What `checksums.json` lists is taken from there: whoever loads the folder has compared it.
    """
    files = [folder / ADAPTER_WEIGHTS] if is_adapter(folder) else weight_files(folder)
    listed = read_json(folder / "checksums.json") if (folder / "checksums.json").is_file() else {}
    sums = {path.name: listed.get(path.name) or _sum_of(path) for path in files}
    if len(sums) == 1:
        return str(next(iter(sums.values())))
    text = "".join(f"{name} {value}\n" for name, value in sums.items())
    return hashlib.sha256(text.encode()).hexdigest()


def _sum_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as problem:
        raise DamagedCheckpoint(f"cannot read {path}: {problem.strerror}") from None


def check_base(adapter: Path, base: Path) -> None:
    """Refuse a base that is not the one on which `adapter` was trained.

    Raises:
        UserError: its weights are others, or were changed since.
    """
    expected = Base.of(adapter).sha256
    if expected is not None and (found := fingerprint(base)) != expected:
        raise UserError(
            f"{base} is not the model that the adapter {adapter} was trained on: "
            f"its weights have SHA-256 {found[:12]}..., not {expected[:12]}...",
            "put the weights back that it was trained on; an adapter means nothing on others",
        )


def merged(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """Return W + scale * B A, (O, I), in float32: the one sum that training, reading and export share."""
    return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float(), alpha=scale)


def put_on(weights: dict[str, Tensor], folder: Path) -> None:
    """Change `weights`, under the names of LlamaForCausalLM, as the adapter in `folder` says.

    Raises:
        DamagedCheckpoint: a tensor is unknown, alone, or of another shape than the model's.
    """
    config, path = AdapterConfig.read(folder), folder / ADAPTER_WEIGHTS
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        name = key.removeprefix(PREFIX)
        if not tensor.is_floating_point():
            raise DamagedCheckpoint(f"{path}: {key} holds no numbers that can be added to weights")
        if found := _LOW_RANK.fullmatch(name):
            pairs.setdefault(found["module"], {})[found["part"]] = tensor
        elif found := _ROWS.fullmatch(name):
            _put_rows(weights, found["module"], tensor, config, path)
        else:
            raise DamagedCheckpoint(f"{path}: {key[:200]!r} is no part of a LoRA that is known here")
    for module, pair in pairs.items():
        weight = weights.get(f"{module}.weight")
        if weight is None or pair.keys() != {"A", "B"}:
            raise DamagedCheckpoint(f"{path}: {module[:200]!r} is no matrix of the base, or half of a pair is missing")
        shapes = tuple(pair["A"].shape), tuple(pair["B"].shape)
        if weight.ndim != 2 or shapes != ((config.rank, weight.shape[1]), (weight.shape[0], config.rank)):
            raise DamagedCheckpoint(f"{path}: {module} has shapes {shapes}, which do not fit {tuple(weight.shape)}")
        weights[f"{module}.weight"] = merged(weight, pair["A"], pair["B"], config.scale)


def _put_rows(weights: dict[str, Tensor], module: str, rows_NI: Tensor, config: AdapterConfig, path: Path) -> None:
    ids, weight = config.rows.get(module.rpartition(".")[2], []), weights.get(f"{module}.weight")
    if weight is None or rows_NI.shape != (len(ids), weight.shape[1]) or max(ids, default=0) >= len(weight):
        raise DamagedCheckpoint(f"{path}: the rows of {module[:200]!r} do not fit {ADAPTER_CONFIG} and the base")
    changed = weight.float().clone()
    changed[ids] = rows_NI.float()
    weights[f"{module}.weight"] = changed
