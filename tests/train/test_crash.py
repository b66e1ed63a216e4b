"""The crash benchmark, in short: killed, resumed, and nothing lost, whatever is trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("verb", "kills"), [("train", 5), ("lora", 3), ("dpo", 2), ("rl", 2)])
def test_a_few_kills_lose_nothing(verb: str, kills: int, repository: Path) -> None:
    command = [sys.executable, "benchmarks/crash.py", "--verb", verb, "--kills", str(kills), "--seed", "3", "--json"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["kills"] == kills
    assert summary["unreadable"] == summary["different_bits"] == summary["other_errors"] == 0
    assert summary["runs_finished"] >= 1
    assert summary["steps_lost_max_sync"] <= summary["save_interval"]
    assert summary["steps_lost_max_async"] <= 2 * summary["save_interval"]
