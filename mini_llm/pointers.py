"""From a run to its model: the pointers `latest` and `best`, and what a command finds where they are lost or copied.

A pointer is a relative link, so that a run can be moved; where a disk has no links it is a file with the path in it.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from mini_llm.errors import UserError
from mini_llm.files import free_name, write_text
from mini_llm.hub import fetch, is_hub_name
from mini_llm.temporary import remove_leftovers, temporary_name
from mini_llm.user_files import above, kind_of, shown

CHECKPOINT_NAME = re.compile(r"step-([0-9]{8,})")
LONGEST_POINTER = 200  # characters; ours have 25
ADAPTER_CONFIG = "adapter_config.json"


def resolve_checkpoint(path: Path | str) -> Path:
    """Return the model folder for a run folder (its latest checkpoint), RUN/best, a checkpoint or any Llama folder.

    `hf://USER/NAME[@REV]` is fetched from the hub first.

    Raises:
        UserError: nothing there, or no checkpoint yet.
    """
    path = fetch(path) if is_hub_name(path) else Path(path)
    kind = kind_of(path)
    if kind == "file":
        _refuse_file(path)
    if kind == "nothing" and not path.is_symlink():  # RUN/latest may lead to nothing
        hint = "train a model first: mini-llm demo, or mini-llm train --config ..."
        raise UserError(f"no such folder: {shown(path)}", above(path, hint))
    for candidate in (path, path / "latest", path / "run" / "latest"):  # the demo's folder holds the run's
        # Followed once: `latest` may move on between the reading of two files.
        leads_on = candidate.is_file() or candidate.is_symlink()
        folder = candidate.parent / read_pointer(candidate) if leads_on else candidate
        if (folder / "config.json").is_file() or is_adapter(folder):
            return folder
    for run in (path, path / "run"):  # a run that has lost its pointer
        if checkpoints := list_checkpoints(run):
            return checkpoints[-1][1]
    hint = "give a run folder, a checkpoint in RUN/checkpoints/, or a Llama folder"
    if any(path.glob("*.gguf")):
        hint = "GGUF files are for llama.cpp: give the Llama folder that they were made from"
    raise UserError(f"no model in {path}: neither config.json nor a pointer `latest`", hint)


def _refuse_file(path: Path) -> None:
    """Say of a file that is certainly no pointer what it is."""
    if path.suffix in (".pt", ".pth"):
        raise UserError(f"{path} is a pickle, not a model folder", f"mini-llm import-seed {path} --out DIR makes one")
    if path.suffix == ".gguf":
        raise UserError(f"{path} is a file for llama.cpp", "give the Llama folder that it was made from")
    if path.suffix in (".safetensors", ".json"):
        raise UserError(f"{path} is a file of a model folder", f"give the folder: {path.parent}")


def is_adapter(folder: Path) -> bool:
    """Tell whether a model folder holds what LoRA has learned, and its model lies elsewhere: see adapter.py."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every checkpoint of a run, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted((int(name[1]), f) for f in folders if (name := CHECKPOINT_NAME.fullmatch(f.name)) and f.is_dir())


def write_pointer(pointer: Path, target: Path) -> None:
    """Make `pointer` (RUN/latest, RUN/best) lead to `target`: a relative link, or its text where links are refused.

    What else is there, such as the folder that copying made of a link, is moved aside.
    """
    if not is_pointer(pointer) and os.path.lexists(pointer):
        pointer.rename(free_name(pointer))
    relative = target.relative_to(pointer.parent)
    remove_leftovers(pointer)
    temporary = temporary_name(pointer)
    try:
        temporary.symlink_to(relative, target_is_directory=True)
    except OSError:  # Windows without developer mode, disks without links
        write_text(pointer, str(relative))
    else:
        temporary.replace(pointer)


def is_pointer(path: Path) -> bool:
    """Tell whether `path` is a pointer to a checkpoint, as a link or as text."""
    if path.is_symlink():
        return True
    with contextlib.suppress(OSError):
        return path.is_file() and path.stat().st_size < LONGEST_POINTER and b"checkpoints" in path.read_bytes()
    return False


def read_pointer(pointer: Path) -> Path:
    """Return where a pointer leads, relative to its folder.

    Raises:
        UserError: the file is no pointer.
    """
    if pointer.is_symlink():
        return pointer.readlink()
    with pointer.open("rb") as file:
        text = file.read(LONGEST_POINTER).decode("utf-8", errors="replace").strip()
    if not text or not (pointer.parent / text).is_dir():
        raise UserError(f"{pointer} is a file, not a model folder", "give a run folder or a folder with config.json")
    return Path(text)
