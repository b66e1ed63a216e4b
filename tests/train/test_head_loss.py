"""The head in chunks equals float64 and the plain path in loss and gradients; test_step.py compares loss curves."""

import pytest
import torch
import torch.nn.functional as F

from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.train import head_loss as head_loss_module
from mini_llm.train import loss as loss_module
from mini_llm.train.head_loss import head_loss
from mini_llm.train.loss import rows_loss_sum

V, D, N = 300, 24, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven chunks of 8 rows, the last one short."""
    monkeypatch.setattr(head_loss_module, "CHUNK_BYTES", {"cpu": 8 * 4 * V})


def always_in_chunks(monkeypatch: pytest.MonkeyPatch, chunks: bool) -> None:
    monkeypatch.setitem(loss_module.MOST_SCORES_BYTES, "cpu", 0 if chunks else 2**60)


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D) * 2, torch.randn(V, D), torch.randint(0, V, (N,))


def test_loss_and_gradients_equal_float64s() -> None:
    x, w, targets = problem()
    x64, w64 = (t.double().requires_grad_() for t in (x, w))
    expected = F.cross_entropy(x64 @ w64.mT, targets, reduction="sum")
    (expected * 3).backward()
    x, w = x.requires_grad_(), w.requires_grad_()
    loss, *_ = head_loss(x, w, targets, torch.float32)
    (loss * 3).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, exact in ((x.grad, x64.grad), (w.grad, w64.grad)):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_target_of_no_probability_has_a_finite_loss() -> None:
    """exp(-500) is 0 in float32; its logarithm must not be asked for."""
    x, w = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0], [1.0]])
    loss, *_ = head_loss(x, w, torch.tensor([0]), torch.float32)
    assert loss.item() == pytest.approx(500, rel=1e-6)


def test_the_operation_keeps_torchs_rules() -> None:
    x, w, targets = problem()
    arguments = (x.requires_grad_(), w.requires_grad_(), targets, torch.float32)
    torch.library.opcheck(head_loss, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_models_gradients_equal_the_plain_paths(
    dtype: torch.dtype, tolerance: float, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16: both round each product to 8 bits, the plain path also its scores' gradients once more or less."""
    model = Transformer(ModelConfig(dim=32, n_layers=2, n_heads=2, vocab_size=V, tie_embeddings=tied))
    model.init_weights(3)
    rows = torch.randint(0, V, (3, 18))
    results = []
    for chunks in (True, False):
        always_in_chunks(monkeypatch, chunks)
        model.zero_grad()
        loss = rows_loss_sum(model, rows, dtype)
        (loss / rows[:, 1:].numel()).backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (fast_loss, fast), (plain_loss, plain) = results
    assert fast_loss == pytest.approx(plain_loss, rel=tolerance / 10)
    assert (fast - plain).norm() <= tolerance * plain.norm()


def test_evaluation_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    always_in_chunks(monkeypatch, True)
    monkeypatch.setattr(loss_module, "head_loss", None)
    model = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=V))
    with torch.no_grad():
        assert rows_loss_sum(model, torch.randint(0, V, (2, 9)), torch.float32).isfinite()


def test_float16_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are scaled up in backward, after `head_loss` would have rounded them."""
    always_in_chunks(monkeypatch, True)
    model = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=V))
    assert not loss_module.wants_chunks(model, torch.zeros(2, 9, dtype=torch.long), torch.float16)
    assert loss_module.wants_chunks(model, torch.zeros(2, 9, dtype=torch.long), torch.bfloat16)
