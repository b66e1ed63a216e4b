"""What README.md and docs/exchange.md say about other programs is run, word for word: each continues a text alike."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_cpp import open_gguf

from mini_llm.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
Execute = Callable[[str], str]


def lines(page: str, heading: str) -> list[str]:
    """Return the shell commands below a heading."""
    section = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]
    return [line for block in found for line in block]


@pytest.fixture
def home(run: Path, tmp_path: Path) -> Path:
    """Return a folder in which runs/demo is a run."""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "run").symlink_to(run)
    return tmp_path


@pytest.fixture
def execute(run_cli, home: Path) -> Execute:  # type: ignore[no-untyped-def]
    """Return `execute(line)`: it runs a line of the page in `home` and returns what it prints."""

    def run(line: str) -> str:
        program, *words = shlex.split(line, comments=True)
        if program == "mini-llm":
            done = run_cli(*words, cwd=home, timeout=200)
        else:
            command = [sys.executable, *words]
            done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=200, check=False)
        return printed(done)

    return run


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_folder_continues_a_text_alike_everywhere(home: Path, execute: Execute) -> None:
    ours, export, theirs, *_ = lines("README.md", "Take it anywhere")
    text = execute(ours)
    assert text.startswith("The people")
    assert execute(theirs).strip() == text
    execute(export)
    tokenizer = Tokenizer.load(home / "runs/demo/run/latest")
    prompt = [*tokenizer.prefix_ids, *tokenizer.encode("The people")]
    with open_gguf(home / "demo.gguf") as llama:
        assert tokenizer.decode([*prompt, *llama.greedy(prompt, 32)]).strip() == text


def test_one_folder_has_the_same_scores_in_lm_eval(
    home: Path, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(home / "cache"))
    for name in ("docs", "tests"):
        (home / name).symlink_to(ROOT / name)
    tables = [execute(line) for line in lines("README.md", "Take it anywhere")[3:]]
    assert len(tables) == 2
    # both write lm-eval's table; it leaves zeros at the end away
    ours, theirs = ([float(number) for number in re.findall(r"\|↑ *\| *([\d.]+)\|", table)] for table in tables)
    assert len(ours) == 2, tables[0]
    assert ours == theirs, tables


@pytest.mark.parametrize("heading", ["llama.cpp", "Ollama"])
def test_the_commands_of_the_page(heading: str, execute: Execute) -> None:
    commands = [line for line in lines("docs/exchange.md", heading) if line.startswith("mini-llm")]
    assert commands
    for line in commands:
        execute(line)
