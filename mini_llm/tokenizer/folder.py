"""The files of a tokenizer's folder: read with care, and the older format written as the new one.

Everything in it may be somebody else's: each file is bounded before it is read, checked before it is believed, and
named where it is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from mini_llm.errors import UserError
from mini_llm.tokenizer import spm
from mini_llm.tokenizer.convert import config_values
from mini_llm.tokenizer.spm import NoModel
from mini_llm.user_files import above, kind_of, read_file

MOST_BYTES = 200 * 10**6  # the largest published tokenizers have 40 MB
HOW_TO_TRAIN = "make one with: mini-llm tokenizer train SOURCES --out DIR"
DAMAGED = "fetch the model again, or name another tokenizer"
OLDER = ("tokenizer.model", "vocab.json")


class Definition(NamedTuple):
    """What a folder says of its tokenizer: `text` is a tokenizer.json, from the file at `path` or made of it."""

    path: Path
    text: bytes
    config: dict[str, Any]  # tokenizer_config.json; empty where there is none


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer that can be loaded, as far as names tell."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def read_definition(folder: Path) -> Definition:
    """Read the tokenizer of a folder.

    Raises:
        UserError: it has none, or a file is unreadable, too long, damaged or of a kind that is not known.
    """
    if kind_of(folder) == "nothing":
        raise UserError(f"no tokenizer folder at {folder}", above(folder, HOW_TO_TRAIN))
    path, older = folder / "tokenizer.json", folder / "tokenizer.model"
    config = read_object(folder / "tokenizer_config.json")
    if kind_of(path) != "nothing":
        return Definition(path, read_file(path, most=MOST_BYTES), config)
    if kind_of(older) == "nothing":
        raise UserError(f"{folder} has no tokenizer.json", what_helps(folder) or HOW_TO_TRAIN)
    try:
        return Definition(older, *_converted(read_file(older, most=MOST_BYTES), folder, config))
    except ValueError as problem:
        hint = DAMAGED if isinstance(problem, NoModel) else what_helps(folder)
        raise UserError(f"{older} is not a tokenizer that can be used: {problem}", hint) from None


def what_helps(folder: Path) -> str | None:
    """Return what to do where a model's tokenizer cannot be used: a model needs its own, and no new one."""
    if any((folder / name).is_file() for name in OLDER) and not (folder / "tokenizer.json").is_file():
        return (
            "its tokenizer is in an older format; transformers writes the new one into the same folder: python -c "
            f"\"import transformers as t; t.AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    if (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file():
        return DAMAGED
    if (folder / "config.json").is_file():
        return "this model came without its tokenizer: put it there; generate and eval take another by --tokenizer DIR"
    return None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is no file.

    Raises:
        UserError: it cannot be read, is longer than any of its kind, or holds something else.
    """
    if kind_of(path) == "nothing":
        return {}
    try:
        found = json.loads(read_file(path, most=MOST_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not valid JSON: {problem}", DAMAGED) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(found).__name__}", DAMAGED)
    return found


def _converted(data: bytes, folder: Path, config: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return the tokenizer.json of a SentencePiece model, and the folder's settings, or those that follow from it."""
    model = spm.read_model(data)
    if spm.is_made_here(model):
        return spm.our_tokenizer_json(model).encode(), config or config_values()
    more = _added(folder, config)
    values = spm.as_tokenizer_json(model, config, more)
    return json.dumps(values, ensure_ascii=False).encode(), config or spm.special_names(model)


def _added(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """Return the tokens that the folder adds to those of its tokenizer.model, with their ids."""
    found: dict[str, int] = {}
    for name, i in read_object(folder / "added_tokens.json").items():
        if isinstance(i, int):
            found[name] = i
    decoder = config.get("added_tokens_decoder")
    for i, token in decoder.items() if isinstance(decoder, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and str(i).isdecimal():
            found[content] = int(i)
    return found
