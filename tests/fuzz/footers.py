"""Parquet files whose footers lie: numbers in them replaced, all else as it was.

A footer is a struct in Thrift's compact protocol. A number in it is known by its path: numbers of
fields and places in lists, such as (4, 0, 1, 2, 3, 5) for the values of column 2 of the first row
group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.fuzz.mutate import Step

Path = tuple[int, ...]
ROWS, GROUP_ROWS, GROUP_BYTES = (3,), (4, 0, 3), (4, 0, 2)
EXTREME = (0, 1, -1, 10, 2**31 - 1, 2**31, -(2**31), 2**53, 2**62, 2**63 - 1, -(2**63))


def of_column(place: int, field: int) -> Path:
    """5: number of values, 6 and 7: bytes unpacked and packed, 9 and 11: where its pages begin."""
    return (4, 0, 1, place, 3, field)


def numbers(blob: bytes) -> dict[Path, int]:
    """All whole numbers of a file's footer."""
    found: dict[Path, int] = {}
    _Copier(_footer(blob), {}, found).struct(())
    return found


def lying(blob: bytes, edits: Mapping[Path, int]) -> bytes:
    """With these numbers in its footer."""
    found: dict[Path, int] = {}
    footer = _Copier(_footer(blob), edits, found).struct(())
    assert set(edits) <= set(found), "no such numbers"
    start = len(blob) - 8 - len(_footer(blob))
    return blob[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def changed(blob: bytes, steps: Sequence[Step]) -> bytes:
    """With some numbers made extreme, moved a little, or swapped."""
    known = numbers(blob)
    paths = sorted(known)
    edits: dict[Path, int] = {}
    for kind, where, what in steps:
        path = paths[where % len(paths)]
        if kind < 6:
            edits[path] = EXTREME[what % len(EXTREME)]
        elif kind < 9:
            edits[path] = known[path] + what % 33 - 16
        else:
            edits[path] = known[paths[what % len(paths)]]
    return lying(blob, edits)


def _footer(blob: bytes) -> bytes:
    return blob[-8 - int.from_bytes(blob[-8:-4], "little") : -8]


class _Copier:
    def __init__(self, data: bytes, edits: Mapping[Path, int], found: dict[Path, int]) -> None:
        self._data, self._at, self._edits, self._found = data, 0, edits, found

    def struct(self, path: Path) -> bytes:
        made, field = b"", 0
        while True:
            head = self._take(1)
            if head == b"\0":
                return made + head
            step, code = head[0] >> 4, head[0] & 15
            if step:
                field += step
            else:
                raw = self._varint()
                field = (raw >> 1) ^ -(raw & 1)
                head += _varint(raw)
            made += head + (b"" if code in (1, 2) else self._value(code, (*path, field)))

    def _value(self, code: int, path: Path) -> bytes:
        if code in (4, 5, 6):
            raw = self._varint()
            self._found[path] = (raw >> 1) ^ -(raw & 1)
            number = self._edits.get(path, self._found[path])
            return _varint(2 * number if number >= 0 else -2 * number - 1)
        if code == 8:
            length = self._varint()
            return _varint(length) + self._take(length)
        if code == 9:
            head = self._take(1)
            count = head[0] >> 4
            if count == 15:
                count = self._varint()
                head += _varint(count)
            item = 3 if head[0] & 15 in (1, 2) else head[0] & 15
            return head + b"".join(self._value(item, (*path, i)) for i in range(count))
        return self.struct(path) if code == 12 else self._take({3: 1, 7: 8}[code])

    def _take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._take(1)[0]
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found


def _varint(number: int) -> bytes:
    made: list[Any] = []
    while number >= 128:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])
