"""Records: the objects of .jsonl and .parquet files, packed or not, each with its place."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_llm.data.formats import INSTALL, MAX_LINE_BYTES, format_of, naming_file, unpacked
from mini_llm.errors import UserError

Record = tuple[str, dict[str, Any]]  # "data.jsonl:12", the object


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a file, those keys left out that are null: Arrow adds them to every object.

    Raises:
        UserError: another format, damage, a line that is no JSON object; it names file and line.
    """
    kind = format_of(path)
    if kind is None or kind[0] in (".txt", ".md", ".arrow"):
        raise UserError(f"{path} holds no records", "conversations come as .jsonl or .parquet, also .gz .xz .zst")
    with naming_file(path), path.open("rb") as file:
        stream = unpacked(file, kind[1])
        records = _parquet_rows(stream, path) if kind[0] == ".parquet" else _json_lines(stream, path)
        for place, record in records:
            yield place, _without_nulls(record)


def _json_lines(stream: Any, path: Path) -> Iterator[Record]:
    for number in itertools.count(1):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        place = f"{path}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{place}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise UserError(f"{place}: not UTF-8") from None
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{place}: not JSON ({problem})", "each line must be one JSON object") from None
        if not isinstance(record, dict):
            raise UserError(f"{place}: a {type(record).__name__}, not an object", "each line must be one JSON object")
        yield place, record


def _parquet_rows(stream: Any, path: Path) -> Iterator[Record]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(".parquet files need the package pyarrow", INSTALL) from None
    import io

    number = 0
    for batch in parquet.ParquetFile(io.BytesIO(stream.read())).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
