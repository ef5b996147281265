"""Data that a stranger wrote: images, text, tables of spectra and losses."""

import gzip
import json
import os
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from pipeline.external import mapping as mappings
from pipeline.external import tables
from pipeline.external.columns import TableError
from tasks import datasets
from tasks.base import MissingDataError, UnsuitableError
from tasks.char_text import CharText, load_text
from tasks.datasets import CorruptDataError, DataFile
from tasks.digits import parse_idx
from tests.fuzz import parquet
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import RAW, STEPS, bytes_of
from tests.fuzz.test_settings import MAPPING

IDX = struct.pack(">HBBIII", 0, 8, 3, 5, 4, 4) + bytes(range(80))
ZIPPED = gzip.compress(IDX, mtime=0)


@pytest.mark.parametrize("count", [150, pytest.param(8_000, marks=pytest.mark.slow)])
def test_images(sandbox, try_many, count):
    guard = Guard(sandbox, "idx files", CorruptDataError)

    def check(case):
        kind, steps, raw = case
        blob = (IDX, ZIPPED)[kind % 2]
        data = raw if kind == 4 else bytes_of(blob, steps)
        if kind == 5:
            data = gzip.compress(bytes_of(IDX, steps), mtime=0)
        found = guard(lambda: parse_idx(data, "images.idx"), says="images.idx")
        if found is not None:
            assert found.dtype == np.uint8
            assert found.ndim >= 1

    assert parse_idx(ZIPPED, "x").shape == (5, 4, 4)
    try_many(st.tuples(st.integers(0, 5), STEPS, RAW), count, check)


TEXT = ("The quick brown fox; ünïcödé, 中文 and 🦊.\r\n" * 40).encode()


@pytest.mark.parametrize("count", [80, pytest.param(3_000, marks=pytest.mark.slow)])
def test_texts(sandbox, try_many, count):
    guard = Guard(sandbox, "texts", MissingDataError, UnsuitableError)

    def check(case):
        is_zipped, is_inner, steps, raw = case
        path = sandbox / ("text.txt.gz" if is_zipped else "text.txt")
        if is_zipped:
            data = (
                gzip.compress(bytes_of(TEXT, steps), mtime=0)
                if is_inner
                else bytes_of(gzip.compress(TEXT, mtime=0), steps)
            )
        else:
            data = bytes_of(TEXT, steps) if is_inner else raw * 9
        path.write_bytes(data)
        config = CharText.Config(text=str(path), batch_size=2, seq_len=8)
        found = guard(lambda: CharText(config, seed=0), says=str(path))
        if found is not None:
            assert next(iter(found.training_batches(0))).inputs.max() < len(found.alphabet)

    try_many(st.tuples(st.booleans(), st.booleans(), STEPS, RAW), count, check)


def bomb(size):
    return gzip.compress(bytes(2**20) * (size // 2**20), 9, mtime=0)


@pytest.mark.parametrize("what", ["text", "images", "data set"])
def test_a_bomb_of_gzip_does_not_go_off(sandbox, what):
    path = sandbox / "x.txt.gz"
    # Half a gigabyte in half a megabyte.
    path.write_bytes(bomb(2**26) * 8)
    guard = Guard(sandbox, "planted as data", MissingDataError, UnsuitableError)
    if what == "text":
        assert guard(lambda: load_text(str(path)), says=str(path)) is None
    elif what == "images":
        assert guard(lambda: parse_idx(path.read_bytes(), str(path)), says=str(path)) is None
    else:
        file = DataFile("x.txt", 100, "0" * 64, (), may_be_gzipped=True)
        assert guard(lambda: file.read(path), says=str(path)) is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_no_data(sandbox, kind):
    path = sandbox / "x.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    guard = Guard(sandbox, "planted as data", MissingDataError, UnsuitableError)
    assert guard(lambda: load_text(str(path)), says=str(path)) is None


@pytest.mark.parametrize("count", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_data_sets_are_what_their_sums_say(sandbox, try_many, count):
    for file in datasets.data_set("mnist").files:
        (sandbox / file.path).parent.mkdir(exist_ok=True)
        (sandbox / file.path).write_bytes(ZIPPED)
    guard = Guard(sandbox, "named data sets", CorruptDataError)

    def check(steps):
        path = sandbox / "mnist/train-images-idx3-ubyte.gz"
        path.write_bytes(bytes_of(ZIPPED, steps))
        assert guard(lambda: datasets.read("mnist", sandbox), says=str(path)) is None

    try_many(STEPS, count, check)


def published():
    """Spectra and losses of four networks, as somebody's tables."""
    networks, epochs, places = range(4), (0, 5), range(3)
    lines = [(n, e, i) for n in networks for e in epochs for i in places]
    spectra = pa.table(
        {
            "trial": [n for n, _, _ in lines],
            "epoch": [e for _, e, _ in lines],
            "index": [i for _, _, i in lines],
            "exponent": [-0.1 * i - 0.01 * n + 0.001 * e for n, e, i in lines],
            "sd": [0.1] * len(lines),
            "width": [8 + n for n, _, _ in lines],
        }
    )
    curve = [(n, e) for n in networks for e in range(6)]
    losses = pa.table(
        {
            "trial": [n for n, _ in curve],
            "epoch": [e for _, e in curve],
            "loss": [2.0 - 0.1 * e + 0.01 * n for n, e in curve],
            "rate": [0.1 * (n + 1) for n, _ in curve],
        }
    )
    return spectra, losses


@pytest.mark.parametrize("count", [120, pytest.param(6_000, marks=pytest.mark.slow)])
def test_tables(sandbox, try_many, count):
    (sandbox / "mapping.yaml").write_text(json.dumps(MAPPING))
    mapping = mappings.load(sandbox / "mapping.yaml")
    paths = sandbox / "spectra.parquet", sandbox / "losses.parquet"
    two = published()
    blobs = [parquet.written(table) for table in two]
    for path, blob in zip(paths, blobs, strict=True):
        path.write_bytes(blob)
    assert len(tables.read(mapping, *paths).networks) == 4
    guard = Guard(sandbox, "tables of spectra and losses", TableError)

    def check(case):
        kind, steps, raw = case
        for path, blob in zip(paths, blobs, strict=True):
            path.write_bytes(blob)
        at = kind % 2
        if kind < 6:
            paths[at].write_bytes(parquet.written(parquet.changed(two[at], steps)))
        elif kind < 9:
            paths[at].write_bytes(bytes_of(blobs[at], steps))
        else:
            paths[at].write_bytes(raw)
        found = guard(lambda: tables.read(mapping, *paths), says=".parquet")
        if found is not None:
            for network in found.networks:
                assert all(len(s.exponents) <= network.state_size for s in network.spectra.values())
                assert network.losses

    try_many(st.tuples(st.integers(0, 9), STEPS, RAW), count, check)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=pytest.mark.slow) if what in parquet.COSTLY else what
        for what in parquet.PLANTED
    ],
)
def test_a_planted_table_does_nothing(sandbox, what):
    (sandbox / "mapping.yaml").write_text(json.dumps(MAPPING))
    mapping = mappings.load(sandbox / "mapping.yaml")
    paths = sandbox / "spectra.parquet", sandbox / "losses.parquet"
    guard = Guard(sandbox, "planted as tables", TableError)
    for path, table in zip(paths, published(), strict=True):
        path.write_bytes(parquet.planted(table, what, guard.outside))
    found = guard(lambda: tables.read(mapping, *paths), says=".parquet")
    harmless = ("a pickle for an extension type", "a pickle as metadata", "metadata that is deep")
    assert found is None or what in harmless
