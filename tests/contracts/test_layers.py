"""Imports point down, and strangers never meet: what makes each part readable, testable and replaceable alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mini_llm"

# From the top down. Parts in one set may import each other; each set of a layer is a stranger to the layer's others.
LAYERS = [
    [{"cli", "__init__", "__main__"}],
    [{"commands"}],
    [{"demo", "demo_chat"}],
    [{"report"}],
    [{"serve", "tune", "eval"}, {"plan"}, {"plot"}],
    [{"train"}, {"inference"}, {"export"}],
    [{"data"}, {"checkpoint"}],
    [{"tokenizer"}, {"model"}],
    [
        {
            "adapter",
            "cache",
            "child",
            "config",
            "device",
            "errors",
            "files",
            "output",
            "terminal",
            "hub",
            "log",
            "memory",
            "pointers",
            "ranks",
            "runs",
            "shares",
            "signals",
            "temporary",
            "threads",
            "tokens_seen",
            "units",
            "user_files",
            "weights",
        }
    ],
]
PLACE = {
    part: (rank, group) for rank, layer in enumerate(LAYERS) for group, parts in enumerate(layer) for part in parts
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


PARTS = {part_of(path) for path in MODULES}


def imported_parts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, part of mini_llm) for each import in `source`, also those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name the whole path, mini_llm.model.rope"
            names = [node.module or ""]
            if node.module == "mini_llm":
                names = [f"mini_llm.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "mini_llm":
                part = rest.partition(".")[0]
                yield node.lineno, part if part in PARTS else "__init__"


def may_import(part: str, other: str) -> bool:
    (rank, group), (other_rank, other_group) = PLACE[part], PLACE[other]
    return other_rank > rank or (other_rank, other_group) == (rank, group)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    assert part in PLACE, f"{part} has no layer yet: give it one in LAYERS"
    for line, other in imported_parts(path.read_text(encoding="utf-8")):
        assert may_import(part, other), f"{path}:{line}: {part} may not import {other}"


def test_the_rule_knows_up_from_down() -> None:
    assert may_import("train", "data")
    assert may_import("config", "errors")
    assert not may_import("data", "train")
    assert not may_import("train", "inference")
    assert not may_import("inference", "train")
    assert not may_import("tokenizer", "model")
    assert not may_import("errors", "__init__")


def test_hidden_imports_are_found() -> None:
    source = "import mini_llm.train.train as t\ndef f():\n    from mini_llm import Generator, log, __version__\n"
    assert list(imported_parts(source)) == [(1, "train"), (3, "__init__"), (3, "log")]
