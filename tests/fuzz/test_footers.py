"""Parquet files whose footers say other numbers than their pages."""

import io

import numpy as np
import pyarrow as pa
import pytest

from pipeline import parquet_file
from tests.fuzz import footers, parquet
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import STEPS

ERRORS = (pa.ArrowException, ValueError, OSError)
WORDS = pa.array(["a", "bc", None, "a"] * 5)
TABLE = pa.table(
    {
        "number": np.arange(20.0),
        "word": WORDS,
        "packed": WORDS.dictionary_encode(),
        "lists": pa.array([[1, 2], None, [], [3]] * 5),
    }
)


def read(blob, **options):
    return parquet_file.read(io.BytesIO(blob), **options)


@pytest.mark.parametrize("count", [100, pytest.param(6_000, marks=pytest.mark.slow)])
def test_footers(sandbox, try_many, count):
    """Refused, or read as what is there: a number that nobody goes by may say anything."""
    guard = Guard(sandbox, "footers", *ERRORS)
    options = ({}, {"row_group_size": 6}, {"use_dictionary": False}, {"data_page_version": "2.0"})
    blobs = [parquet.written(TABLE, compression="zstd", **each) for each in options]
    honest = read(blobs[0])

    def check(steps):
        blob = footers.changed(blobs[steps[0][2] % len(blobs)], steps)
        found = guard(lambda: parquet_file.schema(io.BytesIO(blob)) and read(blob))
        if found is not None:
            assert found.num_rows <= honest.num_rows

    try_many(STEPS, count, check)


def ten_of(column):
    """A file of one column that says it holds ten values in a hundred bytes."""
    blob = parquet.written(pa.table({"a": column}), compression="zstd")
    few = {footers.GROUP_BYTES: 100, footers.of_column(0, 6): 100, footers.of_column(0, 5): 10}
    return footers.lying(blob, few)


def in_one_list(size):
    return pa.ListArray.from_arrays(pa.array([0, size], pa.int32()), pa.array(np.zeros(size)))


@pytest.mark.parametrize(
    ("blob", "law"),
    [
        (lambda: ten_of(in_one_list(1000)), "hold more values than its footer says"),
        (lambda: ten_of(pa.array(np.zeros(1000))), "another number of values than rows"),
        (
            lambda: footers.lying(parquet.written(TABLE), {footers.ROWS: 2**62}),
            "different numbers of rows",
        ),
        (
            lambda: footers.lying(
                parquet.written(TABLE), {footers.ROWS: -20, footers.GROUP_ROWS: -20}
            ),
            "different numbers of rows",
        ),
        (
            lambda: footers.lying(
                parquet.written(pa.table({"a": [[1.0]]})),
                {footers.of_column(0, 5): 2**62},
            ),
            "hold fewer values than its footer says",
        ),
        (
            lambda: footers.lying(parquet.written(TABLE), {footers.of_column(0, 7): 2**40}),
            "beyond the end of the file",
        ),
        (
            lambda: footers.lying(parquet.written(TABLE), {(2, 0, 5): 5}),
            "its schema is cut short",
        ),
        (
            lambda: footers.lying(parquet.written(TABLE), {(2, 0, 5): 3}),
            "does not describe every column",
        ),
    ],
)
def test_a_lie_is_called_one(blob, law):
    with pytest.raises(ValueError, match=law):
        read(blob())


EMPTY = {
    "row groups that are not there": b"\x49\xfc\xff\xff\xff\x0f",
    "a hundred thousand row groups": b"\x49\xfc\xa0\x8d\x06" + bytes(100_000),
    "a hundred thousand columns": b"\x49\x1c\x19\xfc\xa0\x8d\x06" + bytes(100_000),
    "a deep struct": b"\x1c" * 10_000,
    "a number without an end": b"\x16" + b"\xff" * 10_000,
    "a text beyond the end": b"\x18\xff\xff\xff\xff\x0f",
}


@pytest.mark.parametrize("what", EMPTY)
def test_a_footer_of_nothing_takes_no_memory(sandbox, what):
    blob = b"PAR1" + EMPTY[what] + len(EMPTY[what]).to_bytes(4, "little") + b"PAR1"
    guard = Guard(sandbox, "planted footers", *ERRORS)
    for ask in (parquet_file.schema, parquet_file.read):
        # Refused by us, before pyarrow makes room for what it is told of.
        assert guard(lambda ask=ask: ask(io.BytesIO(blob)), says="its footer ") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers in a list", "a long word", "one word of zeros"])
def test_a_small_file_cannot_take_a_gigabyte(sandbox, kind):
    """A kilobyte or thirty, which pyarrow unfolds to gigabytes without a second look."""
    guard = Guard(sandbox, "planted footers", *ERRORS)
    if kind == "numbers in a list":
        blob = ten_of(in_one_list(2**27))
    else:
        size, count = (2**19, 4000) if kind == "a long word" else (2**30, 1)
        word = pa.DictionaryArray.from_arrays(
            pa.array([0] * count, pa.int32()), pa.array(["x" * size])
        )
        blob = parquet.written(pa.table({"a": word}), compression="zstd", write_statistics=False)
        blob = footers.lying(blob, {footers.GROUP_BYTES: 100, footers.of_column(0, 6): 100})
    assert len(blob) < 50_000
    assert guard(lambda: read(blob)) is None


def wide(size):
    words = [f"word {i % 50}" for i in range(size)]
    return pa.table(
        {
            "real": np.linspace(0, 1, size),
            "word": pa.array(words, pa.string()),
            "other": pa.array([f"{i}" * 3 for i in range(size)], pa.string()),
            "large": pa.array(words, pa.large_string()),
            "packed": pa.array(words, pa.string()).dictionary_encode(),
            "lists": [["a", "b"][: i % 3] for i in range(size)],
            "lists of lists": [[[i], []] for i in range(size)],
            "struct": pa.array(
                [{"x": i, "y": str(i % 9)} for i in range(size)],
                pa.struct({"x": pa.int64(), "y": pa.string()}),
            ),
            "map": pa.array([[("k", i)] for i in range(size)], pa.map_(pa.string(), pa.int64())),
            "none": pa.nulls(size),
            "fixed": pa.array([b"abcd"] * size, pa.binary(4)),
            "decimal": pa.array([None] * size, pa.decimal128(20, 2)),
            "pairs": pa.array([[1.0, 2.0]] * size, pa.list_(pa.float64(), 2)),
        }
    )


@pytest.mark.parametrize(
    "options",
    [
        {}, {"row_group_size": 300}, {"data_page_version": "2.0"}, {"use_dictionary": False},
        {"compression": "NONE"}, {"compression": "gzip"}, {"compression": "lz4"},
        {"write_page_index": True, "write_page_checksum": True}, {"store_schema": False},
        {"data_page_size": 500}, {"dictionary_pagesize_limit": 100}, {"version": "1.0"},
        {"use_compliant_nested_type": False},
        {"use_dictionary": False, "use_byte_stream_split": ["real"]},
        {"use_dictionary": False,
         "column_encoding": {"word": "DELTA_BYTE_ARRAY", "other": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_honest_files_are_read_as_pyarrow_reads_them(options, size):
    """All at once, and piece by piece where all at once might be too much."""
    table = wide(size)
    blob = parquet.written(table, **options)
    plain = parquet.pq.ParquetFile(io.BytesIO(blob)).read()
    goal = [
        f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f
        for f in plain.schema
    ]
    plain = plain.cast(pa.schema(goal, plain.schema.metadata))
    extent = parquet_file.parquet_footer.extent(io.BytesIO(blob))
    assert extent.num_rows == size
    at_once = sum(leaf.num_bytes for leaf in extent.leaves)
    for most in (parquet_file.MOST_BYTES, max(1000, at_once * 4 - 1)):
        found = read(blob, most=most)
        assert found.equals(plain)
        assert found.schema.equals(plain.schema, check_metadata=True)
        found = read(blob, columns=["word", "real"], most=most)
        assert found.equals(plain.select(["word", "real"]))
