"""Conversations in pretraining's cool-down: nothing before it changes, no row is lost, and it resumes to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.config import TrainConfig
from mini_llm.train.objective import Pretraining
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.run_folder import read_settings
from mini_llm.train.train import train
from mini_llm.tune.config import LoraConfig, SftConfig
from mini_llm.tune.markers import rows_to_train
from mini_llm.tune.midtraining import MixedPretraining, objective_of
from mini_llm.tune.rows import ConversationRows

SHAPE = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 320, "max_seq_len": 128}
SMALL = {"batch_size": 4, "block_size": 64, "compile": False, "device": "cpu", "dtype": "float32", "model": SHAPE}
STEPS = {"max_iters": 16, "lr_schedule": "wsd", "cooldown_fraction": 0.5, "warmup_iters": 2, "learning_rate": 0.01}
LOOKS = {"eval_interval": 4, "eval_iters": 1, "save_interval": 2, "log_interval": 1}


@pytest.fixture
def settings(tiny_chat_store: Path, spelling_file: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(**changes: Any) -> TrainConfig:
        files = {"data_dir": str(tiny_chat_store), "out_dir": str(tmp_path / "run")}
        mix = {"data": [str(spelling_file)], "share": 0.3}
        return TrainConfig.model_validate({**files, **SMALL, **STEPS, **LOOKS, "mix": mix, **changes})

    return make


def mixed(config: TrainConfig) -> MixedPretraining:
    objective = objective_of(config)(config)
    assert isinstance(objective, MixedPretraining)
    return objective


def parts(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of a step's text, and of its conversations."""
    if isinstance(rows, torch.Tensor):
        return rows, rows[:0]
    is_text = rows.weights.all(dim=1)
    return rows.ids[is_text], rows.ids[~is_text]


def test_text_goes_on_where_it_was_and_the_share_is_kept(settings) -> None:  # type: ignore[no-untyped-def]
    config = settings()
    objective, plain = mixed(config), Pretraining(config)
    steps = [objective.rows(step) for step in range(16)]
    assert all(torch.equal(steps[step], plain.rows(step)) for step in range(8))
    assert all(isinstance(rows, ConversationRows) and len(rows) == 4 for rows in steps[8:])
    text, talk = (torch.cat(found) for found in zip(*map(parts, steps), strict=True))
    assert len(talk) == int(8 * 4 * 0.3)
    expected = torch.cat([plain.rows(step) for step in range(16)])[: len(text)]
    assert torch.equal(text, expected)
    assert objective.epoch(16) == pytest.approx(len(text) / plain.loader.rows_per_epoch)
    assert torch.equal(talk, objective.packed.rows(0, len(talk)).ids)


def test_it_goes_on_with_steps_of_another_size_where_the_text_was(settings) -> None:  # type: ignore[no-untyped-def]
    config = settings()
    before, after = mixed(config), mixed(settings(batch_size=2, max_iters=32))
    seen = sum(len(parts(before.rows(step))[0]) for step in range(12))
    after.continue_at(12, before.epoch(12))
    assert after.epoch(12) == pytest.approx(before.epoch(12))
    first = parts(after.rows(12))[0][0]
    assert torch.equal(first, Pretraining(config).loader.rows_from(seen)[0])


@pytest.mark.parametrize("stopped_at", [4, 12])
def test_a_stopped_run_goes_on_to_the_bit(stopped_at: int, settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def run(name: str, stop: Any = None, **changes: Any) -> Path:
        config = settings(out_dir=str(tmp_path / name), keep_last=9, **changes)
        return train(config, stop, objective_of(config))

    def stop(step: int, _model: object) -> None:
        if step == stopped_at:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", stop)
    broken, plain = run("broken"), run("plain", mix={})
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()

    def weights(run: Path, step: int) -> bytes:
        return (run / f"checkpoints/step-{step:08d}/model.safetensors").read_bytes()

    assert weights(whole, 16) == weights(broken, 16)
    assert weights(whole, 8) == weights(plain, 8)  # one stable run may end in both ways
    assert weights(whole, 16) != weights(plain, 16)


def test_a_compiled_run_tells_the_same(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    losses = []
    for compiled in (False, True):
        config = settings(out_dir=str(tmp_path / str(compiled)), compile=compiled)
        found = read_metrics(train(config, None, objective_of(config)))
        losses.append([row["loss"] for row in found if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_command_mixes_and_lora_finds_the_markers_trained(  # type: ignore[no-untyped-def]
    tiny_chat_store: Path, chat_tokenizer: Tokenizer, spelling_file: Path, tmp_path: Path, run_cli
) -> None:
    shape = [f"model.{key}={value}" for key, value in SHAPE.items()]
    rest = {key: value for key, value in (SMALL | STEPS | LOOKS).items() if key != "model"}
    words = [*shape, *(f"{key}={str(value).lower()}" for key, value in rest.items()), f"data_dir={tiny_chat_store}"]
    for name, more in (("mixed", [f"mix.data={spelling_file}", "mix.share=0.25"]), ("plain", [])):
        out = tmp_path / name
        result = run_cli("train", *words, *more, f"out_dir={out}")
        assert result.returncode == 0, result.stderr
        assert ("from step 8 on 8 rows of conversations" in result.stderr) == (name == "mixed")
        base = (out / "latest").resolve()
        assert bool(rows_to_train(base, chat_tokenizer, LoraConfig(rank=2), is_tied=True)) == (name == "plain")
    assert read_settings(tmp_path / "mixed").mix.share == 0.25
    dry = run_cli("train", *words, f"mix.data={spelling_file}", f"out_dir={tmp_path / 'dry'}", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    for more, code, message in (
        ([f"mix.data={spelling_file}", "lr_schedule=cosine"], 2, "lr_schedule=wsd"),
        ([f"mix.data={spelling_file}", "length_warmup=0.6"], 2, "whole rows"),
        ([f"mix.data={spelling_file}", "mix.share=0.01"], 1, "no row of conversations"),
        ([f"mix.data={tmp_path / 'none.jsonl'}"], 1, "none.jsonl"),
        (["mix.dta=x"], 2, "did you mean"),
    ):
        result = run_cli("train", *words, *more, f"out_dir={tmp_path / 'wrong'}")
        assert result.returncode == code, (more, result.stderr)
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "wrong/checkpoints").exists()


def test_fine_tuning_has_another_word_for_it(base: Path, spelling_file: Path) -> None:
    with pytest.raises(ValidationError, match="mix is of pretraining"):
        SftConfig.model_validate({"base": str(base), "data": ["x"], "mix": {"data": [str(spelling_file)]}})
