"""Soft targets: the gradient is that of the mixed targets, the value that of the text, and they fade as they should."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mini_llm.errors import UsageError
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train import head_loss as head_loss_module
from mini_llm.train import loss as loss_module
from mini_llm.train.config import TrainConfig
from mini_llm.train.objective import Pretraining
from mini_llm.train.soft_targets import SoftRows, soft_head_loss, soft_loss_sum
from mini_llm.train.step import Stepper

MakeConfig = Callable[..., TrainConfig]
V, T, M = 300, 17, 5


def soft_rows(n_rows: int = 3) -> SoftRows:
    torch.manual_seed(0)
    shares = torch.rand(n_rows, T, M).softmax(-1) * torch.rand(n_rows, T, 1)
    others = torch.randint(0, V, (n_rows, T, M), dtype=torch.int32)
    others[..., 1] = others[..., 0]  # the same token in two samples
    return SoftRows(torch.randint(0, V, (n_rows, T + 1)), others, shares)


def dense_targets(rows: SoftRows) -> Tensor:
    own_NV = F.one_hot(rows.ids[:, 1:].flatten(), V) * (1 - rows.shares.sum(-1).flatten()[:, None])
    return own_NV.float().scatter_add_(1, rows.others.flatten(0, 1).long(), rows.shares.flatten(0, 1))


@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["float32", "bfloat16"]
)
def test_gradients_are_those_of_the_mixed_targets(
    dtype: torch.dtype, tolerance: float, chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss_module, "CHUNK_BYTES", {"cpu": 8 * 4 * V})
    monkeypatch.setitem(loss_module.MOST_SCORES_BYTES, "cpu", 0 if chunks else 2**60)
    model, rows = Transformer(ModelConfig(dim=32, n_layers=2, n_heads=2, vocab_size=V)), soft_rows()
    model.init_weights(3)
    scores_NV = model(rows.ids[:, :-1]).flatten(0, 1)
    (-(dense_targets(rows) * scores_NV.log_softmax(-1)).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    loss = soft_loss_sum(model, rows, dtype)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - expected).norm() <= tolerance * expected.norm()
    plain = F.cross_entropy(scores_NV, rows.ids[:, 1:].flatten(), reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=tolerance / 10)


def test_the_operation_keeps_torchs_rules() -> None:
    rows = soft_rows()
    x, w = torch.randn(3 * T, 24).requires_grad_(), torch.randn(V, 24).requires_grad_()
    soft = rows.others.flatten(0, 1), rows.shares.flatten(0, 1)
    arguments = (x, w, rows.ids[:, 1:].flatten(), *soft, torch.float32)
    torch.library.opcheck(soft_head_loss, arguments, test_utils=("test_schema", "test_faketensor"))


def test_parts_and_shorter_rows_keep_each_target_with_its_others() -> None:
    rows = soft_rows(4)
    rows = SoftRows(rows.ids[:, :17], rows.others[:, :16], rows.shares[:, :16])
    short = rows.shorten(4)
    assert short.ids.shape == (16, 5)
    assert torch.equal(short.ids[:, 1:].reshape(4, 16), rows.ids[:, 1:])
    assert torch.equal(short.others.reshape(rows.others.shape), rows.others)
    parts = short.split(8)
    assert [len(part) for part in parts] == [8, 8]
    assert torch.equal(torch.cat([part.shares for part in parts]), short.shares)


def test_they_fade_with_the_tokens_and_then_cost_nothing(make_config: MakeConfig) -> None:
    """4 rows of 32 tokens a step: after 512 tokens, four steps, the rows are plain ones."""
    config = make_config(soft_targets=0.8, soft_fade_tokens=512)
    objective, plain = Pretraining(config), Pretraining(make_config())
    rows = [objective.rows(step) for step in range(6)]
    for step, found in enumerate(rows):
        ids = found.ids if isinstance(found, SoftRows) else found
        assert torch.equal(ids, plain.rows(step))
    shares = [found.shares.sum(-1).max().item() for found in rows if isinstance(found, SoftRows)]
    assert len(shares) == 4
    assert 0.4 < shares[0] < 0.8
    assert shares[2] < shares[0] / 1.5
    larger = Pretraining(make_config(soft_targets=0.8, soft_fade_tokens=512, batch_size=8))
    assert [isinstance(larger.rows(step), SoftRows) for step in range(3)] == [True, True, False]


def test_evaluation_is_of_the_text_alone(make_config: MakeConfig) -> None:
    stepper = Stepper(make_config(soft_targets=1.0, max_iters=2))
    stepper.compile()
    stepper.step()
    plain = Pretraining(make_config()).rows(0)
    soft = stepper.objective.rows(0)
    assert isinstance(soft, SoftRows)
    with torch.no_grad():
        assert stepper.evaluation_loss_sum(plain).item() == pytest.approx(stepper.evaluation_loss_sum(soft).item())


def test_they_teach_what_the_text_says_elsewhere(make_config: MakeConfig) -> None:
    """What one row cannot know, its soft targets do: a few steps in, held-out text is foretold better."""
    found = {}
    for share in (0.0, 0.8):
        config = make_config(soft_targets=share, batch_size=8, max_iters=40, eval_iters=8, learning_rate=1e-2)
        stepper = Stepper(config)
        stepper.compile()
        for _ in range(40):
            stepper.step()
        found[share] = stepper.objective.evaluator.run(stepper.evaluation_loss_sum, stepper.device).loss
    assert found[0.8] < found[0.0]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"soft_targets": 1.5}, "soft_targets"),
        ({"soft_targets": 0.5, "align_documents": True}, "align_documents"),
        ({"soft_targets": 0.5, "document_attention": True}, "document_attention"),
        ({"soft_targets": 0.5, "soft_fade_tokens": 0}, "soft_fade_tokens"),
        ({"soft_targets": 0.5, "parallel.tensor": 2}, "parallel.tensor=1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], word: str, make_config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=word):
        make_config(**changes)
