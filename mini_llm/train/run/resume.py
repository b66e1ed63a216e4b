"""Training state: what must be saved, besides the weights, so that a resumed run equals the unbroken one bit for bit.

A checkpoint is a model folder with `training_state/` in it: the optimizers' tensors, the gradient scaler and the step.
Batches and dropout are functions of (seed, step), so there is no loader position and no random state to keep.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mini_llm import log
from mini_llm.checkpoint import (
    CHECKPOINT_FOLDER,
    CHECKSUMS,
    verify_checkpoint,
    write_checksums,
    write_descriptions,
    write_tensors,
)
from mini_llm.errors import UserError
from mini_llm.files import foreign_entry, new_folder
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import list_checkpoints, write_pointer
from mini_llm.shares import INDEX as SHARES_INDEX
from mini_llm.shares import Box
from mini_llm.temporary import temporary_name
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.parallel.boxes import WholeToShares, box_of, is_written_here, local, share_like
from mini_llm.train.parallel.sharded import Shares, read_shares
from mini_llm.train.parallel.world import World
from mini_llm.train.run.host_copy import to_host
from mini_llm.train.run.kept import Kept, WholeModel
from mini_llm.train.run.state_check import check_optimizer, check_scaler, check_state
from mini_llm.user_files import reason
from mini_llm.weights import DamagedCheckpoint, read_tensors

if TYPE_CHECKING:
    from mini_llm.train.config import TrainConfig
    from mini_llm.train.objective import Objective


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # steps done
    tokens_seen: int = 0  # by all of them, however large each was
    epochs_seen: float = 0.0  # how many times all rows; the place in the data
    best_loss: float | None = None  # lowest held-out loss so far
    best_step: int | None = None
    spikes: dict[str, float] = field(default_factory=dict)  # running statistics, see spikes.py


@dataclass
class Trainee:
    """All that changes while training."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress
    tokens: dict[str, str] = field(default_factory=dict)  # hashes of the tokenizer and of the text that it learns from
    part: Kept | None = None  # what of the model is saved, where it is not all
    world: World = field(default_factory=World)  # the processes that have a share or a copy of it

    @property
    def kept(self) -> Kept:
        """What of the model is saved, and how."""
        return self.part or WholeModel()


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


@dataclass(frozen=True)
class Snapshot:
    """A trainee at one step, in host memory: what a checkpoint is written from while the trainee goes on.

    Gathered, it is whole in the first process and empty in the others; else each has its shares, and `boxes` of them.
    """

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]
    kept: Kept
    boxes: dict[str, Box] | None = None
    all_boxes: dict[str, Box] = field(default_factory=dict)  # of all tensors, also those that others write

    @classmethod
    def of(cls, trainee: Trainee, into: Snapshot | None = None, *, gathered: bool = True) -> Snapshot:
        """Copy all that changes; `into`, an earlier snapshot that nobody needs any more, gives its memory."""
        weights, optimizer, boxes = trainee.kept.weights(trainee.model), optimizer_tensors(trainee), None
        all_boxes = {} if gathered else {name: box_of(tensor) for name, tensor in (weights | optimizer).items()}
        if not gathered:
            kept = {n for n, t in (weights | optimizer).items() if is_written_here(t, trainee.world.rank)}
            boxes = {name: box for name, box in all_boxes.items() if name in kept}
            weights, optimizer = ({n: local(t) for n, t in p.items() if n in kept} for p in (weights, optimizer))
        snapshot = cls(
            trainee.model.config,
            to_host(weights, into.weights if into else {}, trainee.world.is_first or not gathered),
            to_host(optimizer, into.optimizer if into else {}, trainee.world.is_first or not gathered),
            {**asdict(trainee.progress), "scaler": trainee.scaler.state_dict(), "tokens": trainee.tokens},
            trainee.kept,
            boxes,
            all_boxes,
        )
        device = next(trainee.model.parameters()).device
        if device.type == "cuda":  # the copies run beside the host
            torch.cuda.synchronize(device)
        return snapshot

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.state["step"])

    @property
    def n_bytes(self) -> int:
        """The size of all tensors."""
        return sum(t.nbytes for tensors in (self.weights, self.optimizer) for t in tensors.values())


def save_checkpoint(run: Path, snapshot: Snapshot, tokenizer: Tokenizer, shares: Shares | None = None) -> Path:
    """Write a checkpoint, whole or not at all, and point RUN/latest to it; `shares` makes it one of all processes.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    folder = checkpoint_folder(run, snapshot.step)
    try:
        with new_folder(folder, CHECKPOINT_FOLDER, shares.temporary(folder) if shares else None) as temporary:
            state, sums = temporary / "training_state", {}
            state.mkdir()
            if shares:
                sums = shares.write_and_collect(temporary)
                write_descriptions(temporary, snapshot.config, tokenizer, torch.float32)
            else:
                snapshot.kept.write(temporary, snapshot.weights, snapshot.config, tokenizer)
                write_tensors(snapshot.optimizer, state / "optimizer.safetensors")
            (state / "state.json").write_text(json.dumps(snapshot.state, indent=2) + "\n", encoding="utf-8")
            write_checksums(temporary, sums)
        write_pointer(run / "latest", folder)
    except OSError as problem:
        raise UserError(
            f"could not write the checkpoint of step {snapshot.step} to {folder}: {reason(problem)}",
            f"make room; {what_is_kept(run)}",
        ) from None
    return folder


def what_is_kept(run: Path, resume: bool = True) -> str:
    """Return, for a person, what is safe of a run that has failed, and what goes on with it."""
    if not (kept := list_checkpoints(run)):
        return "no step of it is saved: the same command begins anew"
    same = "the same command" if resume else "the same command without --no-resume"
    return f"step {kept[-1][0]:,} is safe: {same} goes on from there"


def prune_checkpoints(run: Path, up_to: int, keep_last: int, also_keep: set[int]) -> None:
    """Of the checkpoints up to step `up_to`, delete all but the newest `keep_last` and those of steps in `also_keep`.

    Later ones are damaged or foreign, for the run has not come so far: they must not count as the newest. One that
    holds more than a checkpoint, such as notes, is kept.
    """
    earlier = [(step, folder) for step, folder in list_checkpoints(run) if step <= up_to]
    for step, folder in earlier[:-keep_last]:
        if step not in also_keep and not folder.is_symlink() and not foreign_entry(folder, CHECKPOINT_FOLDER):
            # Renamed first: killed in the middle, half of it must not look like a checkpoint.
            shutil.rmtree(folder.rename(temporary_name(folder)))


def restore_latest(run: Path, trainee: Trainee) -> bool:
    """Load the newest sound checkpoint into `trainee`; False when the run has none yet.

    Damaged and foreign ones are named and passed over.

    Raises:
        UserError: there are checkpoints, and none is sound.
    """
    checkpoints = list_checkpoints(run)
    for step, folder in reversed(checkpoints):
        damage = None
        try:
            if not (folder / CHECKSUMS).is_file():
                raise DamagedCheckpoint(f"{folder / CHECKSUMS} is missing")
            verify_checkpoint(folder, training_state=True, part=(trainee.world.rank, trainee.world.size))
            _restore(folder, step, trainee)
        except DamagedCheckpoint as problem:
            damage = problem.message
        if not trainee.world.any(damage is not None):
            return True
        log.warn(f"{damage or f'another process found {folder} damaged'}; trying the checkpoint before it")
    if checkpoints:
        raise UserError(
            f"every checkpoint in {run / 'checkpoints'} is damaged or foreign",
            "start anew with another out_dir, or with --no-resume (the old run is moved aside)",
        )
    return False


def go_on_with_data(progress: Progress, objective: Objective, config: TrainConfig) -> str:
    """Go on at the same place of the data, whatever size the steps had, and return what was seen, for a person."""
    even = progress.step * config.tokens_per_step
    if progress.tokens_seen < 0:  # an old checkpoint without metrics.jsonl
        progress.tokens_seen = even
    if math.isnan(progress.epochs_seen):  # an old checkpoint
        progress.epochs_seen = objective.epoch(progress.step) * (progress.tokens_seen / even)
    objective.continue_at(progress.step, progress.epochs_seen)
    if progress.step >= config.max_iters:
        log.warn(
            f"all {config.max_iters:,} steps are done already, nothing more is learned: give more by max_iters=..., "
            "another out_dir=... for another run, or --no-resume to begin this one anew"
        )
    return f"step {progress.step:,}: {progress.tokens_seen:,} tokens seen, epoch {progress.epochs_seen:.2f}"


def _restore(folder: Path, step: int, trainee: Trainee) -> None:
    state = folder / "training_state"
    try:
        values = check_state(json.loads((state / "state.json").read_text(encoding="utf-8")))
        scaler, tokens = check_scaler(values.pop("scaler")), values.pop("tokens", {})
        is_old = "tokens_seen" not in values
        progress = Progress(**values)
    except (OSError, ValueError, RecursionError) as problem:
        reason = "" if isinstance(problem, OSError) else f" ({str(problem)[:200]})"
        raise DamagedCheckpoint(f"{state / 'state.json'} is missing or damaged{reason}") from None
    if progress.step != step:
        raise DamagedCheckpoint(f"{folder} holds step {progress.step} of some run")
    if is_old:  # of a version that counted step * tokens of a step: what metrics.jsonl says tells how many these were
        progress.tokens_seen, progress.epochs_seen = _tokens_of(folder.parent.parent, step), math.nan
    is_other_text = _compare_tokens(tokens, trainee.tokens, folder)
    if is_other_text and math.isfinite(progress.epochs_seen):
        progress.epochs_seen = float(math.ceil(progress.epochs_seen))  # the new text from its first row on
    is_whole = not (folder / SHARES_INDEX).is_file()
    tensors = read_tensors(state / "optimizer.safetensors") if is_whole else {}
    try:
        if not is_whole:
            tensors = read_shares(folder, trainee)
        check_optimizer(trainee.model, trainee.optimizers, tensors, step)
        if is_whole:
            with WholeToShares():
                trainee.kept.load(folder, trainee.model)
        _load_optimizers(trainee, tensors)
    except (RuntimeError, KeyError, ValueError) as problem:
        raise DamagedCheckpoint(f"{folder} does not belong to this model ({problem})") from None
    if scaler:  # empty unless the run was in float16
        trainee.scaler.load_state_dict(scaler)
    trainee.progress = progress


def _tokens_of(run: Path, step: int) -> int:
    """Return how many tokens `step` steps saw, by the last line of metrics.jsonl that counts them; -1: unknown."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for line in lines if '"tokens"' in line and 0 < (row := json.loads(line))["step"] <= step]
        return int(rows[-1]["tokens"] * step // rows[-1]["step"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return -1


def _compare_tokens(before: dict[str, str], now: dict[str, str], folder: Path) -> bool:
    """Refuse weights that have learned another tokenizer's ids; tell of those that have learned another text."""
    if not (before and now):
        return False
    if before.get("tokenizer") != now["tokenizer"]:
        raise DamagedCheckpoint(f"{folder} was trained with another tokenizer than it is given now")
    if is_other := before.get("text") != now["text"]:
        log.warn(f"{folder} was trained on another text: from here on it learns the new one")
    return is_other


def optimizer_tensors(trainee: Trainee) -> dict[str, torch.Tensor]:
    """Return the optimizers' tensors as `exp_avg/model.norm.weight`."""
    tensors = {}
    for name, p in trainee.model.named_parameters():
        for optimizer in trainee.optimizers:
            for kind, value in optimizer.state.get(p, {}).items():
                tensors[f"{kind}/{name}"] = torch.as_tensor(value).detach()
    return tensors


def _load_optimizers(trainee: Trainee, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(trainee.model.named_parameters())
    owner = {p: optimizer for optimizer in trainee.optimizers for g in optimizer.param_groups for p in g["params"]}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        p = parameters[name]
        # AdamW's `step` is a scalar: fused kernels want it on the device too.
        owner[p].state[p][kind] = share_like(value, p)
