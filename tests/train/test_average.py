"""The average of the weights: by hand, evaluated and exported, and the training itself untouched by it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mini_llm.checkpoint import load_model
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.average import WeightAverage
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.step import Stepper
from mini_llm.train.train import train
from mini_llm.weights import read_weights

MakeConfig = Callable[..., TrainConfig]


def test_by_hand() -> None:
    """Step n keeps min(decay, n / (n + 10)) of the average, so that the random start is soon forgotten."""
    p = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.5)
    average, expected = WeightAverage([optimizer], decay=0.25), None
    for step in range(1, 8):
        p.grad = torch.tensor([-1.0])
        optimizer.step()
        average.update(step)
        keep = min(0.25, step / (step + 10))
        expected = p.item() if expected is None else keep * expected + (1 - keep) * p.item()
    training = p.item()
    with average.in_place():
        assert p.item() == pytest.approx(expected)
    assert p.item() == training


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_is_the_same_with_and_without(optimizer: str, make_config: MakeConfig) -> None:
    def losses(weight_average: float) -> list[Any]:
        stepper = Stepper(make_config(optimizer=optimizer, weight_average=weight_average))
        stepper.compile()
        results = []
        for _ in range(5):
            results.append(stepper.step())
            with stepper.average.in_place():
                stepper.evaluation_loss_sum(stepper.objective.loader.rows(0))
        return results

    assert losses(0.0) == losses(0.9)


def test_it_is_what_is_evaluated_and_exported(make_config: MakeConfig) -> None:
    config = make_config(weight_average=0.9)
    run = train(config)
    stepper = Stepper(config)
    stepper.compile()
    for _ in range(config.max_iters):
        stepper.step()
    exported = read_weights(run / "latest")
    with stepper.average.in_place():
        averaged = {name: p.detach().clone() for name, p in stepper.trainee.model.named_parameters()}
    for name, p in stepper.trainee.model.named_parameters():
        assert torch.equal(exported[name], averaged[name])
        assert not torch.equal(exported[name], p)
    model, rows = load_model(run / "latest", device="cpu", dtype=torch.float32), stepper.objective.loader.rows(3)
    with stepper.average.in_place():
        assert torch.equal(model(rows), stepper.trainee.model(rows))
    without = train(make_config(out_dir=run.parent / "without"))
    assert read_metrics(run)[-1]["val_loss"] != read_metrics(without)[-1]["val_loss"]
    assert [r["loss"] for r in read_metrics(run) if "loss" in r] == [
        r["loss"] for r in read_metrics(without) if "loss" in r
    ]


def test_switched_off_in_the_middle_it_goes_on_from_the_weights_that_trained(make_config: MakeConfig) -> None:
    run = train(make_config(weight_average=0.9, max_iters=5, lr_decay_iters=10))
    train(make_config(max_iters=10, lr_decay_iters=10))
    plain = train(make_config(out_dir=run.parent / "plain", max_iters=10, lr_decay_iters=10))
    ours, theirs = (read_weights(folder / "latest") for folder in (run, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float, make_config: MakeConfig) -> None:
    with pytest.raises(Exception, match="weight_average"):
        make_config(weight_average=decay)
