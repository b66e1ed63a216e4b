"""Standard streams that are closed, full or left: an exit code and a message, never a traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PRINT = [sys.executable, "-m", "mini_llm", "train", "--print-config"]


def shell(redirection: str, words: list[str] = PRINT) -> subprocess.CompletedProcess[str]:
    command = f'"$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", command, "bash", *words], capture_output=True, text=True, check=False, timeout=60
    )


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: Linux has it")


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 1, "error: cannot write to standard output: Bad file descriptor"),
        pytest.param(">/dev/full", 1, "error: cannot write to standard output: No space left", marks=needs_full),
        ("| true; exit ${PIPESTATUS[0]}", 141, ""),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        pytest.param("2>/dev/full", 0, "", marks=needs_full),
        ("<&- >&- 2>&-", 1, ""),
    ],
)
def test_a_result_that_cannot_be_written(redirection: str, code: int, said: str) -> None:
    result = shell(redirection)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith(said) if said else result.stderr == ""
    if code == 0:
        assert "learning_rate: " in result.stdout


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">&- 2>&-"])
def test_a_wrong_command_keeps_its_exit_code(redirection: str) -> None:
    words = [sys.executable, "-m", "mini_llm", "train"]
    assert shell(redirection, [*words, "no_such=1"]).returncode == 2
    assert shell(redirection, [*words, "--no-such"]).returncode == 2
    assert shell(redirection, [*words, "--config", "nowhere.yaml"]).returncode == 1


def test_files_that_are_opened_never_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "import os; from mini_llm.output import open_streams; open_streams(); f = open('x', 'w'); print(f.fileno() > 2)"
    )
    command = f'{sys.executable} -c "{program}" <&- 2>&-'
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "True\n"


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_everything_is_imported_is_no_traceback(number: int, seconds: float) -> None:
    words = [sys.executable, "-m", "mini_llm", "generate", "nowhere", "--prompt", "x"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (1, 128 + number, -number)  # 1: it had ended before
    assert "Traceback" not in said
