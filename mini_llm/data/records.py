"""Records: the objects of .jsonl and .parquet files, packed or not, each with its place, and how far one has read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mini_llm import log
from mini_llm.data.formats import (
    INSTALL,
    MAX_LINE_BYTES,
    corrupt,
    format_of,
    naming_file,
    not_utf8,
    refuse_half_characters,
    refuse_without_mark,
    unpacked,
)
from mini_llm.errors import UserError

BATCH = 1024  # rows of a table that become Python's objects at once
Record = tuple[str, dict[str, Any]]  # "data.jsonl:12", the object
Tell = Callable[[int], None]
T = TypeVar("T")


def read_each(paths: Sequence[Path], read: Callable[..., Iterable[T]], description: str) -> Iterator[T]:
    """Yield all that `read(path, tell=...)` yields of each file, and show how many of their bytes are worked through.

    What is done with each thing before the next one is asked for counts as work, such as to turn it into ids.
    """
    sizes, before = [path.stat().st_size for path in paths], 0
    with log.byte_progress(description, sum(sizes)) as show:
        for path, size in zip(paths, sizes, strict=True):
            yield from read(path, tell=lambda done, before=before: show(before + done))
            before += size
            show(before)


def nobody(_done: int) -> None:
    """Be told of progress, and show none."""


def read_records(path: Path, tell: Tell = nobody) -> Iterator[Record]:
    """Yield the objects of a file, those keys left out that are null: Arrow adds them to every object.

    `tell` is called with the bytes of the file that have been read.

    Raises:
        UserError: another format, damage, a line that is no JSON object; it names file and line.
    """
    kind = format_of(path)
    if kind is None or kind[0] in (".txt", ".md", ".arrow"):
        raise UserError(f"{path} holds no records", "conversations come as .jsonl or .parquet, also .gz .xz .zst")
    with naming_file(path), path.open("rb") as file:
        stream = unpacked(file, kind[1])
        is_table, place = kind[0] == ".parquet", ""
        records = _parquet_rows(stream, path, tell) if is_table else _json_lines(stream, path)
        for place, record in records:
            yield place, _without_nulls(record)
            if not is_table:
                tell(file.tell())
        if not place:
            log.note(f"{path} holds no records")


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
            raise UserError(*not_utf8(place, path, line if number == 1 else b"")) from None
        except (ValueError, RecursionError) as problem:
            refuse_without_mark(line.decode("latin-1"), path)
            raise UserError(f"{place}: not JSON ({problem})", "each line must be one JSON object") from None
        if not isinstance(record, dict):
            raise UserError(f"{place}: a {type(record).__name__}, not an object", "each line must be one JSON object")
        if b"\\u" in line:
            refuse_half_characters(json.dumps(record, ensure_ascii=False), place)
        yield place, record


def _parquet_rows(stream: Any, path: Path, tell: Tell) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(".parquet files need the package pyarrow", INSTALL) from None
    import io

    data, number = stream.read(), 0
    if not data:
        return
    try:
        table = parquet.ParquetFile(io.BytesIO(data))
        for batch in table.iter_batches(batch_size=BATCH):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
            # All has been read at once: the share of the rows tells how far one is.
            tell(path.stat().st_size * number // table.metadata.num_rows)
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {number + 1} or one of the {BATCH - 1} after it is not UTF-8") from None
    except pa.ArrowException as problem:
        raise UserError(*corrupt(path, problem)) from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
