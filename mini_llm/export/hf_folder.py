"""A model folder again, elsewhere or in fewer bits: without the training state, with checksums of what it holds."""

from __future__ import annotations

from pathlib import Path

import torch

from mini_llm.checkpoint import (
    load_model,
    model_weights,
    read_model_config,
    stored_dtype,
    write_checksums,
    write_model_files,
)
from mini_llm.device import DTYPES
from mini_llm.errors import UsageError, UserError
from mini_llm.files import new_folder
from mini_llm.tokenizer.folder import has_tokenizer
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import writing_to


def export_hf(folder: Path, out: Path, dtype: str | None = None) -> torch.dtype:
    """Write the model in `folder` to the new folder `out`, in `dtype` or as it is stored; return that type.

    Raises:
        UsageError: a type that weights are not stored in.
        UserError: `out` holds something already, `folder` is damaged, the disk is full.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is not known", f"one of {', '.join(DTYPES)}")
    refuse_full(out)
    kind = DTYPES[dtype] if dtype else stored_dtype(folder)
    weights = model_weights(load_model(folder, device="cpu", dtype=kind))
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise UserError(f"{folder} has weights beyond what {dtype} can hold", "use --dtype bfloat16 or float32")
    tokenizer = Tokenizer.load(folder) if has_tokenizer(folder) else None
    config = read_model_config(folder)
    with writing_to(out), new_folder(out) as temporary:
        write_model_files(temporary, weights, config, tokenizer)
        write_checksums(temporary)
    return kind


def refuse_full(out: Path) -> None:
    """Raise UserError unless `out` is free to become a folder: nothing, or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty", "give another --out")
