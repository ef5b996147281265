"""One Parquet file of somebody's, column by column: numbers, whole numbers, one value a network.

What a column must be whatever it is about; what its values must be to each other is a matter of
`pipeline.external.tables`.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import parquet_file, plain_file
from pipeline.external.mapping import Mapping

_MOST_BYTES = 2**29


class TableError(ValueError):
    """A table that cannot be imported: which, where in it, and what would work."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of one file that an import needs, and what names it in errors.

    Attributes:
        path: of the file.
        columns: by name.
        trial: name of the column that names a network.
        file: the file's name and sha256.
    """

    path: Path
    columns: dict[str, pa.Array]
    trial: str
    file: dict[str, str]

    @classmethod
    def read(
        cls, path: Path, mapping: Mapping, needed: list[str], optional: list[str | None]
    ) -> "Columns":
        """The columns that are needed, and of the settings those that are here."""
        try:
            with plain_file.opened(path) as source:
                content = source.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise TableError(f"{path}: must be smaller than {_MOST_BYTES:,} bytes")
            have = parquet_file.schema(io.BytesIO(content)).names
            wanted = {mapping.trial, *needed, *filter(None, optional)}
            missing = sorted(wanted - set(have))
            if missing:
                raise TableError(
                    f"{path}: columns missing: {', '.join(missing)}; there are "
                    f"{', '.join(have)}. Name yours in a mapping (--mapping FILE)"
                )
            twice = sorted({name for name in have if have.count(name) > 1})
            if twice:
                raise TableError(f"{path}: columns must have distinct names, twice: {twice[0]}")
            wanted |= set(mapping.settings) & set(have)
            table = parquet_file.read(io.BytesIO(content), sorted(wanted)).combine_chunks()
        except OSError as error:
            reason = error.strerror or brief(error)
            raise TableError(f"{path}: cannot be read as Parquet ({reason})") from error
        except (pa.ArrowException, ValueError, KeyError, MemoryError) as error:
            if isinstance(error, TableError):
                raise
            raise TableError(f"{path}: not a readable Parquet file ({brief(error)})") from error
        if table.num_rows == 0:
            raise TableError(f"{path}: holds no line")
        columns = {n: _whole(table[n]) for n in table.column_names}
        file = {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}
        return cls(path, columns, mapping.trial, file)

    def numbers(self, name: str) -> np.ndarray:
        """float64; NaN where a cell is empty."""
        kind = self.columns[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise TableError(f"{self.path}: column {name} must hold numbers, holds {kind}")
        # Whole numbers beyond 2^53 are rounded, as those of other programs are.
        column = self.columns[name].cast(pa.float64(), safe=False)
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)

    def whole(self, name: str, shift: int = 0, least: int = 0) -> np.ndarray:
        """int64, `shift` added."""
        values = self.numbers(name)
        bad = np.flatnonzero(~(np.isfinite(values) & (values == np.round(values))))
        if len(bad):
            raise TableError(
                f"{self.path}: column {name} must hold whole numbers, got {values[bad[0]]:g} in "
                f"line {bad[0]} of {self.trial} {self.columns[self.trial][int(bad[0])].as_py()!r}"
            )
        shifted = values + float(shift)
        low = np.flatnonzero((shifted < least) | (shifted > 2**31 - 1))
        if len(low):
            raise TableError(
                f"{self.path}: column {name} must be from {least} (after the shift of {shift:+d}) "
                f"to {2**31 - 1}, got {values[low[0]]:g}"
            )
        return shifted.astype(np.int64)

    def unit(self, named: str | None, column: str | None, known: tuple[str, ...]) -> str:
        """The one unit of all lines."""
        if column is None:
            assert named is not None, "the mapping names one of the two"
            return named
        found = self.columns[column].unique().to_pylist()
        strange = [str(unit) for unit in found if unit not in known]
        if strange:
            raise TableError(
                f"{self.path}: column {column} must say {' or '.join(known)}, got {strange[0]!r}"
            )
        if len(found) > 1:
            raise TableError(
                f"{self.path}: all lines must have one unit, but column {column} says "
                f"{' and '.join(sorted(found))}; convert them to one"
            )
        return str(found[0])

    def codes(self, names: list[Any]) -> np.ndarray:
        """Place of each line's network among `names`."""
        known = pa.array(names, type=self.columns[self.trial].type)
        return np.asarray(pc.index_in(self.columns[self.trial], known), dtype=np.int64)

    def of_each(self, name: str, names: list[Any]) -> dict[int, Any]:
        """The one value of a column for each network that has lines."""
        codes, column = self.codes(names), self.columns[name]
        if column.null_count or (
            pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py()
        ):
            empty = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
            raise TableError(
                f"{self.path}: column {name} has no value for {self.trial} "
                f"{names[codes[np.flatnonzero(empty)[0]]]!r}"
            )
        encoded = column.dictionary_encode()
        values = np.asarray(encoded.indices)
        order = np.argsort(codes, kind="stable")
        places, starts = np.unique(codes[order], return_index=True)
        low = np.minimum.reduceat(values[order], starts)
        high = np.maximum.reduceat(values[order], starts)
        if (low != high).any():
            i = int(np.flatnonzero(low != high)[0])
            two = [encoded.dictionary[int(v)].as_py() for v in (low[i], high[i])]
            raise TableError(
                f"{self.path}: column {name} must be one value for each {self.trial}, but "
                f"{names[places[i]]!r} has {two[0]!r} and {two[1]!r}"
            )
        return {
            int(i): encoded.dictionary[int(v)].as_py() for i, v in zip(places, low, strict=True)
        }


def brief(error: Exception) -> str:
    """The first line of an error, short enough to be read."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
