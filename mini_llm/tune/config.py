"""Every setting of supervised fine-tuning, beside those of all training."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from mini_llm.adapter import fingerprint
from mini_llm.checkpoint import read_model_config
from mini_llm.config import Config, PathText, load_config
from mini_llm.errors import UsageError, UserError
from mini_llm.hub import is_hub_name
from mini_llm.model.config import ModelConfig
from mini_llm.pointers import list_checkpoints, resolve_checkpoint
from mini_llm.train.config import MOST_RATE, MOST_STEPS, ModelText, TrainConfig
from mini_llm.train.run.run_folder import read_settings
from mini_llm.user_files import above, kind_of

RATE, LORA_RATE = 3e-4, 3e-3  # where nobody has tuned them


class LoraConfig(Config):
    """What is trained where the model itself stays as it is; see lora.py."""

    rank: int = Field(default=0, ge=0, le=65536)  # of what is trained beside each matrix; 0: the matrices themselves
    alpha: float = Field(default=32.0, gt=0, le=1e6)  # what they add counts alpha / sqrt(rank) times
    rslora: bool = True  # false: alpha / rank, by which a larger rank learns more slowly
    train_markers: Literal["auto"] | bool = "auto"  # the rows of chat markers too; auto: where the base never saw them


class SftConfig(TrainConfig):
    """What `mini-llm sft --base RUN --data FILES --config FILE KEY=VALUE ...` reads."""

    verb: ClassVar[str] = "sft"
    shipped: ClassVar[str] = "--config configs/sft-50m.yaml"
    instead_of: ClassVar[dict[str, str]] = {"max_iters": "epochs"}  # a recipe has epochs, its user wants three steps
    share_of_rates: ClassVar[float] = 0.5  # of the base's: the smaller a model, the nearer to those of pretraining

    base: ModelText = ""  # the model to begin from: a run, a checkpoint or any Llama folder
    data: tuple[PathText, ...] = ()  # files, folders or globs of conversations
    merge_turns: bool = False  # join two turns of one role instead of refusing them
    val_fraction: float = Field(0.05, ge=0.001, le=0.5)  # of the conversations, held out by their first question
    epochs: float | None = Field(
        2.0, gt=0, le=MOST_STEPS
    )  # times that all rows are seen; null, or max_iters given: that many steps
    lora: LoraConfig = LoraConfig()
    replay: float = Field(0.0, ge=0, lt=1)  # share of the rows that comes from data_dir, the base's own token store

    letters: float = Field(0.0, ge=0, le=10)  # of a row's length: what codes of each piece's letters add to it

    out_dir: PathText = "runs/sft"
    lr_schedule: Literal["cosine", "wsd"] = "wsd"  # flat, then linear to zero over the last half
    cooldown_fraction: float = Field(0.5, gt=0, le=1)
    learning_rate: float = Field(RATE, ge=0, le=MOST_RATE)
    min_lr: float = Field(0.0, ge=0, le=MOST_RATE)
    warmup_iters: int | None = Field(None, ge=0, le=MOST_STEPS)  # type: ignore[assignment]  # unset: 3 % of the steps
    weight_decay: float = Field(0.0, ge=0, le=MOST_RATE)
    eval_interval: int = Field(50, ge=1, le=MOST_STEPS)
    eval_iters: int = Field(20, ge=1, le=MOST_STEPS)  # so many of conversations, as many of text: else 40 % of the time

    @model_validator(mode="before")
    @classmethod
    def _steps_given(cls, values: Any) -> Any:
        """Who gives `max_iters` and no `epochs` wants so many steps."""
        if isinstance(values, dict) and "max_iters" in values and "epochs" not in values:
            return {**values, "epochs": None}
        return values

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.mix.data and self.verb != "rl":
            raise ValueError("mix is of pretraining and rl; here conversations are data, and replay is text among them")
        if self.letters and self.verb != "sft":
            raise ValueError(f"letters are written into a base by sft, not by {self.verb}")
        if self.letters and self.lora.rank:
            raise ValueError("letters are written into the base, which lora leaves as it is: give one of the two")
        if self.lora.rank and self.optimizer != "adamw" and "optimizer" in self.model_fields_set:
            raise ValueError("optimizer=muon moves all directions of a matrix alike; lora needs optimizer=adamw")
        return self

    def check_given(self) -> None:
        """Refuse settings without a base or without data.

        Raises:
            UsageError: with what to give.
        """
        if not self.base:
            raise UsageError("no model to begin from", "name one: mini-llm sft --base runs/demo --data chat.jsonl")
        if not self.data:
            raise UsageError("no conversations to learn from", "name some: --data chat.jsonl")

    @property
    def replayed_rows(self) -> int:
        """Rows of a step that are plain text."""
        return min(self.rows_per_step - 1, round(self.replay * self.rows_per_step))

    @property
    def chat_rows(self) -> int:
        """Rows of a step that are conversations."""
        return self.rows_per_step - self.replayed_rows


ConfigT = TypeVar("ConfigT", bound=SftConfig)


def with_base(config: ConfigT) -> ConfigT:
    """Return the settings with what the base decides: its shape, and its run's rates and store where none were given.

    LoRA has a rate of its own, for its matrices begin from nothing: ten times that of full tuning where nobody has
    tuned it.

    Raises:
        UsageError: as `check_given`, rows longer than the base can read, or the base lies in out_dir.
        UserError: the base is no model folder.
    """
    config.check_given()
    folder = base_folder(config)
    if Path(config.out_dir).resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(f"out_dir={config.out_dir} is where the base lies", "give another out_dir=...")
    refuse_other_base(config, folder)
    shape = read_model_config(folder)
    given = config.model_fields_set
    dropout = {"dropout": config.model.dropout}  # the one thing below model: that is no shape
    if config.model not in (ModelConfig().model_copy(update=dropout), shape.model_copy(update=dropout)):
        raise UsageError("the model's shape is that of its base", "leave out the settings below model:")
    changes: dict[str, Any] = {"model": shape.model_copy(update=dropout)}
    old = settings_of(folder)
    if config.lora.rank and "learning_rate" not in given:
        changes["learning_rate"] = LORA_RATE * 2 * config.share_of_rates
    if old is not None:
        of_optimizer = () if config.lora.rank else ("optimizer", "muon_momentum", "beta1", "beta2")
        for key in (*of_optimizer, "data_dir"):
            if key not in given:
                changes[key] = getattr(old, key)
        for key in () if config.lora.rank else ("learning_rate", "muon_learning_rate"):
            if key not in given:
                changes[key] = getattr(old, key) * config.share_of_rates
    if "block_size" not in given:
        changes["block_size"] = min(config.block_size, shape.max_seq_len)
    try:
        return type(config).model_validate({**config.model_dump(), **changes, "model": changes["model"].model_dump()})
    except ValueError as problem:
        raise UsageError(f"these settings do not fit the base {folder}: {problem}") from None


def base_folder(config: SftConfig) -> Path:
    """Return the base's model folder.

    Raises:
        UserError: there is none; a record of a run names where it was, and it may have been moved since.
    """
    try:
        return resolve_checkpoint(config.base)
    except UserError as problem:
        if is_hub_name(config.base) or kind_of(config.base) != "nothing":
            raise
        hint = above(config.base, f"say where it lies now: mini-llm {config.verb} --base MODEL ...")
        raise UserError(f"the model to begin from is not there: {problem.message}", hint) from None


def refuse_other_base(config: SftConfig, folder: Path) -> None:
    """Refuse to go on in out_dir with a run that began from another model; one that has only been moved is the same.

    Raises:
        UsageError: the base that the run's record names is there, and has other weights.
    """
    run = Path(config.out_dir)
    if not (config.resume and list_checkpoints(run)):
        return
    try:
        old = load_config(type(config), run / "config.yaml").base
        if old == config.base or is_hub_name(old):
            return
        began = resolve_checkpoint(old)
    except UserError:  # it is no longer there, or the record is of another verb or damaged, which is told later
        return
    if began.resolve() != folder.resolve() and fingerprint(began) != fingerprint(folder):
        raise UsageError(
            f"{run} holds a run that began from {old}, and cannot go on from {config.base}",
            "give another out_dir=..., or --no-resume to start anew (the old run is moved aside)",
        )


def with_steps(config: SftConfig, n_rows: int) -> SftConfig:
    """Return the settings with `max_iters` and the warm-up that `epochs` mean for so many rows of conversations."""
    steps = config.max_iters
    if config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * n_rows / config.chat_rows))
    warmup = config.warmup_iters if config.warmup_iters is not None else math.ceil(0.03 * steps)
    return config.model_copy(update={"max_iters": steps, "warmup_iters": warmup})


def is_tuned(folder: Path) -> bool:
    """Tell whether a checkpoint lies in a run that began from another model: its record names a base."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        record = (folder.resolve().parents[1] / "config.yaml").read_text(encoding="utf-8")
        return re.search(r"^base: ", record, re.MULTILINE) is not None
    return False


def settings_of(folder: Path) -> TrainConfig | None:
    """Return the settings of the run that a checkpoint lies in, if it lies in one."""
    record = folder.resolve().parents[1] / "config.yaml"
    try:
        return read_settings(record.parent) if record.is_file() else None
    except UserError:  # damaged
        return None
