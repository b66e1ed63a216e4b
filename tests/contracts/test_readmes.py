"""What the pages show works: their Python runs and prints what is shown, commands parse, links lead somewhere."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.core import TyperGroup
from typer.main import get_command

from mini_llm.cli import app
from mini_llm.config import load_config
from mini_llm.train.config import TrainConfig
from tests.warm_cli import WarmCli, needs_a_fresh_start

Warm = Callable[[Mapping[str, str]], WarmCli]
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "mini_llm", "configs", "tests", "tools", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SHELLS = ("bash", "sh", "console", "shell")
DATA = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
DIAGRAMS = ("flowchart", "graph", "sequenceDiagram", "stateDiagram-v2", "classDiagram", "xychart-beta", "timeline")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    """A block of code in a page."""

    language: str  # "" for indented blocks and fences that name none
    text: str
    line: int  # of its first line, from 0
    follows: int | None  # the first line of the fenced block that ends directly before this one


def blocks(page: str) -> list[Block]:
    """Return all blocks of code, also those in lists and quotations."""
    found: list[Block] = []
    tokens = MarkdownIt().parse(page)
    for before, token in pairwise([None, *tokens]):
        if token is not None and token.type in ("fence", "code_block"):
            assert token.map is not None
            line = token.map[0] + (token.type == "fence")
            follows = found[-1].line if before is not None and before.type == "fence" else None
            found.append(Block((token.info.split() or [""])[0], token.content, line, follows))
    return found


def problem_of(block: Block) -> str | None:
    """Return why no test would look at this block, or what is wrong with its data."""
    if block.language in DATA:
        try:
            DATA[block.language](block.text)
        except ValueError as problem:
            return str(problem)
        except yaml.YAMLError as problem:
            return str(problem)
        return None
    if block.language == "mermaid":
        return None if block.text.split()[0] in DIAGRAMS else "not a Mermaid diagram of a known kind"
    if block.language in ("python", "js", "text", *SHELLS):  # tests/serve/test_clients.py runs the JavaScript
        return None
    return (
        f"'{block.language}' is not checked by any test: use python, js, text, mermaid, {', '.join([*SHELLS, *DATA])}"
    )


def script_of(page: str) -> str:
    """Return the page's Python as one program, line 12 of the page in line 12; after each block it prints a mark."""
    lines = [""] * (page.count("\n") + 2)
    for block in blocks(page):
        if block.language == "python":
            content = block.text.splitlines()
            lines[block.line : block.line + len(content)] = content
            lines[block.line + len(content)] = f"print('\\x1e{block.line}\\x1e', end='')"  # where the fence closes
    return "\n".join(lines)


def run_page(page: Path, folder: Path, warm_cli: Warm) -> dict[int, str]:
    """Run the page's Python in a process of its own and return what each block printed, by its first line."""
    script = folder / f"{page.parent.name}_{page.stem}.py"
    script.write_text(script_of(page.read_text(encoding="utf-8")), encoding="utf-8")
    environment = dict(os.environ)
    if needs_a_fresh_start(environment):
        result = subprocess.run(
            [sys.executable, script], cwd=ROOT, env={**environment, "PYTHONIOENCODING": "utf-8"},
            capture_output=True, encoding="utf-8", timeout=300, check=False,
        )  # fmt: skip
    else:
        result = warm_cli(environment).run([str(script)], timeout=300, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    parts = re.split(r"\x1e(\d+)\x1e", result.stdout)  # the mark whole: an untrained model writes any byte
    return {int(line): printed for printed, line in zip(parts[::2], parts[1::2], strict=False)}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in the shell blocks: prompts, comments, pipes and environment taken away."""
    joined = "\n".join(block.text for block in blocks(text) if block.language in SHELLS).replace("\\\n", " ")
    for line in joined.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.commenters = "#"
        lexer.whitespace_split = True  # a,b is one word
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
        settings = context.params["settings"] or []
        # A model of others is not there: its shape cannot be read.
        load_config(TrainConfig, known, [word for word in settings if not word.startswith("init_from=")])


@every_page
def test_python_blocks_run_and_print_what_the_page_shows(page: Path, tmp_path: Path, warm_cli: Warm) -> None:
    found = blocks(page.read_text(encoding="utf-8"))
    python = {block.line for block in found if block.language == "python"}
    if not python:
        return
    printed = run_page(page, tmp_path, warm_cli)
    for block in found:
        if block.language == "text" and block.follows in python:
            assert printed[block.follows].rstrip("\n") == block.text.rstrip("\n"), f"line {block.line + 1}"


@every_page
def test_no_block_escapes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    problems = [(block.line + 1, problem) for block in blocks(text) if (problem := problem_of(block))]
    assert problems == []
    html = [t.content for t in MarkdownIt().parse(text) if t.type == "html_block"]
    assert [content for content in html if re.search(r"<(pre|code)\b", content)] == [], "code inside HTML is not run"


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
    page = (
        "```python\nx\n```\n\nls\n```bash\n$ A=1 mini-llm train a=1 \\\n  b=2  # why\nxz -dc f | head > out && ls\n```"
    )
    assert list(commands(page)) == [
        ["mini-llm", "train", "a=1", "b=2"],
        ["xz", "-dc", "f"],
        ["head", ">", "out"],
        ["ls"],
    ]


def test_output_belongs_to_the_block_directly_before_it(tmp_path: Path, warm_cli: Warm) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "1. In a list:\n\n   ```python\n   x = 1\n   print(x)\n   ```\n\n   ```text\n   1\n   ```\n\n"
        "```python\nprint(x + 1)\n```\n\nWords between.\n\n```text\na picture\n```\n",
        encoding="utf-8",
    )
    found = blocks(page.read_text(encoding="utf-8"))
    assert [(block.language, block.follows) for block in found] == [
        ("python", None),
        ("text", 3),
        ("python", None),
        ("text", None),
    ]
    assert run_page(page, tmp_path, warm_cli) == {3: "1\n", 12: "2\n"}


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("```py\nx\n```", "'py' is not checked"),
        ("```\nmini-llm trian\n```", "'' is not checked"),
        ("Words:\n\n    mini-llm trian\n", "'' is not checked"),
        ("~~~javascript\nx\n~~~", "'javascript' is not checked"),
        ("- point\n\n  ```pycon\n  >>> 1\n  ```", "'pycon' is not checked"),
        ("```json\n{a: 1}\n```", "property name"),
        ("```yaml\na: [1\n```", "expected"),
        ("```toml\na = \n```", "value"),
        ("```mermaid\nflow chart\n```", "Mermaid"),
    ],
)
def test_a_block_that_no_test_would_see_is_refused(page: str, reason: str) -> None:
    (block,) = blocks(page)
    assert reason in str(problem_of(block))


def folder_of(path: Path) -> Path:
    """Return the folder of mini_llm/ that a module lies in, also where it lies in one of the folder's rooms."""
    parts = path.relative_to(ROOT).parts
    return ROOT.joinpath(*parts[: min(2, len(parts) - 1)])


def test_the_tour_passes_every_file() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    line = ("mini_llm", "tokenizer", "data", "model", "train", "inference")  # elsewhere the folder's lesson is enough
    modules = [path for path in sorted((ROOT / "mini_llm").rglob("*.py")) if path.name[0] != "_"]
    stops = {path if folder_of(path).name in line else folder_of(path) / "README.md" for path in modules}
    links = {path.relative_to(ROOT).as_posix() for path in stops}
    assert [path for path in sorted(links) if f"(../{path})" not in tour] == [], "give it a place in docs/tour.md"
