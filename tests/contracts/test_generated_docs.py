"""The pages made from the code are current: file maps and docs/cli.md."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "tools" / "generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(generator: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    stale = [path.name for path, text in generator.pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_every_module_is_in_the_map(generator: ModuleType) -> None:
    lines = "\n".join(generator.file_map())
    modules = [path for path in (ROOT / "mini_llm").rglob("*.py") if not path.name.startswith("__")]
    assert [path.name for path in modules if f"({path.relative_to(ROOT / 'mini_llm').as_posix()})" not in lines] == []


def test_a_module_says_its_idea_in_its_first_sentence(generator: ModuleType, tmp_path: Path) -> None:
    module = tmp_path / "rope.py"
    module.write_text('"""Turn each key,\nand each query. More, in\ndetail.\n\nPaper: X."""\n', encoding="utf-8")
    assert generator.idea(module) == "Turn each key, and each query."
    module.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no docstring"):
        generator.idea(module)


def test_a_stale_page_is_named_and_then_mended(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{generator.BEGIN}\nold\n{generator.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "pages", lambda: {page: generator.with_map(page, ["- new"])})
    monkeypatch.setattr("sys.argv", ["generate_docs.py", "--check"])
    assert generator.main() == 1
    assert "README.md is out of date: run `make docs`" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["generate_docs.py"])
    assert generator.main() == 0
    assert page.read_text(encoding="utf-8") == f"before\n{generator.BEGIN}\n- new\n{generator.END}\nafter\n"
    monkeypatch.setattr("sys.argv", ["generate_docs.py", "--check"])
    assert generator.main() == 0


def test_the_command_page_has_every_verb_with_its_options(generator: ModuleType) -> None:
    page = generator.cli_page()
    for words in ("## mini-llm train", "## mini-llm tokenizer train", "--temperature", "mini-llm chat [OPTIONS]"):
        assert words in page
