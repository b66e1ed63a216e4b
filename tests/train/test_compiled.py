"""torch.compile where it works, a message and plain training where it does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from mini_llm import log
from mini_llm.model import causal_attention
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.plan.memory import compiled_bytes_per_token
from mini_llm.train import compiled, loss
from mini_llm.train.compiled import build_loss_sum
from mini_llm.train.run.metrics import read_metrics


@pytest.fixture
def model() -> Transformer:
    result = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=64, max_seq_len=16))
    result.init_weights(0)
    return result


ROWS = torch.arange(18).view(2, 9)


def plain_loss_sum(model: Transformer) -> compiled.LossSum:
    return lambda rows: loss.rows_loss_sum(model, rows, torch.float32)


def test_without_a_compiler_training_goes_on_with_a_message(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "bin").mkdir()
    env = {
        "PATH": str(tmp_path / "bin"),
        "CXX": "/nonexistent/g++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    result = run_cli("train", *settings(compile=True, max_iters=2), env=env)
    assert result.returncode == 0, result.stderr
    assert "warning: torch.compile does not work here, training goes on without it" in result.stderr
    assert "Traceback" not in result.stderr
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2


@pytest.mark.needs_torch_compile
def test_compiled_fast_paths_equal_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in blocks and head in chunks, with compiled blocks, against eager code without either."""
    model = Transformer(ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=64))
    model.init_weights(0)
    rows = torch.randint(0, 64, (2, 101))
    monkeypatch.setattr(log, "warn", pytest.fail)  # it would say that nothing was compiled

    def loss_and_gradient(fast: bool) -> tuple[float, torch.Tensor]:
        form = causal_attention.Blocks(64, 65 if fast else 2**30, 2**30, 2**30)
        monkeypatch.setattr(causal_attention, "blocks", lambda: form)
        monkeypatch.setitem(loss.MOST_SCORES_BYTES, "cpu", 0 if fast else 2**60)
        total = build_loss_sum(plain_loss_sum(model), model, rows, compile=fast)(rows)
        total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        return total.item(), gradient

    torch.compiler.reset()
    counters.clear()
    (fast_loss, fast), (plain_loss, plain) = loss_and_gradient(True), loss_and_gradient(False)
    assert counters["stats"]["unique_graphs"] == 1, "what is made for one block serves all"
    assert "autograd_cache_bypass" not in counters["aot_autograd"], "the next start would trace it anew"
    assert fast_loss == pytest.approx(plain_loss, rel=1e-5)
    assert (fast - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.needs_torch_compile
def test_a_large_model_keeps_less_for_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(dim=32, n_layers=2, n_heads=2, vocab_size=64)
    rows = torch.randint(0, 64, (2, 33))

    def kept_and_gradient(most: int) -> tuple[int, torch.Tensor]:
        torch.compiler.reset()
        monkeypatch.setattr(compiled, "MOST_KEPT", most)
        model, sizes = Transformer(config), dict[int, int]()
        model.init_weights(0)
        loss_sum = build_loss_sum(plain_loss_sum(model), model, rows, compile=True)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = loss_sum(rows)
        total.backward()
        return sum(sizes.values()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (less, again), (more, kept) = kept_and_gradient(0), kept_and_gradient(2**60)
    assert torch.equal(again, kept)
    normalised_and_product = 4 * (2 * config.dim + config.hidden_dim)
    assert more - less >= config.n_layers * rows[:, 1:].numel() * normalised_and_product


def test_the_plan_knows_which_models_keep_less() -> None:
    small, large = ModelConfig(dim=192, n_layers=4, n_heads=2), ModelConfig(dim=384, n_layers=16, n_heads=6)
    for config, again in ((small, 0), (large, 4 * (2 * 384 + 1536))):
        kept = [compiled_bytes_per_token(config, torch.float32, on_cpu=on_cpu) for on_cpu in (False, True)]
        assert kept[0] - kept[1] == 4 * config.dim + again  # a GPU's joined product holds one width more


@pytest.mark.needs_torch_compile
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_several_documents_a_gradient_less_evaluation_and_dropout(dtype: torch.dtype) -> None:
    config = ModelConfig(dim=32, n_layers=2, n_heads=2, vocab_size=64, dropout=0.1)
    plain, model = Transformer(config), Transformer(config)
    ids, documents = torch.randint(0, 64, (2, 33)), torch.tensor([[0] * 10 + [1] * 23, [0] * 33])
    for each in (plain, model):
        each.init_weights(0)

    def scores_of(model: Transformer) -> compiled.LossSum:
        def scores(rows: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                return model(rows, documents_BT=documents).float().square().sum()

        return scores

    loss_sum = build_loss_sum(scores_of(model), model, ids, compile=True)
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        loss = loss_sum(ids)
        loss.backward()
        drawn.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True)), "dropout is a function of the seed"
    plain.eval()
    model.eval()
    expected = scores_of(plain)(ids)
    assert drawn[0][0].item() != pytest.approx(expected.item(), rel=1e-3), "nothing was dropped"
    with torch.no_grad():
        assert loss_sum(ids).item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.needs_torch_compile
def test_what_is_asked_of_the_model_elsewhere_compiles_nothing(model: Transformer) -> None:
    """Sampling between two steps calls it in a new shape for each token."""
    loss_sum = build_loss_sum(plain_loss_sum(model), model, ROWS, compile=True)
    counters.clear()
    for length in range(1, 9):
        model(ROWS[:, :length])
    assert not counters["stats"]
    loss_sum(ROWS)
    assert all("forward" not in vars(block) for block in model.model.layers)


def test_a_failure_in_any_part_of_it_falls_back(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)

    def refuse(function: Any, **_: Any) -> Any:
        def fail(*_: Any) -> torch.Tensor:
            raise RuntimeError("no kernel\nfor this card")

        return fail

    monkeypatch.setattr(compiled.torch, "compile", refuse)
    loss_sum = build_loss_sum(plain_loss_sum(model), model, ROWS, compile=True)
    assert len(said) == 1
    assert "(no kernel)" in said[0]
    assert loss_sum(ROWS).isfinite()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_no_memory_is_not_taken_for_a_missing_compiler(
    problem: Exception, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(function: Any, **_: Any) -> Any:
        def fail(*_: Any) -> torch.Tensor:
            raise problem

        return fail

    monkeypatch.setattr(compiled.torch, "compile", refuse)
    with pytest.raises(type(problem)):
        build_loss_sum(plain_loss_sum(model), model, ROWS, compile=True)


def test_compile_false_compiles_nothing(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.torch, "compile", None)
    assert build_loss_sum(plain_loss_sum(model), model, ROWS, compile=False)(ROWS).isfinite()
