"""One step: micro-batches add up, the loss is a mean over the whole batch, and what is not finite changes nothing."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mini_llm.errors import UsageError
from mini_llm.model import causal_attention
from mini_llm.train import head_loss
from mini_llm.train import loss as loss_module
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim import optimizer as optimizer_module
from mini_llm.train.optim.lr_scheduler import learning_rate
from mini_llm.train.speed import seconds_per_step
from mini_llm.train.step import NotFinite, Stepper

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make(make_config: MakeConfig) -> Callable[..., Stepper]:
    """Return `make(key=value)`: a stepper at step 0."""

    def build(**changes: Any) -> Stepper:
        stepper = Stepper(make_config(**changes))
        stepper.compile()
        return stepper

    return build


def gradients(stepper: Stepper, step: int = 0) -> list[torch.Tensor]:
    stepper.trainee.model.zero_grad()
    stepper._backward(step)
    return [p.grad.clone() for p in stepper.trainee.model.parameters() if p.grad is not None]


def weights(stepper: Stepper) -> list[torch.Tensor]:
    return [p.detach().clone() for p in stepper.trainee.model.parameters()]


def test_the_first_loss_is_a_uniform_guess(make: Callable[..., Stepper]) -> None:
    assert make().step().loss == pytest.approx(math.log(512), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_micro_batches_add_up_to_one_batch(dtype: str, make: Callable[..., Stepper]) -> None:
    whole, parts = make(batch_size=12, dtype=dtype), make(batch_size=3, gradient_accumulation_steps=4, dtype=dtype)
    tolerance = 1e-6 if dtype == "float32" else 2e-3 * 2**16  # float16's gradients are still multiplied by the scale
    for a, b in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-4 if dtype == "float32" else 1e-2)
    for _ in range(3):
        one, four = whole.step(), parts.step()
        assert one.loss == pytest.approx(four.loss, rel=1e-5 if dtype == "float32" else 1e-3)
        assert one.grad_norm == pytest.approx(four.grad_norm, rel=1e-3 if dtype == "float32" else 1e-2)


def test_loss_and_norm_are_those_of_a_plain_reference(make: Callable[..., Stepper]) -> None:
    """The loss is the mean over all target tokens of the step, the norm that of its gradient before clipping."""
    stepper = make(batch_size=3, gradient_accumulation_steps=2, grad_clip=0.01)
    rows, model = stepper.objective.loader.rows(0), stepper.trainee.model
    assert rows.shape == (6, 33)
    loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
    model.zero_grad()
    result = stepper.step()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(("grad_clip", "length"), [(0.01, 0.01), (0.0, None), (1e6, None)])
def test_the_gradient_is_shortened_to_grad_clip(
    grad_clip: float, length: float | None, make: Callable[..., Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper, seen = make(grad_clip=grad_clip), []
    optimizer = stepper.trainee.optimizers[0]
    monkeypatch.setattr(
        optimizer,
        "step",
        lambda *_: seen.append(
            math.sqrt(sum(p.grad.square().sum().item() for p in stepper.trainee.model.parameters()))  # type: ignore[union-attr]
        ),
    )
    result = stepper.step()
    assert seen[0] == pytest.approx(length or result.grad_norm, rel=1e-3)


def test_every_optimizer_follows_the_schedule_from_its_own_peak(make: Callable[..., Stepper]) -> None:
    stepper = make(optimizer="muon", muon_learning_rate=0.5)
    for step in range(4):
        result = stepper.step()
        expected = learning_rate(step, stepper.config)
        assert result.lr == expected
        adamw, muon = stepper.trainee.optimizers
        assert [group["lr"] for group in adamw.param_groups] == pytest.approx([expected] * 2)
        assert muon.param_groups[0]["lr"] == pytest.approx(0.5 * expected / 1e-2)


def test_short_rows_are_the_same_tokens_with_less_to_look_back_at(make: Callable[..., Stepper]) -> None:
    """The first steps are those of a run with short rows: same loss, same gradient; the last are those of full rows."""
    warm = make(length_warmup=0.4)  # 10 steps: two of quarters, two of halves
    rows = warm.objective.loader.rows(0)
    short = torch.cat([rows[:, start : start + 9] for start in range(0, 32, 8)])
    expected = warm.loss_sum(short).item() / 128
    first = warm.step()
    assert first.loss == pytest.approx(expected, rel=1e-5)
    for _ in range(3):
        warm.step()
    at_full = make()
    at_full.trainee.model.load_state_dict(warm.trainee.model.state_dict())
    at_full.trainee.progress.step = 4
    assert warm.step().loss == at_full.step().loss


def test_a_learning_rate_of_zero_changes_no_weight(make: Callable[..., Stepper]) -> None:
    stepper = make(learning_rate=0, min_lr=0, optimizer="muon")
    before = weights(stepper)
    stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(stepper), strict=True))


def test_dropout_is_a_function_of_seed_and_step(make: Callable[..., Stepper]) -> None:
    """Whatever random numbers were drawn in between, for instance by samples shown after an evaluation."""
    a, b = make(model={"dropout": 0.5}), make(model={"dropout": 0.5})
    for _ in range(3):
        torch.rand(7)
        first = a.step()
        assert first == b.step()
    c = make(model={"dropout": 0.5}, seed=2)
    assert c.step().loss != make(model={"dropout": 0.5}, seed=3).step().loss


def test_evaluation_is_without_dropout_and_leaves_training_mode_on(make: Callable[..., Stepper]) -> None:
    stepper, plain = make(model={"dropout": 0.5}), make()
    rows = stepper.objective.loader.rows(0)
    assert stepper.evaluation_loss_sum(rows) == plain.evaluation_loss_sum(rows)
    assert stepper.trainee.model.training
    torch.testing.assert_close(stepper.evaluation_loss_sum(rows[:1]), plain.loss_sum(rows[:1]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(
    value: float, make: Callable[..., Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make()
    stepper.step()
    before = weights(stepper)
    loss_sum = stepper.loss_sum
    monkeypatch.setattr(stepper, "loss_sum", lambda rows: loss_sum(rows) * value)
    with pytest.raises(NotFinite, match=f"the loss became {value}"):
        stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(stepper), strict=True))
    assert stepper.trainee.progress.step == 1


def bad_gradient(stepper: Stepper, name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gradient of one parameter overflow in the next step."""
    parameter = dict(stepper.trainee.model.named_parameters())[name]
    handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    monkeypatch.setattr(stepper, "_remove_hook", handle.remove, raising=False)


def test_a_gradient_that_is_not_finite_stops_in_float32(
    make: Callable[..., Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make()
    bad_gradient(stepper, "model.norm.weight", math.inf, monkeypatch)
    before = weights(stepper)
    with pytest.raises(NotFinite, match="gradient's norm became"):
        stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(stepper), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_float16_skips_the_whole_step_and_halves_its_scale(
    value: float, optimizer: str, name: str, make: Callable[..., Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two optimizers too: the overflow is in one, and the other must not step on what clipping made of it."""
    stepper = make(dtype="float16", optimizer=optimizer)
    stepper.step()
    before, scale = weights(stepper), stepper.trainee.scaler.get_scale()
    bad_gradient(stepper, name, value, monkeypatch)
    result = stepper.step()
    assert not math.isfinite(result.grad_norm)
    assert math.isfinite(result.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(stepper), strict=True))
    assert stepper.trainee.scaler.get_scale() == scale / 2
    assert stepper.trainee.progress.step == 2
    stepper._remove_hook()  # type: ignore[attr-defined]
    stepper.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(stepper), strict=True))
    assert all(w.isfinite().all() for w in weights(stepper))


def test_float16_does_not_skip_for_ever(make: Callable[..., Stepper], monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = make(dtype="float16")
    bad_gradient(stepper, "model.norm.weight", math.nan, monkeypatch)
    for _ in range(17):  # the scale, 2^16, is halved to 1/2
        stepper.step()
    with pytest.raises(NotFinite):
        stepper.step()


def test_a_loss_that_is_nan_is_skipped_in_float16_too(make: Callable[..., Stepper]) -> None:
    stepper = make(dtype="float16", skip_spikes=6.0, batch_size=2)
    before, loss_sum = weights(stepper), stepper.loss_sum
    stepper.loss_sum = lambda rows: loss_sum(rows) * math.nan
    result = stepper.step()
    assert result.skipped
    assert math.isnan(result.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(stepper), strict=True))
    stepper.loss_sum = loss_sum
    assert math.isfinite(stepper.step().loss)


@pytest.mark.parametrize("deterministic", [True, False])
def test_loss_and_gradient_are_under_the_strict_rule(deterministic: bool, make: Callable[..., Stepper]) -> None:
    """Warning only, CUDA's attention would stay as it is; for the rest of the process the rule is mild."""
    torch.use_deterministic_algorithms(False)
    stepper, strict = make(deterministic=deterministic), []
    loss_sum = stepper.loss_sum

    def look(rows: torch.Tensor) -> torch.Tensor:
        strict.append(
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        return loss_sum(rows)

    stepper.loss_sum = look
    stepper.step()
    assert strict == [deterministic]
    assert torch.is_deterministic_algorithms_warn_only_enabled() is deterministic


def test_deterministic_arithmetic_can_be_switched_off(make: Callable[..., Stepper]) -> None:
    torch.use_deterministic_algorithms(False)
    make(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    make()
    assert torch.are_deterministic_algorithms_enabled()


def test_an_unknown_device_is_a_usage_error(make: Callable[..., Stepper]) -> None:
    with pytest.raises(UsageError, match="'tpu'"):
        make(device="tpu")


def test_seconds_per_step_is_the_median_without_the_first(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter([0, 100, 200, 201, 300, 303, 400, 402])  # steps of 100 (the first), 1, 3 and 2 seconds
    monkeypatch.setattr("mini_llm.train.speed.time.perf_counter", lambda: next(ends))
    assert seconds_per_step(make_config(), steps=3) == 2


@pytest.mark.parametrize(
    ("optimizer", "dtype", "tolerance"),
    # Muon orthogonalises in bfloat16 where that is fast, and makes 1e-7 of difference 1e-4 in 20 steps.
    [("adamw", "float32", 1e-4), ("muon", "float32", 3e-4), ("adamw", "bfloat16", 1e-2)],
)
def test_the_fast_paths_have_the_plain_paths_loss_curve(
    optimizer: str, dtype: str, tolerance: float, make: Callable[..., Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention in blocks, head in chunks and Muon's Gram polynomial against none of them, for 20 steps."""

    def curve(fast: bool, steps: int = 20) -> list[float]:
        form = causal_attention.Blocks(64, 65 if fast else 2**30, 2**30, 2**30)
        monkeypatch.setattr(causal_attention, "blocks", lambda: form)
        monkeypatch.setitem(loss_module.MOST_SCORES_BYTES, "cpu", 0 if fast else 2**60)
        monkeypatch.setattr(head_loss, "CHUNK_BYTES", {"cpu": 128 * 4 * 512})
        monkeypatch.setattr(optimizer_module, "LONG", 2 if fast else math.inf)
        shape = {"max_seq_len": 128, "n_kv_heads": 2, "qk_norm": True}
        stepper = make(optimizer=optimizer, dtype=dtype, batch_size=2, block_size=70, max_iters=20, model=shape)
        return [stepper.step().loss for _ in range(steps)]

    fast, plain = curve(True), curve(False)
    assert plain[-1] < plain[0] - 0.5  # it learns
    assert fast == pytest.approx(plain, rel=tolerance)
    assert fast != plain or dtype != "float32"  # or else the switches above switch nothing
    assert fast[:3] == curve(True, steps=3)  # to the last bit
