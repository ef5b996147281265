"""Counts what a sweep left behind, with none of our own code: SQL, folders and Parquet as they are.

Each trial must be there exactly once, in MLflow's tables, among the artifacts and in Optuna's
tables; every file whole and with the sha256 that its run names; every metric once and with the
value in the file; and all values those of a sweep that nothing disturbed.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# What two sweeps of the same settings do not share: name, moments and durations.
_TIMES = ["sweep", "seconds", "time_ms"]

# A trial whose cohort lost its worker twice is trained alone: other shapes, other roundings.
# Float64 leaves this much after some tens of epochs.
_CLOSE = 1e-9


@dataclass(frozen=True)
class Places:
    """Where a sweep was kept: URLs or files of the two databases, and the folder of artifacts."""

    name: str
    tracking: str
    artifacts: Path
    study: str


@dataclass
class Count:
    """What is wrong, by kind, and how many trials equal the undisturbed ones bit for bit."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    identical: int = 0
    close: int = 0

    @property
    def complaints(self) -> list[str]:
        return [
            f"{kind}: {text}"
            for kind in ("lost", "duplicated", "corrupt")
            for text in getattr(self, kind)
        ]


def count(places: Places, trials: int, reference: dict[int, pa.Table]) -> Count:
    """Examines a sweep of `trials` trials that is said to be complete.

    Args:
        reference: what an undisturbed sweep of the same settings measured, by trial.
    """
    found = Count()
    runs = _runs(places)
    files = [
        path
        for path in sorted(places.artifacts.rglob("trial-*.parquet"))
        if path.parent.parent.name in runs
    ]
    by_run = {path.parent.parent.name: path for path in files}
    if len(by_run) != len(files):
        found.duplicated.append("a run with two Parquet files")
    _exactly_once("MLflow run", [int(run["trial_number"]) for run in runs.values()], trials, found)
    _exactly_once("file", [int(p.stem.removeprefix("trial-")) for p in files], trials, found)
    told = _told(places)
    _exactly_once("trial told to Optuna", [number for number, *_ in told], trials, found)
    values = {number: value for number, _, value in told}
    for number, state, _ in told:
        if state != "COMPLETE":
            found.lost.append(f"trial {number} is {state} in Optuna")
    metrics = _metrics(places.tracking)
    for run_id, run in runs.items():
        number = int(run["trial_number"])
        if (run["status"], run["state"]) != ("FINISHED", "complete"):
            found.lost.append(f"run of trial {number} is {run['status']}, {run['state']}")
        elif run_id not in by_run:
            found.lost.append(f"run {run_id} of trial {number} has no file")
        else:
            path = by_run[run_id]
            table = _whole(path, run.get("sha256", ""), found)
            if table is not None:
                _same(number, table, reference[number], found)
                _in_metrics(number, table, metrics.get(run_id, []), found)
                header = json.loads(table.schema.metadata[b"lyapsweep.trial"])
                if header["trial"] != number or header["value"] != values.get(number):
                    found.corrupt.append(
                        f"{path} is of trial {header['trial']} with {header['value']}; its run is "
                        f"of {number}, and Optuna was told {values.get(number)}"
                    )
    for path in places.artifacts.rglob("*.tmp"):
        found.corrupt.append(f"{path} was left half written")
    return found


def tables(folder: Path) -> dict[int, pa.Table]:
    """Every trial's rows below a folder."""
    return {
        int(path.stem.removeprefix("trial-")): pq.read_table(path)
        for path in folder.rglob("*.parquet")
        if path.stem.removeprefix("trial-").isdigit()
    }


def _exactly_once(what: str, numbers: list[int], trials: int, found: Count) -> None:
    times = Counter(numbers)
    for number in sorted(set(range(trials)) | times.keys()):
        if times[number] == 0:
            found.lost.append(f"no {what} of number {number}")
        elif times[number] > 1 or number >= trials:
            found.duplicated.append(f"{times[number]} × {what} of number {number}")


def _whole(path: Path, sha256: str, found: Count) -> pa.Table | None:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        found.corrupt.append(f"{path} has not the sha256 that its run names, {sha256!r}")
    try:
        return pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        found.corrupt.append(f"{path} cannot be read: {error}")
        return None


def _same(number: int, table: pa.Table, expected: pa.Table, found: Count) -> None:
    ours, theirs = (one.drop_columns(_TIMES).to_pydict() for one in (table, expected))
    if repr(ours) == repr(theirs):
        found.identical += 1
        return
    keys = [list(zip(one["epoch"], one["quantity"], strict=True)) for one in (ours, theirs)]
    if len(set(keys[0])) != len(keys[0]):
        found.duplicated.append(f"trial {number} has a quantity of an epoch twice")
    elif keys[0] != keys[1]:
        found.lost.append(
            f"trial {number} has other rows than the undisturbed one: {len(keys[0])}, not "
            f"{len(keys[1])}; {sorted(set(keys[0]) ^ set(keys[1]))[:4]}"
        )
    else:
        furthest = max(
            float(np.max(np.abs(np.asarray(a) - b) / (np.abs(b) + 1e-3), initial=0))
            for a, b in zip(ours["values"], map(np.asarray, theirs["values"]), strict=True)
        )
        attempt = json.loads(table.schema.metadata[b"lyapsweep.trial"])["attempt"]
        if furthest > _CLOSE or attempt < 3:
            found.corrupt.append(
                f"trial {number} (attempt {attempt}) differs from the undisturbed one: {furthest:g}"
            )
        else:
            found.close += 1


def _in_metrics(number: int, table: pa.Table, metrics: list[tuple], found: Count) -> None:
    twice = [
        key for key, times in Counter((k, step) for k, step, _ in metrics).items() if times > 1
    ]
    if twice:
        found.duplicated.append(f"metrics of trial {number}: {twice[:3]} and {len(twice) - 1} more")
    losses = {step: value for key, step, value in metrics if key == "val_loss"}
    rows = zip(*(table[name].to_pylist() for name in ("quantity", "epoch", "values")), strict=True)
    for quantity, epoch, values in rows:
        if quantity == "val_loss" and losses.get(epoch) != values[0]:
            found.lost.append(
                f"val_loss of trial {number}, epoch {epoch}: {values[0]} in the file, "
                f"{losses.get(epoch)} among the metrics"
            )


def _runs(places: Places) -> dict[str, dict[str, str]]:
    """Every run of a trial of the sweep that is not deleted, with our tags."""
    found: dict[str, dict[str, str]] = {}
    for run_id, status, key, value in _rows(
        places.tracking,
        "SELECT runs.run_uuid, runs.status, tags.key, tags.value FROM runs "
        "JOIN tags ON tags.run_uuid = runs.run_uuid WHERE runs.lifecycle_stage = 'active'",
    ):
        run = found.setdefault(run_id, {"status": status})
        if key.startswith("lyapsweep."):
            run[key.removeprefix("lyapsweep.")] = value
    ours = {"kind": "trial", "sweep": places.name}.items()
    return {run_id: run for run_id, run in found.items() if ours <= run.items()}


def _metrics(database: str) -> dict[str, list[tuple]]:
    found: dict[str, list[tuple]] = {}
    for run_id, *metric in _rows(database, "SELECT run_uuid, key, step, value FROM metrics"):
        found.setdefault(run_id, []).append(tuple(metric))
    return found


def _told(places: Places) -> list[tuple[int, str, float | None]]:
    rows = _rows(
        places.study,
        "SELECT studies.study_name, trials.number, trials.state, trial_values.value FROM trials "
        "JOIN studies ON studies.study_id = trials.study_id "
        "LEFT JOIN trial_values ON trial_values.trial_id = trials.trial_id",
    )
    return [row for study, *row in rows if study.rpartition("-")[0] == places.name]


def _rows(database: str, query: str) -> Iterator[tuple[Any, ...]]:
    """From a PostgreSQL of this URL, or a SQLite file."""
    if database.startswith("postgresql://"):
        import psycopg

        with psycopg.connect(database) as connection:
            yield from connection.execute(query).fetchall()
        return
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        yield from connection.execute(query).fetchall()
