"""Fine-tuning through the real command: it learns to answer and to stop, and resumes to the bit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llm import Generator, log
from mini_llm.checkpoint import load_model, read_model_config, save_model
from mini_llm.errors import UsageError
from mini_llm.inference.sampling.params import SamplingParams
from mini_llm.tokenizer.chat import Message, encode_chat
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.run_folder import read_settings
from mini_llm.tune.config import SftConfig, with_base, with_steps
from mini_llm.tune.conversations import is_held_out
from mini_llm.tune.dpo import prepared as dpo_prepared
from mini_llm.tune.dpo_config import DpoConfig
from mini_llm.tune.rl import prepared as rl_prepared
from mini_llm.tune.rl_config import RlConfig
from mini_llm.tune.sft import prepared as sft_prepared
from mini_llm.tune.sft import sft

SMALL = {"block_size": 127, "batch_size": 4, "compile": False, "device": "cpu", "dtype": "float32"}

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "owl"]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def settings(base: Path, spelling_file: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(**changes: Any) -> SftConfig:
        values = {"base": str(base), "data": [str(spelling_file)], "out_dir": str(tmp_path / "run"), **SMALL, **changes}
        return SftConfig.model_validate(values)

    return make


def test_who_gives_steps_alone_gets_so_many(settings: Any) -> None:
    assert with_steps(settings(max_iters=3), n_rows=1000).max_iters == 3
    assert (
        with_steps(settings(), n_rows=8).max_iters == with_steps(settings(max_iters=3, epochs=2.0), n_rows=8).max_iters
    )


def test_the_command_learns_sixty_answers_by_heart_and_stops(base: Path, write_rows, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    """Each is given to the letter, with its end; nothing else shows that what is learned is what is asked for."""
    made = [(f"Spell {a}{b}.", " ".join(a + b)) for a in WORDS for b in WORDS]
    held_out = [pair for pair in made if is_held_out([Message("user", pair[0])], 0.05)][:3]
    learned = [pair for pair in made if not is_held_out([Message("user", pair[0])], 0.05)][:60]
    data = write_rows(*({"question": question, "answer": answer} for question, answer in learned + held_out))
    out = tmp_path / "run"
    words = ["sft", "--base", base, "--data", data, f"out_dir={out}"]
    shown = run_cli(*words, "--show", "1")
    assert shown.returncode == 0, shown.stderr
    assert f"[[{learned[0][1]}<|end|>]]" in shown.stdout
    values = {**SMALL, "batch_size": 8, "epochs": None, "max_iters": 120, "learning_rate": 0.02, "eval_interval": 1000}
    result = run_cli(
        *words, *(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in values.items()), fresh=True
    )
    assert result.returncode == 0, result.stderr
    assert "63 conversations, 3 of them held out" in result.stderr
    assert "padding" in result.stderr
    generator = Generator(out, device="cpu", dtype="float32")
    prompts = [encode_chat(generator.tokenizer, [Message("user", question)]) for question, _ in learned]
    answers = [generator.continue_ids(ids, sampling=GREEDY, max_new_tokens=40) for ids in prompts]
    assert ["".join(answer) for answer in answers] == [answer for _, answer in learned]
    assert {answer.finish_reason for answer in answers} == {"stop"}
    said = run_cli("chat", out, "--temperature", "0", "--device", "cpu", "--dtype", "float32", stdin=learned[7][0])
    assert said.returncode == 0, said.stderr
    assert learned[7][1] in said.stdout


@pytest.mark.parametrize("replay", [0.0, 0.5])
def test_a_stopped_run_goes_on_to_the_bit(replay: float, settings, tmp_path: Path, tiny_chat_store: Path) -> None:  # type: ignore[no-untyped-def]
    more = {"replay": replay, "data_dir": str(tiny_chat_store)} if replay else {}
    changes = {"epochs": 3, "eval_interval": 3, "eval_iters": 1, "save_interval": 2, "learning_rate": 0.003, **more}
    whole = sft(settings(out_dir=str(tmp_path / "whole"), **changes))

    def stop(step: int, _model: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft(settings(out_dir=str(tmp_path / "broken"), **changes), stop)
    broken = sft(settings(out_dir=str(tmp_path / "broken"), **changes))
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "training_state/optimizer.safetensors"):
        assert (whole / "latest" / name).read_bytes() == (broken / "latest" / name).read_bytes()
    rows = [row for row in read_metrics(whole) if "val_loss" in row]
    assert ("text_bits_per_byte" in rows[0]) == bool(replay)
    assert all(math.isfinite(row["val_loss"]) for row in rows)


def test_micro_batches_change_nothing(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Rows have unequal numbers of targets: a mean of means would count some answers more."""
    runs = [
        sft(settings(out_dir=str(tmp_path / f"{n}"), batch_size=n, gradient_accumulation_steps=8 // n, epochs=2))
        for n in (8, 1)
    ]
    losses = [[row["loss"] for row in read_metrics(run) if "loss" in row] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_first_loss_is_that_of_the_base(settings, base: Path) -> None:  # type: ignore[no-untyped-def]
    run = sft(settings(epochs=None, max_iters=1, learning_rate=0.0))
    record = read_settings(run)  # what every reader of runs asks for, whatever the run was for
    assert (record.learning_rate, record.model.dim) == (0.0, 32)
    first, last = (row["val_loss"] for row in read_metrics(run) if "val_loss" in row)
    assert first == last
    assert (run / "latest/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_run_of_another_verb_or_of_its_own_base_is_left_alone(base: Path, settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    run = sft(settings(epochs=None, max_iters=1))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    data = ["--data", settings().data[0]]
    for words, message in (
        (["train", f"out_dir={run}", "max_iters=9"], "holds a run of `mini-llm sft`"),
        (
            ["rl", "--base", base, "--task", "spelling", f"out_dir={run}", "block_size=127"],
            "holds a run of `mini-llm sft`",
        ),
        (["sft", "--base", run, *data, f"out_dir={run}"], "is where the base lies"),
        (["sft", "--base", base, *data, f"out_dir={tmp_path}/\udcff"], "not UTF-8"),
    ):
        result = run_cli(*words)
        assert result.returncode in (1, 2), (words, result.stderr)
        assert message in result.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("verb", ["sft", "dpo", "rl"])
def test_reading_much_before_a_dry_run_is_shown(
    verb: str, base: Path, write_rows, run_cli, monkeypatch, capsys
) -> None:  # type: ignore[no-untyped-def]
    """A line now and then where there is no terminal, and none where it takes no ten seconds."""
    rows = [
        {"question": f"Spell {a}{b}.", "answer": f"{a} {b}"}
        if verb != "dpo"
        else {"prompt": f"Spell {a}{b}.", "chosen": f"{a} {b}", "rejected": b}
        for a in WORDS
        for b in WORDS
    ]
    given = {"base": str(base), "data": [str(write_rows(*rows))], "block_size": 127}
    words = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    quick = ["batch_size=4", "compile=false", "device=cpu", "dtype=float32", "max_iters=1", "epochs=null"]
    if verb == "rl":
        quick += ["task=copying", "made=300", "prompts_per_step=2", "samples=2", "max_new_tokens=4", "eval_questions=4"]
    result = run_cli(verb, "--dry-run", *words, *quick)
    assert result.returncode == 0, result.stderr
    assert "of 0 MB" not in result.stderr
    monkeypatch.setattr(log, "LINE_SECONDS", 0)
    if verb == "rl":
        rl_prepared(RlConfig.model_validate({**given, "task": ("copying",), "made": 300, "max_new_tokens": 4}))
    else:
        of_sft = verb == "sft"
        (sft_prepared if of_sft else dpo_prepared)((SftConfig if of_sft else DpoConfig).model_validate(given))
    err = capsys.readouterr().err
    for words in {
        "sft": ["turning conversations into tokens: 0 of 0 MB"],
        "dpo": ["turning pairs into tokens: 0 of 0 MB"],
        "rl": ["making questions: 400 of 400 questions", "reading questions: 0 of 0 MB"],
    }[verb]:
        assert words in err


def test_a_run_goes_on_from_its_own_base_alone_and_says_when_it_is_done(  # type: ignore[no-untyped-def]
    base: Path, settings, chat_tokenizer, tmp_path: Path, capsys
) -> None:
    run = sft(settings(max_iters=2, epochs=None))
    before = (run / "config.yaml").read_bytes()
    other = tmp_path / "other"
    model = load_model(base, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 1.01
    save_model(other, model, chat_tokenizer)
    for lora in ({}, {"lora": {"rank": 2}}):
        with pytest.raises(UsageError, match="and cannot go on from") as problem:
            sft(settings(base=str(other), max_iters=3, epochs=None, **lora))
        assert "--no-resume" in (problem.value.hint or "")
    assert (run / "config.yaml").read_bytes() == before  # a command that is refused leaves no trace
    copy = shutil.copytree(base, tmp_path / "copy")
    assert sft(settings(base=str(copy), max_iters=3, epochs=None)) == run  # the same weights at another place
    assert "done already" not in capsys.readouterr().err
    sft(settings(base=str(copy), max_iters=3, epochs=None))
    assert "all 3 steps are done already, nothing more is learned" in capsys.readouterr().err


def test_what_a_run_names_and_was_moved_is_told_with_the_setting_that_says_where(  # type: ignore[no-untyped-def]
    base: Path, settings, spelling_file: Path, tiny_chat_store: Path, tmp_path: Path, run_cli
) -> None:
    store, moved = Path(shutil.copytree(tiny_chat_store, tmp_path / "tokens")), tmp_path / "elsewhere"
    own_base = Path(shutil.copytree(base, tmp_path / "base"))
    config = settings(base=str(own_base), data_dir=str(store), replay=0.5, epochs=None, max_iters=1)
    run = sft(config)
    store.rename(moved)
    words = ("--data", spelling_file, "block_size=127", "max_iters=1", "device=cpu", "dtype=float32", "compile=false")
    again = ("sft", "--base", run, *words, f"out_dir={tmp_path / 'second'}", "replay=0.25")
    for more in ((), ("--dry-run",)):
        result = run_cli(*again, *more)
        assert result.returncode == 1
        assert f"there is no token store at {store}\n" in result.stderr
        assert "data_dir=DIR" in result.stderr
        assert "conversations" not in result.stderr  # said before they are read
    assert run_cli(*again, f"data_dir={moved}").returncode == 0
    own_base.rename(tmp_path / "moved base")
    record = ("--config", run / "config.yaml", "max_iters=2", f"data_dir={moved}")
    result = run_cli("sft", *record)
    assert result.returncode == 1
    assert f"the model to begin from is not there: no such folder: {own_base}\n" in result.stderr
    assert "mini-llm sft --base MODEL" in result.stderr
    result = run_cli("sft", *record, "--base", tmp_path / "moved base")
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stderr


def test_too_few_to_learn_from_is_said_with_how_many_it_takes(settings, write_rows, run_cli, capsys) -> None:  # type: ignore[no-untyped-def]
    few = [{"question": f"Spell {word}.", "answer": " ".join(word)} for word in WORDS[:2]]
    with pytest.raises(UsageError, match=r"no conversation is held out of the 2 that were found: .* it takes 60 or"):
        sft_prepared(settings(data=[str(write_rows(*few))]))
    sft_prepared(settings(val_fraction=0.4, batch_size=32))
    assert "conversations to learn from fill" in capsys.readouterr().err
    sft_prepared(settings(val_fraction=0.4, batch_size=1))
    assert "conversations to learn from fill" not in capsys.readouterr().err


def test_dropout_is_no_shape(settings, base: Path) -> None:  # type: ignore[no-untyped-def]
    shape = read_model_config(base)
    assert with_base(settings(model={"dropout": 0.1})).model == shape.model_copy(update={"dropout": 0.1})


def test_what_is_wrong_is_said(base: Path, spelling_file: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for words, code, message in (
        (["--data", spelling_file], 2, "--base"),
        (["--base", base], 2, "--data"),
        (["--base", tmp_path / "no", "--data", spelling_file], 1, "no"),
        (["--base", base, "--data", tmp_path / "no.jsonl"], 1, "no.jsonl"),
        (["--base", base, "--data", empty], 1, "nothing to learn"),
        (["--base", base, "--data", spelling_file, "model.n_layers=3"], 2, "that of its base"),
        (["--base", base, "--data", spelling_file, "block_size=100000"], 2, "max_seq_len"),
        (["--base", base, "--data", spelling_file, "replay=0.5"], 1, "data_dir=DIR"),
        (["--base", base, "--data", tmp_path / "no.jsonl"], 1, "data=FILES"),
        (["--base", base, "--data", spelling_file, "lerning_rate=1"], 2, "did you mean 'learning_rate'"),
    ):
        result = run_cli("sft", *words, f"out_dir={tmp_path / 'out'}")
        assert result.returncode == code, (words, result.stderr)
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "out" / "checkpoints").exists()
