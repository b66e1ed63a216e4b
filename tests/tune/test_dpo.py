"""Learning from preferences: what is preferred becomes likelier, the first loss is ln 2, a run resumes to the bit."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mini_llm.adapter import stack_of
from mini_llm.checkpoint import load_model, save_model
from mini_llm.errors import UsageError, UserError
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.chat import Message
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.run_folder import read_settings
from mini_llm.tune import dpo as dpo_module
from mini_llm.tune.conversations import is_held_out
from mini_llm.tune.dpo import dpo, prepared
from mini_llm.tune.dpo_config import DpoConfig, with_chat_base

sys.path.append(str(Path(__file__).parents[1] / "train"))
from cli_process import CliProcess, last_step, wait_until

SMALL = {"block_size": 63, "batch_size": 4, "compile": False, "device": "cpu", "dtype": "float32", "log_interval": 1}
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]


@pytest.fixture
def pairs_file(write_rows) -> Path:  # type: ignore[no-untyped-def]
    """Spelled is better than repeated."""
    pairs = [(a, b) for a in WORDS for b in WORDS]
    return write_rows(
        *({"prompt": f"Spell {a}{b}.", "chosen": " ".join(a + b), "rejected": f"{a} " * (2 + n % 5)}
          for n, (a, b) in enumerate(pairs)),
        name="pairs.jsonl",
    )  # fmt: skip


@pytest.fixture
def settings(base: Path, pairs_file: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(**changes: Any) -> DpoConfig:
        values = {"base": str(base), "data": [str(pairs_file)], "out_dir": str(tmp_path / "run"), **SMALL, **changes}
        return DpoConfig.model_validate(values)

    return make


def words_of(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.mark.parametrize("loss", ["dpo_norm", "dpo", "ipo", "simpo"])
def test_what_is_preferred_becomes_likelier(loss: str, settings) -> None:  # type: ignore[no-untyped-def]
    run = dpo(settings(loss=loss, epochs=6, learning_rate=0.002, eval_interval=1000))
    rows = [row for row in read_metrics(run) if "loss" in row]
    held = [row for row in read_metrics(run) if "val_loss" in row]
    first, last = rows[0], rows[-1]
    assert last["margin"] > first["margin"] + 0.1
    assert last["accuracy"] == 1
    if loss != "simpo":  # which has no reference; to the others the model is its own, and rounding decides nothing
        assert held[0]["val_accuracy"] == 0.5
    assert held[-1]["val_accuracy"] > 0.9
    assert held[-1]["val_loss"] < held[0]["val_loss"]
    assert last["chosen_log_p"] > first["chosen_log_p"], "the term of sft holds the good answers up"
    assert {"chosen_reward", "rejected_reward", "rejected_log_p", "chosen_tokens", "rejected_tokens"} <= last.keys()
    if loss != "simpo":
        expected = 1.0 if loss == "ipo" else math.log(2)
        assert first["preference_loss"] == pytest.approx(expected, abs=1e-5)
        assert held[0]["val_preference_loss"] == pytest.approx(expected, abs=1e-5)


def test_lora_learns_preferences_on_an_adapter_too(  # type: ignore[no-untyped-def]
    base: Path, pairs_file: Path, spelling_file: Path, tmp_path: Path, run_cli
) -> None:
    """The reference is the sum of the base and the first adapter, and what is saved is a second one."""
    chat, out = tmp_path / "chat", tmp_path / "run"
    words = words_of({**SMALL, "lora.rank": 4})
    taught = run_cli("sft", "--base", base, "--data", spelling_file, f"out_dir={chat}", *words, "epochs=2")
    assert taught.returncode == 0, taught.stderr
    before = (chat / "latest/adapter_model.safetensors").read_bytes()
    more = ["epochs=6", "learning_rate=0.01", "eval_interval=1000"]
    result = run_cli("dpo", "--base", chat, "--data", pairs_file, f"out_dir={out}", *words, *more, fresh=True)
    assert result.returncode == 0, result.stderr
    assert "frozen" in result.stderr
    rows = [row for row in read_metrics(out) if "loss" in row]
    assert rows[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["accuracy"] == 0.5
    assert (rows[-1]["accuracy"], rows[-1]["margin"] > 0.3) == (1, True)
    assert (chat / "latest/adapter_model.safetensors").read_bytes() == before
    stack = stack_of(resolve_checkpoint(out))
    assert [folder.parents[1].name for folder in stack[1]] == ["chat", "run"]
    ids = torch.arange(3, 60)[None]
    expected = load_model(resolve_checkpoint(out), device="cpu", dtype=torch.float32)(ids)
    merged = run_cli("export", out, "--merge", "--out", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    assert load_model(tmp_path / "merged", device="cpu", dtype=torch.float32)(ids).equal(expected)


@pytest.mark.needs_torch_compile
def test_a_compiled_run_begins_at_ln_2_and_tells_the_same(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The numbers beside the loss come out of the compiled function too, and trying it out does not count."""
    runs = [
        dpo(
            settings(compile=c, out_dir=str(tmp_path / str(c)), max_iters=2, epochs=None, gradient_accumulation_steps=2)
        )
        for c in (False, True)
    ]
    plain, compiled = ([row for row in read_metrics(run) if "loss" in row] for run in runs)
    assert len(plain) == 2
    for a, b in zip(plain, compiled, strict=True):
        if a["step"] == 1:  # margins of 1e-8: rounding decides which side they are on
            del a["accuracy"], b["accuracy"]
        assert a == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in b.items()}


def test_micro_batches_change_nothing(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Rows hold unequal numbers of pairs: a mean of means would count some pairs more."""
    runs = [
        dpo(settings(out_dir=str(tmp_path / f"{n}"), batch_size=n, gradient_accumulation_steps=8 // n, epochs=3))
        for n in (8, 1)
    ]
    one, eight = ([row for row in read_metrics(run) if "loss" in row] for run in runs)
    assert len(one) > 2
    for a, b in zip(one, eight, strict=True):
        assert a == {key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in b.items()}


def test_killed_at_random_moments_it_ends_with_the_same_bits(settings, pairs_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Also across an epoch, and also while the reference is computed."""
    changes = {"epochs": 4, "eval_interval": 5, "eval_iters": 1, "save_interval": 3, "learning_rate": 0.003}
    whole = dpo(settings(out_dir=str(tmp_path / "whole"), **changes))
    run, dice = tmp_path / "run", random.Random(0)
    steps = read_metrics(whole)[-1]["step"]
    assert steps >= 12
    config = settings(**changes)
    words = words_of({key: getattr(config, key) for key in config.model_fields_set if key != "model"})
    places = [-1, dice.randrange(2, 5), dice.randrange(6, steps - 2)]
    for number, stop_after in enumerate(places):
        process = CliProcess("dpo", *words, stderr=tmp_path / f"{number}.txt")
        wait_until(lambda: (last_step(run) >= stop_after) and run.is_dir(), process.process.is_alive)  # noqa: B023
        process.kill()
        process.process.join()
    process = CliProcess("dpo", *words, stderr=tmp_path / "end.txt")
    assert process.wait() == 0, process.stderr
    assert "resuming" in process.stderr
    assert (whole / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "training_state/optimizer.safetensors", "training_state/state.json"):
        assert (whole / "latest" / name).read_bytes() == (run / "latest" / name).read_bytes()
    kept, again = (load_file(folder / "reference.safetensors") for folder in (whole, run))
    assert all(kept[side].equal(again[side]) for side in ("learned", "held_out"))
    assert not [*run.glob(".*.tmp*")]


def test_the_reference_is_read_from_the_run_unless_base_or_pairs_are_others(  # type: ignore[no-untyped-def]
    settings, base: Path, tmp_path: Path, write_rows, chat_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mini_llm.tune import reference as module

    calls: list[object] = []
    computed = module.computed
    monkeypatch.setattr(module, "computed", lambda *words: calls.append(1) or computed(*words))
    config = settings(epochs=1, save_interval=1)
    run = dpo(config)
    dpo(config.model_copy(update={"epochs": 2.0}))
    assert len(calls) == 1

    kept = run / "reference.safetensors"
    damaged = kept.read_bytes()[:-40]
    kept.write_bytes(damaged)
    dpo(config.model_copy(update={"epochs": 3.0}))
    assert len(calls) == 2

    other = tmp_path / "other"
    model = load_model(base, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 1.01
    save_model(other, model, chat_tokenizer)
    with pytest.raises(UserError, match="and cannot go on from") as problem:
        dpo(config.model_copy(update={"base": str(other)}))
    assert "--no-resume" in (problem.value.hint or "")

    more = write_rows(*({"prompt": f"Say {n}.", "chosen": "a", "rejected": "b"} for n in range(40)), name="more.jsonl")
    dpo(config.model_copy(update={"data": (str(more),), "epochs": 4.0, "val_fraction": 0.3}))
    assert len(calls) == 3


def test_a_model_that_is_not_its_reference_stops_at_the_first_step(  # type: ignore[no-untyped-def]
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dpo_module.kept_reference

    def wrong(*words: Any) -> Any:
        learned, held_out = kept(*words)
        return learned + torch.linspace(0, 1, len(learned)), held_out

    monkeypatch.setattr(dpo_module, "kept_reference", wrong)
    with pytest.raises(UserError, match=r"first loss of preference is 0\.\d+, not ln 2") as problem:
        dpo(settings())
    assert "reference.safetensors" in (problem.value.hint or "")
    assert not [*(tmp_path / "run").glob("checkpoints/*")]


def test_a_rate_of_zero_keeps_the_base_and_every_reader_takes_the_run(settings, base: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    run = dpo(settings(epochs=None, max_iters=2, learning_rate=0.0))
    assert (run / "latest/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert read_settings(run).learning_rate == 0
    for words in (["plot", run], ["report", run], ["generate", run, "--prompt", "a", "--max-new-tokens", "2"]):
        result = run_cli(*words)
        assert result.returncode == 0, result.stderr


def test_dry_run_show_and_config(base: Path, pairs_file: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    words = ["dpo", "--base", base, "--data", pairs_file, f"out_dir={tmp_path / 'run'}", *words_of(SMALL)]
    rehearsed = run_cli(*words, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "first loss" in rehearsed.stdout
    assert not (tmp_path / "run").exists()
    shown = run_cli(*words, "--show", "2")
    assert shown.returncode == 0, shown.stderr
    assert "[[a n t a n t<|end|>]]" in shown.stdout
    assert "[[ant ant <|end|>]]" in shown.stdout
    printed = run_cli(*words, "--print-config")
    assert float(re.findall(r"^learning_rate: (.*)", printed.stdout, re.MULTILINE)[0]) == pytest.approx(6e-6)


def test_the_rate_is_a_fiftieth_of_that_of_fine_tuning(base: Path, pairs_file: Path, tmp_path: Path) -> None:
    """Of a run of sft its own; of a run of pretraining that of the sft which it would get."""
    for name, record, rate in (
        ("tuned", "base: x\nlearning_rate: 0.001\n", 0.001 / 50),
        ("pretrained", "learning_rate: 0.001\n", 0.0005 / 50),
    ):
        checkpoint = tmp_path / name / "checkpoints" / "step-00000001"
        checkpoint.mkdir(parents=True)
        for file in base.iterdir():
            (checkpoint / file.name).write_bytes(file.read_bytes())
        (tmp_path / name / "config.yaml").write_text(record)
        config = DpoConfig.model_validate({"base": str(checkpoint), "data": [str(pairs_file)]})
        assert with_chat_base(config).learning_rate == pytest.approx(rate)
        given = DpoConfig.model_validate({"base": str(checkpoint), "data": [str(pairs_file)], "learning_rate": 0.1})
        assert with_chat_base(given).learning_rate == 0.1
        thin = DpoConfig.model_validate({"base": str(checkpoint), "data": [str(pairs_file)], "lora": {"rank": 4}})
        assert with_chat_base(thin).learning_rate == pytest.approx(0.003 / 50), "LoRA has a rate of its own"


def test_what_is_wrong_is_said(base: Path, pairs_file: Path, spelling_file: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    both = {"base": str(base), "data": [str(pairs_file)]}
    for changes, code, message in (
        ({"base": ""}, 2, "--base"),
        ({"data": []}, 2, "mini-llm pairs"),
        ({"base": str(tmp_path / "no")}, 1, "no"),
        ({"data": [str(empty)]}, 1, "nothing to learn"),
        ({"block_size": 5}, 1, "does not fit into block_size"),
        ({"replay": 0.5}, 2, "sft_weight"),
        ({"model": {"dropout": 0.1}}, 2, "reference"),
    ):
        with pytest.raises(UserError) as problem:
            dpo(DpoConfig.model_validate({**both, "out_dir": str(tmp_path / "out"), **changes}))
        assert problem.value.exit_code == code
        assert message in str(problem.value)
    for words, code, message in (
        (["--data", spelling_file], 1, "no chosen and no rejected"),
        (["--data", pairs_file, "loss=orpo"], 2, "loss"),
        (["--data", pairs_file, "beta=0"], 2, "beta"),
    ):
        result = run_cli("dpo", "--base", base, *words, f"out_dir={tmp_path / 'out'}")
        assert result.returncode == code, (words, result.stderr)
        assert message in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_too_few_pairs_are_said_before_anything_is_computed(settings, write_rows, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    def refuse(*_: Any) -> None:
        raise AssertionError("the reference is computed")

    monkeypatch.setattr(dpo_module, "kept_reference", refuse)
    rows = [{"prompt": f"Say {word}.", "chosen": word, "rejected": "no"} for word in WORDS]
    held_out = [row for row in rows if is_held_out([Message("user", str(row["prompt"]))], 0.5)]
    learned = [row for row in rows if row not in held_out]
    none = settings(data=[str(write_rows(*learned, name="none.jsonl"))], val_fraction=0.5)
    found = rf"no pair is held out of the {len(learned)} that were found: .*val_fraction=0.5 it takes 6 or more"
    with pytest.raises(UsageError, match=found):
        dpo(none)
    every = settings(data=[str(write_rows(*held_out, name="all.jsonl"))], val_fraction=0.5)
    with pytest.raises(UserError, match=r"nothing to learn in .* held out\ngive more: 6 pairs or more"):
        dpo(every)
    capsys.readouterr()
    prepared(settings(data=[str(write_rows(*rows, name="few.jsonl"))], val_fraction=0.5, batch_size=16))
    assert re.search(rf"{len(learned)} pairs to learn from fill \d of the 16 rows", capsys.readouterr().err)


def test_the_references_are_log_probs_of_the_base(settings, base: Path) -> None:  # type: ignore[no-untyped-def]
    run = dpo(settings(epochs=None, max_iters=1))
    kept = load_file(run / "reference.safetensors")
    assert all((values < 0).all() for values in kept.values())
    save_file(kept, run / "copy.safetensors")  # float32, nothing but numbers
    assert kept["learned"].dtype == torch.float32
