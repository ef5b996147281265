"""The one schema of what is stored: a row per (sweep, trial, epoch, quantity).

A trial is one Parquet file. Losses, scores and measurements are all quantities; scalars become
MLflow metrics as well. Row columns that say when and how long (`TIMING_COLUMNS`) may differ
between two runs of the same trial; every other column is the same bit for bit.

The file's schema metadata holds the trial's header (`TrialHeader`), so that one file says all
there is to know about a trial without a database.

Schema version 2; version 1 lacked the header's `pruned_at`, `epochs` and `epochs_planned`, and is
still read. A reader refuses newer versions and files that lack a column.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import parquet_file, plain_file
from pipeline.rows import Row

SCHEMA_VERSION = 2
HEADER_KEY = b"lyapsweep.trial"
VERSION_KEY = b"lyapsweep.schema_version"

TrialState = Literal["complete", "diverged", "pruned", "failed", "running", "interrupted"]
FINISHED = ("complete", "diverged", "pruned", "failed")
"""The states of trials that need no more training."""

SCHEMA = pa.schema(
    [
        pa.field("sweep", pa.string(), nullable=False),
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("update", pa.int64(), nullable=False),
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("axes", pa.list_(pa.string()), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("values", pa.list_(pa.float64()), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("error", pa.list_(pa.float64()), nullable=True),
        pa.field("marks", pa.list_(pa.uint8()), nullable=True),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("details", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=True),
        pa.field("time_ms", pa.int64(), nullable=False),
    ]
)
TIMING_COLUMNS = ("seconds", "time_ms")
# Whoever reads a file walks through all that is said of its columns: least and largest values,
# which nobody asks for, and dictionaries of numbers, which hardly repeat, would double that.
_REPEATING = ["sweep", "quantity", "unit", "details", "axes.list.element", "flags.list.element"]


class RecordError(ValueError):
    """A record file that cannot be trusted: corrupt, incomplete or of a newer schema."""


@dataclass(frozen=True)
class TrialHeader:
    """What a trial was and how it ended.

    Attributes:
        sweep: name of the sweep.
        trial: number, 0, 1, …
        trial_uid: `<sweep id>/<number>`, unique across stores.
        seed: the trial's own seed.
        state: complete, diverged (a result), pruned, failed (an exception, or lost workers); of
            trials that no store has a record of yet, running or interrupted.
        params: every resolved setting by dotted name.
        sampled: names of those params that were sampled.
        value: what the sampler was told, finite; None for failed trials. Of a pruned trial it is
            the validation loss at the epoch where it left, and not comparable with a final one.
        diverged_at: update at which the trial diverged, or None.
        pruned_at: epoch after which a pruned trial left, or None.
        epochs: trained until it ended, or None in files of version 1.
        epochs_planned: of a trial that runs to its end, or None in files of version 1.
        attempt: 1 for the first run of this trial.
        start_ms, end_ms: milliseconds since 1970 UTC.
        error: traceback of a failed trial, or None.
        provenance: versions, host, device, dtype, data fingerprint.
    """

    sweep: str
    trial: int
    trial_uid: str
    seed: int
    state: TrialState
    params: dict[str, Any]
    sampled: tuple[str, ...]
    value: float | None
    diverged_at: int | None = None
    pruned_at: int | None = None
    epochs: int | None = None
    epochs_planned: int | None = None
    attempt: int = 1
    start_ms: int = 0
    end_ms: int = 0
    error: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialRecord:
    """A trial's header and its rows as an Arrow table of `SCHEMA`."""

    header: TrialHeader
    table: pa.Table


def to_table(sweep: str, trial: int, rows: Iterable[Row]) -> pa.Table:
    """Rows of one trial as a table of `SCHEMA`, in the order given."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        values = np.asarray(row.values, dtype=np.float64)
        columns["sweep"].append(sweep)
        columns["trial"].append(trial)
        columns["epoch"].append(row.epoch)
        columns["update"].append(row.update)
        columns["quantity"].append(row.quantity)
        columns["axes"].append(list(row.axes))
        columns["shape"].append(list(values.shape))
        columns["values"].append(values.ravel())
        columns["unit"].append(row.unit)
        columns["error"].append(None if row.error is None else np.ravel(row.error))
        columns["marks"].append(
            None if row.marks is None else np.ravel(row.marks).astype(np.uint8).tolist()
        )
        columns["flags"].append(list(row.flags))
        columns["details"].append(json.dumps(row.details, sort_keys=True))
        columns["seconds"].append(row.seconds)
        columns["time_ms"].append(row.time_ms)
    return pa.table(columns, schema=SCHEMA)


def to_rows(table: pa.Table, quantities: Iterable[str]) -> list[Row]:
    """The rows of some quantities again, as they went into `to_table`."""
    wanted = table.filter(pc.is_in(table["quantity"], pa.array(list(quantities), pa.string())))
    return [
        Row(
            epoch=row["epoch"],
            update=row["update"],
            quantity=row["quantity"],
            values=_shaped(row["values"], row["shape"]),
            axes=tuple(row["axes"]),
            unit=row["unit"],
            error=None if row["error"] is None else _shaped(row["error"], row["shape"]),
            marks=None if row["marks"] is None else _shaped(row["marks"], row["shape"], np.uint8),
            flags=tuple(row["flags"]),
            details=json.loads(row["details"]),
            seconds=row["seconds"],
            time_ms=row["time_ms"],
        )
        for row in wanted.to_pylist()
    ]


def _shaped(values: list[Any], shape: list[int], dtype: Any = np.float64) -> np.ndarray:
    return np.asarray(values, dtype=dtype).reshape(shape)


def write(record: TrialRecord, path: Path) -> None:
    """Writes a trial's file atomically: temporary name, fsync, rename, fsync of the folder."""
    metadata = {
        VERSION_KEY: str(SCHEMA_VERSION).encode(),
        HEADER_KEY: json.dumps(asdict(record.header), sort_keys=True).encode(),
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as sink:
            pq.write_table(
                record.table.replace_schema_metadata(metadata),
                sink,
                compression="zstd",
                write_page_checksum=True,
                use_dictionary=_REPEATING,
                write_statistics=False,
            )
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> TrialRecord:
    """Reads one trial's file. Raises RecordError naming the file and what is wrong with it."""
    try:
        # By file object: of a path, pyarrow would take folders named a=b for columns.
        with plain_file.opened(path) as source:
            table = parquet_file.read(source)
        names = table.schema.names
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise RecordError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error
    metadata = table.schema.metadata or {}
    _check_version(path, metadata)
    if HEADER_KEY not in metadata:
        raise RecordError(f"{path}: no trial header; this is not a lyapsweep record")
    missing = [name for name in SCHEMA.names if name not in names]
    if missing:
        raise RecordError(f"{path}: columns missing: {', '.join(missing)}")
    try:
        header = header_from_json(metadata[HEADER_KEY].decode())
        table = to_schema(table)
        check_rows(table, header.trial)
    except (pa.ArrowException, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordError(
            f"{path}: not of schema {SCHEMA_VERSION} ({_first_line(error)})"
        ) from error
    return TrialRecord(header, table)


def read_header(path: Path) -> TrialHeader:
    """A file's header without its rows, which are not looked at. Raises RecordError."""
    try:
        with plain_file.opened(path) as source:
            metadata = parquet_file.schema(source).metadata or {}
        _check_version(path, metadata)
        return header_from_json(metadata[HEADER_KEY].decode())
    except FileNotFoundError:
        raise
    except RecordError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordError(f"{path}: no trial header ({_first_line(error)})") from error


def header_from_json(text: str) -> TrialHeader:
    """The header as stored. Raises ValueError or TypeError for a field that is unknown or wrong."""
    fields = plain_file.tree_of(text)
    fields["sampled"] = tuple(fields["sampled"])
    header = TrialHeader(**fields)
    for name, kinds, may_lack in _HEADER_FIELDS:
        value = fields.get(name)
        if name not in fields or (may_lack and value is None):
            continue
        # A bool is an int to Python, never to us.
        if type(value) not in kinds or (int in kinds and not -(2**63) <= value < 2**63):
            raise ValueError(f"header's {name} cannot be {str(value)[:80]!r}")
    if header.state not in get_args(TrialState) or not 0 <= header.trial < 2**31:
        raise ValueError(f"header's state {header.state!r} or trial {header.trial} is none of ours")
    if not all(type(name) is str for name in header.sampled) or set(header.sampled) - set(
        header.params
    ):
        raise ValueError("header's sampled must name params")
    return header


_HEADER_FIELDS: tuple[tuple[str, tuple[type, ...], bool], ...] = (
    *((name, (str,), False) for name in ("sweep", "trial_uid", "state")),
    *((name, (int,), False) for name in ("trial", "seed", "attempt", "start_ms", "end_ms")),
    *((name, (int,), True) for name in ("diverged_at", "pruned_at", "epochs", "epochs_planned")),
    ("value", (float, int), True),
    ("error", (str,), True),
    ("params", (dict,), False),
    ("provenance", (dict,), False),
)


def to_schema(table: pa.Table) -> pa.Table:
    """The columns of `SCHEMA`. Raises pa.ArrowException, ValueError, KeyError."""
    table = table.select(SCHEMA.names).replace_schema_metadata(None)
    # Of ten thousand files read, a cast to what they are already takes a third of the time.
    table = table if table.schema.equals(SCHEMA) else table.cast(SCHEMA)
    table.validate(full=True)
    return table


def check_rows(table: pa.Table, trial: int) -> None:
    """That rows hold together, so that whoever uses them need not ask. Raises ValueError."""
    table = table.combine_chunks()
    for name in SCHEMA.names:
        column = table[name]
        if not SCHEMA.field(name).nullable and column.null_count:
            raise ValueError(f"column {name} has empty cells")
        if pa.types.is_list(column.type) and pc.list_flatten(column).null_count:
            raise ValueError(f"lists of column {name} have empty places")
    if pc.any(pc.not_equal(table["trial"], trial)).as_py():
        raise ValueError(f"column trial must be {trial}, as the header says")
    shapes, _, ends = _flat(table["shape"])
    if (shapes < 0).any():
        raise ValueError("column shape has a negative length")
    # One before each: products from a row's first length on, 1 for a scalar.
    counts = pc.list_value_length(table["shape"]).to_numpy()
    starts = ends - counts + np.arange(len(counts))
    padded = np.insert(shapes.astype(np.float64), ends - counts, 1.0)
    sizes = np.multiply.reduceat(padded, starts) if len(starts) else padded
    for name in ("values", "error", "marks"):
        lengths = pc.list_value_length(table[name]).to_numpy(zero_copy_only=False)
        if not np.all(np.isnan(lengths) | (lengths == sizes) if name != "values"
                      else lengths == sizes):  # fmt: skip
            raise ValueError(f"column {name} must hold as many numbers as its shape has places")
    if not np.array_equal(pc.list_value_length(table["axes"]).to_numpy(), counts):
        raise ValueError("column axes must name every axis of the shape")
    for text in pc.unique(table["details"]).to_pylist():
        if not isinstance(plain_file.tree_of(text), dict):
            raise ValueError("column details must hold JSON objects")


def _check_version(path: Path, metadata: dict[bytes, bytes]) -> None:
    text = metadata.get(VERSION_KEY, b"").decode(errors="replace")
    if not text.isdigit():
        raise RecordError(f"{path}: no schema version; this is not a lyapsweep record")
    if int(text) > SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema version {text} is newer than this program reads "
            f"({SCHEMA_VERSION}); upgrade lyapsweep"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def scalars(table: pa.Table) -> pd.DataFrame:
    """Scalar quantities, one row each: sweep, trial, epoch, update, quantity, value, unit, …

    Columns: sweep, trial, epoch, update, quantity, value, error, unit, flags, seconds.
    """
    frame = table.filter(pc.equal(pc.list_value_length(table["shape"]), 0))
    return pd.DataFrame(
        {
            "sweep": frame["sweep"].to_pandas(),
            "trial": frame["trial"].to_pandas(),
            "epoch": frame["epoch"].to_pandas(),
            "update": frame["update"].to_pandas(),
            "quantity": frame["quantity"].to_pandas(),
            "value": firsts(frame["values"]),
            "error": firsts(frame["error"]),
            "unit": frame["unit"].to_pandas(),
            "flags": frame["flags"].to_pylist(),
            "seconds": frame["seconds"].to_pandas(),
        }
    )


def tidy(table: pa.Table, quantity: str) -> pd.DataFrame:
    """One quantity, one line a value, with a column of indices for each axis.

    Columns: sweep, trial, epoch, update, <axis names…>, value, error, mark. Raises KeyError
    where the table has no such quantity.
    """
    frame = table.filter(pc.equal(table["quantity"], quantity))
    if frame.num_rows == 0:
        raise KeyError(f"no quantity {quantity!r} in these records")
    parts = []
    for row in frame.to_pylist():
        size = math.prod(row["shape"])
        if size != len(row["values"]) or size == 0:
            continue
        index = np.unravel_index(np.arange(size), row["shape"]) if row["shape"] else ()
        parts.append(
            pd.DataFrame(
                {
                    "sweep": row["sweep"],
                    "trial": row["trial"],
                    "epoch": row["epoch"],
                    "update": row["update"],
                    **dict(zip(row["axes"], index, strict=True)),
                    "value": row["values"],
                    "error": row["error"] or [math.nan] * size,
                    "mark": row["marks"] or [0] * size,
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def arrays(table: pa.Table) -> list[np.ndarray]:
    """Values of each row in their shape. They share their memory."""
    flat, starts, ends = _flat(table["values"])
    shapes = table["shape"].to_pylist()
    return [
        flat[start:end].reshape(shape)
        for start, end, shape in zip(starts, ends, shapes, strict=True)
    ]


def firsts(lists: pa.ChunkedArray) -> np.ndarray:
    """The first number of each list; NaN where there is none."""
    flat, starts, ends = _flat(lists)
    found = np.full(len(lists), math.nan)
    found[starts < ends] = flat[starts[starts < ends]]
    return found


def _flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All numbers of a column of lists, and where those of each begin and end."""
    flat = pc.list_flatten(lists).to_numpy()
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    ends = np.cumsum(sizes)
    return flat, ends - sizes, ends


def content_hash(table: pa.Table) -> str:
    """sha256 over everything but the timing columns: equal for equal results.

    NaN payloads are normalised, so that any NaN equals any other.
    """
    digest = hashlib.sha256()
    for name in SCHEMA.names:
        if name in TIMING_COLUMNS or name == "sweep":
            continue
        column = table[name].to_pylist()
        digest.update(name.encode())
        digest.update(json.dumps(column, allow_nan=True, default=str).encode())
    return digest.hexdigest()
