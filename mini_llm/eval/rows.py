"""Rows of a data set from a file: .jsonl .json .csv .parquet .arrow and .txt, the first three also .gz .xz .zst."""

from __future__ import annotations

import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_llm.data.formats import COMPRESSIONS, INSTALL, unpacked
from mini_llm.errors import UserError

Row = dict[str, Any]
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow", ".txt")
MOST_BYTES = 2**30  # of a file, unpacked: the largest set in use has 70 MB


def kind_of(path: Path) -> str | None:
    """Return ".jsonl" and so on by the name of a file; None: it holds no rows."""
    name = path.name.lower().removesuffix(_compression(path))
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def read_rows(path: Path) -> list[Row]:
    """Return all rows of a file.

    Raises:
        UserError: it is missing, damaged or of another kind; the line is named.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"cannot read {path}: unknown format '{path.suffix}'", f"known: {' '.join(KINDS)}")
    try:
        if kind in (".parquet", ".arrow"):
            rows = _table_rows(path, kind)
        else:
            rows = list(_text_rows(_text_of(path), kind, path))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"cannot read {path}: {reason}", "get it again") from None
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def _compression(path: Path) -> str:
    return next((packed for packed in COMPRESSIONS if path.name.lower().endswith(packed)), "")


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        data = unpacked(file, _compression(path)).read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} is no data set: it is larger than {MOST_BYTES >> 30} GB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}, byte {problem.start:,}: not UTF-8") from None


def _text_rows(text: str, kind: str, path: Path) -> Iterator[Row]:
    if kind == ".txt":  # a document
        yield {"text": text}
    elif kind == ".csv":
        yield from _csv_rows(text, path)
    elif kind == ".json":
        values = _json(text, str(path))
        yield from _objects(values if isinstance(values, list) else [values], path)
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        yield from _objects((_json(line, f"{path}:{number}") for number, line in lines), path)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{where}: not JSON: {problem}", "each line must be one JSON object") from None


def _objects(values: Any, path: Path) -> Iterator[Row]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise UserError(f"{path}, row {number}: it must be a JSON object, not {type(value).__name__}")
        yield value


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    try:
        lines = list(csv.reader(io.StringIO(text)))
    except csv.Error as problem:
        raise UserError(f"{path}: not CSV: {problem}") from None
    if lines and len(lines[0]) == 6 and lines[0][5].strip() in tuple("ABCD"):  # MMLU's own files have no head
        for question, *choices, answer in lines:
            yield {"question": question, "choices": choices, "answer": "ABCD".index(answer.strip())}
        return
    head, *rest = lines or [[]]
    for number, line in enumerate(rest, 2):
        if len(line) != len(head):
            raise UserError(f"{path}:{number}: {len(line)} columns, the head has {len(head)}")
        yield dict(zip(head, line, strict=True))


def _table_rows(path: Path, kind: str) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.ipc as ipc
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{kind} files need the package pyarrow", INSTALL) from None
    try:
        if kind == ".parquet":
            return list(pq.read_table(path).to_pylist())
        with pa.memory_map(str(path)) as file:  # as `datasets` writes them: the stream format
            return list(ipc.open_stream(file).read_all().to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path} is damaged: {str(problem).splitlines()[0]}", "get it again") from None
