"""What has come of trials that are not published yet, for whoever asks while a sweep runs.

A store hears of a trial when it ends. Until then the driver keeps, beside its spool, one file with
all rows of the trials in training, `<sweep>/unfinished.parquet`, written anew every few seconds,
seldom enough to cost a thirtieth of its time at most. It is for looking only: nothing is resumed
from it, so that it need not survive a power cut, and what a dead driver left is true of its day.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import parquet_file, plain_file, records
from pipeline.home import Home
from pipeline.records import RecordError, TrialHeader, TrialRecord
from pipeline.rows import Row
from pipeline.store import SweepInfo

SECONDS = 2.0
"""Between two writings, at least."""
_SHARE = 30
_KEY = b"lyapsweep.unfinished"


class Showcase:
    """The file of one driver."""

    def __init__(self, home: Home) -> None:
        self._path = home.unfinished
        self._is_new = False
        self._next = 0.0

    def note(self) -> None:
        """Something has come that the file does not show."""
        self._is_new = True

    def show(self, headers: Iterable[TrialHeader], rows: Mapping[int, list[Row]]) -> None:
        """Writes the file where something is new and it is time; removes it where none trains."""
        started, is_training = time.monotonic(), any(rows.values())
        if not self._is_new or (is_training and started < self._next):
            return
        # A disk that is full is no reason to stop: what matters is written elsewhere.
        with contextlib.suppress(OSError):
            if is_training:
                self._write([header for header in headers if rows[header.trial]], rows)
            else:
                self._path.unlink(missing_ok=True)
        self._is_new = False
        now = time.monotonic()
        self._next = now + max(SECONDS, _SHARE * (now - started))

    def _write(self, headers: list[TrialHeader], rows: Mapping[int, list[Row]]) -> None:
        tables = [records.to_table(h.sweep, h.trial, rows[h.trial]) for h in headers]
        content = json.dumps([asdict(header) for header in headers])
        table = pa.concat_tables(tables).replace_schema_metadata({_KEY: content.encode()})
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)


def unfinished(info: SweepInfo, home: Home) -> list[TrialRecord]:
    """Trials of a sweep that a driver here has not published: those spooled, those in training.

    Of a sweep that is driven from elsewhere there are none. A trial in training has the state
    `running`, or `interrupted` where no driver runs. Ask before the store is read: a trial that is
    published meanwhile is then met twice, and the store's record counts. Raises RecordError.
    """
    found = {record.header.trial: record for record in _in_training(home)}
    for path in sorted(home.spool.glob("trial-*.parquet")):
        # Published since the folder was listed.
        with contextlib.suppress(FileNotFoundError):
            record = records.read(path)
            found[record.header.trial] = record
    return [
        record
        for number, record in sorted(found.items())
        if record.header.trial_uid == f"{info.sweep_id}/{number}"
    ]


def _in_training(home: Home) -> list[TrialRecord]:
    path = home.unfinished
    try:
        with plain_file.opened(path) as source:
            table = parquet_file.read(source)
        content = plain_file.tree_of((table.schema.metadata or {})[_KEY])
        headers = [records.header_from_json(json.dumps(fields)) for fields in content]
        table = records.to_schema(table)
        numbers = table["trial"].to_numpy()
        found = [TrialRecord(h, table.filter(pa.array(numbers == h.trial))) for h in headers]
        for record in found:
            records.check_rows(record.table, record.header.trial)
    except FileNotFoundError:
        return []
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecordError(f"{path}: not what a driver writes ({brief}); delete it") from error
    if home.is_locked():
        return found
    return [replace(one, header=replace(one.header, state="interrupted")) for one in found]
