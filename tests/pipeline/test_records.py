import dataclasses
import json
import math
import os
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import records
from pipeline.records import RecordError, TrialHeader, TrialRecord
from pipeline.rows import Row

HEADER = TrialHeader(
    sweep="s",
    trial=3,
    trial_uid="abc/3",
    seed=2**62,
    state="complete",
    params={"network.units": 4, "trainer.learning_rate": 1e-3, "a": None, "b": True, "c": "λ"},
    sampled=("trainer.learning_rate",),
    value=0.25,
    start_ms=1,
    end_ms=2,
    provenance={"torch": "2", "chance_loss": 0.7},
)


def a_record(rows=None):
    rows = ROWS if rows is None else rows
    return TrialRecord(HEADER, records.to_table("s", 3, rows))


ROWS = [
    Row(0, 0, "val_loss", np.array(0.7), unit="nats", time_ms=5),
    Row(1, 10, "val_loss", np.array(math.nan), flags=("diverged",), seconds=0.5, time_ms=6),
    Row(
        1,
        10,
        "lyapunov.spectrum",
        np.arange(3.0),
        axes=("index",),
        unit="nats/step",
        error=np.array([0.1, math.nan, 0.3]),
        marks=np.array([0, 4, 1]),
        details={"steps": 10, "state": "full"},
        time_ms=7,
    ),
    Row(1, 10, "ftle.field", np.arange(6.0).reshape(2, 3), axes=("layer", "point"), time_ms=8),
]

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def rows_of_any_kind(draw):
    shape = draw(_SHAPES)
    floats = hnp.arrays(np.float64, shape, elements=st.floats(allow_nan=True, allow_infinity=True))
    marks = hnp.arrays(np.uint8, shape)
    return Row(
        epoch=draw(st.integers(0, 2**31 - 1)),
        update=draw(st.integers(0, 2**63 - 1)),
        quantity=draw(st.text(min_size=1, max_size=9)),
        values=draw(floats),
        axes=tuple(f"axis{i}" for i in range(len(shape))),
        unit=draw(st.sampled_from(["1", "nats", "nats/step"])),
        error=draw(st.none() | floats),
        marks=draw(st.none() | marks),
        flags=tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
        details=draw(st.dictionaries(st.text(max_size=4), st.none() | st.integers(), max_size=3)),
        seconds=draw(st.none() | st.floats(0, 1e6)),
        time_ms=draw(st.integers(0, 2**62)),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows_of_any_kind(), max_size=6))
def test_what_is_written_is_what_is_read(tmp_path, rows):
    path = tmp_path / "trial.parquet"
    records.write(a_record(rows), path)
    back = records.read(path)
    assert back.header == HEADER
    assert back.table.schema.equals(records.SCHEMA)
    found = back.table.to_pylist()
    assert len(found) == len(rows)
    for row, stored, values in zip(rows, found, records.arrays(back.table), strict=True):
        np.testing.assert_array_equal(values, row.values, strict=True)
        for name in ("error", "marks"):
            expected = getattr(row, name)
            if expected is None:
                assert stored[name] is None
            else:
                np.testing.assert_array_equal(stored[name], expected.ravel())
        assert tuple(stored["axes"]) == row.axes
        assert tuple(stored["flags"]) == row.flags
        assert json.loads(stored["details"]) == row.details
        for name in ("epoch", "update", "quantity", "unit", "seconds", "time_ms"):
            assert stored[name] == getattr(row, name)
        assert (stored["sweep"], stored["trial"]) == ("s", 3)
    assert records.content_hash(back.table) == records.content_hash(a_record(rows).table)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_values_and_errors_of_other_types_become_float64(dtype):
    row = Row(0, 0, "x", np.arange(3, dtype=dtype), axes=("i",), error=np.arange(3, dtype=dtype))
    (stored,) = records.to_table("s", 0, [row]).to_pylist()
    assert stored["values"] == stored["error"] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"values": np.zeros(3), "axes": ()}, "x: 0 axis names for 1 axes"),
        ({"values": np.array(1.0), "axes": ("i",)}, "x: 1 axis names for 0 axes"),
        ({"values": np.array(1.0), "error": np.zeros(2)}, "error must have the shape"),
        ({"values": np.array(1.0), "marks": np.zeros(2)}, "marks must have the shape"),
        ({"values": np.array(1.0), "details": {"a": np.float32(1)}}, "details must be JSON values"),
    ],
)
def test_a_row_that_could_not_be_stored_is_refused_where_it_is_made(options, law):
    with pytest.raises(ValueError, match=law):
        Row(0, 0, "x", **options)


def test_the_content_hash_sees_everything_but_time_and_sweep():
    base = records.content_hash(a_record().table)
    timing = [Row(**{**vars(r), "seconds": 9.0, "time_ms": 99}) for r in ROWS]
    assert records.content_hash(a_record(timing).table) == base
    assert records.content_hash(records.to_table("other", 3, ROWS)) == base
    nan = float.fromhex("nan")
    payload = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    hashes = [
        records.content_hash(records.to_table("s", 3, [Row(0, 0, "x", np.array(v))]))
        for v in (nan, payload)
    ]
    assert hashes[0] == hashes[1]
    for change in (
        {"epoch": 2},
        {"update": 11},
        {"quantity": "y"},
        {"values": np.array(0.7 + 1e-16)},
        {"unit": "1"},
        {"flags": ("a",)},
        {"details": {"a": 1}},
    ):
        other = [Row(**{**vars(ROWS[0]), **change}), *ROWS[1:]]
        assert records.content_hash(a_record(other).table) != base, change
    assert records.content_hash(records.to_table("s", 4, ROWS)) != base


def only(path):
    return sorted(p.name for p in path.iterdir())


def test_a_write_that_raises_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "trial.parquet"
    records.write(a_record(ROWS[:1]), path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for owner, name in ((pq, "write_table"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space left"):
                records.write(a_record(), path)
        assert path.read_bytes() == before
        assert only(tmp_path) == ["trial.parquet"]


@pytest.mark.parametrize("stage", ["write_table", "fsync", "replace"])
def test_a_writer_killed_in_the_middle_leaves_nothing_under_the_name(tmp_path, stage):
    path = tmp_path / "trial.parquet"
    child = os.fork()
    if child == 0:
        owner = pq if stage == "write_table" else os
        genuine = getattr(owner, stage)

        def killed(*args, **kwargs):
            if stage == "write_table":
                genuine(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, stage, killed)
        records.write(a_record(), path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not path.exists()
    assert all(name.endswith(".tmp") for name in only(tmp_path))


def fault(path):
    with pytest.raises(RecordError) as caught:
        records.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "trial.parquet"
    records.write(a_record(), path)
    return path


def test_every_truncation_is_noticed(stored):
    whole = stored.read_bytes()
    for end in [0, 1, 4, 11, len(whole) // 2, *range(len(whole) - 12, len(whole))]:
        stored.write_bytes(whole[:end])
        assert "not a readable Parquet file" in fault(stored)


def test_flipped_bits_are_noticed_or_harmless(stored):
    """Data pages carry checksums. What is not noticed must not change the table."""
    whole = stored.read_bytes()
    expected = records.content_hash(records.read(stored).table)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    noticed = 0
    places = range(4, footer, max(1, footer // 150))
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x10
        stored.write_bytes(bytes(spoilt))
        try:
            table = records.read(stored).table
        except RecordError:
            noticed += 1
        else:
            assert records.content_hash(table) == expected, place
    assert noticed > 0.7 * len(places)  # The rest falls on statistics and page headers.


def test_foreign_files_are_refused(stored, tmp_path):
    pq.write_table(pa.table({"a": [1]}), stored)
    assert "this is not a lyapsweep record" in fault(stored)
    stored.write_bytes(b"hello, this is text" * 10)
    assert "not a readable Parquet file" in fault(stored)
    folder = tmp_path / "folder"
    folder.mkdir()
    fault(folder)
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path / "none.parquet")


def rewritten(path, table=None, **metadata):
    table = records.read(path).table if table is None else table
    kept = pq.read_schema(path).metadata
    new = {**kept, **{getattr(records, k): v for k, v in metadata.items()}}
    pq.write_table(table.replace_schema_metadata({k: v for k, v in new.items() if v}), path)


def test_a_newer_schema_is_refused_with_what_to_do(stored):
    rewritten(stored, VERSION_KEY=b"3")
    assert "schema version 3 is newer than this program reads (2); upgrade" in fault(stored)


def test_files_of_schema_1_are_read_and_know_no_epochs(stored):
    header = json.loads(pq.read_schema(stored).metadata[records.HEADER_KEY])
    for name in ("pruned_at", "epochs", "epochs_planned"):
        del header[name]
    before = records.read(stored)
    rewritten(stored, VERSION_KEY=b"1", HEADER_KEY=json.dumps(header).encode())
    found = records.read(stored)
    empty = {"pruned_at": None, "epochs": None, "epochs_planned": None}
    assert found.header == dataclasses.replace(before.header, **empty)
    assert records.content_hash(found.table) == records.content_hash(before.table)


def test_rows_come_back_as_they_went_in(stored):
    table = records.read(stored).table
    names = sorted(set(table["quantity"].to_pylist()))
    rows = records.to_rows(table, names)
    again = records.to_table(table["sweep"][0].as_py(), table["trial"][0].as_py(), rows)
    assert repr(again.to_pylist()) == repr(table.to_pylist())
    some = records.to_rows(table, names[:1])
    assert {row.quantity for row in some} == set(names[:1])
    assert records.to_rows(table, ["no such quantity"]) == []


@pytest.mark.parametrize(
    ("metadata", "law"),
    [
        ({"VERSION_KEY": None}, "no schema version"),
        ({"VERSION_KEY": b"one"}, "no schema version"),
        ({"HEADER_KEY": None}, "no trial header"),
        ({"HEADER_KEY": b"{"}, "not of schema 2"),
        ({"HEADER_KEY": b"[]"}, "not of schema 2"),
        ({"HEADER_KEY": b"{}"}, "not of schema 2"),
        ({"HEADER_KEY": b"\xff"}, "not of schema 2"),
        ({"HEADER_KEY": b'{"sampled": [], "colour": 1}'}, "not of schema 2"),
    ],
)
def test_a_record_without_its_header_is_refused(stored, metadata, law):
    rewritten(stored, **metadata)
    assert law in fault(stored)


def test_missing_and_mistyped_columns_are_named(stored):
    table = records.read(stored).table
    rewritten(stored, table.drop_columns(["unit", "flags"]))
    assert "columns missing: unit, flags" in fault(stored)
    wrong = table.set_column(2, "epoch", pa.array(["x"] * table.num_rows))
    rewritten(stored, wrong)
    assert "not of schema 2" in fault(stored)


def test_columns_of_a_later_minor_writer_are_ignored(stored):
    table = records.read(stored).table
    rewritten(stored, table.append_column("extra", pa.array([1] * table.num_rows)))
    assert records.content_hash(records.read(stored).table) == records.content_hash(table)


def test_folders_that_look_like_partitions_are_no_columns(tmp_path):
    path = tmp_path / "trial=7" / "sweep=x" / "trial.parquet"
    path.parent.mkdir(parents=True)
    records.write(a_record(), path)
    assert set(records.read(path).table["trial"].to_pylist()) == {3}


def test_other_programs_read_the_file(stored):
    frame = pd.read_parquet(stored)
    assert list(frame["quantity"]) == [r.quantity for r in ROWS]
    np.testing.assert_array_equal(frame["values"][2], [0, 1, 2])
    assert pq.read_metadata(stored).row_group(0).column(0).compression == "ZSTD"


def test_duckdb_reads_the_file(stored):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"select quantity, values[1] from '{stored}'").fetchall()
    assert [q for q, _ in found] == [r.quantity for r in ROWS]


def test_polars_reads_the_file(stored):
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(stored)["quantity"].to_list() == [r.quantity for r in ROWS]


def test_scalars_are_one_line_each():
    frame = records.scalars(a_record().table)
    assert list(frame["quantity"]) == ["val_loss", "val_loss"]
    assert frame["value"].tolist() == pytest.approx([0.7, math.nan], nan_ok=True)
    assert frame["flags"].tolist() == [[], ["diverged"]]
    assert frame["epoch"].tolist() == [0, 1]
    assert records.scalars(a_record([]).table).empty


def test_tidy_has_a_column_for_each_axis():
    table = a_record().table
    spectrum = records.tidy(table, "lyapunov.spectrum")
    assert spectrum["index"].tolist() == [0, 1, 2]
    assert spectrum["value"].tolist() == [0, 1, 2]
    assert spectrum["error"].tolist() == pytest.approx([0.1, math.nan, 0.3], nan_ok=True)
    assert spectrum["mark"].tolist() == [0, 4, 1]
    field = records.tidy(table, "ftle.field")
    assert field[["layer", "point", "value"]].to_numpy().tolist() == [
        [i, j, 3 * i + j] for i in range(2) for j in range(3)
    ]
    losses = records.tidy(table, "val_loss")
    assert losses["epoch"].tolist() == [0, 1]
    with pytest.raises(KeyError, match="no quantity 'entropy'"):
        records.tidy(table, "entropy")
