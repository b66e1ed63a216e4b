"""The spine: the files by which one understands a language model, listed in reading order, short enough to read."""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "mini_llm"
MOST_LINES = 2_500
PARTS = ("tokenizer/", "data/token_store", "model/transformer", "train/loss", "train/step", "train/train", "engine")


def spine() -> list[Path]:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## The spine")[2].partition("\n## ")[0]
    return [PACKAGE / link for link in re.findall(r"\]\(([\w/]+\.py)\)", section)]


def test_the_spine_is_read_in_an_afternoon() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in spine()}
    assert len(lines) == len(spine()), "a file stands twice"
    assert sum(lines.values()) <= MOST_LINES, f"{sum(lines.values())} lines: move what is not the idea itself elsewhere"


def test_the_spine_is_whole() -> None:
    names = [path.relative_to(PACKAGE).as_posix() for path in spine()]
    assert [part for part in PARTS if not any(part in name for name in names)] == []
    models = {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "model").glob("*.py")}
    aside = {"model/__init__.py", "model/accounting.py", "model/joined.py"}
    aside |= {"model/causal_attention.py", "model/document_attention.py", "model/flash_documents.py"}
    assert models - aside <= set(names)
