"""A Parquet file read as if a stranger had written it: whole, and within bounded memory.

Parquet packs equal values into next to nothing, so that a file of some kilobytes can stand for more
than any machine holds. How much it can be is known from its pages first (`parquet_footer`). A
column may repeat one long word over and over; where that could be too much, words are kept packed
until they are counted.
"""

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import parquet_footer
from pipeline.parquet_footer import Leaf

MOST_BYTES = 2**29
"""Of a table in memory. A trial's records take some megabytes at most."""
_MOST_COLUMNS = 1_000
_MOST_ROWS = 50_000_000
_ROWS_AT_A_TIME = 2**16
_WIDTH = 8


class TooLargeError(ValueError):
    """A table beyond all measure."""


def schema(source: BinaryIO) -> pa.Schema:
    """Names, types and metadata, rows unseen. Raises pa.ArrowException, OSError, ValueError."""
    parquet_footer.check(source)
    return pq.read_schema(source)


def read(
    source: BinaryIO, columns: Sequence[str] | None = None, most: int = MOST_BYTES
) -> pa.Table:
    """All rows, of all columns or of those named, in that order.

    Raises TooLargeError, pa.ArrowException, OSError, ValueError; KeyError for a name it lacks.
    """
    extent = parquet_footer.extent(source)
    leaves: Sequence[Leaf] = extent.leaves
    if len(leaves) > _MOST_COLUMNS:
        raise TooLargeError(f"must have at most {_MOST_COLUMNS:,} columns")
    if extent.num_rows > _MOST_ROWS:
        raise TooLargeError(f"must have at most {_MOST_ROWS:,} rows, has {extent.num_rows:,}")
    count = sum(leaf.num_values for leaf in leaves)
    if count * _WIDTH > most:
        raise TooLargeError(f"must take at most {most:,} bytes in memory, has {count:,} values")
    file = _opened(source)
    kept = file.schema_arrow
    texts = {
        leaf.place
        for leaf in leaves
        if leaf.can_be_packed and _is_text(_plain(kept.field(leaf.place).type))
    }
    leaves = _wanted(leaves, kept, columns)
    shown = list(kept) if columns is None else [kept.field(name) for name in columns]
    nested = next((f.type for f in shown if _packs(_plain(f.type))), None)
    if nested is not None:
        raise TooLargeError(f"must not hold columns of type {str(nested)[:200]}")
    goal = pa.schema([f.with_type(_plain(f.type)) for f in shown], kept.metadata)
    wanted = None if columns is None else list(columns)
    if sum(leaf.num_bytes for leaf in leaves) <= most // 4:
        table = file.read(columns=wanted, use_threads=False)
        return table if table.schema.equals(goal) else table.cast(goal)
    bytes_ = sum(x.num_bytes_packed if x.place in texts else x.num_bytes for x in leaves)
    if bytes_ > most:
        raise TooLargeError(f"must take at most {most:,} bytes in memory, can take {bytes_:,}")
    file = _opened(source, [kept.names[place] for place in sorted(texts)])
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=wanted, use_threads=False):
        size += sum(_size(column) for column in batch.columns)
        if size > most:
            raise TooLargeError(f"must take at most {most:,} bytes in memory")
        batches.append(batch.cast(goal))
    return pa.Table.from_batches(batches, goal)


def _opened(source: BinaryIO, packed: Sequence[str] = ()) -> pq.ParquetFile:
    source.seek(0)
    return pq.ParquetFile(
        source, page_checksum_verification=True, thrift_string_size_limit=2**26,
        thrift_container_size_limit=2**20, read_dictionary=list(packed),
    )  # fmt: skip


def _wanted(
    leaves: Sequence[Leaf], schema: pa.Schema, columns: Sequence[str] | None
) -> Sequence[Leaf]:
    # Where a name has a point in it, pyarrow may take it for the place of a nested one.
    if columns is None or any("." in name for name in schema.names):
        return leaves
    return [leaf for leaf in leaves if schema.names[leaf.place] in columns]


def _plain(kind: pa.DataType) -> pa.DataType:
    """Of the values, where a column itself is packed."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _packs(kind: pa.DataType) -> bool:
    """Whether a column may stay packed in memory, to unfold when somebody uses it."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return True
    return any(_packs(kind.field(i).type) for i in range(kind.num_fields))


def _is_text(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _size(column: pa.Array) -> int:
    """Bytes of a column when it is unpacked."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes) + _WIDTH * len(column)
    lengths = pc.fill_null(pc.binary_length(column.dictionary).cast(pa.int64()), 0)
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + _WIDTH * len(column)
