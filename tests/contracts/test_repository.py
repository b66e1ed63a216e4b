"""The repository keeps its own promises: small documented files, a README a folder, pinned versions, no leftovers."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mini_llm

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "mini_llm").rglob("*.py"))
MAX_LINES = 300
# Spelled in pieces, so that this file does not match itself.
LEFTOVERS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME)\b|(?<![\w.:/-])/(home|root|Users|work)/\w")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_is_short_and_says_its_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES, "more than one idea? split it"
    assert ast.get_docstring(ast.parse(text)), "the first line of a module says its idea"


# A room within a folder, engine/ in inference/ say, is told of by the folder's README.
FOLDERS = sorted({path.parent for path in MODULES if path.parent.parent == ROOT / "mini_llm"})


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_each_package_has_a_readme(folder: Path) -> None:
    assert (folder / "README.md").is_file()
    assert len((folder / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_no_leftovers_and_no_paths_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{relative(path)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if LEFTOVERS.search(line)
        ]
    assert found == []


def test_nothing_large_is_tracked() -> None:
    assert [relative(path) for path in tracked_files() if path.stat().st_size > 1_000_000] == []


def test_the_licence_is_mit() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License")
    assert "Mini-LLM contributors" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license"] == "MIT"


def test_the_changelog_knows_the_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", mini_llm.__version__)
    assert mini_llm.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_without_compilers_what_needs_one_is_skipped_with_its_reason(tmp_path: Path) -> None:
    tests = (
        "tests/inference/test_native.py::test_it_is_compiled_once_and_for_the_user_alone",
        "tests/train/test_compiled.py::test_compiled_fast_paths_equal_the_plain_path",
    )
    env = {**os.environ, "CC": "no-such-cc", "CXX": "no-such-c++", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *tests]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "no C compiler" in result.stdout
    assert "no C++ compiler" in result.stdout


def test_every_requirement_is_pinned_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(word for words in project["optional-dependencies"].values() for word in words),
    ]
    names = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted} - {"mini-llm"}  # type: ignore[index]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert names - {normal(pin.partition("==")[0]) for pin in pins} == set()
    assert "torch==2.13.0" in pins


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
