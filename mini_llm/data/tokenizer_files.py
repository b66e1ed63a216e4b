"""A store's own tokenizer is the one that wrote it: the hash of each of its files stands in the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mini_llm.errors import UserError
from mini_llm.hub import TOKENIZER_FILES
from mini_llm.user_files import kind_of, read_file


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a tokenizer that lies in `folder`.

    Raises:
        UserError: one cannot be read, or is larger than any of its kind.
    """
    paths = [folder / name for name in TOKENIZER_FILES]
    return {path.name: hashlib.sha256(read_file(path)).hexdigest() for path in paths if kind_of(path) != "nothing"}


def check_tokenizer_files(folder: Path, expected: Mapping[str, str], hint: str) -> None:
    """Compare the tokenizer in `folder` with what the manifest says of it.

    Raises:
        UserError: a file is missing, another one, or was not there when the store was written; it is named.
    """
    found = hashes_of(folder)
    for name in TOKENIZER_FILES:
        if found.get(name) == expected.get(name):
            continue
        if name not in found:
            what = "is missing"
        elif name in expected:
            what = "is not the one that wrote this store: its SHA-256 is not that in manifest.json"
        else:
            what = "was not there when this store was written"
        raise UserError(f"{folder / name} {what}", hint)
