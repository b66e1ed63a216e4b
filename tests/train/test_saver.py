"""Saving in the background: the same bytes, written whole, one at a time; errors surface, and a stop waits."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import last_step, wait_until

from mini_llm import log
from mini_llm.checkpoint import verify_checkpoint
from mini_llm.errors import UserError
from mini_llm.pointers import list_checkpoints
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.run import saver as saver_module
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.saver import Saver
from mini_llm.train.step import Stepper
from mini_llm.train.train import Trainer, train

MakeConfig = Callable[..., TrainConfig]


def saved(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_in_the_background_or_not_the_same_bytes_are_written(
    optimizer: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    runs = [
        train(make_config(tmp_path / str(a), async_save=a, save_interval=2, eval_interval=5, optimizer=optimizer))
        for a in (True, False)
    ]
    assert saved(runs[0]) == saved(runs[1])
    assert saved(runs[0])[-3:] == [6, 8, 10]  # and the best one
    for step in saved(runs[0]):
        a, b = (files_of(run / "checkpoints" / f"step-{step:08d}") for run in runs)
        assert a == b
    for name in ("latest", "best"):
        assert os.readlink(runs[0] / name) == os.readlink(runs[1] / name)
    assert (runs[0] / "metrics.jsonl").read_bytes() == (runs[1] / "metrics.jsonl").read_bytes()


class SlowDisk:
    """Holds each checkpoint back until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), 0
        write = saver_module.save_checkpoint

        def slow(*args: Any) -> Path:
            self.begun += 1
            assert self.go.wait(30)
            return write(*args)

        monkeypatch.setattr(saver_module, "save_checkpoint", slow)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.go.set()


@pytest.fixture
def parts(make_config: MakeConfig, tiny_store: Path) -> tuple[Saver, Stepper]:
    """Return a saver and a stepper that has done a step."""
    config = make_config()
    stepper = Stepper(config)
    stepper.compile()
    stepper.step()
    saver = Saver(Path(config.out_dir), config, Tokenizer.load(tiny_store / "tokenizer"), sync=lambda: None)
    return saver, stepper


def test_steps_go_on_and_the_checkpoint_holds_its_own(parts: tuple[Saver, Stepper], slow_disk: SlowDisk) -> None:
    saver, stepper = parts
    then = {name: w.clone() for name, w in stepper.trainee.model.state_dict().items()}
    saver.save(stepper.trainee)
    stepper.step()
    saver.mark_best(1)
    saver.poll()  # nothing to wait for
    assert saved(saver.run) == []
    assert not (saver.run / "latest").is_symlink()
    assert not (saver.run / "best").is_symlink()
    slow_disk.go.set()
    saver.wait()
    assert saved(saver.run) == [1]
    assert os.readlink(saver.run / "latest") == os.readlink(saver.run / "best") == "checkpoints/step-00000001"
    verify_checkpoint(saver.run / "latest")
    from mini_llm.weights import read_weights

    for name, weight in read_weights(saver.run / "latest").items():
        assert weight.equal(then[name]), name
        if "proj" in name:
            assert not weight.equal(stepper.trainee.model.state_dict()[name])


def test_only_one_is_written_at_a_time(parts: tuple[Saver, Stepper], slow_disk: SlowDisk) -> None:
    saver, stepper = parts
    saver.save(stepper.trainee)
    stepper.step()
    second = threading.Thread(target=saver.save, args=(stepper.trainee,))
    second.start()
    time.sleep(0.1)
    assert slow_disk.begun == 1
    slow_disk.go.set()
    second.join(30)
    saver.wait()
    assert saved(saver.run) == [1, 2]


def fail_to_write(monkeypatch: pytest.MonkeyPatch, after: threading.Event | None = None) -> None:
    def fail(*_: Any) -> None:
        assert after is None or after.wait(30)
        raise UserError("could not write the checkpoint")

    monkeypatch.setattr(saver_module, "save_checkpoint", fail)


@pytest.mark.parametrize("then", ["poll", "save", "wait"])
def test_what_goes_wrong_surfaces_once(
    then: str, parts: tuple[Saver, Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, stepper = parts
    fail_to_write(monkeypatch)
    saver.save(stepper.trainee)
    assert saver._writer is not None
    saver._writer.wait()
    with pytest.raises(UserError, match="could not write"):
        getattr(saver, then)(*([stepper.trainee] if then == "save" else []))
    saver.wait()  # told already


def test_a_failed_save_ends_training_and_does_not_hide_another_error(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    fail_to_write(monkeypatch)
    with pytest.raises(UserError, match="could not write"):  # the only save is the last one
        train(make_config())

    evaluated = threading.Event()
    fail_to_write(monkeypatch, after=evaluated)

    def broken(trainer: Trainer) -> None:
        if trainer.progress.step:
            evaluated.set()
            raise ValueError("broken")

    monkeypatch.setattr(Trainer, "_evaluate", broken)
    with pytest.raises(ValueError, match="broken"):
        train(make_config())
    assert said == ["could not write the checkpoint"]


def test_who_looks_after_an_evaluation_finds_the_checkpoint_of_that_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saver_module.save_checkpoint

    def slow(*args: Any) -> Path:
        time.sleep(0.3)
        return write(*args)

    monkeypatch.setattr(saver_module, "save_checkpoint", slow)
    config, found = make_config(max_iters=4, eval_interval=2), []

    def look(step: int, _: object) -> None:
        latest = Path(config.out_dir) / "latest"
        found.append((step, os.readlink(latest)[-1] if step else None))

    train(config, after_evaluation=look)
    assert found == [(0, None), (2, "2"), (4, "4")]


def test_a_signal_waits_for_what_is_being_written(settings, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    slow = (
        "import time\nfrom mini_llm.train.run import saver\n"
        "write = saver.save_checkpoint\n"
        "saver.save_checkpoint = lambda *a: (time.sleep(1), write(*a))[1]"
    )
    run = tmp_path / "run"
    process = start("train", *settings(max_iters=10_000, eval_interval=10_000, save_interval=5), before=slow)
    wait_until(lambda: last_step(run) >= 6, process.process.is_alive)
    process.kill(signal.SIGTERM)
    assert process.wait() == 143, process.stderr
    assert saved(run)[-1] == last_step(run)
    for _, folder in list_checkpoints(run):
        verify_checkpoint(folder)
    assert [*(run / "checkpoints").glob(".*")] == []


def test_save_minutes_saves_by_the_clock(make_config: MakeConfig, tmp_path: Path) -> None:
    common = {"max_iters": 4, "save_interval": 100, "eval_interval": 100, "keep_last": 100}
    assert saved(train(make_config(tmp_path / "a", save_minutes=1e-6, **common))) == [1, 2, 3, 4]
    assert saved(train(make_config(tmp_path / "b", save_minutes="null", **common))) == [4]


def test_max_minutes_stops_with_a_checkpoint_and_success(settings, make_config, tmp_path, run_cli) -> None:  # type: ignore[no-untyped-def]
    changes = {"max_iters": 6, "eval_interval": 3, "model": {"dropout": 0.1}}
    unbroken, run = train(make_config(tmp_path / "unbroken", **changes)), tmp_path / "run"
    result = run_cli("train", *settings(run, max_minutes=1e-6, **changes), env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert "max_minutes=1e-06 are over: saved step 1 in" in result.stderr
    assert "the same command goes on from there" in result.stderr
    assert saved(run) == [1]
    for _ in range(5):
        train(make_config(run, max_minutes=1e-6, **changes))
    assert read_metrics(run)[-1]["step"] == 6
    train(make_config(run, **changes))
    assert (run / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert (run / "latest/model.safetensors").read_bytes() == (unbroken / "latest/model.safetensors").read_bytes()


def test_a_writer_that_dies_before_it_begins_loses_nothing(
    parts: tuple[Saver, Stepper], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, stepper = parts
    monkeypatch.setattr("mini_llm.threads.Worker._run", lambda *_: None)
    saver.save(stepper.trainee)
    saver.wait()
    assert saved(saver.run) == [1]
