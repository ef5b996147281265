"""How much a Parquet file holds, from its footer and the headers of its pages, without pyarrow.

pyarrow trusts the footer: a file of a kilobyte whose footer says ten values and whose page says a
hundred million takes gigabytes; and it ends the process when asked about a column that the footer
describes badly. So what footer, schema and pages say must agree before it is asked for anything.

Numbers of fields are those of apache/parquet-format, parquet.thrift. Lists that nobody needs stand
here too: a generated reader goes by its own types (`pipeline.thrift_compact`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.thrift_compact import BINARY, I32, I64, Reader, list_of, struct_of

_MOST_BYTES = 2**26
_MOST_PAGES = 100_000
_MOST_IN_A_HEADER = 64
# Headers are short, but for those that tell the least and the largest of long words.
_WINDOWS = (256, 2**14, 2**20)
_MOST_LOOKED_AT = 2**28
_MOST_WIDTH = 2**10
_ANY = struct_of({})
_COLUMN = {
    2: list_of(I32), 3: list_of(BINARY), 5: I64, 7: I64, 8: list_of(_ANY), 9: I64, 11: I64,
    13: list_of(_ANY), 16: struct_of({2: list_of(I64), 3: list_of(I64)}),
    17: struct_of({2: list_of(I32)}),
}  # fmt: skip
_CHUNK = {3: struct_of(_COLUMN), 8: _ANY, 9: BINARY}
_GROUP = {1: list_of(struct_of(_CHUNK)), 3: I64, 4: list_of(_ANY)}
_ELEMENT = {1: I32, 2: I32, 3: I32, 5: I32}
_FILE = {
    2: list_of(struct_of(_ELEMENT)), 3: I64, 4: list_of(struct_of(_GROUP)), 5: list_of(_ANY),
    7: list_of(_ANY), 8: _ANY,
}  # fmt: skip
_PAGE = {
    1: I32, 2: I32, 3: I32, 5: struct_of({1: I32, 2: I32}), 7: struct_of({1: I32}),
    8: struct_of({1: I32, 4: I32}),
}  # fmt: skip
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_TEXT, _FIXED = 6, 7
_REPEATED = 2
# Encodings by what a value can take: its own bytes; or as much as the whole dictionary, or page.
_PLAIN, _BY_DICTIONARY, _PACKABLE = (0, 6), (2, 8), {0, 2, 8}
# Of a number with its levels and the place where a text begins.
_WIDTH = 16


@dataclass(frozen=True)
class Leaf:
    """A column of values.

    Attributes:
        place: of the column of the table that it belongs to, from 0.
        can_be_packed: whether it is that column, one word a row, and none made from others, which
            pyarrow reads only unpacked.
        num_values: nulls and empty lists included.
        num_bytes: that it can take in memory at most.
        num_bytes_packed: at most, where each word of a dictionary is kept once.
    """

    place: int
    can_be_packed: bool
    num_values: int = 0
    num_bytes: int = 0
    num_bytes_packed: int = 0


@dataclass(frozen=True)
class Extent:
    """What a file holds."""

    num_rows: int
    leaves: tuple[Leaf, ...]


def check(source: BinaryIO) -> None:
    """That the footer is one, and of a length to be read. Raises ValueError, OSError."""
    _footer(source)


def extent(source: BinaryIO) -> Extent:
    """Of a file in which footer and pages agree. Raises ValueError, OSError."""
    content, end = _footer(source)
    try:
        if 8 in content:
            raise ValueError("it is encrypted")
        kinds = _leaves(content[2])
        groups = content.get(4, [])
        rows = [group[3] for group in groups]
        if any(count < 0 for count in rows) or sum(rows) != content[3]:
            raise ValueError("its footer and its row groups tell of different numbers of rows")
        pages = _Pages(source, end)
        totals = [[0, 0, 0] for _ in kinds]
        unpackable = set[int]()
        for group in groups:
            if len(group[1]) != len(kinds):
                raise ValueError("its footer does not describe every column")
            for chunk, (leaf, is_repeated, kind, width), total in zip(
                group[1], kinds, totals, strict=True
            ):
                if 8 in chunk or 9 in chunk:
                    raise ValueError("it is encrypted")
                count = chunk[3][5]
                if count < group[3] or (count > group[3] and not is_repeated):
                    raise ValueError(f"column {leaf.place} has another number of values than rows")
                unpacked, packed, encodings = pages.walked(chunk[3], kind == _TEXT, width)
                for i, part in enumerate((count, unpacked, packed)):
                    total[i] += part
                if encodings - _PACKABLE:
                    unpackable.add(leaf.place)
    except (IndexError, KeyError) as error:
        raise ValueError("its footer does not describe every column") from error
    finally:
        source.seek(0)
    leaves = [
        Leaf(leaf.place, leaf.can_be_packed and leaf.place not in unpackable, *total)
        for (leaf, *_), total in zip(kinds, totals, strict=True)
    ]
    return Extent(content[3], tuple(leaves))


def _footer(source: BinaryIO) -> tuple[dict[int, Any], int]:
    """The footer, and where it begins."""
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
        return Reader(footer).struct(_FILE), size - 8 - length
    except IndexError as error:
        raise ValueError("its footer is cut short") from error
    except ValueError as error:
        raise ValueError(f"its footer has {error}") from error


def _leaves(elements: list[dict[int, Any]]) -> list[tuple[Leaf, bool, int, int]]:
    """Of the schema, in the order of its leaves: whether each is repeated, its type and width."""
    found = []
    place = -1
    open_: list[tuple[int, bool]] = [(elements[0].get(5, 0), False)]
    """Children to come, and whether whatever holds them may hold many."""
    for element in elements[1:]:
        while open_ and open_[-1][0] == 0:
            open_.pop()
        left, is_repeated = open_.pop()
        if left < 0:
            raise ValueError("its schema has a negative number of columns")
        open_.append((left - 1, is_repeated))
        place += len(open_) == 1
        is_repeated = is_repeated or element.get(3) == _REPEATED
        if 5 in element:
            open_.append((element[5], is_repeated))
            continue
        width = element.get(2, 0) if element[1] == _FIXED else 0
        if not 0 <= width <= _MOST_WIDTH:
            raise ValueError(f"a value of its column {place} takes {width:,} bytes")
        leaf = Leaf(place, len(open_) == 1 and not is_repeated and element[1] == _TEXT)
        found.append((leaf, is_repeated, element[1], width))
    if any(left for left, _ in open_):
        raise ValueError("its schema is cut short")
    return found


class _Pages:
    """Headers of pages, one after the other; no more of them in all than a file may have."""

    def __init__(self, source: BinaryIO, end: int) -> None:
        self._source, self._end, self._num, self._looked_at = source, end, 0, 0

    def walked(
        self, column: Mapping[int, Any], is_text: bool, width: int
    ) -> tuple[int, int, set[int]]:
        """Bytes that a column's values can take, unpacked and packed; encodings of its pages."""
        begin, length, count = column[9], column[7], column[5]
        if 0 < column.get(11, 0) < begin:
            begin = column[11]
        if begin < 0 or length < 0 or begin + length > self._end:
            raise ValueError("a column reaches beyond the end of the file")
        at, end = begin, begin + length
        unpacked = packed = count * (_WIDTH + width)
        seen = dictionary = 0
        encodings = set[int]()
        while seen < count:
            page, at = self._page(at, end)
            size = max(page[2], page[3])
            packed += size
            if page[1] == _DICTIONARY:
                dictionary += size
                # Each word takes a byte at least, and pyarrow makes room for all it is told of.
                if not 0 <= page[7][1] <= size:
                    raise ValueError("a dictionary of more words than bytes")
                continue
            about = page[5] if page[1] == _DATA else page[8]
            number, encoding = about[1], about[2 if page[1] == _DATA else 4]
            if number < 0:
                raise ValueError("a page with a negative number of values")
            seen += number
            encodings.add(encoding)
            unpacked += size
            if is_text and encoding not in _PLAIN:
                unpacked += number * (dictionary if encoding in _BY_DICTIONARY else size)
        if seen > count:
            raise ValueError("the pages of a column hold more values than its footer says")
        return unpacked + dictionary, packed, encodings

    def _page(self, at: int, end: int) -> tuple[dict[int, Any], int]:
        """A header, and where the next one begins."""
        self._num += 1
        for window in _WINDOWS:
            self._looked_at += window
            if self._num > _MOST_PAGES or self._looked_at > _MOST_LOOKED_AT:
                raise ValueError("it has more pages, or longer headers of pages, than any of ours")
            self._source.seek(at)
            reader = Reader(self._source.read(min(window, end - at)), _MOST_IN_A_HEADER)
            try:
                page = reader.struct(_PAGE)
            except IndexError:
                continue
            except ValueError as error:
                raise ValueError(f"a page's header has {error}") from error
            if page[1] not in (_DATA, _DICTIONARY, _DATA_V2) or min(page[2], page[3]) < 0:
                raise ValueError("a page of no known kind, or of a negative size")
            after = at + reader.at + page[3]
            if after > end:
                raise ValueError("a page reaches beyond the end of its column")
            return page, after
        raise ValueError("the pages of a column hold fewer values than its footer says")
