"""Records: whoever reads a large file is told how far he is, whatever the file is packed in."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mini_llm import log
from mini_llm.data.records import read_each, read_records

Write = Callable[[Path], None]
ROWS = [{"question": f"{n} {'x' * 1000}", "answer": "y"} for n in range(5_000)]  # 5 MB


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def write_packed(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode(), compresslevel=0))


def write_table(path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS), path, compression="none", use_dictionary=False)


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", write_lines), ("a.jsonl.gz", write_packed), ("a.parquet", write_table)]
)
def test_progress_is_told_over_all_files(
    name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    totals: list[int] = []

    @contextmanager
    def byte_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        assert description == "reading"
        totals.append(total)
        yield shown.append

    monkeypatch.setattr(log, "byte_progress", byte_progress)
    small, large = tmp_path / "small.jsonl", tmp_path / name
    small.write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    write(large)
    found = list(read_each([small, large], read_records, "reading"))
    assert [record for _, record in found[1:]] == ROWS
    sizes = [path.stat().st_size for path in (small, large)]
    assert totals == [sum(sizes)]
    assert shown[0] == sizes[0]
    assert shown[-1] == sum(sizes)
    assert shown == sorted(shown)
    steps = [after - before for before, after in itertools.pairwise(shown)]
    assert max(steps) < 2.2 * 2**20  # a table is told of 1,024 rows at once
