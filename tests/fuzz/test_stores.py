"""Sweeps that a stranger handed over: folders, exports, and what MLflow keeps."""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3

import pytest
from hypothesis import strategies as st

from pipeline import records, transfer
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.mlflow_store import MlflowStore
from pipeline.records import RecordError
from pipeline.store import BadNameError, StoreError, info_of
from pipeline.transfer import MANIFEST, TransferError
from tests.fuzz import parquet
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import RAW, STEPS, STRANGE, bytes_of, json_of, tree_of
from tests.fuzz.test_records import right, table_of
from tests.pipeline.stored import NAME, spool
from tests.pipeline.stored import info as info_made
from tests.pipeline.stored import start as start_made

KINDS = st.sampled_from(["json", "json", "bytes", "raw", "record", "name"])
CASES = st.tuples(KINDS, STEPS, RAW)
NAMES = [s for s in STRANGE if isinstance(s, str)] + [
    "../outside/secret", "sweep-1/../sweep-1", "x/../../outside", "trials", ".", "-rf", "nul",
]  # fmt: skip


def filled(store, folder):
    store.prepare()
    store.create_sweep(info_made())
    for number in (0, 1):
        store.begin_trial(NAME, start_made(number))
        store.publish(NAME, spool(folder, number, weights=b"w"))
    store.begin_trial(NAME, start_made(2))
    plan = folder / "plan.json"
    plan.write_text('{"a": 1}')
    store.attach(NAME, plan, "preregistration")
    store.set_state(NAME, "interrupted")
    return store


def changed(path, case, blob):
    """A file of a sweep gone wrong; of the kind it is."""
    kind, steps, raw = case
    if kind == "raw":
        return raw
    if path.suffix == ".json" and kind == "json":
        return json_of(tree_of(json.loads(blob), steps)).encode(errors="surrogatepass")
    if path.suffix == ".parquet" and kind in ("record", "json"):
        keys = (records.HEADER_KEY, records.VERSION_KEY)
        return parquet.written(parquet.changed(table_of(records.read(path)), steps, keys))
    return bytes_of(blob, steps)


def asked(store, name, folder):
    """All that is ever asked of a store."""
    info = store.sweep(name)
    assert info_of(json.loads(json.dumps(vars(info)))) == info
    store.sweeps()
    store.states(name)
    store.entries(name)
    for record in store.records(name):
        right(record)
    with contextlib.suppress(KeyError):
        right(store.record(name, 1))
    for file in store.attached(name):
        with contextlib.suppress(KeyError):
            store.fetch(name, file, folder / "fetched")
    with contextlib.suppress(KeyError):
        store.fetch_trial(name, 0, folder)
    return info


@pytest.mark.parametrize("count", [40, pytest.param(1_500, marks=pytest.mark.slow)])
def test_folders(sandbox, try_many, count):
    store = filled(FolderStore(sandbox / "store"), sandbox)
    root = store.root / NAME
    blobs = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    assert len(blobs) == 7
    fetched = sandbox / "fetched"
    fetched.mkdir()
    guard = Guard(sandbox, "folders", StoreError, RecordError, BadNameError)

    def check(case):
        kind, steps, _ = case
        path = sorted(blobs)[steps[0][2] % len(blobs)]
        name = NAME
        if kind == "name":
            name = NAMES[steps[0][1] % len(NAMES)]
            moved = path.with_name(f"{steps[0][1]}{path.suffix}"[-60:])
            path.rename(moved)
        else:
            moved = path
            path.write_bytes(changed(path, case, blobs[path]))
        guard(lambda: asked(store, name, fetched), writes=(fetched,))
        guard(lambda: asked(store, NAME, fetched), writes=(fetched,))
        moved.unlink()
        path.write_bytes(blobs[path])

    assert asked(store, NAME, fetched).name == NAME
    try_many(CASES, count, check)


def sealed(exported):
    """The manifest as somebody would write it who knows how sums are taken."""
    manifest = json.loads((exported / MANIFEST).read_text())
    paths = [p for p in exported.rglob("*") if p.is_file() and p.name != MANIFEST]
    manifest["files"] = {
        p.relative_to(exported).as_posix(): {
            "bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in paths
    }  # fmt: skip
    (exported / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("count", [30, pytest.param(1_200, marks=pytest.mark.slow)])
def test_exports(sandbox, try_many, count):
    """With sums that fit: whatever is wrong is found before anything is written."""
    store = filled(FolderStore(sandbox / "store"), sandbox)
    exported = sandbox / "out"
    transfer.export_sweep(store, NAME, exported)
    blobs = {path: path.read_bytes() for path in sorted(exported.rglob("*")) if path.is_file()}
    assert len(blobs) == 7
    target, home = FolderStore(sandbox / "target"), Home(sandbox / "home", NAME)
    target.prepare()
    errors = TransferError, StoreError, RecordError, BadNameError
    guard = Guard(sandbox, "exports", *errors)

    def check(case):
        kind, steps, raw = case
        path = sorted(blobs)[steps[0][2] % len(blobs)]
        added = None
        if kind == "name":
            name = NAMES[steps[0][1] % len(NAMES)]
            manifest = json.loads(blobs[exported / MANIFEST])
            manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
            (exported / MANIFEST).write_text(json_of(manifest))
            if steps[0][0] % 2:
                added = exported / "attached" / "link"
                added.symlink_to(guard.outside / "secret")
        else:
            path.write_bytes(changed(path, case, blobs[path]))
            if path.name != MANIFEST:
                sealed(exported)
        found = guard(
            lambda: transfer.import_sweep(exported, target, home),
            writes=(sandbox / "target", sandbox / "home"),
        )
        if found is not None:
            asked(target, NAME, sandbox)
            shutil.rmtree(sandbox / "target" / NAME)
        assert os.listdir(sandbox / "target") == []
        if added is not None:
            added.unlink()
        for one, blob in blobs.items():
            if one in (path, exported / MANIFEST):
                one.write_bytes(blob)

    transfer.check_export(exported)
    try_many(CASES, count, check)


@pytest.fixture
def database(sandbox):
    """An MLflow database with a sweep; its tables take seconds to make."""
    path = sandbox / "mlflow.db"
    store = filled(MlflowStore(f"sqlite:///{path}"), sandbox)
    (sandbox / "fetched").mkdir()
    assert asked(store, NAME, sandbox / "fetched").name == NAME
    return path


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_what_mlflow_keeps(sandbox, try_many, count, database):
    """Artifacts with sums that fit, and tags, which anybody may edit in the browser."""
    fetched = sandbox / "fetched"
    files = {p: p.read_bytes() for p in (sandbox / "mlruns").rglob("*") if p.is_file()}
    guard = Guard(sandbox, "what MLflow keeps", StoreError, RecordError, BadNameError)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        ours = "SELECT rowid, key, value FROM tags WHERE key LIKE 'lyapsweep.%' ORDER BY rowid"
        tags = connection.execute(ours).fetchall()

    def set_tag(where, value, which="rowid"):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute(f"UPDATE tags SET value = ? WHERE {which} = ?", (value, where))
            connection.commit()

    def check(case):
        kind, steps, _ = case
        row, path = None, None
        if kind == "name":
            row = tags[steps[0][1] % len(tags)]
            value = NAMES[steps[0][2] % len(NAMES)].replace("\ud800", "?")
            set_tag(row[0], value)
        else:
            path = sorted(files)[steps[0][2] % len(files)]
            blob = changed(path, case, files[path])
            path.write_bytes(blob)
            if path.suffix == ".parquet":
                old = hashlib.sha256(files[path]).hexdigest()
                set_tag(old, hashlib.sha256(blob).hexdigest(), "value")
        guard(
            lambda: asked(MlflowStore(f"sqlite:///{database}"), NAME, fetched),
            writes=(fetched, sandbox / "tmp", database.parent),
        )
        if row is not None:
            set_tag(row[0], row[2])
        else:
            path.write_bytes(files[path])
            if path.suffix == ".parquet":
                set_tag(hashlib.sha256(blob).hexdigest(), old, "value")

    try_many(CASES, count, check)


@pytest.mark.parametrize("what", ["trial", "description", "weights", "attached", "folder"])
def test_links_in_a_folder_lead_nowhere(sandbox, what, monkeypatch):
    """A link to a secret is not published, exported, or handed out as a file of the sweep."""
    store = filled(FolderStore(sandbox / "store"), sandbox)
    root = store.root / NAME
    guard = Guard(sandbox, "planted in folders", StoreError, RecordError, TransferError)
    path = {
        "trial": root / "trials" / "00001.parquet",
        "description": root / "sweep.json",
        "weights": root / "trials" / "00001.safetensors",
        "attached": root / "preregistration" / "link",
        "folder": root / "more",
    }[what]
    path.unlink(missing_ok=True)
    path.symlink_to(guard.outside if what == "folder" else guard.outside / "secret")
    out = sandbox / "out"
    # It asks git, which is a process that nobody planted.
    monkeypatch.setattr(transfer, "provenance", dict)
    guard(lambda: transfer.export_sweep(store, NAME, out), writes=(sandbox,))
    found = [p for p in sandbox.rglob("*") if p.is_file() and not p.is_symlink()]
    assert found
    for one in found:
        assert b"a secret" not in one.read_bytes(), one
