"""Structs in Thrift's compact protocol, read as if a stranger had written them.

Only fields that were asked for are kept. A generated reader skips a field of another type than it
expects, takes the last of two, cuts numbers to their width, and reads a list by the type it
expects whatever the list says of itself; all of this is refused here, so that both read the same.

Apache Thrift, "Thrift compact protocol encoding" (doc/specs/thrift-compact-protocol.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_LEVELS = 16
_MOST_IN_A_LIST = 50_000
_MOST_ITEMS = 1_000_000
_TOO_MANY = "more fields than any of ours"


@dataclass(frozen=True)
class Kind:
    """What a field must be: a number of the protocol, and what is in it.

    Attributes:
        code: of the type.
        item: of a list.
        fields: of a struct, by number; those that are not here are skipped.
    """

    code: int
    item: "Kind | None" = None
    fields: Mapping[int, "Kind"] = field(default_factory=dict)


I32, I64, BINARY = Kind(5), Kind(6), Kind(8)


def struct_of(fields: Mapping[int, Kind]) -> Kind:
    """A struct with these fields, all of which may lack."""
    return Kind(12, fields=fields)


def list_of(item: Kind) -> Kind:
    """A list of these."""
    return Kind(9, item)


class Reader:
    """Reads from bytes; `at` is where it stands. Raises ValueError, IndexError at a sudden end.

    Fields and places of lists count as items, of which there may be `most`.
    """

    def __init__(self, data: bytes, most: int = _MOST_ITEMS) -> None:
        self._data, self.at, self._left = data, 0, most

    def struct(self, fields: Mapping[int, Kind], level: int = 0) -> dict[int, Any]:
        """Values by field: numbers, dicts of structs, lists; None for text."""
        if level > _MOST_LEVELS:
            raise ValueError("nested too deep")
        found: dict[int, Any] = {}
        number, data = 0, self._data
        while True:
            head = data[self.at]
            self.at += 1
            if head == 0:
                return found
            self._left -= 1
            if self._left < 0:
                raise ValueError(_TOO_MANY)
            step, code = head >> 4, head & 15
            number = number + step if step else self._number(16)
            if number >= 2**15:
                raise ValueError(f"a field of number {number}")
            kind = fields.get(number)
            if kind is None:
                self._skip(code, level)
            elif code != kind.code or number in found:
                raise ValueError(f"field {number} twice, or of type {code}")
            else:
                found[number] = self._value(kind, level)

    def _value(self, kind: Kind, level: int) -> Any:
        if kind.code == 12:
            return self.struct(kind.fields, level + 1)
        if kind.item is not None:
            code, count = self._list()
            if code != kind.item.code and count:
                raise ValueError(f"a list of type {code}")
            return [self._value(kind.item, level + 1) for _ in range(count)]
        if kind.code == 8:
            self._pass(self._varint())
            return None
        return self._number(32 if kind.code == 5 else 64)

    def _skip(self, code: int, level: int) -> None:
        if 4 <= code <= 6:
            self._varint()
        elif code == 8:
            self._pass(self._varint())
        elif code in (1, 2):  # True and false, told by the type itself.
            pass
        elif code == 3:
            self._pass(1)
        elif code == 7:
            self._pass(8)
        elif code in (9, 10):
            if level > _MOST_LEVELS:
                raise ValueError("nested too deep")
            item, count = self._list()
            for _ in range(count):
                self._skip(3 if item in (1, 2) else item, level + 1)
        elif code == 12:
            self.struct({}, level + 1)
        else:
            raise ValueError(f"a value of type {code}, which there is none of")

    def _list(self) -> tuple[int, int]:
        head = self._data[self.at]
        self.at += 1
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count > _MOST_IN_A_LIST:
            raise ValueError(f"a list of {count:,} places")
        self._left -= count
        if self._left < 0:
            raise ValueError(_TOO_MANY)
        return head & 15, count

    def _pass(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise IndexError("cut short")

    def _number(self, bits: int) -> int:
        raw = self._varint()
        number = (raw >> 1) ^ -(raw & 1)
        if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise ValueError(f"a number of more than {bits} bits")
        return number

    def _varint(self) -> int:
        data, at = self._data, self.at
        byte = found = data[at]
        if byte >= 128:  # Few are; most numbers are small.
            found, shift = byte & 127, 7
            while byte >= 128 and shift <= 63:
                at += 1
                byte = data[at]
                found |= (byte & 127) << shift
                shift += 7
            if found >= 2**64 or byte >= 128:
                raise ValueError("a number of more than 64 bits")
        self.at = at + 1
        return found
