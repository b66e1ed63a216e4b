"""Reinforcement learning through the real command: it raises the reward, and killed it ends with the same bits."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_llm.checkpoint import load_model
from mini_llm.pointers import resolve_checkpoint
from mini_llm.tokenizer.tokenizer import Tokenizer
from mini_llm.train.run.metrics import read_metrics
from mini_llm.tune.answer_loss import answer_loss_sum
from mini_llm.tune.beside import conversations_beside
from mini_llm.tune.exact_match import _warn_without_signal
from mini_llm.tune.questions import Question
from mini_llm.tune.rl import rl
from mini_llm.tune.rl_config import RlConfig
from mini_llm.tune.rollouts import Answer
from tests.train.cli_process import CliProcess, last_step, wait_until
from tests.tune.conftest import PAIRS

SMALL = {"block_size": 63, "batch_size": 4, "compile": False, "device": "cpu", "dtype": "float32", "max_new_tokens": 12}
SMALL |= {"prompts_per_step": 4, "samples": 8, "val_fraction": 0.3, "eval_questions": 8, "eval_samples": 2}
SAVED = ("model.safetensors", "training_state/optimizer.safetensors", "training_state/state.json")


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


@pytest.fixture
def settings(answering: Path, pairs_file: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(**changes: Any) -> RlConfig:
        values = {"base": str(answering), "data": [str(pairs_file)], "out_dir": str(tmp_path / "run"), **SMALL}
        return RlConfig.model_validate({**values, "max_iters": 6, "eval_interval": 2, **changes})

    return make


def words(config: RlConfig) -> list[str]:
    values = config.model_dump(mode="json", exclude_unset=True)
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if key != "model"]


def same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in SAVED:
        assert (one / "latest" / name).read_bytes() == (other / "latest" / name).read_bytes(), name
    assert best_of(one) == best_of(other)


def best_of(run: Path) -> str | None:
    """Return the checkpoint that answered best; None where that was the base."""
    return os.readlink(run / "best") if (run / "best").is_symlink() else None


def test_the_reward_rises(settings, write_rows, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    few = write_rows(*PAIRS[:6], name="few.jsonl")
    run = rl(settings(data=[str(few)], learning_rate=1e-3, max_iters=30, eval_interval=30, samples=16))
    rewards = [row["reward"] for row in read_metrics(run) if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    rows = [row for row in read_metrics(run) if "val_loss" in row]
    assert rows[0]["val_loss"] == pytest.approx(1 - (rows[0]["val_greedy"] + rows[0]["val_sampled"]) / 2)
    line = next(row for row in read_metrics(run) if "reward" in row)
    assert line.keys() >= {"reward", "silent", "length", "stop_rate", "entropy", "kl", "clipped", "loss"}
    assert line["kl"] == 0
    assert line["entropy"] > 0


@pytest.mark.parametrize(
    ("updates", "compiled", "beside"),
    [
        (1, False, False),
        (2, False, False),
        (2, False, True),
        pytest.param(1, True, True, marks=pytest.mark.needs_torch_compile),
    ],
)
def test_a_run_killed_with_9_goes_on_to_the_bit(  # type: ignore[no-untyped-def]
    updates: int, compiled: bool, beside: bool, settings, spelling_file: Path, tmp_path: Path
) -> None:
    changes = {"updates_per_batch": updates, "save_interval": 2, "compile": compiled, "learning_rate": 1e-3}
    if beside:
        changes["mix"] = {"data": [str(spelling_file)], "share": 0.5}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rl(settings(out_dir=str(whole), **changes))
    command = ("rl", *words(settings(out_dir=str(broken), **changes)))
    for step in (1, 3) if not compiled else (3,):
        process = CliProcess(*command, stderr=tmp_path / "stderr.txt")
        wait_until(lambda step=step: last_step(broken) >= step, process.process.is_alive)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr
    assert CliProcess(*command, stderr=tmp_path / "stderr.txt").wait() == 0
    same(whole, broken)
    shown = [row["clipped"] for row in read_metrics(whole) if "clipped" in row]
    assert any(shown) == (updates > 1)


@pytest.mark.parametrize("updates", [1, 3])
def test_sigterm_while_answers_are_written_stops_at_once_and_goes_on(updates: int, settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Answers of 150 tokens, each a tenth of a second late: nobody waits for their end."""
    late = (
        "import time; from mini_llm.inference.engine.engine import Engine; step = Engine.step\n"
        "def slow(self):\n"
        "    time.sleep(0.1 if 'go' in slow.__dict__ else 0); return step(self)\n"
        "Engine.step = slow\n"
        "import mini_llm.tune.rl as rl; write = rl.Rewarded._write\n"
        "def write_slowly(self, number):\n"
        "    if number == 1: slow.go = True; open({!r}, 'w').close()\n"
        "    return write(self, number)\n"
        "rl.Rewarded._write = write_slowly\n"
    )
    changes = {"updates_per_batch": updates, "max_new_tokens": 30, "eval_interval": 6, "learning_rate": 1e-3}
    whole, broken, begun = tmp_path / "whole", tmp_path / "broken", tmp_path / "begun"
    rl(settings(out_dir=str(whole), **changes))
    command = ("rl", *words(settings(out_dir=str(broken), **changes)))
    process = CliProcess(*command, stderr=tmp_path / "stderr.txt", before=late.format(str(begun)))
    wait_until(begun.exists, process.process.is_alive)
    process.kill(signal.SIGTERM)
    assert process.wait(timeout=60) == 143, process.stderr
    assert f"saved step {updates} " in process.stderr
    assert last_step(broken) == updates
    assert CliProcess(*command, stderr=tmp_path / "stderr.txt").wait() == 0
    same(whole, broken)


def test_a_signal_between_updates_of_one_batch_waits_for_the_last(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Only the weights that wrote the answers could write them again."""
    stop = (
        "import os, signal; from mini_llm.train.step import Stepper; step = Stepper.step\n"
        "def stops(self):\n"
        "    result = step(self)\n"
        "    if self.trainee.progress.step == 1: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return result\n"
        "Stepper.step = stops\n"
    )
    changes = {"updates_per_batch": 3, "eval_interval": 6, "learning_rate": 1e-3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rl(settings(out_dir=str(whole), **changes))
    command = ("rl", *words(settings(out_dir=str(broken), **changes)))
    process = CliProcess(*command, stderr=tmp_path / "stderr.txt", before=stop)
    assert process.wait() == 143, process.stderr
    assert "saved step 3 " in process.stderr
    assert CliProcess(*command, stderr=tmp_path / "stderr.txt").wait() == 0
    same(whole, broken)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_whose_groups_are_all_alike_teaches_nothing_and_goes_on(  # type: ignore[no-untyped-def]
    optimizer: str, settings, write_rows, base: Path, answering: Path, capfd
) -> None:
    hopeless = write_rows(*({"question": f"Part {i}.", "answer": "no such thing"} for i in range(40)), name="no.jsonl")
    said: list[str] = []

    def at_first(step: int, _model: Any) -> None:
        if step == 0:
            said.append(capfd.readouterr().err)

    run = rl(settings(data=[str(hopeless)], max_iters=2, optimizer=optimizer, learning_rate=1e-3), at_first)
    assert re.search(
        r"none of \d+ answers drawn to held-out questions is right: .*begin with more", " ".join(said[0].split())
    )
    rows = [row for row in read_metrics(run) if "reward" in row]
    assert [(row["loss"], row["grad_norm"], row["silent"], row["reward"]) for row in rows] == [(0.0, 0.0, 1.0, 0.0)] * 2
    assert all(row["entropy"] > 0 for row in rows)
    assert (run / "latest/model.safetensors").read_bytes() == (answering / "latest/model.safetensors").read_bytes()
    rest = capfd.readouterr().err
    assert "too hard" in rest
    assert "none of" not in rest  # once is enough


@pytest.mark.parametrize(("worth", "said"), [((0.0, 0.0), "begin with more"), ((1.0, 1.0), "something harder")])
def test_a_first_look_without_signal_warns_once(worth, said: str, capsys) -> None:  # type: ignore[no-untyped-def]
    question = Question([1], "a", "exact", "here")
    for rewards, expected in ((worth, True), ((0.0, 1.0), False), ((0.5, 0.5), False)):
        _warn_without_signal([Answer(question, [1], "a", True, reward) for reward in rewards])
        assert (said in " ".join(capsys.readouterr().err.split())) is expected


def test_conversations_beside_the_answers_are_learned_where_those_teach_nothing(  # type: ignore[no-untyped-def]
    settings, write_rows, spelling_file: Path
) -> None:
    """The loss is theirs, divided by all tokens of answers: as much as fine-tuning on the same rows would say."""
    hopeless = write_rows(*({"question": f"Part {i}.", "answer": "no such thing"} for i in range(40)), name="no.jsonl")
    mix = {"data": [str(spelling_file)], "share": 0.5}
    config = settings(data=[str(hopeless)], mix=mix, max_iters=8, eval_interval=8, learning_rate=3e-3)
    run = rl(config)
    rows = [row for row in read_metrics(run) if "reward" in row]
    assert all(row["silent"] == 1 for row in rows)
    beside = conversations_beside(config, Tokenizer.load(resolve_checkpoint(config.base)))
    assert beside is not None
    first = beside.rows(0, config.rows_beside)
    with torch.no_grad():
        before, after = (
            answer_loss_sum(
                load_model(folder, device=torch.device("cpu"), dtype=torch.float32), first, torch.float32
            ).item()
            for folder in (resolve_checkpoint(config.base), run / "latest")
        )
    written = rows[0]["length"] * config.answers_per_step
    assert rows[0]["loss"] == pytest.approx(before / (written + first.n_targets()), rel=1e-5)
    assert after < 0.9 * before


def test_a_run_that_goes_on_beside_other_conversations_says_so(settings, spelling_file: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    mix = {"data": [str(spelling_file)], "share": 0.5}
    rl(settings(mix=mix, max_iters=2))
    spelling_file.write_text("".join(spelling_file.read_text().splitlines(keepends=True)[1:]))
    rl(settings(mix=mix, max_iters=4))
    assert "was trained on another text" in capfd.readouterr().err


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_best_is_the_checkpoint_with_the_most_right_answers(rate: float, settings, capfd) -> None:  # type: ignore[no-untyped-def]
    run = rl(settings(learning_rate=rate, max_iters=8, eval_questions=20))
    rows = [row for row in read_metrics(run) if "val_loss" in row and row["step"]]
    best = min(rows, key=lambda row: row["val_loss"])
    first = next(row for row in read_metrics(run) if "val_loss" in row)
    if best["val_loss"] < first["val_loss"]:  # else it is the base, which has no checkpoint here
        assert str(best_of(run)).endswith(f"step-{best['step']:08d}")
    else:
        assert best_of(run) is None
        assert "answers better than" in capfd.readouterr().err


def test_micro_batches_change_nothing(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    runs = [rl(settings(out_dir=str(tmp_path / str(n)), batch_size=n, max_iters=3)) for n in (1, 8)]
    losses = [[row["loss"] for row in read_metrics(run) if "loss" in row] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert any(losses[0])


def test_a_dry_run_writes_nothing(settings, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    result = run_cli("rl", "--dry-run", *words(settings()))
    assert result.returncode == 0, result.stderr
    assert "memory" in result.stdout
    assert "evaluations" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_skill_is_a_task(answering: Path, tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    out, small = tmp_path / "run", [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    result = run_cli(
        *("rl", "--base", answering, "--task", "spelling", "--task", "copying", f"out_dir={out}", *small),
        *("made=40", "max_iters=1", "block_size=127", "--config", "configs/rl-spelling.yaml"),
        fresh=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"(78|79|80) questions, 16 more held out", result.stderr)  # by the words of the machine's corpus
    assert "loss near 0 is as it should be" in result.stderr
    assert (out / "latest" / "model.safetensors").exists()
    shown = run_cli("generate", out, "--prompt", "Spell cat.", "--max-new-tokens", "4")
    assert shown.returncode == 0, shown.stderr


def test_what_is_wrong_is_said(answering: Path, pairs_file: Path, tmp_path: Path) -> None:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    good = json.dumps(PAIRS[0]) + "\n"
    base, data = ["--base", answering], ["--data", pairs_file]
    for more, code, message in (
        (data, 2, "--base"),
        (base, 2, "--task spelling"),
        ([*base, "--task", "speling"], 2, "did you mean 'spelling'"),
        ([*base, "--data", tmp_path / "no.jsonl"], 1, "no.jsonl"),
        ([*base, "--data", file("empty.jsonl", "")], 1, "not enough to learn from"),
        ([*base, "--data", file("broken.jsonl", good + "{")], 1, "broken.jsonl:2: not JSON"),
        ([*base, "--data", file("bare.jsonl", good + '{"question": "a"}\n')], 1, "bare.jsonl:2: no answer"),
        ([*base, "--data", file("other.jsonl", '{"answer": "a"}\n')], 1, "other.jsonl:1: no question"),
        ([*base, "--data", file("list.jsonl", '{"question": "a", "answer": [1]}\n')], 1, "list.jsonl:1: the right"),
        ([*base, "--data", file("blank.jsonl", '{"question": "a", "answer": " "}\n')], 1, "blank.jsonl:1: an empty"),
        (
            [*base, "--data", file("check.jsonl", '{"question": "a", "answer": "b", "check": "exat"}\n')],
            1,
            "check.jsonl:1: no check 'exat', did you mean 'exact'",
        ),
        ([*base, *data, "max_new_tokens=64"], 1, "too long for block_size"),
        ([*base, *data, "samples=1"], 2, "samples"),
        ([*base, *data, "updates_per_batch=4", "max_iters=6"], 2, "multiple of updates_per_batch=4"),
        ([*base, *data, "replay=0.5"], 2, "replay"),
        ([*base, *data, "mix.share=0.2"], 2, "mix.data=FILES"),
        ([*base, *data, "max_new_tokens=12", f"mix.data={tmp_path / 'none.jsonl'}"], 1, "mix.data=FILES"),
        ([*base, *data, "max_new_tokens=12", f"mix.data={tmp_path / 'empty.jsonl'}"], 1, "nothing to learn in"),
        ([*base, *data, "tempersture=1"], 2, "did you mean 'temperature'"),
        (["--base", tmp_path / "nothing", *data], 1, "nothing"),
    ):
        (tmp_path / "stderr.txt").unlink(missing_ok=True)
        process = CliProcess(
            "rl", *more, "block_size=63", f"out_dir={tmp_path / 'out'}", stderr=tmp_path / "stderr.txt"
        )
        assert process.wait() == code, (more, process.stderr)
        assert message in process.stderr, more
        assert "Traceback" not in process.stderr
        assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_passed_over(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = rl(settings())
    whole = {name: (run / "latest" / name).read_bytes() for name in SAVED}
    last = run / "checkpoints" / "step-00000006" / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    rl(settings())
    assert whole == {name: (run / "latest" / name).read_bytes() for name in SAVED}


def test_lora_learns_beside_the_base_and_goes_on_to_the_bit(settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Answers come from the sum of both: the first reward is the base's, the next ones are not."""
    changes = {"lora": {"rank": 4}, "optimizer": "adamw", "learning_rate": 1e-2, "save_interval": 2}
    whole, broken = rl(settings(out_dir=str(tmp_path / "whole"), **changes)), tmp_path / "broken"

    def stop(step: int, _model: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl(settings(out_dir=str(broken), **changes), stop)
    rl(settings(out_dir=str(broken), **changes))
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    assert (whole / "latest/adapter_model.safetensors").exists()
    rows = [row for row in read_metrics(whole) if "kl" in row]
    assert rows[0]["kl"] < 1e-6 < rows[-1]["kl"]
