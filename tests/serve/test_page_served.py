"""The page as it is served: each file with its type and under the policy that the page is written for."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_server import RunningServer

import mini_llm.serve

PAGE = Path(mini_llm.serve.__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "javascript"}
FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_served_with_its_type_and_the_policy(server: RunningServer, path: Path):
    answer = server.client.get(f"/{path.relative_to(PAGE).as_posix()}")
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    assert TYPES[path.suffix] in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_address_itself_is_the_page(server: RunningServer):
    assert server.client.get("/").text == (PAGE / "index.html").read_text(encoding="utf-8")
