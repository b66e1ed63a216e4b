"""Tables of text, where a row is a document: .parquet, and .arrow as `datasets` keeps it on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mini_llm.data.formats import BLOCK_BYTES, INSTALL, NULL, corrupt, cut_all, no_column, texts_of
from mini_llm.errors import UserError

ROWS = 64  # that become Python's texts at once
FILE_MAGIC = b"ARROW1"  # of Arrow's other format, Feather 2; `datasets` writes the stream format
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def table_texts(file: IO[bytes], stream: IO[bytes], path: Path, kind: str, text_column: str) -> Iterator[str | None]:
    """Yield the texts of a column, None after each; `stream` is `file`, or what is packed in it.

    Raises:
        UserError: pyarrow is missing, the file is damaged, or has no such column of text.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError(f"{kind} files need the package pyarrow", INSTALL) from None
    size, rows = os.fstat(file.fileno()).st_size, 0
    with tempfile.TemporaryFile() if stream is not file else open(file.name, "rb") as table:
        if stream is not file:  # a table is read from its end: unpack it first
            shutil.copyfileobj(stream, table, BLOCK_BYTES)
            table.seek(0)
        if not size:
            return
        try:
            for column, done in (_parquet if kind == ".parquet" else _arrow)(table, path, text_column):
                for text in column.to_pylist():
                    yield from cut_all(text) if text is not None else (NULL,)
                    yield None
                rows += len(column)
                file.seek(int(size * done))  # what the progress bar follows
        except UnicodeDecodeError:
            raise UserError(f"{path}: row {rows + 1} or one of the {ROWS - 1} after it is not UTF-8") from None
        except pa.ArrowException as problem:
            raise UserError(*corrupt(path, problem)) from None


def _parquet(table: IO[bytes], path: Path, text_column: str) -> Iterator[tuple[Any, float]]:
    """Yield the column in parts, each with the share of the file that is done with it."""
    import pyarrow.parquet as pq

    parquet, rows = pq.ParquetFile(table, buffer_size=BLOCK_BYTES, pre_buffer=False), 0
    _check(parquet.schema_arrow, path, text_column)
    for batch in parquet.iter_batches(batch_size=ROWS, columns=[text_column]):
        rows += batch.num_rows
        yield batch.column(0), rows / parquet.metadata.num_rows


def _arrow(table: IO[bytes], path: Path, text_column: str) -> Iterator[tuple[Any, float]]:
    import pyarrow as pa
    import pyarrow.ipc as ipc

    is_stream, size = table.read(len(FILE_MAGIC)) != FILE_MAGIC, table.seek(0, os.SEEK_END)
    table.seek(max(0, size - len(STREAM_END)))
    # pyarrow takes a stream that is cut between two batches for a whole one.
    if is_stream and table.read() != STREAM_END:
        raise pa.ArrowInvalid("the mark of its end is missing")
    table.seek(0)
    reader = ipc.open_stream(table) if is_stream else ipc.open_file(table)
    _check(reader.schema, path, text_column)
    place = reader.schema.get_field_index(text_column)
    for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
        column = batch.column(place)
        for first in range(0, len(column), ROWS):
            yield column.slice(first, ROWS), min(1.0, table.tell() / size)


def _check(schema: Any, path: Path, text_column: str) -> None:
    import pyarrow as pa

    if text_column not in schema.names:
        raise UserError(*no_column(str(path), "column", text_column, schema.names))

    def holds_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        return any(check(kind) for check in checks)

    if not holds_text(kind := schema.field(text_column).type):
        texts = [field.name for field in schema if holds_text(field.type)]
        raise UserError(f"{path}: '{text_column}' holds {kind}, not strings", texts_of(dict.fromkeys(texts, "")))
