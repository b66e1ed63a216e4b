"""What the documentation shows works: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from mini_llm.cli import app
from mini_llm.config import load_config
from mini_llm.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mini_llm/**/README.md")])
SHELLS = ("bash", "sh", "console", "shell")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def lines_of_blocks(text: str, *languages: str) -> list[str]:
    """Return the lines inside the fenced blocks of `languages`, and empty ones for all others: line numbers stay."""
    language, lines = None, []
    for line in text.splitlines():
        fence = re.match(r"\s*```+\s*(\w*)", line)
        if fence:
            language = None if language is not None else fence[1]
        lines.append(line if not fence and language in languages else "")
    return lines


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in the shell blocks: prompts, comments, pipes and environment taken away."""
    joined = "\n".join(lines_of_blocks(text, *SHELLS)).replace("\\\n", " ")
    for line in joined.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


def check_cli(words: list[str]) -> None:
    """Parse `words` (without `mini-llm`) as the command line would; raise what it would raise."""
    words = words[: next((i for i, word in enumerate(words) if set(word) <= set("<>")), None)]
    command = get_command(app)
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no verb '{words[0]}'"
        command = command.commands[words.pop(0)]
    if words in (["--help"], ["--version"]):
        return
    context = command.make_context(command.name, words)
    if command.name == "train" and "settings" in context.params:
        path = context.params["config"]
        known = ROOT / path if path and (ROOT / path).is_file() else None
        load_config(TrainConfig, known, context.params["settings"] or [])


@every_page
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    lines = lines_of_blocks(page.read_text(encoding="utf-8"), "python")
    if not any(lines):
        return
    script = tmp_path / f"{page.parent.name}_{page.stem}.py"  # line 12 of the script is line 12 of the page
    script.write_text("\n".join(lines), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


@every_page
def test_commands_parse(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            if words[0] == "mini-llm":
                check_cli(words[1:])
            elif "mini_llm" in words[1:]:  # python -m mini_llm, torchrun ... -m mini_llm
                check_cli(words[words.index("mini_llm") + 1 :])
            elif words[0] == "make":
                assert {word for word in words[1:] if word.isalpha()} <= set(targets), "no such make target"
        except Exception as problem:
            pytest.fail(f"{shlex.join(words)}: {problem}")


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose))
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "line",
    [
        "mini-llm no-such-verb",
        "$ mini-llm train --no-such-flag",
        "mini-llm train learing_rate=1",
        "mini-llm train \\\n    --config configs/mini-50m.yaml model.dim=-1",
        "mini-llm generate runs/x",  # no prompt
        "echo hello | mini-llm prepare",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    words = list(commands(f"```sh\n{line}  # a comment\n```"))[-1]
    with pytest.raises(Exception):  # noqa: B017, PT011 (typer's or ours)
        check_cli(words[1:])


def test_commands_are_found_whole() -> None:
    page = "```python\nx\n```\nls\n```bash\n$ A=1 mini-llm train a=1 \\\n  b=2  # why\nxz -dc f | head > out && ls\n```"
    assert list(commands(page)) == [
        ["mini-llm", "train", "a=1", "b=2"],
        ["xz", "-dc", "f"],
        ["head", ">", "out"],
        ["ls"],
    ]
