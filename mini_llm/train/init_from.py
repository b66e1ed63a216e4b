"""Go on from someone else's model: its shape, its weights and its tokenizer become those of step 0.

`init_from` names any Llama or Qwen3 folder, a run, or `hf://USER/NAME`. Weights are trained in float32, however they
are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mini_llm.checkpoint import load_model, read_model_config
from mini_llm.errors import UserError
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import list_checkpoints, resolve_checkpoint
from mini_llm.tokenizer.folder import has_tokenizer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig

FREE = {"dropout", "max_seq_len"}  # of the shape: what may differ from the folder's


def with_its_shape(init_from: str, given: Any) -> dict[str, Any]:
    """Return the folder's shape as the settings below `model:`, with what is given of those that are free.

    Settings that name all of a shape, as a run's record does, are taken as they are: the folder may be gone by then.

    Raises:
        UserError: there is no such folder, or it holds another architecture.
        ValueError: what is given contradicts it.
    """
    given = given.model_dump() if isinstance(given, ModelConfig) else given
    if not isinstance(given, dict | None):
        return given
    given = given or {}
    if given.keys() >= ModelConfig.model_fields.keys():
        return given
    shape = read_model_config(resolve_checkpoint(init_from)).model_dump()
    for key, value in given.items():
        if key not in FREE and shape.get(key, value) != value:
            raise ValueError(f"init_from={init_from} has {key}={shape[key]}, not {value}: leave model.{key} out")
    return {**shape, **given}


def load_initial_weights(model: Transformer, config: TrainConfig, tokenizer_hash: str | None) -> None:
    """Fill `model` with the weights of `config.init_from`; `tokenizer_hash` is that of the tokens to be learned.

    A run that has checkpoints goes on from those, so the folder is not read again, and may be gone.

    Raises:
        UserError: the folder is damaged, of another shape, or has another tokenizer than the tokens.
    """
    name = config.init_from
    if name is None or (config.resume and list_checkpoints(Path(config.out_dir))):
        return
    folder = resolve_checkpoint(name)
    if has_tokenizer(folder) and tokenizer_hash and Tokenizer.load(folder).fingerprint != tokenizer_hash:
        raise UserError(
            f"the tokens in {config.data_names} were made by another tokenizer than that of init_from={name}",
            f"make them again: mini-llm prepare SOURCES --tokenizer {name} --out {config.stores[0].path}",
        )
    source = load_model(folder, device="cpu", dtype=torch.float32)
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError:
        raise UserError(f"init_from={name} has another shape than `model:` in the settings") from None
