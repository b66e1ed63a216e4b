"""Training state: what must be saved, besides the weights, so that a resumed run equals the unbroken one bit for bit.

A checkpoint is a model folder with `training_state/` in it: the optimizers' tensors, the gradient scaler and the step.
Batches and dropout are functions of (seed, step), so there is no loader position and no random state to keep.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mini_llm import log
from mini_llm.checkpoint import (
    CHECKSUMS,
    DamagedCheckpoint,
    read_pointer,
    read_tensors,
    read_weights,
    verify_checkpoint,
    write_checksums,
    write_model_files,
    write_pointer,
)
from mini_llm.errors import UserError
from mini_llm.files import new_folder
from mini_llm.model.transformer import Transformer
from mini_llm.tokenizer.tokenizer import Tokenizer


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # steps done
    best_loss: float | None = None  # lowest held-out loss so far
    best_step: int | None = None


@dataclass
class Trainee:
    """All that changes while training."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(run: Path, trainee: Trainee, tokenizer: Tokenizer) -> Path:
    """Write a checkpoint, whole or not at all, and point RUN/latest to it.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, trainee.progress.step)
    try:
        with new_folder(folder) as temporary:
            write_model_files(temporary, trainee.model, tokenizer)
            state = temporary / "training_state"
            state.mkdir()
            save_file(_optimizer_tensors(trainee), state / "optimizer.safetensors")
            values = {**asdict(trainee.progress), "scaler": trainee.scaler.state_dict()}
            (state / "state.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            write_checksums(temporary)
        write_pointer(run / "latest", folder)
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"could not write the checkpoint of step {trainee.progress.step} to {folder}: "
            f"{getattr(problem, 'strerror', None) or problem}",
            "earlier checkpoints are untouched: make room and run the same command again, it resumes",
        ) from None
    return folder


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every checkpoint, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted((int(f.name[5:]), f) for f in folders if f.is_dir() and f.name[5:].isdigit())


def prune_checkpoints(run: Path, keep_last: int, also_keep: set[int]) -> None:
    """Delete all but the newest `keep_last` checkpoints, the best one and the steps in `also_keep`."""
    best = run / "best"
    keep_names = {read_pointer(best).name} if best.exists() else set()
    for step, folder in list_checkpoints(run)[:-keep_last]:
        if step not in also_keep and folder.name not in keep_names:
            # Renamed first: killed in the middle, half of it must not look like a checkpoint.
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.tmp-pruned")))


def restore_latest(run: Path, trainee: Trainee) -> bool:
    """Load the newest sound checkpoint into `trainee`; False when the run has none yet.

    Damaged ones are named and passed over.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    checkpoints = list_checkpoints(run)
    for _, folder in reversed(checkpoints):
        try:
            if not (folder / CHECKSUMS).is_file():
                raise DamagedCheckpoint(f"{folder / CHECKSUMS} is missing")
            verify_checkpoint(folder)
            _restore(folder, trainee)
        except DamagedCheckpoint as problem:
            log.warn(f"{problem.message}; trying the checkpoint before it")
        else:
            return True
    if checkpoints:
        raise UserError(
            f"every checkpoint in {run / 'checkpoints'} is damaged",
            "start anew with another out_dir, or with --no-resume (the old run is moved aside)",
        )
    return False


def _restore(folder: Path, trainee: Trainee) -> None:
    state = folder / "training_state"
    try:
        values: dict[str, Any] = json.loads((state / "state.json").read_text(encoding="utf-8"))
        scaler = values.pop("scaler")
        progress = Progress(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DamagedCheckpoint(f"{state / 'state.json'} is missing or damaged") from None
    weights = read_weights(folder)
    tensors = read_tensors(state / "optimizer.safetensors")
    try:
        if trainee.model.config.tie_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        trainee.model.load_state_dict(weights)
        _load_optimizers(trainee, tensors)
    except (RuntimeError, KeyError) as problem:
        raise DamagedCheckpoint(f"{folder} does not belong to this model ({problem})") from None
    if scaler:  # empty unless the run was in float16
        trainee.scaler.load_state_dict(scaler)
    trainee.progress = progress


def _optimizer_tensors(trainee: Trainee) -> dict[str, torch.Tensor]:
    """Return the optimizers' tensors as `exp_avg/model.norm.weight`; clones, because some share memory."""
    tensors = {}
    for name, p in trainee.model.named_parameters():
        for optimizer in trainee.optimizers:
            for kind, value in optimizer.state.get(p, {}).items():
                tensors[f"{kind}/{name}"] = torch.as_tensor(value).detach().cpu().clone().contiguous()
    return tensors


def _load_optimizers(trainee: Trainee, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(trainee.model.named_parameters())
    owner = {p: optimizer for optimizer in trainee.optimizers for g in optimizer.param_groups for p in g["params"]}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        p = parameters[name]
        # AdamW's `step` is a scalar: fused kernels want it on the device too.
        owner[p].state[p][kind] = value.to(p.device)
