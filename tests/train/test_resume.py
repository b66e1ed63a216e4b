"""A run that was stopped anywhere and started again ends with the same bits as one that was never stopped."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_process import last_step, wait_until

from mini_llm import checkpoint, log
from mini_llm.checkpoint import verify_checkpoint
from mini_llm.data.prepare import prepare
from mini_llm.errors import Interrupted, UserError
from mini_llm.files import sha256_of
from mini_llm.pointers import list_checkpoints
from mini_llm.tokenizer.train import train_tokenizer
from mini_llm.train import objective
from mini_llm.train.config import TrainConfig
from mini_llm.train.evaluate import Evaluator, HeldOutLoss
from mini_llm.train.loss import rows_loss_sum
from mini_llm.train.run.metrics import read_metrics
from mini_llm.train.run.resume import what_is_kept
from mini_llm.train.train import train

MakeConfig = Callable[..., TrainConfig]
RESULTS = ("model.safetensors", "training_state/optimizer.safetensors", "training_state/state.json")


def assert_equal_runs(run: Path, unbroken: Path) -> None:
    """Compare metrics, weights and training state, byte for byte."""
    assert_equal_metrics(run, unbroken)
    for name in RESULTS:
        assert (run / "latest" / name).read_bytes() == (unbroken / "latest" / name).read_bytes(), name
    leads_to = [os.readlink(folder / "best") if (folder / "best").is_symlink() else None for folder in (run, unbroken)]
    assert leads_to[0] == leads_to[1]  # no pointer where step 0, which has no checkpoint, was the best
    assert_sound(run)


def assert_equal_metrics(run: Path, unbroken: Path) -> None:
    assert (run / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()


def assert_sound(run: Path) -> None:
    """Every checkpoint that can be seen is whole, and nothing else lies about."""
    for _, folder in list_checkpoints(run):
        verify_checkpoint(folder)
        assert (folder / "checksums.json").is_file()
    assert [*run.glob(".*.tmp*"), *(run / "checkpoints").glob(".*")] == []


SMALL = {"batch_size": 2, "eval_iters": 1}
VARIANTS = {
    "adamw": {"gradient_accumulation_steps": 2, "model": {"dropout": 0.2}},
    "muon": {
        **{"optimizer": "muon", "lr_schedule": "wsd", "cautious_decay": True, "weight_average": 0.9},
        **{"length_warmup": 0.6, "align_documents": True, "document_attention": True, "init": "bigram"},
        "model": {"dropout": 0.1, "tie_embeddings": "false"},
    },
    # Small batches: a CPU without instructions for half precision takes more than ten times as long.
    "float16": {"dtype": "float16", **SMALL, "model": {"dropout": 0.1, "qk_norm": "true"}},
    "bfloat16": {"dtype": "bfloat16", **SMALL, "optimizer": "muon", "soft_targets": 0.8, "soft_fade_tokens": 1500},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(variant, settings, make_config, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    changes = {"max_iters": 40, "save_interval": 7, "eval_interval": 10, **VARIANTS[variant]}
    unbroken, run = train(make_config(tmp_path / "unbroken", **changes)), tmp_path / "run"
    words = settings(run, **changes)
    dice, kills = random.Random(variant), 0
    for stop_after in (dice.randrange(1, 9), dice.randrange(10, 20), dice.randrange(22, 34)):
        process = start("train", *words)
        wait_until(lambda n=stop_after: last_step(run) >= n, process.process.is_alive)  # type: ignore[misc]
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, process.stderr
    process = start("train", *words)
    assert process.wait() == 0, process.stderr
    assert_equal_runs(run, unbroken)


@pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="all threads"),
        pytest.param(True, id="compiled", marks=pytest.mark.needs_torch_compile),
    ],
)
def test_kill_9_of_the_real_command(compiled, settings, tmp_path, run_cli) -> None:  # type: ignore[no-untyped-def]
    """In whole processes, with as many threads as torch likes: racing threads must not change a sum."""
    model = {"dropout": 0.1, "n_layers": 1 if compiled else 2}  # each layer is seconds of compiling
    changes = {"max_iters": 30, "save_interval": 5, "compile": compiled, "model": model}
    env = {"OMP_NUM_THREADS": "1" if compiled else str(os.cpu_count() or 2)}
    done = run_cli("train", *settings(tmp_path / "unbroken", **changes), timeout=400, env=env, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "does not work here" not in done.stderr
    words, run = settings(tmp_path / "run", **changes), tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "mini_llm", "train", *words], stderr=subprocess.DEVNULL, env={**os.environ, **env}
    )
    # A checkpoint is written in the background: it may come some steps late.
    wait_until(
        lambda: last_step(run) >= 12 and len(list_checkpoints(run)) >= 2,
        lambda: process.poll() is None,
        timeout=400,
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert last_step(run) < 30
    resumed = run_cli("train", *words, timeout=400, env=env, fresh=True)
    assert resumed.returncode == 0
    assert re.search(r"resuming .* at step (10|15|20|25)\b", resumed.stderr)
    assert_equal_runs(run, tmp_path / "unbroken")


def test_killed_at_every_moment_of_saving_no_half_checkpoint_is_seen(settings, make_config, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Killed at the n-th time that the disk is asked to have something: in every file, folder and pointer in turn."""
    changes = {"max_iters": 3, "save_interval": 1, "eval_interval": 1, "keep_last": 1}
    unbroken, run = train(make_config(tmp_path / "unbroken", **changes)), tmp_path / "run"
    kill_at = (
        "import os\nfsync, calls = os.fsync, []\n"
        "def killing(descriptor):\n"
        "    calls.append(1)\n"
        "    os.kill(os.getpid(), 9) if len(calls) == {} else fsync(descriptor)\n"
        "os.fsync = killing"
    )
    for moment in range(1, 60, 4):
        process = start("train", *settings(run, **changes), before=kill_at.format(moment))
        ended = process.wait()
        for _, folder in list_checkpoints(run):
            verify_checkpoint(folder)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL, process.stderr
    assert start("train", *settings(run, **changes)).wait() == 0
    assert_equal_runs(run, unbroken)


def test_killed_while_old_checkpoints_are_deleted(settings, make_config, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    changes = {"max_iters": 6, "save_interval": 1, "keep_last": 1}
    unbroken, run = train(make_config(tmp_path / "unbroken", **changes)), tmp_path / "run"
    kill = (
        "import os, shutil\n"
        "def half(path, **_):\n"
        "    if path.exists():\n"
        "        (path / 'checksums.json').unlink(missing_ok=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "shutil.rmtree = half"
    )
    for _ in range(2):
        assert start("train", *settings(run, **changes), before=kill).wait() == -signal.SIGKILL
        for _, folder in list_checkpoints(run):
            assert (folder / "checksums.json").exists()
    assert start("train", *settings(run, **changes)).wait() == 0
    assert_equal_runs(run, unbroken)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits(number, code, settings, make_config, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    changes = {"max_iters": 60, "save_interval": 1000, "eval_interval": 20, "model": {"dropout": 0.1}}
    unbroken, run = train(make_config(tmp_path / "unbroken", **changes)), tmp_path / "run"
    process = start("train", *settings(run, **changes))
    wait_until(lambda: last_step(run) >= 7, process.process.is_alive)
    process.kill(number)
    assert process.wait() == code, process.stderr
    step = list_checkpoints(run)[-1][0]
    assert step >= 7
    assert step == last_step(run)
    assert f"saved step {step}" in process.stderr
    assert "Traceback" not in process.stderr
    resumed = start("train", *settings(run, **changes))
    assert resumed.wait() == 0
    assert f"resuming {run} at step {step}" in resumed.stderr
    shutil.rmtree(run / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    assert_equal_runs(run, unbroken)


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_signal_does_not_wait_for_all_micro_batches(
    where: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "max_iters": 6, "batch_size": 1, "gradient_accumulation_steps": 8, "eval_iters": 8, "eval_interval": 3,
        "save_interval": 3, "sample_interval": "null", "model": {"dropout": 0.1},
    }  # fmt: skip
    unbroken, run = train(make_config(tmp_path / "unbroken", **changes)), tmp_path / "run"
    batches: list[str] = []

    def loss_sum(*words: object, **_: object) -> torch.Tensor:
        batches.append("step" if torch.is_grad_enabled() else "evaluation")
        if batches.count(where) == 8 + 3 and batches[-1] == where:  # in the second one, the third batch
            os.kill(os.getpid(), signal.SIGTERM)
        return rows_loss_sum(*words)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(objective, "rows_loss_sum", loss_sum)
        with pytest.raises(Interrupted) as stopped:
            train(make_config(run, **changes))
    assert stopped.value.exit_code == 143
    assert batches.count(where) == 8 + 3, "no batch came after the signal"
    step = {"step": 1, "evaluation": 3}[where]
    assert f"saved step {step}" in stopped.value.message
    assert [saved for saved, _ in list_checkpoints(run)] == [step]
    train(make_config(run, **changes))
    assert_equal_metrics(run, unbroken)


def test_a_signal_before_the_first_step_saves_nothing(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluator, "run", lambda *_: os.kill(os.getpid(), signal.SIGINT) or HeldOutLoss(1.0, 1.0, 1))
    config = make_config()
    with pytest.raises(Interrupted, match="nothing to save"):
        train(config)
    assert list_checkpoints(Path(config.out_dir)) == []


def test_a_second_signal_ends_at_once(settings, start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The first one waits for a step that takes a minute; the second one does not."""
    slow = (
        "import time\nfrom mini_llm.train import step\n"
        "learning_rate, calls = step.learning_rate, []\n"
        "def slow(*a):\n"
        "    calls.append(1)\n"
        "    for _ in range(6000 if len(calls) == 3 else 0): time.sleep(0.01)\n"
        "    return learning_rate(*a)\n"
        "step.learning_rate = slow"
    )
    process = start("train", *settings(), before=slow)
    wait_until(lambda: last_step(tmp_path / "run") >= 2, process.process.is_alive)
    process.kill(signal.SIGINT)
    wait_until(lambda: "once more ends at once" in process.stderr, process.process.is_alive)
    process.kill(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    assert not (tmp_path / "run" / "latest").exists()


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [
    (damage, name)
    for name in (*RESULTS, "config.json", "checksums.json", "tokenizer.json", "generation_config.json")
    for damage in (truncate, flip_a_bit, empty, Path.unlink)
]


@pytest.fixture(scope="module")
def finished(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """Return a finished run with checkpoints of steps 4, 8 and 12."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("finished") / "run"
    model = {"dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 512, "max_seq_len": 32, "dropout": 0.1}
    config = TrainConfig.model_validate(
        {
            "data_dir": str(tiny_store), "out_dir": str(run), "batch_size": 2, "block_size": 16, "max_iters": 12,
            "eval_interval": 4, "eval_iters": 1, "save_interval": 4, "log_interval": 1, "device": "cpu",
            "dtype": "float32", "compile": False, "warmup_iters": 2, "model": model,
        }
    )  # fmt: skip
    return config, train(config)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is said to the user."""
    lines: list[str] = []
    for level in ("info", "warn", "note"):
        monkeypatch.setattr(log, level, lines.append)
    return lines


@pytest.mark.parametrize(("damage", "name"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    damage: Callable[[Path], None], name: str, finished: tuple[TrainConfig, Path], tmp_path: Path, said: list[str]
) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    damage(run / "checkpoints" / "step-00000012" / name)
    train(config.model_copy(update={"out_dir": str(run)}))
    text = "\n".join(said)
    if (damage, name) == (flip_a_bit, "checksums.json"):  # then it is another file whose sum does not fit
        name = "step-00000012"
    assert name in text
    assert "trying the checkpoint before it" in text
    assert "resuming" in text
    assert "at step 8" in text
    assert_equal_runs(run, unbroken)


def test_all_checkpoints_damaged_is_an_error(finished: tuple[TrainConfig, Path], tmp_path: Path, run_cli) -> None:  # type: ignore[no-untyped-def]
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    for _, folder in list_checkpoints(run):
        truncate(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged") as problem:
        train(config.model_copy(update={"out_dir": str(run)}))
    assert problem.value.exit_code == 1
    assert "--no-resume" in (problem.value.hint or "")
    result = run_cli("generate", run, "--prompt", "The")
    assert result.returncode == 1
    assert "model.safetensors is damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_foreign_files_and_checkpoints_are_named_and_passed_over(
    finished: tuple[TrainConfig, Path], tmp_path: Path, said: list[str]
) -> None:
    config, unbroken = finished
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    shutil.copytree(unbroken, run, symlinks=True)
    model = {**config.model.model_dump(), "dim": 64, "head_dim": None, "hidden_dim": None}
    changes = {"model": model, "max_iters": 20, "out_dir": str(tmp_path / "other")}
    other = TrainConfig.model_validate({**config.model_dump(), **changes})
    shutil.move(train(other) / "checkpoints/step-00000020", checkpoints / "step-00000020")  # of another model
    shutil.copytree(checkpoints / "step-00000008", checkpoints / "step-00000016")  # of another step
    name = "training_state/optimizer.safetensors"  # a sound file of another step
    shutil.copy(checkpoints / "step-00000004" / name, checkpoints / "step-00000012" / name)
    train(config.model_copy(update={"out_dir": str(run)}))
    text = "\n".join(said)
    for problem in ("step-00000020 does not belong to this model", "step-00000016 holds step 8", f"{name} is damaged"):
        assert problem in text
    assert f"resuming {run} at step 8" in text
    for step in (16, 20):
        shutil.rmtree(checkpoints / f"step-{step:08d}")
    assert_equal_runs(run, unbroken)


@pytest.mark.parametrize("pointer", ["latest", "best"])
@pytest.mark.parametrize("damage", ["missing", "dangling", "foreign", "elsewhere"])
def test_pointers_are_mended(pointer: str, damage: str, finished: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    shutil.rmtree(run / "checkpoints/step-00000012")
    (run / pointer).unlink()
    if damage == "foreign":
        (run / pointer).write_bytes(b"\0\xff" * 999)
    elif damage != "missing":
        (run / pointer).symlink_to("checkpoints/gone" if damage == "dangling" else "/usr")
    train(config.model_copy(update={"out_dir": str(run)}))
    assert_equal_runs(run, unbroken)


@pytest.mark.parametrize("newer", ["damaged", "foreign"])
def test_checkpoints_that_were_passed_over_do_not_push_out_good_ones(
    newer: str, finished: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    if newer == "damaged":
        truncate(run / "checkpoints/step-00000012/model.safetensors")
    else:
        shutil.rmtree(run / "checkpoints/step-00000012")
        (run / "checkpoints/step-00000099").mkdir()
    changes = {"out_dir": str(run), "max_iters": 11, "save_interval": 1, "keep_last": 1}
    train(config.model_copy(update=changes))
    steps = [step for step, _ in list_checkpoints(run)]
    assert 11 in steps
    verify_checkpoint(run / "latest")
    assert os.readlink(run / "latest").endswith("step-00000011")


def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    finished: tuple[TrainConfig, Path], tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)

    def bad_disk(path: Path) -> str:
        if "step-00000012" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sha256_of(path)

    monkeypatch.setattr(checkpoint, "sha256_of", bad_disk)
    train(config.model_copy(update={"out_dir": str(run), "max_iters": 9}))
    assert any("Input/output error; trying the checkpoint before it" in line for line in said)
    assert any("at step 8" in line for line in said)


def test_another_tokenizer_is_refused_and_another_text_is_told(
    finished: tuple[TrainConfig, Path], sotu_texts: list[str], tmp_path: Path, said: list[str]
) -> None:
    config, unbroken = finished
    for name, texts in (("text", sotu_texts[100:103]), ("tokenizer", sotu_texts[200:210])):
        run, folder = tmp_path / f"run-{name}", tmp_path / name
        shutil.copytree(unbroken, run, symlinks=True)
        folder.mkdir()
        (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
        tokenizer = Path(config.data_dir) / "tokenizer"
        if name == "tokenizer":
            tokenizer = folder / "tokenizer"
            train_tokenizer(texts, tokenizer, vocab_size=512, model_type="bpe", sample_bytes=10**6, seed=0)
        prepare([folder / "text.txt"], tokenizer, folder / "tokens", val_fraction=0.2, workers=1)
        config = config.model_copy(update={"data_dir": str(folder / "tokens"), "out_dir": str(run), "max_iters": 13})
        if name == "text":
            train(config)
            assert any("trained on another text" in line for line in said)
            assert any("at step 12" in line for line in said)
        else:
            with pytest.raises(UserError, match="damaged or foreign"):
                train(config)
            assert any("another tokenizer" in line for line in said)


def test_a_best_of_later_steps_goes_with_them(finished: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    for name in ("step-00000008", "step-00000012"):
        truncate(run / "checkpoints" / name / "model.safetensors")
    train(config.model_copy(update={"out_dir": str(run), "max_iters": 5, "eval_interval": 100}))
    assert os.readlink(run / "latest").endswith("step-00000005")
    assert (run / "best").resolve().name not in ("step-00000008", "step-00000012")


def test_an_empty_checkpoint_folder_is_passed_over(
    finished: tuple[TrainConfig, Path], tmp_path: Path, said: list[str]
) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    (run / "checkpoints" / "step-00000099").mkdir()
    (run / "checkpoints" / "step-x").mkdir()
    (run / "checkpoints" / "step-00000050").write_text("a file")
    train(config.model_copy(update={"out_dir": str(run)}))
    assert any("step-00000099" in line for line in said)
    assert_equal_metrics(run, unbroken)


def test_what_a_power_failure_does_to_the_metrics_is_mended(finished: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == 10)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]) + lines[kept][:9] + "\0\0\0")
    train(config.model_copy(update={"out_dir": str(run)}))
    assert_equal_metrics(run, unbroken)


def test_a_finished_run_only_evaluates_again(finished: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    train(config.model_copy(update={"out_dir": str(run)}))
    assert_equal_runs(run, unbroken)


def test_a_run_can_go_on_beyond_its_end(finished: tuple[TrainConfig, Path], tmp_path: Path, said: list[str]) -> None:
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    train(config.model_copy(update={"out_dir": str(run), "max_iters": 16}))
    assert any("max_iters 12 -> 16" in line for line in said)
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == list(range(1, 17))


def test_another_precision_goes_on_from_the_same_checkpoint(
    finished: tuple[TrainConfig, Path], tmp_path: Path, said: list[str]
) -> None:
    """From float32 to float16, which has a gradient scaler, and back."""
    config, unbroken = finished
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, symlinks=True)
    for end, dtype in ((14, "float16"), (16, "float32")):
        train(config.model_copy(update={"out_dir": str(run), "max_iters": end, "dtype": dtype}))
    assert any("dtype float32 -> float16" in line for line in said)
    assert read_metrics(run)[-1]["step"] == 16


@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"model": {"dim": 64}}])
def test_another_model_or_optimizer_is_refused(change, finished: tuple[TrainConfig, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config, run = finished
    values = config.model_dump()
    for key, value in change.items():
        values[key] = {**values[key], **value, "head_dim": None} if key == "model" else value
    before = (run / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"another model or optimizer: .*(optimizer adamw -> muon|dim 32 -> 64)") as p:
        train(TrainConfig.model_validate(values))
    assert p.value.exit_code == 2
    assert (run / "config.yaml").read_text() == before


def test_nothing_but_files_of_known_names_stays(finished: tuple[TrainConfig, Path]) -> None:
    _, run = finished
    checkpoint = (run / "latest").resolve()
    assert sorted(os.listdir(run)) == [
        ".lock", "best", "checkpoints", "config.yaml", "latest", "metrics.jsonl", "timing.jsonl"
    ]  # fmt: skip
    assert sorted(p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*")) == [
        "README.md", "checksums.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "training_state", "training_state/optimizer.safetensors",
        "training_state/state.json",
    ]  # fmt: skip


def test_what_goes_on_is_said_only_where_it_does(tmp_path: Path) -> None:
    assert what_is_kept(tmp_path) == "no step of it is saved: the same command begins anew"
    (tmp_path / "checkpoints" / "step-00000040").mkdir(parents=True)
    assert what_is_kept(tmp_path) == "step 40 is safe: the same command goes on from there"
    assert "without --no-resume goes on" in what_is_kept(tmp_path, resume=False)
