"""The page as files: nothing from elsewhere, no text as markup, small, and served so that a browser runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mini_llm.serve

PAGE = Path(mini_llm.serve.__file__).with_name("page")
FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
# what turns a string into markup or code
SINKS = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|\beval\("
API_PATHS = ("/v1/", "/run", "/tokenize", "/detokenize", "/tokenizer_info", "/metrics", "/inspect", "/openapi.json")


def test_the_page_is_small():
    assert sum(path.stat().st_size for path in FILES) < 150_000
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.name


def test_nothing_comes_from_elsewhere():
    for path in FILES:
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name  # a name space, which nobody fetches


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_text_becomes_markup_or_code(path: Path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(SINKS, text) == []
    assert text.startswith("// "), "its first line says its idea"


def test_the_document_has_no_inline_script_style_or_handler():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)[^>]*>", text) == []


def test_every_import_is_a_file_of_the_page():
    for path in SCRIPTS:
        for name in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8")):
            assert name.startswith("./"), f"{path.name} imports {name}"
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"


def test_no_file_lies_where_the_api_is():
    for path in FILES:
        assert not f"/{path.relative_to(PAGE).as_posix()}".startswith(API_PATHS)
