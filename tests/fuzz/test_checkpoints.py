"""Checkpoints that a stranger wrote: bytes turned, or made anew with sums that fit."""

import dataclasses
import hashlib
import json
import os
import struct

import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline import checkpoint_file as files
from pipeline import records
from pipeline.checkpoint_file import CheckpointError
from pipeline.checkpoints import Checkpoints
from tests.fuzz import parquet
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import RAW, STEPS, bytes_of, json_of, tree_of
from tests.pipeline.test_checkpoints import COHORT, DUE, keep

KINDS = ("state", "state", "rows", "raw", "facts", "arrays", "resealed rows", "header")
ARRAYS = st.sampled_from(
    [np.float32(1), np.zeros((3, 2)), np.zeros((2, 2), np.float32), np.zeros((3, 0), np.float32),
     np.full((3, 2), np.nan, np.float32), np.zeros(3, np.int64), np.zeros((3, 1, 1), np.uint8)]
)  # fmt: skip


def sealed(arrays, text):
    """What would be written by somebody who knows how sums are taken."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(whole, {files._FACTS: text, files._SHA: files._digest(whole, text)})


@pytest.mark.parametrize("count", [120, pytest.param(9_000, marks=pytest.mark.slow)])
def test_checkpoints(sandbox, try_many, count):
    folder = sandbox / "checkpoints"
    said = []
    kept = Checkpoints(folder, "sweep-1", said.append)
    keep(kept, 3)
    where = kept.folder_of(COHORT)
    (state,), (rows,) = where.glob("epoch-*"), where.glob("rows-*")
    state_blob, rows_blob = state.read_bytes(), rows.read_bytes()
    arrays, facts = files.unpacked(state_blob)
    text = files._FACTS_TYPE.dump_json(facts).decode()
    table = parquet.pq.read_table(parquet.io.BytesIO(rows_blob))
    guard = Guard(sandbox, "checkpoints", CheckpointError)

    def check(case):
        kind, steps, raw, strange = case
        where.mkdir(parents=True, exist_ok=True)
        new_state, new_rows = state_blob, rows_blob
        if kind == "state":
            new_state = bytes_of(state_blob, steps)
        elif kind == "rows":
            new_rows = bytes_of(rows_blob, steps)
        elif kind == "raw":
            new_state = struct.pack("<Q", len(raw)) + raw if len(raw) % 2 else raw
        elif kind == "facts":
            changed = json_of(tree_of(json.loads(text), steps))
            try:
                new_state = sealed(arrays, changed)
            except UnicodeEncodeError:
                return
        elif kind == "header":
            length = int.from_bytes(state_blob[:8], "little")
            header = json_of(tree_of(json.loads(state_blob[8 : 8 + length]), steps)).encode()
            new_state = struct.pack("<Q", len(header)) + header + state_blob[8 + length :]
        elif kind == "arrays":
            named = "x" if steps[0][1] % 2 else "val_loss"
            new_state = sealed({**arrays, named: np.asarray(strange)}, text)
        else:
            new_rows = parquet.written(parquet.changed(table, steps))
            digest = hashlib.sha256(new_rows).hexdigest()
            segments = (dataclasses.replace(facts.segments[0], sha256=digest),)
            new_state = files.packed(arrays, dataclasses.replace(facts, segments=segments))
        state.write_bytes(new_state)
        rows.write_bytes(new_rows)
        said.clear()
        fresh = Checkpoints(folder, "sweep-1", said.append)
        found = guard(lambda: fresh.load(COHORT, DUE), writes=(folder,))
        if found is None:
            assert said
            assert str(state) in said[0]
            return
        assert set(found.rows) == set(DUE)
        for number, one in found.rows.items():
            assert [row.epoch for row in one if row.quantity == "val_loss"] == [0, 1, 2, 3]
            assert len(records.to_table("x", number, one)) == len(one)
        assert all(len(a) == len(found.snapshot.numbers) for a in found.snapshot.arrays.values())
        assert all(abs(n) < 2**63 for n in found.start_ms.values())

    assert kept.load(COHORT, DUE) is not None
    try_many(st.tuples(st.sampled_from(KINDS), STEPS, RAW, ARRAYS), count, check)


HEADERS = {
    "a huge header": struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header of a gigabyte": struct.pack("<Q", 2**30) + b"{}" + bytes(1000),
    "a deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a deep mapping": struct.pack("<Q", 500_000) + b'{"a":' * 100_000,
    "a huge array": struct.pack("<Q", 80)
    + json.dumps({"a": {"dtype": "F64", "shape": [2**40, 2**20], "data_offsets": [0, 0]}})
    .encode().ljust(80),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("what", [*HEADERS, "a pickle", "a pickle as rows", "links", "pipes"])
def test_a_planted_checkpoint_does_nothing(sandbox, what):
    folder = sandbox / "checkpoints"
    said = []
    kept = Checkpoints(folder, "sweep-1", said.append)
    guard = Guard(sandbox, "planted as checkpoints", CheckpointError)
    keep(kept, 3)
    (state,), (rows,) = (kept.folder_of(COHORT).glob(f"{n}-*") for n in ("epoch", "rows"))
    if what in HEADERS:
        state.write_bytes(HEADERS[what])
    elif what == "a pickle":
        state.write_bytes(parquet.pickle.dumps(parquet.Payload(guard.outside)))
    elif what == "a pickle as rows":
        blob = parquet.pickle.dumps(parquet.Payload(guard.outside))
        arrays, facts = files.unpacked(state.read_bytes())
        digest = hashlib.sha256(blob).hexdigest()
        segments = (dataclasses.replace(facts.segments[0], sha256=digest),)
        state.write_bytes(files.packed(arrays, dataclasses.replace(facts, segments=segments)))
        rows.write_bytes(blob)
    elif what == "links":
        for path in (state, rows):
            path.rename(guard.outside / path.name)
            path.symlink_to(guard.outside / path.name)
        guard = Guard(sandbox, "planted as checkpoints", CheckpointError)
    else:
        for path in (state, rows):
            path.unlink()
            os.mkfifo(path)
    fresh = Checkpoints(folder, "sweep-1", said.append)
    assert guard(lambda: fresh.load(COHORT, DUE), writes=(folder,)) is None
    assert said
