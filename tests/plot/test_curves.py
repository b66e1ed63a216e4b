"""A run's numbers are read whole, a half-written line is waited for, and a damaged one is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mini_llm.errors import UserError
from mini_llm.plot.curves import read_runs, smooth

MakeRun = Callable[..., Path]


def test_numbers_are_those_of_the_files(make_run: MakeRun) -> None:
    (run,) = read_runs([make_run()])
    assert (run.name, run.tokens_per_step, len(run.loss), len(run.held_out)) == ("run-a", 64, 100, 6)
    assert run.loss.values[-1] == pytest.approx(2.0003, abs=1e-4)
    summary = run.summary()
    assert (summary["steps"], summary["tokens"], summary["best_step"]) == (100, 6400, 80)
    assert summary["best_val_bits_per_byte"] == summary["best_val_loss"] / 2
    assert summary["tokens_per_second"] == 1000


def test_a_run_is_found_from_its_demo_folder_and_its_checkpoints(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("demo/run")
    checkpoint = run / "checkpoints" / "step-00000100"
    checkpoint.mkdir(parents=True)
    (run / "latest").symlink_to("checkpoints/step-00000100")
    for path in (run, tmp_path / "demo", checkpoint, run / "latest"):
        (found,) = read_runs([path])
        assert found.folder.samefile(run)
        assert found.name == "demo"


def test_runs_of_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    names = [run.name for run in read_runs([make_run("x/run-a"), make_run("y/run-a")])]
    assert names == [str(tmp_path / "x/run-a"), str(tmp_path / "y/run-a")]


def test_what_a_running_run_is_writing_is_left_out(make_run: MakeRun) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')
    assert len(read_runs([folder])[0].loss) == 100


def test_null_is_no_point(make_run: MakeRun) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "tokens": 6464, "loss": 2.0, "lr": 0.001, "grad_norm": null}\n')
    (run,) = read_runs([folder])
    assert (len(run.loss), len(run.gradient_norm)) == (101, 100)


def test_a_run_without_evaluations_or_timing_is_drawn_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 64, "loss": 3.0}) + "\n")
    (run,) = read_runs([tmp_path])
    assert (run.best(), len(run.tokens_per_second)) == (None, 0)
    assert run.summary() == {"run": str(tmp_path), "steps": 1, "tokens": 64, "loss": 3.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no metrics.jsonl in"),
        ("", "no training step yet"),
        ('{"step": 0, "val_loss": 9.0}\n', "no training step yet"),
        ('{"step": 1, "loss": 2.0}\nnonsense\n{"step": 2, "loss": 2.0}\n', "line 2 is damaged"),
        ('[1]\n{"step": 2, "loss": 2.0}\n', "line 1 is damaged"),
        ('{"step": 1, "loss": "low"}\n', "line 1: 'loss' is \"low\", not a number"),
        ('{"step": true, "loss": 2.0}\n', "line 1: 'step' is true"),
        ('{"loss": 2.0}\n', "line 1: 'step' is null"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_bad_metrics_are_named(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "run"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_runs([folder])


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        read_runs([tmp_path / "none"])


def test_smoothing_keeps_a_line_and_halves_noise() -> None:
    line = np.linspace(5.0, 2.0, 400)
    np.testing.assert_allclose(smooth(line)[:-10], line[:-10])
    np.testing.assert_allclose(smooth(line), line, atol=0.05)
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise).std() < 0.5 * noise.std()
    assert smooth(np.array([3.0])).tolist() == [3.0]
