"""Training as a whole: it learns, every setting does what it says, and what fails loses nothing."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mini_llm import log
from mini_llm.checkpoint import load_model, verify_checkpoint
from mini_llm.config import load_config
from mini_llm.data.store_writer import TokenStoreWriter
from mini_llm.data.token_store import TokenStore
from mini_llm.errors import UsageError, UserError
from mini_llm.model.transformer import Transformer
from mini_llm.pointers import list_checkpoints
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train import step as step_module
from mini_llm.train import train as train_module
from mini_llm.train.config import TrainConfig
from mini_llm.train.evaluate import Evaluator, HeldOutLoss
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is said to the user."""
    lines: list[str] = []
    for level in ("info", "warn", "note"):
        monkeypatch.setattr(log, level, lines.append)
    return lines


def steps(run: Path, key: str = "loss", name: str = "metrics") -> list[int]:
    return [row["step"] for row in read_metrics(run, name) if key in row]


def saved(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run)]


# --- learning --------------------------------------------------------------------------------------------------------


def test_a_tiny_model_learns_a_text_by_heart_and_says_it(
    tiny_store: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """The whole stack at once: what cannot memorise four sentences has a fault somewhere."""
    from mini_llm.inference.generate import Generator

    text = (
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
        "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light."
    )
    tokenizer = Tokenizer.load(tiny_store / "tokenizer")
    ids = [tokenizer.bos_id or 0, *tokenizer.encode(text), tokenizer.eos_id or 0]
    with TokenStoreWriter.create(tmp_path / "tokens", tokenizer) as writer:
        for split in ("train", "val"):
            for _ in range(3):
                writer.append(split, ids, text_bytes=len(text))
    block = len(ids) - 1
    config = make_config(
        data_dir=tmp_path / "tokens", block_size=block, max_iters=150, eval_interval=150, save_interval=150,
        log_interval=50, model={"dim": 64, "max_seq_len": 256},
    )  # fmt: skip
    run = train(config)
    assert read_metrics(run)[-2]["loss"] < 0.1
    written = Generator(run, device="cpu").generate("It was the best of", max_new_tokens=block, temperature=0.0)
    assert written == text


GOLDEN = {
    "adamw": [
        6.2512, 6.2027, 6.1986, 6.0270, 5.9901, 5.7453, 5.8232, 6.1957, 5.9728, 5.8749,
        5.7565, 5.5178, 5.3492, 5.5940, 5.7304, 5.5418, 5.4117, 5.3363, 5.3715, 5.1896,
    ],
    "muon": [
        6.2512, 6.2120, 6.2077, 6.0990, 6.0849, 5.8373, 5.9323, 5.9641, 6.0646, 5.9633,
        5.6999, 5.3871, 5.3573, 5.5306, 5.6738, 5.5357, 5.4339, 5.2397, 5.2622, 5.1421,
    ],
}  # fmt: skip


@pytest.mark.parametrize("optimizer", GOLDEN)
def test_the_golden_run(
    optimizer: str, tiny_store: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 losses, to a thousandth, on any machine: a change that should not alter the arithmetic does not."""
    monkeypatch.setattr("mini_llm.train.optim.optimizer.has_fast_bfloat16", lambda device: False)
    with TokenStoreWriter.create(tmp_path / "tokens", Tokenizer.load(tiny_store / "tokenizer")) as writer:
        for split in ("train", "val"):
            writer.append(split, (np.arange(20_000) ** 2 // 7) % 512, text_bytes=40_000)
    run = train(make_config(data_dir=tmp_path / "tokens", max_iters=20, eval_interval=20, optimizer=optimizer))
    losses = [row["loss"] for row in read_metrics(run) if "loss" in row]
    np.testing.assert_allclose(losses, GOLDEN[optimizer], rtol=1e-3)


# --- settings --------------------------------------------------------------------------------------------------------


def test_intervals_say_when(make_config: MakeConfig) -> None:
    run = train(make_config(max_iters=11, log_interval=4, eval_interval=3, save_interval=5, keep_last=100))
    assert steps(run) == steps(run, "mfu", "timing") == [1, 4, 8, 11]
    assert steps(run, "val_loss") == [0, 3, 6, 9, 11]
    assert saved(run) == [3, 5, 6, 9, 10, 11]
    assert not (run / "samples.jsonl").exists()
    assert not (run / "profile").exists()
    assert set(read_metrics(run)[1]) == {"step", "tokens", "loss", "lr", "grad_norm"}
    assert [row["tokens"] for row in read_metrics(run) if "loss" in row] == [128 * step for step in (1, 4, 8, 11)]


def losses_that_rise_after(evaluation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([abs(number - evaluation) + 1.0 for number in range(100)])
    monkeypatch.setattr(Evaluator, "run", lambda *_: HeldOutLoss(next(losses), 1.0, 1))


@pytest.mark.parametrize(("always", "stay"), [(False, [4, 9, 10]), (True, [2, 4, 6, 8, 9, 10])])
def test_which_checkpoints_stay(
    always: bool, stay: list[int], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest two and the best one, of step 4; with always_save_checkpoint those of all evaluations too."""
    losses_that_rise_after(2, monkeypatch)
    run = train(make_config(eval_interval=2, save_interval=1, keep_last=2, always_save_checkpoint=always))
    assert saved(run) == stay
    assert os.readlink(run / "best") == "checkpoints/step-00000004"
    assert os.readlink(run / "latest") == "checkpoints/step-00000010"
    state = json.loads((run / "latest" / "training_state" / "state.json").read_text())
    assert (state["best_step"], state["best_loss"]) == (4, 1.0)


def test_eval_iters_says_how_much_is_held_out(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = Evaluator.run
    monkeypatch.setattr(
        Evaluator, "run", lambda e, *a: seen.append((r := run(e, *a)).tokens) or r  # type: ignore[func-returns-value]
    )  # fmt: skip
    train(make_config(max_iters=1, eval_iters=3))
    assert seen == [3 * 4 * 32] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"batch_size": 2},
        {"block_size": 16},
        {"gradient_accumulation_steps": 2},
        {"learning_rate": 2e-2},
        {"warmup_iters": 5},
        {"lr_decay_iters": 4},
        {"lr_schedule": "wsd"},
        {"min_lr": 9e-3},
        {"weight_decay": 5.0},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"grad_clip": 1e-8},  # AdamW does not see a gradient's length, but for its epsilon
        {"optimizer": "muon"},
        {"dtype": "bfloat16"},
        {"model": {"dropout": 0.3}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_key_changes_the_course(change: dict[str, Any], make_config: MakeConfig, tmp_path: Path) -> None:
    common = {"max_iters": 6, "eval_interval": 100, "save_interval": 100, "eval_iters": 1}
    last = [
        read_metrics(train(make_config(tmp_path / name, **{**common, **keys})))[-2]
        for name, keys in (("a", {}), ("b", change))
    ]
    assert last[0]["loss"] != last[1]["loss"]


@pytest.mark.parametrize("change", [{"muon_learning_rate": 0.1}, {"cooldown_fraction": 1.0}])
def test_keys_of_muon_and_wsd_change_the_course(
    change: dict[str, Any], make_config: MakeConfig, tmp_path: Path
) -> None:
    common = {"max_iters": 6, "optimizer": "muon", "lr_schedule": "wsd", "eval_interval": 100}
    last = [
        read_metrics(train(make_config(tmp_path / name, **{**common, **keys})))[-2]
        for name, keys in (("a", {}), ("b", change))
    ]
    assert last[0]["loss"] != last[1]["loss"]


def test_the_same_seed_gives_the_same_run(make_config: MakeConfig, tmp_path: Path) -> None:
    a, b = (train(make_config(tmp_path / name, model={"dropout": 0.1})) for name in "ab")
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert (a / "latest/model.safetensors").read_bytes() == (b / "latest/model.safetensors").read_bytes()


@pytest.mark.parametrize("has_fast_bfloat16", [True, False])
def test_dtype_auto_is_bfloat16_only_where_the_hardware_has_it(
    has_fast_bfloat16: bool, make_config: MakeConfig, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mini_llm.device.has_fast_bfloat16", lambda device: has_fast_bfloat16)
    run = train(make_config(dtype="auto", device="auto" if not torch.cuda.is_available() else "cpu", max_iters=1))
    assert ("bfloat16" if has_fast_bfloat16 else "float32") in said[0]
    assert json.loads((run / "latest" / "config.json").read_text())["dtype"] == "float32"  # weights stay whole


def test_samples_are_shown_after_each_evaluation(make_config: MakeConfig) -> None:
    shown: list[int] = []

    def show(step: int, model: Transformer) -> None:
        assert isinstance(model, Transformer)
        shown.append(step)

    train(make_config(eval_interval=4), after_evaluation=show)
    assert shown == [0, 4, 8, 10]


def test_the_tokenizer_must_fit_the_model(make_config: MakeConfig, said: list[str]) -> None:
    with pytest.raises(UsageError, match=r"512 ids, .* model.vocab_size=511") as problem:
        train(make_config(model={"vocab_size": 511}))
    assert "model.vocab_size=512" in (problem.value.hint or "")
    train(make_config(model={"vocab_size": 600}, max_iters=1))
    assert any("model.vocab_size=512 is enough" in line for line in said)


def test_another_tokenizer_than_the_stores_is_refused(
    tiny_store: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    shutil.copytree(tiny_store, tmp_path / "store")
    path = tmp_path / "store" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match="is not the one that wrote this store"):
        train(make_config(data_dir=tmp_path / "store"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": "/nonexistent"}, "no such folder"),
        ({"block_size": 100_000, "model": {"max_seq_len": 100_000}}, "one row needs"),
        ({"device": "cuda:99"}, "not available"),
        ({"device": "abacus"}, "not one of"),
    ],
)
def test_what_the_user_can_mend_is_said(changes: dict[str, Any], message: str, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=message):
        train(make_config(**changes))


# --- failing ---------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_stops_with_advice_and_sound_weights(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    changes = {
        "learning_rate": 1e3,
        "muon_learning_rate": 1e3,
        "warmup_iters": 0,
        "grad_clip": 0,
        "save_interval": 1,
        "optimizer": "muon",
    }
    result = run_cli("train", *settings(**changes), env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "became nan at step" in result.stderr
    assert "learning_rate=500" in result.stderr
    assert "muon_learning_rate=500" in result.stderr
    assert "dtype=float32" in result.stderr
    for _, folder in list_checkpoints(tmp_path / "run"):
        verify_checkpoint(folder)
        assert all(p.isfinite().all() for p in load_model(folder, device="cpu", dtype=torch.float32).parameters())


def break_loss_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = step_module.Stepper._backward
    monkeypatch.setattr(
        step_module.Stepper, "_backward", lambda s, n: backward(s, n) * (math.nan if n == step else 1)
    )  # fmt: skip


def test_nan_names_the_step_and_the_last_good_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(save_interval=3, min_lr=8e-3)
    with monkeypatch.context() as patch:
        break_loss_at(7, patch)
        with pytest.raises(UserError, match=r"the loss became nan at step 8; .*step-00000006") as problem:
            train(config)
    assert problem.value.exit_code == 1
    hint = problem.value.hint or ""
    assert "learning_rate=0.005 min_lr=0.004" in hint
    train(config.model_copy(update={"learning_rate": 0.005, "min_lr": 0.004}))  # the advice can be followed
    assert steps(Path(config.out_dir)) == list(range(1, 11))


def test_nan_right_after_a_checkpoint_does_not_call_it_good(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_loss_at(6, monkeypatch)
    with pytest.raises(UserError, match=r"nan at step 7; the last good checkpoint is .*step-00000003") as problem:
        train(make_config(save_interval=3))
    assert "delete" in (problem.value.hint or "")
    assert "step-00000006" in (problem.value.hint or "")


def test_nan_before_any_checkpoint(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_loss_at(1, monkeypatch)
    with pytest.raises(UserError, match="nan at step 2; there is no good checkpoint yet"):
        train(make_config())


@pytest.mark.parametrize("where", ["evaluation", "samples"])
def test_an_evaluation_that_fails_loses_nothing(
    where: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = train(make_config(tmp_path / "unbroken", eval_interval=5))
    config, calls = make_config(eval_interval=5), []
    run = Evaluator.run

    def fail_second(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("broken")
        return run(*args) if where == "evaluation" else None

    with monkeypatch.context() as patch:
        if where == "evaluation":
            patch.setattr(Evaluator, "run", fail_second)
        with pytest.raises(ValueError, match="broken"):
            train(config, after_evaluation=fail_second if where == "samples" else None)
    assert saved(tmp_path / "run") == [5]
    train(config)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()


FULL_DISK = """
import os, errno
from mini_llm.train.run import {module} as m
original, calls = m.{name}, []
def fail(*args, **more):
    calls.append(1)
    if len(calls) >= {call}:
        raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))
    return original(*args, **more)
m.{name} = fail
"""


@pytest.mark.parametrize(
    ("module", "name"), [("resume", "write_checksums"), ("resume", "write_pointer"), ("resume", "write_tensors")]
)
def test_a_full_disk_while_saving_harms_no_earlier_checkpoint(module, name, settings, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    words = settings(save_interval=4)
    process = start("train", *words, before=FULL_DISK.format(module=module, name=name, call=2))
    assert process.wait() == 1
    assert "could not write the checkpoint of step 8" in process.stderr
    assert "the disk is full" in process.stderr
    assert "Traceback" not in process.stderr
    run = tmp_path / "run"
    assert 4 in saved(run)
    for _, folder in list_checkpoints(run):
        verify_checkpoint(folder)
    assert not list((run / "checkpoints").glob(".*"))
    assert start("train", *words).wait() == 0


@pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE")
def test_files_that_may_not_grow(settings, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A limit of the user's account that the weights (190 KB) exceed: other words come from another library."""
    words = settings(save_interval=4)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150 * 1024,) * 2)"
    process = start("train", *words, before=limit)
    assert process.wait() == 1
    assert "could not write the checkpoint of step 4" in process.stderr
    assert "ulimit -f" in process.stderr
    assert "Traceback" not in process.stderr
    assert saved(tmp_path / "run") == []
    assert start("train", *words).wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_that_the_metrics_meet_first(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(train_module.MetricsLog):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._files["metrics"] = open("/dev/full", "a")  # noqa: SIM115

    monkeypatch.setattr(train_module, "MetricsLog", Full)
    with pytest.raises(UserError, match="the disk is full") as problem:
        train(make_config())
    assert "the same command begins anew" in (problem.value.hint or "")


def can_mount(folder: Path) -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def test_a_disk_that_is_really_full(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A file system of 1.5 MB: it has room for one checkpoint of 0.6 MB, then for no more."""
    (tmp_path / "small").mkdir()
    if not can_mount(tmp_path / "small"):
        pytest.skip("this machine lets nobody mount a small file system")
    words = settings(tmp_path / "small" / "run", save_interval=2, keep_last=5)
    script = (
        f"mount -t tmpfs -o size=1500k tmpfs {tmp_path}/small && cd {Path(__file__).parents[2]} && "
        'OMP_NUM_THREADS=1 "$0" -m mini_llm train "$@"; code=$?; '
        f"cp -r {tmp_path}/small/run {tmp_path}/after; exit $code"
    )
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert saved(tmp_path / "after")
    for _, folder in list_checkpoints(tmp_path / "after"):
        verify_checkpoint(folder)
    assert not list((tmp_path / "after" / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_no_memory_comes_with_the_settings_that_need_less(
    problem: Exception, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr(step_module.Stepper, "_backward", fail)
    with pytest.raises(UserError, match="out of memory with batch_size=4") as error:
        train(make_config(gradient_accumulation_steps=3))
    assert "batch_size=2 gradient_accumulation_steps=6" in (error.value.hint or "")


def test_a_fault_of_ours_is_not_taken_for_the_users(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(step_module.Stepper, "_backward", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(make_config())


def test_a_long_run_does_not_gather_memory_or_files(make_config: MakeConfig) -> None:
    process, seen = psutil.Process(), []
    if not hasattr(process, "num_fds"):
        pytest.skip("counts file descriptors")

    def measure(step: int, _: Transformer) -> None:
        for thread in threading.enumerate():  # the checkpoint that is being written has files open
            if thread.name == "checkpoint writer":
                thread.join()
        seen.append((process.num_fds(), process.memory_info().rss))

    train(make_config(max_iters=300, eval_interval=50, eval_iters=1, save_interval=50), after_evaluation=measure)
    assert seen[-1][0] == seen[2][0]
    assert seen[-1][1] - seen[2][1] < 20e6


# --- shipped settings ------------------------------------------------------------------------------------------------


def test_the_50m_model_has_the_published_size_and_guesses_uniformly_at_first(
    tiny_store: Path, repository: Path, tmp_path: Path
) -> None:
    words = [
        f"data_dir={tiny_store}", f"out_dir={tmp_path}", "batch_size=2", "block_size=64", "max_iters=1",
        "gradient_accumulation_steps=1", "compile=false", "device=cpu", "dtype=float32",
    ]  # fmt: skip
    config = load_config(TrainConfig, repository / "configs" / "mini-50m.yaml", words)
    stepper = step_module.Stepper(config)
    stepper.compile()
    assert sum(p.numel() for p in stepper.trainee.model.parameters()) == 50_049_408
    loss = stepper.step().loss
    assert abs(loss - math.log(32_000)) < 0.03 * math.log(32_000)


OTHER_VERBS = ("clean-", "chat-", "sft-", "dpo-", "rl-", "demo-chat")  # whose settings are others
SHIPPED = [p for p in (Path(__file__).parents[2] / "configs").glob("*.yaml") if not p.name.startswith(OTHER_VERBS)]


@pytest.mark.parametrize("path", sorted(SHIPPED), ids=lambda p: p.stem)
def test_a_shipped_config_can_be_read_and_says_what_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    config = load_config(TrainConfig, path)
    assert config.block_size <= config.model.max_seq_len
    assert config.warmup_iters < config.max_iters
    assert config.out_dir != TrainConfig().out_dir


def test_store_of_the_tests_is_what_they_think(tiny_store: Path) -> None:
    store = TokenStore.open(tiny_store)
    assert store.split("train").n_tokens > 60_000
    assert store.split("val").n_tokens > 40_000
