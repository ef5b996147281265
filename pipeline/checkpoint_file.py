"""One checkpoint as files: arrays and what they are, and rows. Read as if a stranger wrote them.

A safetensors file holds the arrays; in its metadata stand `Facts` and a sha256 over all of it, and
the facts name files of rows by their sha256. Whatever does not fit together is refused with a
CheckpointError; links and pipes are not followed, and nothing is ever unpickled.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from pipeline import parquet_file, records
from pipeline.rows import Row
from pipeline.spending import Spent

FORMAT = 1
_FACTS, _SHA = "lyapsweep.checkpoint", "lyapsweep.sha256"
_STATE_NAME = re.compile(r"epoch-(\d{5,9})\.safetensors")
_LARGEST_HEADER = 1 << 24


Count = Annotated[int, Field(ge=0, le=2**53)]
"""What every column and every reader of JSON can hold."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted; the text says which and why."""


@dataclass(frozen=True)
class Segment:
    """A file of rows: those of epochs up to `epoch` that no segment before it has."""

    epoch: Count
    sha256: str


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside its arrays.

    Attributes:
        key: of the sweep and the cohort.
        segments: files of rows, the oldest first.
        resumed_at: epochs from which the cohort was taken up before.
        start_ms: when each trial was begun first.
        others: as of `Snapshot`.
    """

    format: int
    key: str
    epoch: Count
    update: Count
    numbers: tuple[Count, ...]
    diverged_at: dict[Count, Count]
    spent: Spent
    segments: tuple[Segment, ...]
    resumed_at: tuple[Count, ...]
    start_ms: dict[Count, Count]


_FACTS_TYPE = TypeAdapter(Facts)


def packed(arrays: Mapping[str, np.ndarray], facts: Facts) -> bytes:
    """A checkpoint as the bytes of its safetensors file."""
    from safetensors.numpy import save

    text = _FACTS_TYPE.dump_json(facts).decode()
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {_FACTS: text, _SHA: _digest(whole, text)}
    packed: bytes = save(whole, metadata)
    return packed


def unpacked(data: bytes) -> tuple[dict[str, np.ndarray], Facts]:
    """Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 0 < length <= min(len(data) - 8, _LARGEST_HEADER):
        raise CheckpointError("its header is longer than the file or than any of ours")
    try:
        arrays: dict[str, np.ndarray] = load(data)
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        text, sha = str(metadata[_FACTS]), metadata[_SHA]
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"no safetensors file of ours ({_brief(error)})") from error
    if _digest(arrays, text) != sha:
        raise CheckpointError("its content does not match its sha256")
    try:
        facts = _FACTS_TYPE.validate_json(text, strict=True)
    except (ValidationError, RecursionError) as error:
        raise CheckpointError(f"what it says of itself is malformed ({_brief(error)})") from error
    if facts.format != FORMAT:
        raise CheckpointError(f"it is of format {facts.format}, this program reads {FORMAT}")
    return arrays, facts


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_rows(folder: Path, epoch: int, rows: Mapping[int, list[Row]]) -> Segment:
    """Writes one file of rows, by trial number; durable but for its name. Raises OSError."""
    tables = [records.to_table("", number, found) for number, found in sorted(rows.items())]
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    data = sink.getvalue()
    write(folder / _rows_name(epoch), data)
    return Segment(epoch, hashlib.sha256(data).hexdigest())


def read_rows(folder: Path, facts: Facts, due: Collection[int]) -> dict[int, list[Row]]:
    """Rows of trials that are due, by number. Raises CheckpointError, OSError."""
    rows: dict[int, list[Row]] = {number: [] for number in due}
    before = 0
    for segment in facts.segments:
        if not before < segment.epoch <= facts.epoch:
            raise CheckpointError("its files of rows do not follow one another")
        path = folder / _rows_name(segment.epoch)
        data = bytes_of(path)
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            raise CheckpointError(f"{path.name} does not match its sha256")
        try:
            table = records.to_schema(parquet_file.read(io.BytesIO(data)))
            for number, found in rows.items():
                mine = table.filter(pc.equal(table["trial"], number))
                found += records.to_rows(mine, mine["quantity"].unique().to_pylist())
        except (
            pa.ArrowException,
            ValueError,
            TypeError,
            KeyError,
            OSError,
            RecursionError,
        ) as error:
            raise CheckpointError(f"{path.name} has no rows of ours ({_brief(error)})") from error
        before = segment.epoch
    for number, found in rows.items():
        epochs = [row.epoch for row in found if row.quantity == "val_loss"]
        if epochs != list(range(facts.epoch + 1)) or max(r.epoch for r in found) > facts.epoch:
            raise CheckpointError(f"its rows of trial {number} are not those of every epoch, once")
    return rows


def state_name(epoch: int) -> str:
    """Of the file of arrays."""
    return f"epoch-{epoch:05d}.safetensors"


def _rows_name(epoch: int) -> str:
    return f"rows-{epoch:05d}.parquet"


def states(folder: Path) -> list[Path]:
    """The files of arrays in a folder."""
    return [path for path in folder.iterdir() if _STATE_NAME.fullmatch(path.name)]


def is_folder(path: Path) -> bool:
    """False for links, which lead elsewhere."""
    return path.is_dir() and not path.is_symlink()


def bytes_of(path: Path) -> bytes:
    """Of a plain file: neither a link, which may lead anywhere, nor a pipe, which never ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{path.name} must be a file")
        with os.fdopen(descriptor, "rb", closefd=False) as source:
            return source.read()
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes) -> None:
    """Whole or not at all; under its name from the moment the folder is synced."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Makes the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """A file, a folder or a link, as far as it goes: what stays does no harm."""
    try:
        if is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logging.getLogger("lyapsweep").warning("%s: cannot be removed (%s)", path, error.strerror)


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
