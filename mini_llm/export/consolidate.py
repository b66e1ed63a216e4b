"""A checkpoint in shares becomes one Hugging Face folder: whole tensors, a few files, an index.

One tensor after the other is put together, so that memory for one file is enough, however large the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from mini_llm.checkpoint import (
    read_model_config,
    verify_checkpoint,
    write_checksums,
    write_descriptions,
    write_tensors,
)
from mini_llm.device import DTYPES
from mini_llm.errors import UsageError, UserError
from mini_llm.export.hf_folder import refuse_full
from mini_llm.files import new_folder
from mini_llm.shares import INDEX as SHARES
from mini_llm.shares import Box, ShareReader
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.user_files import writing_to
from mini_llm.weights import INDEX

FILE_BYTES = 5 * 10**9  # transformers' own limit


def consolidate(folder: Path, out: Path, dtype: str | None = None, file_bytes: int = FILE_BYTES) -> torch.dtype:
    """Write the weights in shares of `folder` to the new folder `out`, in `dtype` or float32; return that type.

    Raises:
        UsageError: a type that weights are not stored in.
        UserError: `folder` is whole already, or damaged; `out` holds something; the disk is full.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is not known", f"one of {', '.join(DTYPES)}")
    if not (folder / SHARES).is_file():
        raise UserError(f"{folder} is no checkpoint in shares", f"it is of a piece: mini-llm export {folder} --to hf")
    refuse_full(out)
    verify_checkpoint(folder)
    kind, config = DTYPES[dtype or "float32"], read_model_config(folder)
    reader = ShareReader(folder)
    names = [name for name in reader.shapes if "/" not in name]  # the others are the optimizers'
    files = list(_in_files({name: math.prod(reader.shapes[name]) * kind.itemsize for name in names}, file_bytes))
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    with writing_to(out), new_folder(out) as temporary:
        where: dict[str, str] = {}
        for number, listed in enumerate(files, 1):
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
            weights = {key: reader.read(key, Box.whole(reader.shapes[key])).to(kind) for key in listed}
            write_tensors(weights, temporary / name, {"format": "pt"})
            where |= dict.fromkeys(listed, name)
        if len(files) > 1:
            total = sum(math.prod(reader.shapes[name]) for name in names) * kind.itemsize
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_descriptions(temporary, config, tokenizer, kind)
        write_checksums(temporary)
    return kind


def _in_files(sizes: dict[str, int], most: int) -> Iterator[list[str]]:
    """Yield names in groups of at most `most` bytes; one that is larger alone is a group."""
    group: list[str] = []
    room = most
    for name, size in sizes.items():
        if group and size > room:
            yield group
            group, room = [], most
        group.append(name)
        room -= size
    yield group
