"""The Dockerfile's lines, as far as they go without Docker: its parts, what it copies, what it installs and starts.

Not run here: `docker build` itself, apt-get and useradd in an image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from running_server import ANSWER_SECONDS

KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT"}


@pytest.fixture(scope="module")
def lines(repository: Path) -> list[tuple[str, str]]:
    text = (repository / "Dockerfile").read_text(encoding="utf-8")
    found = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, rest in found]


def of(lines: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in lines if found == word]


def test_it_is_twelve_lines_of_known_words(repository: Path, lines: list[tuple[str, str]]):
    assert len((repository / "Dockerfile").read_text(encoding="utf-8").splitlines()) <= 12
    assert {word for word, _ in lines} <= KNOWN
    assert lines[0][0] == "FROM"
    assert of(lines, "USER") == ["user"], "not as root"
    version = of(lines, "FROM")[0].partition(":")[2].partition("-")[0]
    assert tuple(map(int, version.split("."))) >= (3, 11)


def test_it_copies_what_git_has_and_its_build_is_sent(repository: Path, lines: list[tuple[str, str]]):
    sent = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for copied in of(lines, "COPY"):
        *sources, _ = copied.split()
        for name in sources:
            command = ["git", "ls-files", "--error-unmatch", name]
            assert subprocess.run(command, cwd=repository, capture_output=True, check=False).returncode == 0, name
            assert f"!{name}" in sent


def test_it_installs_extras_that_there_are_by_our_pins(repository: Path, lines: list[tuple[str, str]]):
    (install,) = [line for line in of(lines, "RUN") if line.startswith("pip install")]
    extras = install.partition("[")[2].partition("]")[0].split(",")
    assert set(extras) == {"serve", "structured"}
    assert set(extras) <= set(
        tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    assert "-c constraints.txt" in install


def test_the_package_is_complete_with_what_is_copied(repository: Path, lines: list[tuple[str, str]], tmp_path: Path):
    """The copied files alone are imported, with the command that the image starts."""
    copied = [name for line in of(lines, "COPY") for name in line.split()[:-1]]
    listed = subprocess.run(["git", "ls-files", *copied], cwd=repository, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    command, *words = json.loads(of(lines, "ENTRYPOINT")[0])
    assert command == "mini-llm"
    environment = {key: value for key, value in os.environ.items() if key != "MINI_LLM_API_KEY"}
    run = [sys.executable, "-m", "mini_llm", *words]
    open_to_all = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=ANSWER_SECONDS
    )
    assert open_to_all.returncode == 2, "without a key it must not start"
    assert "MINI_LLM_API_KEY" in open_to_all.stderr
    nothing = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS,
                             env={**environment, "MINI_LLM_API_KEY": "k" * 16})  # fmt: skip
    assert nothing.returncode == 1, "/model is mounted by the user"
    assert "/model" in nothing.stderr
