"""demo.ipynb runs from a clean kernel, and is stored without outputs: small, and the same after every run."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "demo.ipynb"


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_it_runs_from_a_clean_kernel(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where its own folder goes
    monkeypatch.setenv("MINI_LLM_NOTEBOOK_MINUTES", "0.01")  # its own asserts hold after twenty steps too
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    pictures = [name for name, found in outputs.items() if any("image/png" in o.get("data", {}) for o in found)]
    assert {"run", "heads", "temperatures", "cache"} <= set(pictures)
    printed = "".join(output.get("text", "") for output in outputs["hugging-face"])
    assert "The people of" in printed


def test_it_is_stored_without_outputs() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == [], "clear all outputs, then save"
    assert NOTEBOOK.stat().st_size < 60_000


def test_its_cells_are_short(notebook: nbformat.NotebookNode) -> None:
    assert [cell.id for cell in notebook.cells if len(cell.source.splitlines()) > 45] == []


def test_its_first_cell_says_what_is_missing(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened alone, without the package and without an address, it asks for the address and installs nothing."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    ast.parse(first.source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="fill in REPOSITORY"):
        exec(compile(first.source, "first cell", "exec"), {})
