"""A command that is forked from a warm process is the one that starts from nothing: same words, same exit code."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.warm_cli import needs_a_fresh_start

COMMANDS = [
    (["--help"], {"COLUMNS": "60"}, ""),
    (["generate", "nowhere", "--prompt", "-"], {}, "a text\n"),
    (["train", "--config", "train.yaml", "--print-config", "learing_rate=1"], {"TERM": "dumb"}, ""),
]


@pytest.mark.parametrize(("words", "env", "stdin"), COMMANDS, ids=["help", "generate", "train"])
def test_it_says_and_ends_as_one_that_starts_from_nothing(
    words: list[str], env: dict[str, str], stdin: str, run_cli, tmp_path: Path
) -> None:
    (tmp_path / "train.yaml").write_text("seed: 1\n")
    forked, fresh = (run_cli(*words, env=env, stdin=stdin, cwd=tmp_path, fresh=fresh) for fresh in (False, True))
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert forked.stdout or forked.stderr


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="commands are forked on Linux only")
def test_what_takes_too_long_is_ended(run_cli, warm_cli, tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_cli("generate", "nowhere", "--prompt", "x", timeout=0.01)
    environment, streams = {**os.environ, "NO_COLOR": "1"}, [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    process = warm_cli(environment).start(["generate", "nowhere", "--prompt", "x"], tmp_path, environment, *streams)
    process.kill()
    assert process.wait() == -9
    assert process.poll() == -9
    for stream in streams:
        os.close(stream)
    assert run_cli("generate", "nowhere", "--prompt", "x").returncode == 1, "others go on"


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "TORCHDYNAMO_DISABLE"])
def test_what_libraries_read_while_imported_needs_a_fresh_start(name: str) -> None:
    assert needs_a_fresh_start({**os.environ, name: "other"})
    assert not needs_a_fresh_start({**os.environ, "HF_HOME": "other"}) or not hasattr(os, "pidfd_open")
