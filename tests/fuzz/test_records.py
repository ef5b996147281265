"""Records of trials that a stranger wrote: in a spool, beside it, in a folder."""

import dataclasses
import json
import os

import pytest
from hypothesis import strategies as st

from pipeline import records
from pipeline.home import Home
from pipeline.records import RecordError
from pipeline.store import SweepInfo
from pipeline.unfinished import Showcase, unfinished
from tests.fuzz import parquet
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import RAW, STEPS, bytes_of, json_of, tree_of
from tests.pipeline.stored import NAME, ROWS, info, spool

KINDS = ("table", "header", "bytes", "bytes", "raw")
CASES = st.tuples(st.sampled_from(KINDS), STEPS, RAW)


def valid(folder):
    path = spool(folder, rows=ROWS * 2)
    return path, path.read_bytes(), records.read(path)


def table_of(record):
    """With its metadata, as written."""
    metadata = {
        records.VERSION_KEY: str(records.SCHEMA_VERSION).encode(),
        records.HEADER_KEY: json.dumps(dataclasses.asdict(record.header)).encode(),
    }
    return record.table.replace_schema_metadata(metadata)


def made(case, blob, record):
    kind, steps, raw = case
    if kind == "raw":
        return (b"PAR1" + raw + b"PAR1") if len(raw) % 2 else raw
    if kind == "bytes":
        return bytes_of(blob, steps)
    table = table_of(record)
    if kind == "header":
        header = tree_of(json.loads(table.schema.metadata[records.HEADER_KEY]), steps)
        metadata = {
            records.VERSION_KEY: b"2",
            records.HEADER_KEY: json_of(header).encode(errors="surrogatepass"),
        }
        return parquet.written(table.replace_schema_metadata(metadata))
    keys = (records.HEADER_KEY, records.VERSION_KEY)
    return parquet.written(parquet.changed(table, steps, keys))


def right(record):
    """All that is ever done with a record can be done with this one."""
    assert record.table.schema.equals(records.SCHEMA)
    header = record.header
    again = records.header_from_json(json.dumps(dataclasses.asdict(header)))
    assert repr(again) == repr(header)
    assert header.state in ("complete", "diverged", "pruned", "failed", "running", "interrupted")
    records.scalars(record.table)
    assert len(records.arrays(record.table)) == record.table.num_rows
    names = record.table["quantity"].unique().to_pylist()
    assert len(records.to_rows(record.table, names)) == record.table.num_rows
    for name in names[:3]:
        records.tidy(record.table, name)
    records.content_hash(record.table)


@pytest.mark.parametrize("count", [250, pytest.param(14_000, marks=pytest.mark.slow)])
def test_records(sandbox, try_many, count):
    path, blob, record = valid(sandbox)
    right(record)
    guard = Guard(sandbox, "records", RecordError)

    def check(case):
        path.write_bytes(made(case, blob, record))
        found = guard(lambda: records.read(path), says=str(path))
        if found is not None:
            right(found)

    try_many(CASES, count, check)


@pytest.mark.parametrize("what", parquet.PLANTED)
def test_a_planted_record_does_nothing(sandbox, what):
    path, _, record = valid(sandbox)
    guard = Guard(sandbox, "planted as records", RecordError)
    path.write_bytes(parquet.planted(table_of(record), what, guard.outside))
    found = guard(lambda: records.read(path), says=str(path))
    if found is not None:
        assert what in ("a pickle for an extension type", "a pickle as metadata", "no row")
        right(found)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file_is_no_record(sandbox, kind):
    path = sandbox / "trial-00000.parquet"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    assert (
        Guard(sandbox, "planted as records", RecordError)(
            lambda: records.read(path), says=str(path)
        )
        is None
    )


@pytest.mark.parametrize("count", [80, pytest.param(5_000, marks=pytest.mark.slow)])
def test_spools_and_what_lies_beside_them(sandbox, try_many, count):
    home = Home(sandbox, NAME)
    home.create()
    _, blob, record = valid(sandbox)
    showcase = Showcase(home)
    showcase.note()
    showing = dataclasses.replace(record.header, state="running", value=None)
    showcase.show([showing], {0: ROWS})
    beside = home.unfinished.read_bytes()
    spooled = home.spool_path(0)
    about = SweepInfo(**{**dataclasses.asdict(info()), "sweep_id": f"id-{NAME}"})
    assert len(unfinished(about, home)) == 1
    guard = Guard(sandbox, "spool files", RecordError)

    def check(case):
        (is_spooled, kind), steps, raw = case
        spooled.unlink(missing_ok=True)
        home.unfinished.write_bytes(beside)
        if is_spooled:
            spooled.write_bytes(made((kind, steps, raw), blob, record))
        elif kind in ("bytes", "raw"):
            home.unfinished.write_bytes(bytes_of(beside, steps) if kind == "bytes" else raw)
        else:
            table = parquet.pq.read_table(parquet.io.BytesIO(beside))
            changed = parquet.changed(table, steps, (b"lyapsweep.unfinished",))
            home.unfinished.write_bytes(parquet.written(changed))
        found = guard(lambda: unfinished(about, home), says=str(home.folder))
        for one in found or ():
            right(one)
            assert one.header.trial_uid == f"id-{NAME}/{one.header.trial}"

    kinds = st.tuples(st.booleans(), st.sampled_from(KINDS))
    try_many(st.tuples(kinds, STEPS, RAW), count, check)
