"""The run folder: one trainer at a time, one model for ever, and the old run is moved aside, not lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mini_llm.config import dump_config, load_config
from mini_llm.errors import UsageError, UserError
from mini_llm.pointers import list_checkpoints
from mini_llm.train.config import TrainConfig
from mini_llm.train.run.run_folder import open_run
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]


def test_it_records_the_settings_as_they_were_resolved(make_config: MakeConfig) -> None:
    config = make_config(min_lr=1e-5, model={"dropout": 0.1})
    with open_run(config) as run:
        assert load_config(TrainConfig, run / "config.yaml") == config
        assert (run / "config.yaml").read_text() == dump_config(config)


def test_two_trainers_in_one_folder_are_one_too_many(settings, make_config: MakeConfig, start) -> None:  # type: ignore[no-untyped-def]
    with open_run(make_config()) as run:
        second = start("train", *settings())
        assert second.wait() == 1
        assert f"another process is training in {run}" in second.stderr
        again = start("train", *settings(), "resume=false")
        assert again.wait() == 1
    assert start("train", *settings(max_iters=1)).wait() == 0


def test_no_resume_moves_the_old_run_aside(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_iters=2)
    run = train(config)
    old = (run / "metrics.jsonl").read_bytes()
    for number in (1, 2):
        train(config.model_copy(update={"resume": False}))
        assert (tmp_path / f"run.{number}" / "metrics.jsonl").read_bytes() == old
        assert (run / "metrics.jsonl").read_bytes() == old  # the same seed
        assert [step for step, _ in list_checkpoints(tmp_path / f"run.{number}")] == [2]
        assert (tmp_path / f"run.{number}" / "latest" / "config.json").is_file()


def test_no_resume_lets_another_model_in(make_config: MakeConfig, settings, run_cli) -> None:  # type: ignore[no-untyped-def]
    train(make_config(max_iters=1))
    other = settings(max_iters=1, model={"dim": 64})
    refused = run_cli("train", *other, env={"OMP_NUM_THREADS": "1"})
    assert refused.returncode == 2
    assert "model.dim 32 -> 64" in refused.stderr
    assert "--no-resume" in refused.stderr
    accepted = run_cli("train", *other, "--no-resume", env={"OMP_NUM_THREADS": "1"})
    assert accepted.returncode == 0, accepted.stderr
    assert "was moved to" in accepted.stderr


def test_a_run_without_a_checkpoint_may_change_its_model(make_config: MakeConfig) -> None:
    with open_run(make_config()):
        pass
    with open_run(make_config(model={"dim": 64})):
        pass


def test_what_kills_left_behind_goes(make_config: MakeConfig) -> None:
    run = Path(make_config().out_dir)
    (run / "checkpoints" / ".step-00000005.tmp-abcd0123").mkdir(parents=True)
    (run / "checkpoints" / ".step-00000005.tmp-abcd0123" / "model.safetensors").write_text("half")
    (run / ".config.yaml.tmp-01234567.yaml").write_text("half")
    (run / ".latest.tmp-01234567").symlink_to("checkpoints/step-00000005")
    with open_run(make_config()):
        pass
    assert sorted(os.listdir(run)) == [".lock", "checkpoints", "config.yaml"]
    assert os.listdir(run / "checkpoints") == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_where_the_folder_should_be(inside: bool, make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    out_dir = tmp_path / "file" / "run" if inside else tmp_path / "file"
    with pytest.raises(UserError, match=r"out_dir=.*file"), open_run(make_config(out_dir)):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_a_record_of_a_newer_version_is_no_damage(make_config: MakeConfig) -> None:
    """To delete it, which helps against damage, would lose a setting that the run was made with."""
    config = make_config(max_iters=1)
    record = train(config) / "config.yaml"
    record.write_text(record.read_text() + "later_key: 3\n")
    with pytest.raises(UserError, match=r"a newer Mini-LLM.*unknown key 'later_key'") as problem:
        train(config)
    assert "update Mini-LLM" in str(problem.value.hint)
    assert "delete" not in str(problem.value)


@pytest.mark.parametrize("text", ["", "learning_rate: [", "\0\1"])
def test_a_damaged_record_of_the_settings_is_named(text: str, make_config: MakeConfig) -> None:
    run = train(make_config(max_iters=1))
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml, the record of this run's settings, is damaged") as problem:
        train(make_config(max_iters=2))
    assert "delete it" in (problem.value.hint or "")
    (run / "config.yaml").unlink()
    train(make_config(max_iters=2))  # the advice can be followed
    assert load_config(TrainConfig, run / "config.yaml").max_iters == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_size": 65, "model": {"max_seq_len": 64}}, "block_size=65 is above model.max_seq_len=64"),
        ({"min_lr": 1.0, "learning_rate": 0.5}, "min_lr=1.0 is above learning_rate=0.5"),
        ({"seed": 2**32}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"beta1": 1.0}, "beta1"),
        ({"dtype": "float64"}, "dtype"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_numbers(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(values).replace("NaN", ".nan"))
    with pytest.raises(UsageError, match=message):
        load_config(TrainConfig, tmp_path / "c.yaml")


def test_tokens_per_step_counts_targets() -> None:
    config = TrainConfig(batch_size=3, gradient_accumulation_steps=5, block_size=7)
    assert (config.rows_per_step, config.tokens_per_step) == (15, 105)


def test_a_run_copied_with_links_followed_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    run = train(make_config(max_iters=2, save_interval=1))
    for number, ignore in enumerate(((), ("checkpoints",), ("config.yaml", "metrics.jsonl"))):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*ignore))  # follows links, as most copying does
        assert not (copy / "latest").is_symlink()
        train(make_config(copy, max_iters=4))
        assert (copy / "latest").readlink() == Path("checkpoints/step-00000004")
        assert (copy / "best").is_symlink()
        assert [step for step, _ in list_checkpoints(copy)][:2] == ([1, 2] if number != 1 else [2, 4])


def test_a_moved_runs_own_record_goes_on_where_it_is(
    make_config: MakeConfig, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    run = train(make_config(max_iters=1))
    run.rename(tmp_path / "moved")
    (tmp_path / "moved" / "latest").unlink()
    result = run_cli("train", "--config", tmp_path / "moved" / "config.yaml", "max_iters=2")
    assert result.returncode == 0, result.stderr
    assert "was moved or copied" in result.stderr
    assert [step for step, _ in list_checkpoints(tmp_path / "moved")] == [1, 2]
    assert not run.exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "latest", "checkpoints/mine"])
def test_a_folder_of_others_is_no_run(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("max_iters: 5  # mine\n")
    with pytest.raises(UserError, match="no run of Mini-LLM"), open_run(config):
        pass
    assert mine.read_text() == "max_iters: 5  # mine\n"


def test_what_others_put_into_a_run_stays(make_config: MakeConfig) -> None:
    run = train(make_config(max_iters=1))
    for name in (".notes.tmp-me", ".x.tmp.txt", "notes.md", "checkpoints/.step-mine", "checkpoints/step-1"):
        (run / name).write_text("mine")
    (run / "checkpoints" / "step-00000001" / "notes.txt").write_text("mine")
    train(make_config(max_iters=6, save_interval=1, keep_last=1))
    for name in (".notes.tmp-me", ".x.tmp.txt", "notes.md", "checkpoints/.step-mine", "checkpoints/step-1"):
        assert (run / name).read_text() == "mine"
    assert (run / "checkpoints" / "step-00000001" / "notes.txt").read_text() == "mine"
