"""All records of a sweep in a few files beside its trials: what the analysis reads at once.

Kept with the sweep under `compact/`:

part-00000-<sha>.parquet     rows of the trials 0 to 999, and so on; `records.SCHEMA`
headers-<sha>.parquet        a line a trial: its number and its header as JSON
compact.json                 names, sizes and sha256 of these; attached last

The trials' own files stay where they are, so that there is no moment without either. A trial that
ends later is read from its own file until the sweep is compacted again; parts that did not change
keep their names. What does not fit its checksum is not used.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import parquet_file, plain_file, records
from pipeline.records import FINISHED, RecordError, TrialRecord
from pipeline.store import Store, SweepInfo

FOLDER, MANIFEST, FORMAT = "compact", "compact.json", 1
TRIALS_A_PART = 1000
# Above this share of trials that are not in the parts, all are read from their own files.
_MOST_MISSING = 0.1
_MOST_BYTES = 2**32  # of a part: a thousand trials with large spectra
_HEADERS = pa.schema([("trial", pa.int32()), ("header", pa.string())])

Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Compacted:
    """How many trials, files and bytes the parts hold."""

    num_trials: int
    num_files: int
    num_bytes: int


def compact(store: Store, name: str, listener: Listener = lambda done, total: None) -> Compacted:
    """Writes the parts anew from the trials' own files. Raises StoreError, RecordError, OSError."""
    info = store.sweep(name)
    total = sum(state in FINISHED for state in store.states(name).values())
    with tempfile.TemporaryDirectory(prefix="lyapsweep-") as root:
        folder = Path(root)
        numbers: list[int] = []
        headers: list[str] = []
        files: dict[str, dict[str, Any]] = {}
        for part, group in _groups(store.records(name)):
            tables = []
            for record in group:
                listener(len(numbers), total)
                numbers.append(record.header.trial)
                headers.append(json.dumps(asdict(record.header), sort_keys=True))
                tables.append(record.table)
            _keep(pa.concat_tables(tables), folder, f"part-{part:05d}", files)
        _keep(pa.table([numbers, headers], schema=_HEADERS), folder, "headers", files)
        listener(len(numbers), total)
        for file in files:
            store.attach(name, folder / file, FOLDER)
        manifest = {"format": FORMAT, "sweep_id": info.sweep_id, "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        store.attach(name, folder / MANIFEST, FOLDER)
    return Compacted(len(numbers), len(files), sum(f["bytes"] for f in files.values()))


def all_records(store: Store, name: str) -> Iterator[TrialRecord]:
    """As `Store.records`, from the parts where there are any. Raises as that does."""
    info = store.sweep(name)
    try:
        found = _load(store, info)
    except (RecordError, KeyError) as error:
        logging.getLogger("lyapsweep").warning("%s: not used (%s)", f"{name}/{FOLDER}", error)
        found = {}
    if not found:
        yield from store.records(name)
        return
    finished = [n for n, state in store.states(name).items() if state in FINISHED]
    missing = [n for n in finished if n not in found]
    if len(missing) > _MOST_MISSING * len(finished):
        yield from store.records(name)
        return
    for number in finished:
        yield found.pop(number) if number in found else store.record(name, number)


def _groups(found: Iterator[TrialRecord]) -> Iterator[tuple[int, list[TrialRecord]]]:
    """Records in order of their numbers, by the part that each belongs to."""
    part, group = 0, list[TrialRecord]()
    for record in found:
        if record.header.trial // TRIALS_A_PART != part:
            if group:
                yield part, group
            part, group = record.header.trial // TRIALS_A_PART, []
        group.append(record)
    if group:
        yield part, group


def _keep(table: pa.Table, folder: Path, stem: str, files: dict[str, dict[str, Any]]) -> None:
    path = folder / f"{stem}.parquet"
    pq.write_table(
        table.replace_schema_metadata(None), path, compression="zstd", write_page_checksum=True
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    final = path.rename(folder / f"{stem}-{digest[:12]}.parquet")
    files[final.name] = {"bytes": final.stat().st_size, "sha256": digest}


def _load(store: Store, info: SweepInfo) -> dict[int, TrialRecord]:
    """Trial number → record, {} where nothing was compacted. Raises RecordError, KeyError."""
    if f"{FOLDER}/{MANIFEST}" not in store.attached(info.name, FOLDER):
        return {}
    with tempfile.TemporaryDirectory(prefix="lyapsweep-") as root:
        folder = Path(root)
        store.fetch(info.name, f"{FOLDER}/{MANIFEST}", folder / MANIFEST)
        files = _manifest(folder / MANIFEST, info)
        tables: list[pa.Table] = []
        headers: dict[int, records.TrialHeader] = {}
        for file, entry in files.items():
            path = folder / file
            store.fetch(info.name, f"{FOLDER}/{file}", path)
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                raise RecordError(f"{file}: corrupt, its sha256 is not the one recorded")
            with plain_file.opened(path) as source:
                table = parquet_file.read(source, most=_MOST_BYTES)
            if file.startswith("headers"):
                headers = _headers(table, info)
            else:
                tables.append(records.to_schema(table))
    # A trial that failed at once has no rows, and is in no part.
    empty = records.SCHEMA.empty_table()
    found = {number: TrialRecord(header, empty) for number, header in headers.items()}
    for table in tables:
        ends = pc.run_end_encode(table["trial"].combine_chunks())
        start = 0
        for number, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
            found[number] = TrialRecord(headers[number], table.slice(start, end - start))
            start = end
    return found


def _manifest(path: Path, info: SweepInfo) -> dict[str, dict[str, Any]]:
    try:
        content = plain_file.json_of(path)
        if content["format"] != FORMAT or content["sweep_id"] != info.sweep_id:
            raise RecordError(f"{MANIFEST}: of format {content['format']} or of another sweep")
        files = dict(content["files"])
        if any("/" in file or not file.endswith(".parquet") for file in files):
            raise RecordError(f"{MANIFEST}: names files that have no place there")
    except RecordError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{MANIFEST}: not a manifest ({error})") from error
    return files


def _headers(table: pa.Table, info: SweepInfo) -> dict[int, records.TrialHeader]:
    found = {}
    for number, text in zip(table["trial"].to_pylist(), table["header"].to_pylist(), strict=True):
        try:
            header = records.header_from_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise RecordError(f"headers: not a header of ours ({error})") from error
        if header.trial != number or header.trial_uid != f"{info.sweep_id}/{number}":
            raise RecordError(f"headers: {number} is of another sweep ({header.trial_uid})")
        found[number] = header
    return found
