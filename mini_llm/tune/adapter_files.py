"""The checkpoint of a LoRA run: an adapter's folder, which PEFT loads as it is, and which knows its base by a hash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mini_llm.adapter import ADAPTER_WEIGHTS, BASE, PREFIX, AdapterConfig, check_base, fingerprint
from mini_llm.checkpoint import load_model, verify_checkpoint, write_tensors
from mini_llm.errors import UserError
from mini_llm.hub import is_hub_name, parse_name
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import ADAPTER_CONFIG
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.run.kept import Kept
from mini_llm.tune.config import LoraConfig
from mini_llm.tune.lora import adapter_tensors, add_lora
from mini_llm.tune.markers import rows_to_train
from mini_llm.weights import DamagedCheckpoint, read_tensors


def begin(
    model: Transformer,
    base: Path,
    name: str,
    lora: LoraConfig,
    tokenizer: Tokenizer,
    seed: int,
    change: Callable[[Transformer], None] | None = None,
) -> Kept | None:
    """Give `model` the weights of the folder `base`, put on what `lora` asks for, and return what of it is saved.

    `name` is what the user called the base: a path, or a name on the hub. Without LoRA all is trained and saved: None.
    `change` is done to the base first.

    Raises:
        UserError: the base is damaged or of another shape.
    """
    source = load_model(base, device="cpu", dtype=torch.float32)
    if change:
        change(source)
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError:
        raise UserError(f"{base} has another shape than `model:` in the settings") from None
    if not lora.rank:
        return None
    rows = rows_to_train(base, tokenizer, lora, is_tied=model.config.tie_embeddings)
    config = AdapterConfig(lora.rank, lora.alpha, lora.rslora, rows)
    add_lora(model, config, seed)
    return AdapterFiles(config, base, name, fingerprint(base))


@dataclass(frozen=True)
class AdapterFiles:
    """What of a model with LoRA is saved; see `train.run.kept.Kept`."""

    config: AdapterConfig
    base: Path
    name: str
    sha256: str

    def weights(self, model: Transformer) -> dict[str, Tensor]:
        """Return what is trained, by PEFT's names."""
        return {PREFIX + name: parameter.detach() for name, parameter in adapter_tensors(model)}

    def write(self, folder: Path, weights: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> None:
        """Fill `folder` with a PEFT folder, the base's hash and the tokenizer."""
        write_tensors(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        name, revision = parse_name(self.name) if is_hub_name(self.name) else (str(self.base), None)
        _write_json(folder / ADAPTER_CONFIG, self.config.to_peft(name, revision))
        beside = None if is_hub_name(self.name) else os.path.relpath(self.base.resolve(), folder.resolve())
        _write_json(folder / BASE, {"sha256": self.sha256, "beside": beside})
        tokenizer.copy_to(folder)
        (folder / "README.md").write_text(_card(name, sum(w.numel() for w in weights.values())), encoding="utf-8")

    def load(self, folder: Path, model: Transformer) -> None:
        """Give `model` what the adapter in `folder` holds; see `Kept.load`."""
        if not (folder / ADAPTER_CONFIG).is_file():
            raise DamagedCheckpoint(f"{folder} holds a whole model, and no adapter")
        verify_checkpoint(folder)
        if AdapterConfig.read(folder) != self.config:
            raise DamagedCheckpoint(f"{folder} is an adapter with other settings")
        check_base(folder, self.base)
        tensors = read_tensors(folder / ADAPTER_WEIGHTS)
        with torch.no_grad():
            for name, parameter in adapter_tensors(model):
                if tensors[PREFIX + name].shape != parameter.shape:
                    raise DamagedCheckpoint(f"{folder / ADAPTER_WEIGHTS}: {name} has another shape")
                parameter.copy_(tensors[PREFIX + name])


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _card(base: str, n_parameters: int) -> str:
    return f"""---
library_name: peft
base_model: {json.dumps(base)}
tags: [mini-llm, lora]
---
# An adapter trained with Mini-LLM

{n_parameters:,} parameters that change the model {base}, and nothing without it.

    mini-llm generate THIS_FOLDER --prompt "Once upon a time"
    mini-llm export THIS_FOLDER --merge

or, in Python, `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), THIS_FOLDER)`.
"""
