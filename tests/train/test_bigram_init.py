"""The counted start: its first guess is the smoothed bigram table, of training tokens alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mini_llm.errors import UsageError
from mini_llm.train.config import TrainConfig
from mini_llm.train.optim.bigram_init import SMOOTHING, count_pairs, truncated_svd
from mini_llm.train.rows.dataloader import TrainLoader
from mini_llm.train.step import Stepper

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize("dim", [514, 640])
def test_the_first_guess_is_the_smoothed_table(dim: int, make_config: MakeConfig) -> None:
    """Against a dense table in float64; a model as wide as its vocabulary loses nothing by compressing the table."""
    shape = {"dim": dim, "n_heads": 1, "n_kv_heads": 1, "n_layers": 1, "tie_embeddings": "false"}
    stepper = Stepper(make_config(init="bigram", model=shape))
    steps = stepper.objective.loader.rows_per_epoch // stepper.objective.loader.rows_per_step
    rows = np.concatenate([stepper.objective.loader.rows(step).numpy() for step in range(steps)])
    pairs = np.zeros((512, 512))
    np.add.at(pairs, (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    p = pairs.sum(0) + 0.5
    p /= p.sum()
    table = (pairs + SMOOTHING * p) / (pairs.sum(1, keepdims=True) + SMOOTHING)
    with torch.no_grad():
        guess = stepper.trainee.model(torch.arange(512)[:, None])[:, 0].double().softmax(-1).numpy()
    seen = pairs.sum(1) > 0
    assert seen.sum() > 50
    excess = (table * np.log(table / guess)).sum(1)[seen]  # Kullback-Leibler, nats
    assert np.average(excess, weights=pairs.sum(1)[seen]) < 0.01


def test_it_begins_far_below_a_uniform_guess(make_config: MakeConfig) -> None:
    shape = {"tie_embeddings": "false"}
    first = {}
    for init in ("normal", "bigram"):
        stepper = Stepper(make_config(init=init, model=shape))
        stepper.compile()
        first[init] = stepper.step().loss
    assert first["bigram"] < first["normal"] - 0.8


@pytest.mark.parametrize("epochs", [0.5, 3.0])
def test_counts_are_those_of_the_first_rows_each_once(epochs: float, make_config: MakeConfig) -> None:
    loader: TrainLoader = Stepper(make_config()).objective.loader
    steps_per_epoch = loader.rows_per_epoch // loader.rows_per_step
    n_steps = int(epochs * steps_per_epoch)
    x, y, counts, p = count_pairs(loader, n_steps * loader.rows_per_step * loader.block_size, 512)
    rows = torch.cat([loader.rows(step) for step in range(min(n_steps, steps_per_epoch))])
    dense = torch.zeros(512, 512)
    dense.index_put_((x, y), counts)
    expected = torch.zeros(512, 512).index_put_(
        (rows[:, :-1].flatten(), rows[:, 1:].flatten()), torch.ones(rows[:, 1:].numel()), accumulate=True
    )
    assert torch.equal(dense, expected)
    torch.testing.assert_close(p, (expected.sum(0) + 0.5) / (expected.sum() + 256))


def test_init_tokens_says_how_many_are_counted(make_config: MakeConfig) -> None:
    few, many = (
        Stepper(make_config(init="bigram", init_tokens=tokens, model={"tie_embeddings": "false"}))
        for tokens in (500, 50_000)
    )
    for stepper in (few, many):
        stepper.compile()
    assert few.step().loss > many.step().loss + 0.1


def test_the_svd_is_numpys() -> None:
    torch.manual_seed(0)
    dense = torch.randn(40, 3) @ torch.randn(3, 40) + 0.01 * torch.randn(40, 40)
    row, column = dense.nonzero().T
    left, right = truncated_svd(row, column, dense[row, column], 40, 3, torch.Generator().manual_seed(0))
    u, s, vh = np.linalg.svd(dense.numpy())
    np.testing.assert_allclose((left @ right.T).numpy(), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-3)


def test_the_same_seed_gives_the_same_start(make_config: MakeConfig) -> None:
    a, b, other = (Stepper(make_config(init="bigram", model={"tie_embeddings": "false"}, seed=s)) for s in (1, 1, 2))
    weights = [stepper.trainee.model.lm_head.weight for stepper in (a, b, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_tied_head_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=r"model\.tie_embeddings=false"):
        make_config(init="bigram")


def test_what_was_counted_is_not_forgotten_at_first(make_config: MakeConfig) -> None:
    """The held-out loss hardly rises above where it began: 0.01; with all directions turned, and small, 0.19."""
    rates = {"optimizer": "muon", "learning_rate": 0.004, "muon_learning_rate": 0.012, "min_lr": 0, "warmup_iters": 20}
    shape = {"dim": 128, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "tie_embeddings": "false"}
    config = make_config(init="bigram", batch_size=8, max_iters=60, eval_iters=8, model=shape, **rates)
    stepper = Stepper(config)
    stepper.compile()
    evaluator = stepper.objective.evaluator
    losses = [evaluator.run(stepper.evaluation_loss_sum, stepper.device).metrics()["val_loss"]]
    for step in range(30):
        stepper.step()
        if step % 5 == 4:
            losses.append(evaluator.run(stepper.evaluation_loss_sum, stepper.device).metrics()["val_loss"])
    assert max(losses[1:]) < losses[0] + 0.05, losses
    assert losses[3] < losses[0] - 0.01, losses
