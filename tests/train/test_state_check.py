"""An edited state of training is refused with the value's name, and a true one passes as it is."""

import json
from typing import Any

import pytest
import torch

from mini_llm.errors import UserError
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.optimizer import build_optimizers
from mini_llm.train.run.state_check import check_optimizer, check_scaler, check_state

SOUND = {"step": 7, "tokens_seen": 900, "epochs_seen": 0.5, "best_loss": 2.5, "best_step": 5, "spikes": {"n": 3}}
SOUND |= {"scaler": {}, "tokens": {"text": "ab"}}
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}
SHAPE = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=64, max_seq_len=32)


def test_what_is_true_passes_unchanged() -> None:
    assert check_state(SOUND) == SOUND
    assert check_state({"step": 0, "scaler": {}}) == {"step": 0, "scaler": {}}
    assert check_scaler(SCALER) == SCALER
    assert check_scaler({}) == {}


@pytest.mark.parametrize("key", SOUND)
@pytest.mark.parametrize("value", ["7", -1, 10**400, 1e300, float("nan"), True, [1], {"a": "b"}, {"n": {}}])
def test_a_value_that_cannot_be_is_named(key: str, value: Any) -> None:
    if (key, str(value)) in {("best_loss", "-1"), ("best_loss", "1e+300"), ("scaler", "{'a': 'b'}")}:
        return  # each of these can be
    if (key, str(value)) in {("scaler", "{'n': {}}"), ("tokens", "{'a': 'b'}")}:
        return
    with pytest.raises(ValueError, match=rf"{key}[^ ]*: "):
        check_state({**SOUND, key: value})


def test_a_key_of_a_newer_version_is_no_damage() -> None:
    """Damage would lead back to an older checkpoint, and hours of a sound one would be done again."""
    with pytest.raises(UserError, match="a newer Mini-LLM has written this checkpoint: its state has 'later'"):
        check_state({**SOUND, "later": 1})


@pytest.mark.parametrize("key", ["step", "scaler"])
def test_a_value_that_is_missing_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: Field required"):
        check_state({name: value for name, value in SOUND.items() if name != key})


@pytest.mark.parametrize("values", [None, 3, "x", [], [SOUND]])
def test_what_is_no_object_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="valid dictionary"):
        check_state(values)


def test_the_best_step_is_none_that_has_not_come() -> None:
    with pytest.raises(ValueError, match="best_step=8 is above step=7"):
        check_state({**SOUND, "best_step": 8})


@pytest.mark.parametrize(
    "change",
    [
        *({"scale": 0.0}, {"scale": -1.0}, {"scale": float("inf")}, {"scale": "65536"}, {"growth_factor": 1.0}),
        *({"backoff_factor": 1.5}, {"growth_interval": 0}, {"_growth_tracker": -1}, {"more": 1}),
    ],
)
def test_a_scaler_that_cannot_be_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}: "):
        check_scaler({**SCALER, **change})


@pytest.fixture(params=["adamw", "muon"])
def trained(request: pytest.FixtureRequest) -> tuple[Transformer, list[torch.optim.Optimizer], dict[str, torch.Tensor]]:
    """Return a model after one step, its optimizers, and what a checkpoint holds of them."""
    model = Transformer(SHAPE)
    model.init_weights(seed=1)
    optimizers = build_optimizers(model, TrainConfig(model=SHAPE, block_size=16, optimizer=request.param))
    model(torch.arange(8)[None]).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    tensors = {
        f"{kind}/{name}": torch.as_tensor(value).detach().clone()
        for name, p in model.named_parameters()
        for optimizer in optimizers
        for kind, value in optimizer.state.get(p, {}).items()
    }
    return model, optimizers, tensors


def test_the_optimizers_own_tensors_pass(trained: Any) -> None:
    check_optimizer(*trained, step=1)
    model, optimizers, _ = trained
    check_optimizer(model, optimizers, {}, step=1)  # every step so far was skipped


@pytest.mark.parametrize("fault", ["gone", "unknown", "shape", "type", "nan", "infinite", "later", "half", "negative"])
def test_a_tensor_that_cannot_be_is_named(trained: Any, fault: str) -> None:
    model, optimizers, tensors = trained
    steps = [key for key in tensors if key.startswith("step/")]
    key = next(key for key in tensors if not key.startswith("step/") and tensors[key].dim() == 1)
    if fault in ("later", "half", "negative"):
        key = steps[0]
        tensors[key] = torch.tensor({"later": 2.0, "half": 0.5, "negative": -1.0}[fault])
    elif fault == "gone":
        del tensors[key]
    elif fault == "unknown":
        tensors["exp_avg/model.nothing.weight"] = torch.zeros(3)
        key = "exp_avg/model.nothing.weight"
    elif fault == "shape":
        tensors[key] = torch.zeros(3)
    elif fault == "type":
        tensors[key] = tensors[key].double()
    else:
        tensors[key][0] = float("nan") if fault == "nan" else float("inf")
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        check_optimizer(model, optimizers, tensors, step=1)


def test_json_reads_numbers_of_any_length_as_what_they_are() -> None:
    with pytest.raises(ValueError, match="step"):
        check_state(json.loads('{"step": 1' + "0" * 400 + ', "scaler": {}}'))
