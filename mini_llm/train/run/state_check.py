"""What a checkpoint says of the training is believed only where it can be true: types, ranges, shapes, no NaN."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mini_llm.errors import UserError
from mini_llm.train.config import MOST_STEPS
from mini_llm.train.optim.optimizer import Muon
from mini_llm.train.parallel.boxes import local

Model = TypeVar("Model", bound=BaseModel)
MOST = 2**62
Count = Annotated[int, Field(ge=0, le=MOST)]
Step = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Positive = Annotated[float, Field(gt=0)]


NEWER = "update Mini-LLM: what is unknown here may change how training goes on"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _State(_Strict):
    step: Step
    tokens_seen: Count = 0
    epochs_seen: float = Field(0.0, ge=0, le=1e12)
    best_loss: float | None = None
    best_step: Step | None = None
    spikes: dict[str, int | float] = {}  # a count stays a count, so that a resumed run writes the same bytes
    scaler: dict[str, Any]
    tokens: dict[str, str] = {}


class _Scaler(_Strict):
    scale: Positive
    growth_factor: float = Field(gt=1)
    backoff_factor: float = Field(gt=0, lt=1)
    growth_interval: int = Field(ge=1, le=MOST)
    growth_tracker: Count = Field(alias="_growth_tracker")


def check_state(values: Any) -> dict[str, Any]:
    """Return what state.json holds.

    Raises:
        UserError: it has a key that is unknown here.
        ValueError: a key is missing, or a value of the wrong type or out of range.
    """
    if unknown := sorted(values.keys() - _State.model_fields.keys()) if isinstance(values, dict) else []:
        raise UserError(f"a newer Mini-LLM has written this checkpoint: its state has '{unknown[0]}'", NEWER)
    state = _checked(_State, values)
    if state.best_step is not None and state.best_step > state.step:
        raise ValueError(f"best_step={state.best_step} is above step={state.step}")
    return state.model_dump(exclude_unset=True)


def check_scaler(values: dict[str, Any]) -> dict[str, Any]:
    """Return the gradient scaler's state; empty unless the run was in float16.

    Raises:
        ValueError: it cannot be one.
    """
    return _checked(_Scaler, values).model_dump(by_alias=True) if values else values


def _checked(cls: type[Model], values: Any) -> Model:
    try:
        return cls.model_validate(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def check_optimizer(
    model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor], step: int
) -> None:
    """Refuse tensors (`exp_avg/model.norm.weight`) that the optimizers cannot have left after `step` steps.

    Raises:
        ValueError: one is unknown, missing, of another shape or type, not finite, or of a time that has not come.
    """
    parameters = dict(model.named_parameters())
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    found: dict[str, set[str]] = {name: set() for name in parameters}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        optimizer = owner.get(parameters[name]) if name in parameters else None
        if optimizer is None or kind not in {*_kinds(optimizer), "average"}:
            raise ValueError(f"{key} belongs to no parameter of this model and optimizer")
        shape = () if kind == "step" else tuple(parameters[name].shape)
        if tuple(value.shape) != shape or value.dtype != torch.float32:
            raise ValueError(f"{key} is {value.dtype} {tuple(value.shape)}, not float32 {shape}")
        if not local(value).isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")
        if kind in ("step", "exp_avg_sq") and (local(value) < 0).any():
            raise ValueError(f"{key} is below 0")
        if kind == "step" and (value > step or value != value.round()):
            raise ValueError(f"{key} is {value.item():g} after {step} steps")
        found[name].add(kind)
    for optimizer in optimizers:
        names = [name for name, p in parameters.items() if owner.get(p) is optimizer]
        kinds = _kinds(optimizer)
        missing = [f"{kind}/{name}" for name in names for kind in kinds if kind not in found[name]]
        if missing and any(found[name] for name in names):  # none at all: every step so far was skipped
            raise ValueError(f"{missing[0]} is missing")


def _kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    return ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
