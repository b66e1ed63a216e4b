"""Too little memory: the settings that need less are named, or taken, and the arithmetic stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llm.config import load_config
from mini_llm.errors import UserError
from mini_llm.train import step as step_module
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.out_of_memory import halve_batch, is_out_of_memory
from mini_llm.train.run.run_folder import keep_batch
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]

# Address space for 240 MB more than what the process has now: a real limit, met by a real allocation. 512 rows want
# 380, and 128 rows 160: between them is room for what differs from start to start. All threads share one heap: one of
# its own for the thread that saves would want 64 MB of address space, and without it Rust aborts.
LITTLE_ROOM = """
import contextlib, ctypes, re, resource
with contextlib.suppress(AttributeError):
    ctypes.CDLL(None).mallopt(-8, 1)
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 240_000_000, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize(
    ("batch", "accumulation", "eval_iters", "expected"),
    [(64, 4, 50, (32, 8, 100)), (4, 3, 2, (2, 6, 4)), (9, 1, 2, (3, 3, 6)), (5, 2, 1, (1, 10, 5)), (1, 8, 5, None)],
)
def test_half_the_memory_is_the_same_step_and_the_same_evaluation(
    batch: int, accumulation: int, eval_iters: int, expected: tuple[int, int, int] | None
) -> None:
    config = TrainConfig(batch_size=batch, gradient_accumulation_steps=accumulation, eval_iters=eval_iters)
    smaller = halve_batch(config)
    if expected is None:
        assert smaller is None
        return
    assert smaller is not None
    assert (smaller.batch_size, smaller.gradient_accumulation_steps, smaller.eval_iters) == expected
    assert smaller.tokens_per_step == config.tokens_per_step


@pytest.mark.parametrize(("room", "what"), [(50_000, "its weights alone take"), (500_000, "gradients and optimizer")])
def test_a_model_larger_than_memory_is_named_before_linux_ends_the_process(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, room: float, what: str
) -> None:
    monkeypatch.setattr("mini_llm.train.run.out_of_memory.cpu_memory", lambda: room)
    with pytest.raises(UserError, match=rf"parameters is too large for this machine: .*{what}.*GB"):
        step_module.Stepper(make_config())


def test_what_is_out_of_memory_and_what_is_not() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_real_limit_of_memory_through_the_real_command(settings, make_config, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    changes = {"batch_size": 512, "max_iters": 2, "eval_interval": 2, "eval_iters": 1, "block_size": 64}
    changes["async_save"] = False  # a thread's first bytes may be what there is no room for
    process = start("train", *settings(**changes), before=LITTLE_ROOM)
    assert process.wait() == 1
    assert "out of memory with batch_size=512 rows of block_size=64 tokens" in process.stderr
    assert "batch_size=256 gradient_accumulation_steps=2 eval_iters=2; auto_batch=true does this" in process.stderr
    assert "Traceback" not in process.stderr
    process = start("train", *settings(auto_batch=True, **changes), before=LITTLE_ROOM)
    assert process.wait() == 0, process.stderr
    assert "auto_batch goes on with batch_size=256" in process.stderr
    run = tmp_path / "run"
    found = load_config(TrainConfig, run / "config.yaml")
    assert found.batch_size < 512
    assert found.rows_per_step == 512
    rows = read_metrics(run)
    assert [row["batch_size"] for row in rows if "batch_size" in row][-1] == found.batch_size
    plain = read_metrics(train(make_config(tmp_path / "plain", **changes)))
    for key in ("loss", "val_loss", "grad_norm"):
        assert [r[key] for r in rows if key in r] == pytest.approx([r[key] for r in plain if key in r], rel=1e-4)


def run_out_above(rows: int, monkeypatch: pytest.MonkeyPatch, from_step: int = 0) -> None:
    backward = step_module.Stepper._backward

    def limited(self: step_module.Stepper, step: int) -> float:
        if self.config.batch_size > rows and step >= from_step:
            raise MemoryError
        return backward(self, step)

    monkeypatch.setattr(step_module.Stepper, "_backward", limited)


def test_what_was_found_is_remembered_and_equals_the_run_with_those_settings(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"eval_interval": 5, "save_interval": 5}
    small = train(make_config(tmp_path / "small", batch_size=2, gradient_accumulation_steps=4, eval_iters=4, **changes))
    config = make_config(tmp_path / "auto", batch_size=8, eval_iters=1, auto_batch=True, **changes)
    with monkeypatch.context() as patch:
        run_out_above(2, patch)
        run = train(config.model_copy(update={"max_iters": 5, "lr_decay_iters": 10}))
    train(config)  # memory would suffice now, but the run stays what it was
    rows = read_metrics(run)
    assert [row for row in rows if "batch_size" in row] == [
        {"step": 0, "batch_size": 4, "gradient_accumulation_steps": 2},
        {"step": 0, "batch_size": 2, "gradient_accumulation_steps": 4},
    ]
    assert [row for row in rows if "batch_size" not in row] == read_metrics(small)
    name = "latest/model.safetensors"
    assert (run / name).read_bytes() == (small / name).read_bytes()


def test_more_evaluation_may_be_asked_of_a_run_that_was_halved(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(batch_size=8, eval_iters=1, auto_batch=True)
    with monkeypatch.context() as patch:
        run_out_above(2, patch)
        train(config)
    kept = keep_batch(config.model_copy(update={"eval_iters": 3}))
    assert (kept.batch_size, kept.gradient_accumulation_steps, kept.eval_iters) == (2, 4, 12)


@pytest.mark.parametrize("resume", [True, False])
def test_in_the_middle_of_a_run_it_goes_on_from_the_last_checkpoint(
    resume: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out_above(2, monkeypatch, from_step=7)
    run = train(make_config(auto_batch=True, save_interval=3, resume=resume))
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == list(range(1, 11))
    assert [row["step"] for row in read_metrics(run) if "batch_size" in row] == [6]
    assert not list(run.parent.glob("run.*"))


def test_one_row_too_much_names_the_other_keys(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_above(0, monkeypatch)
    with pytest.raises(UserError, match="out of memory with batch_size=1") as problem:
        train(make_config(auto_batch=True))
    for key in ("block_size=16", "model.dim", "model.n_layers", "dtype=bfloat16"):
        assert key in (problem.value.hint or "")
