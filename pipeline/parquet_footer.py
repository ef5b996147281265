"""How many values a Parquet file says it holds, read from its footer without pyarrow.

pyarrow knows, but ends the process when asked about a column that a damaged file describes badly.
The footer is a struct in Thrift's compact protocol; of it stand here the numbers of
apache/parquet-format, parquet.thrift: FileMetaData 4 row_groups, RowGroup 1 columns, ColumnChunk 3
meta_data, ColumnMetaData 5 num_values.
"""

import io
import os
from typing import Any, BinaryIO

_MOST_BYTES = 2**26
_MOST_LEVELS = 16
_STRUCT, _LIST, _SET = 12, 9, 10


def num_values(source: BinaryIO) -> int:
    """Of all columns together, nulls and empty lists included. Raises ValueError, OSError."""
    size = source.seek(0, os.SEEK_END)
    source.seek(max(0, size - 8))
    tail = source.read(8)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != b"PAR1" or not 0 < length <= min(size - 8, _MOST_BYTES):
        raise ValueError("no Parquet magic bytes at its end, or a footer longer than the file")
    source.seek(size - 8 - length)
    footer = source.read(length)
    source.seek(0)
    try:
        content = _struct(io.BytesIO(footer), 0)
        counts = [column[3][5] for group in content.get(4, []) for column in group.get(1, [])]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError("a negative number of values")
        return sum(counts)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("its footer does not describe every column") from error


def _struct(source: io.BytesIO, level: int) -> dict[int, Any]:
    if level > _MOST_LEVELS:
        raise ValueError("its footer is nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = source.read(1)[0]
        if head == 0:
            return found
        step, kind = head >> 4, head & 15
        field = field + step if step else _zigzag(_varint(source))
        found[field] = _value(source, kind, level + 1)


def _value(source: io.BytesIO, kind: int, level: int) -> Any:
    if kind in (1, 2):  # True and false, told by the type itself.
        return kind == 1
    if kind == 3:
        return source.read(1)[0]
    if kind in (4, 5, 6):
        return _zigzag(_varint(source))
    if kind == 7:
        return _skipped(source, 8)
    if kind == 8:
        return _skipped(source, _varint(source))
    if kind in (_LIST, _SET):
        head = source.read(1)[0]
        count = head >> 4 if head >> 4 < 15 else _varint(source)
        if count > _MOST_BYTES:
            raise ValueError("its footer has too long a list")
        item = head & 15
        if item in (1, 2):
            return _skipped(source, count)
        return [_value(source, item, level) for _ in range(count)]
    if kind == _STRUCT:
        return _struct(source, level)
    raise ValueError(f"its footer has a value of type {kind}, which Parquet has none of")


def _skipped(source: io.BytesIO, count: int) -> None:
    if len(source.read(count)) < count:
        raise IndexError("cut short")


def _varint(source: io.BytesIO) -> int:
    found = shift = 0
    while True:
        byte = source.read(1)[0]
        found |= (byte & 127) << shift
        if byte < 128:
            return found
        shift += 7
        if shift > 63:
            raise ValueError("its footer has a number of more than 64 bits")


def _zigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
