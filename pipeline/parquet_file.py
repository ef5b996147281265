"""A Parquet file read as if a stranger had written it: whole, and within bounded memory.

Parquet packs equal values into next to nothing, so that a file of some kilobytes can stand for more
than any machine holds. What it says of itself is checked first. A column may repeat one long word
over and over; where that could be too much, rows are read a few at a time, and counted.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import parquet_footer

MOST_BYTES = 2**29
"""Of a table in memory. A trial's records take some megabytes at most."""
_MOST_COLUMNS = 1_000
_MOST_ROWS = 50_000_000
_AT_A_TIME = 2**26
_AT_ONCE = 4096
_WIDTH = 8
_FEWEST = 512


class TooLargeError(ValueError):
    """A table beyond all measure."""


def read(
    source: BinaryIO, columns: Sequence[str] | None = None, most: int = MOST_BYTES
) -> pa.Table:
    """All rows, of all columns or of those named.

    Raises TooLargeError, pa.ArrowException, OSError, ValueError.
    """
    count = parquet_footer.num_values(source)
    if count * _WIDTH > most:
        raise TooLargeError(f"must take at most {most:,} bytes in memory, has {count:,} values")
    file = pq.ParquetFile(
        source, page_checksum_verification=True, thrift_string_size_limit=2**26,
        thrift_container_size_limit=2**20,
    )  # fmt: skip
    wanted = None if columns is None else list(columns)
    rows = _rows_at_a_time(file.metadata, most)
    schema = file.schema_arrow
    if any(_packs(kind) for kind in schema.types):
        rows = rows or _AT_ONCE
    if rows is None:
        return file.read(columns=wanted, use_threads=False)
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=rows, columns=wanted, use_threads=False):
        size += sum(_size(column) for column in batch.columns)
        if size > most:
            raise TooLargeError(f"must take at most {most:,} bytes in memory")
        batches.append(_unpacked(batch))
    kept = schema if wanted is None else pa.schema([schema.field(name) for name in wanted])
    return pa.Table.from_batches(batches, _unpacked(kept.empty_table()).schema)


def _packs(kind: pa.DataType) -> bool:
    """Whether a column may stay packed in memory, to unfold when somebody uses it."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return True
    return any(_packs(kind.field(i).type) for i in range(kind.num_fields))


def _size(column: pa.Array) -> int:
    """Bytes of a column when it is unpacked."""
    if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        lengths = pc.binary_length(column.dictionary).cast(pa.int64())
        return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + 8 * len(column)
    if _packs(column.type) and not pa.types.is_dictionary(column.type):
        raise TooLargeError(f"must not hold columns of type {str(column.type)[:200]}")
    return int(column.nbytes) + 8 * len(column)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    return any(test(kind) for test in tests)


def _unpacked(batch: Any) -> Any:
    """A batch or table without columns that stay packed."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_dictionary(field.type):
            plain = pa.field(field.name, field.type.value_type, field.nullable)
            batch = batch.set_column(place, plain, batch.column(place).cast(plain.type))
    return batch


def _rows_at_a_time(metadata: pq.FileMetaData, most: int) -> int | None:
    """None where all at once cannot be too much, by what the file says of itself."""
    if metadata.num_columns > _MOST_COLUMNS:
        raise TooLargeError(f"must have at most {_MOST_COLUMNS:,} columns")
    if metadata.num_rows > _MOST_ROWS:
        raise TooLargeError(f"must have at most {_MOST_ROWS:,} rows, has {metadata.num_rows:,}")
    # Only what rows and row groups say: asked about a single column, pyarrow ends the process where
    # a file has none (its binding of parquet's ColumnChunk lets no exception through).
    groups = [metadata.row_group(i) for i in range(min(metadata.num_row_groups, metadata.num_rows))]
    unpacked = sum(group.total_byte_size for group in groups)
    if not 0 <= unpacked <= most:
        raise TooLargeError(f"must take at most {most:,} bytes unpacked, takes {unpacked:,}")
    if metadata.num_rows * unpacked <= most:
        return None
    return max(_FEWEST, _AT_A_TIME // max(1, int(unpacked)))
