"""The seed's three commands at the repository's root do what `mini-llm train`, `generate` and `plot` do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mini_llm.checkpoint import save_model
from mini_llm.errors import UserError
from mini_llm.model.config import ModelConfig
from mini_llm.model.transformer import Transformer
from mini_llm.runs import newest_run
from mini_llm.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    """Return a run folder with a checkpoint of random weights."""
    run = tmp_path_factory.mktemp("work") / "runs" / "new"
    net = Transformer(ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=512, max_seq_len=64))
    net.init_weights(seed=0)
    save_model(run / "checkpoints" / "step-00000001", net, Tokenizer.load(tiny_store / "tokenizer"))
    (run / "latest").symlink_to("checkpoints/step-00000001")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 64, "loss": 3.0}) + "\n")
    return run


@pytest.fixture
def script(repository: Path):  # type: ignore[no-untyped-def]
    """Return `script("run_train.py", words..., cwd=folder)`."""

    def run(name: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repository / name), *map(str, words)]
        env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=cwd, capture_output=True, encoding="utf-8", env=env, timeout=120, check=False
        )

    return run


def test_run_train_is_train(script, run_cli, repository: Path) -> None:  # type: ignore[no-untyped-def]
    words = ["--config", "configs/mini-50m.yaml", "--print-config", "learning_rate=2e-3"]
    ours = run_cli("train", *words)
    seeds = script("run_train.py", *words, cwd=repository)
    assert (seeds.returncode, seeds.stdout) == (ours.returncode, ours.stdout) == (0, ours.stdout)
    wrong = script("run_train.py", "learing_rate=1", cwd=repository)
    assert wrong.returncode == 2
    assert "did you mean 'learning_rate'?" in wrong.stderr


def test_run_inference_takes_the_newest_run(script, model: Path) -> None:  # type: ignore[no-untyped-def]
    work = model.parent.parent
    words = ["--prompt", "The future of AI is", "--temp", "0", "--top_p", "0.9", "--max_tokens", "8", "--device", "cpu"]
    newest = script("run_inference.py", *words, cwd=work)
    assert newest.returncode == 0, newest.stderr
    assert newest.stdout.startswith("The future of AI is")
    named = script("run_inference.py", *words, "--checkpoint", model, "--tokenizer", model / "latest", cwd=work.parent)
    assert named.stdout == newest.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 1, "no run in"),
        (["--checkpoint", "none"], 1, "no such folder: none"),
        (["--checkpoint", "MODEL", "--temp", "-1"], 2, "--temperature"),
        (["--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_run_inference_says_what_is_wrong(words, code, message, script, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = script("run_inference.py", *(word.replace("MODEL", str(model)) for word in words), cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_plot_logs_is_plot(script, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = script("plot_logs.py", cwd=model.parent.parent)
    assert result.returncode == 0, result.stderr
    assert (model / "plots" / "curves.png").exists()
    assert script("plot_logs.py", cwd=tmp_path).returncode == 1
    shutil.rmtree(model / "plots")


def test_the_newest_run_is_the_one_written_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        newest_run("latest", tmp_path)
    for age, name in ((300, "old"), (100, "demo/run"), (200, "middle")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "latest").write_text("checkpoints/step-00000001")
        os.utime(tmp_path / name / "latest", (10**9 - age, 10**9 - age))
    assert newest_run("latest", tmp_path) == tmp_path / "demo" / "run"
