"""Whole sweeps moved between stores by way of a folder."""

import dataclasses
import hashlib
import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import records, transfer
from pipeline.home import Home
from pipeline.store import NameInUseError, NoSuchSweepError, StoreError, open_store
from pipeline.transfer import MANIFEST, TransferError
from tests.pipeline.stored import NAME, info, spool, start

WEIGHTS = {0: b"weights of trial 0", 2: b"weights of trial 2"}
STATES = {0: "complete", 1: "diverged", 2: "complete", 3: "failed", 4: "pruned"}
CONFIG = {
    "trials": 6,
    "trainer": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}, "dropout": {"uniform": [0, 1]}},
}


def fill(store, tmp_path):
    """Five trials of six that ended in every way, one that was left, a plan and a report."""
    store.prepare()
    store.create_sweep(info(num_trials=6, config=CONFIG))
    for number, state in STATES.items():
        store.begin_trial(NAME, start(number))
        path = spool(
            tmp_path,
            number,
            weights=WEIGHTS.get(number),
            state=state,
            value=None if state == "failed" else 0.5,
            error="it broke" if state == "failed" else None,
        )
        store.publish(NAME, path)
    store.begin_trial(NAME, start(5))
    plan, report = tmp_path / "preregistration.json", tmp_path / "report"
    plan.write_text('{"plan": 1}')
    (report / "tables").mkdir(parents=True)
    (report / "index.html").write_text("<p>ä</p>")
    (report / "tables" / "a.csv").write_text("1,2\n")
    store.attach(NAME, plan, "preregistration")
    store.attach(NAME, report, "report")
    store.set_state(NAME, "interrupted")
    return store


@pytest.fixture
def filled(store_uri, tmp_path):
    return fill(open_store(store_uri), tmp_path)


@pytest.fixture
def other(tmp_path):
    return open_store(f"folder:{tmp_path / 'other'}")


def home(tmp_path):
    return Home.of(NAME, str(tmp_path / "home"))


def content(store, tmp_path, place):
    """All that a store says of the sweep, files byte for byte."""
    folder = tmp_path / place
    folder.mkdir()
    found = {"info": dataclasses.asdict(store.sweep(NAME)), "files": {}}
    found["states"] = {n: s for n, s in store.states(NAME).items() if n in STATES}
    found["headers"] = [r.header for r in store.records(NAME)]
    for number in found["states"]:
        store.fetch_trial(NAME, number, folder)
    for file in store.attached(NAME):
        store.fetch(NAME, file, folder / file.replace("/", "_"))
    for path in folder.iterdir():
        found["files"][path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("kind", ["folder", "mlflow"])
def test_a_sweep_arrives_as_it_left(filled, tmp_path, kind, request):
    target = open_store(f"folder:{tmp_path / 'other'}")
    if kind == "mlflow":
        (tmp_path / "elsewhere").mkdir()
        shutil.copy(request.getfixturevalue("empty_mlflow"), tmp_path / "elsewhere" / "mlflow.db")
        target = open_store(f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}")
    parcel = transfer.export_sweep(filled, NAME, tmp_path / "out")
    assert parcel.trials == tuple(STATES)
    assert set(parcel.attached) == {
        "preregistration/preregistration.json",
        "report/index.html",
        "report/tables/a.csv",
    }
    before = content(filled, tmp_path, "before")
    target.prepare()
    arrived, new = transfer.import_sweep(tmp_path / "out", target, home(tmp_path))
    assert new == 5
    assert arrived.trials == parcel.trials
    after = content(target, tmp_path, "after")
    assert after == before
    assert after["info"]["state"] == "interrupted"
    assert after["files"]["trial-00002.safetensors"] == WEIGHTS[2]
    assert sum(name.endswith(".safetensors") for name in after["files"]) == 2
    _, new = transfer.import_sweep(tmp_path / "out", target, home(tmp_path))
    assert new == 0
    assert content(target, tmp_path, "twice") == before


def test_settings_with_logarithmic_ranges_are_known_as_such_after_the_journey(filled, tmp_path):
    transfer.export_sweep(filled, NAME, tmp_path / "out")
    started = []

    class Listening:
        def __init__(self, store):
            self._store = store

        def begin_trial(self, name, start):
            started.append(start)
            self._store.begin_trial(name, start)

        def __getattr__(self, name):
            return getattr(self._store, name)

    target = Listening(open_store(f"folder:{tmp_path / 'other'}"))
    target.prepare()
    transfer.import_sweep(tmp_path / "out", target, home(tmp_path))
    assert [s.number for s in started] == list(STATES)
    assert {s.log_scaled for s in started} == {("trainer.learning_rate",)}
    assert started[0] == start(0)


def test_an_import_that_broke_off_goes_on(filled, tmp_path, other, monkeypatch):
    transfer.export_sweep(filled, NAME, tmp_path / "out")
    other.prepare()
    publish, published = type(other).publish, []

    def failing(self, name, path):
        if len(published) == 3:
            raise StoreError("away")
        publish(self, name, path)
        published.append(path.name)

    monkeypatch.setattr(type(other), "publish", failing)
    with pytest.raises(StoreError, match="away"):
        transfer.import_sweep(tmp_path / "out", other, home(tmp_path))
    assert other.sweep(NAME).state == "running"
    published.append("so that it no more fails")
    _, new = transfer.import_sweep(tmp_path / "out", other, home(tmp_path))
    assert new == 2
    assert len(set(published)) == len(published) == 6
    monkeypatch.undo()
    assert content(other, tmp_path, "after") == content(filled, tmp_path, "before")


def test_a_running_sweep_is_exported_as_interrupted(filled, tmp_path):
    filled.set_state(NAME, "running")
    assert transfer.export_sweep(filled, NAME, tmp_path / "out").info.state == "interrupted"
    assert filled.sweep(NAME).state == "running"


def test_an_export_never_mixes_with_what_is_there_and_leaves_nothing_when_it_fails(
    filled, tmp_path, monkeypatch
):
    (tmp_path / "out").mkdir()
    with pytest.raises(TransferError, match="must not exist"):
        transfer.export_sweep(filled, NAME, tmp_path / "out")
    with pytest.raises(NoSuchSweepError):
        transfer.export_sweep(filled, "nope", tmp_path / "new" / "out")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(
        type(filled), "fetch_trial", lambda *_: (_ for _ in ()).throw(StoreError("away"))
    )
    with pytest.raises(StoreError):
        transfer.export_sweep(filled, NAME, tmp_path / "out2")
    assert sorted(os.listdir(tmp_path)) == before


def test_another_sweep_of_the_name_is_left_alone(filled, tmp_path, other):
    transfer.export_sweep(filled, NAME, tmp_path / "out")
    other.prepare()
    other.create_sweep(info(sweep_id="another"))
    with pytest.raises(NameInUseError, match="another one"):
        transfer.import_sweep(tmp_path / "out", other, home(tmp_path))
    assert other.states(NAME) == {}


@pytest.fixture
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    store = fill(open_store(f"folder:{folder / 'store'}"), folder)
    transfer.export_sweep(store, NAME, folder / "out")
    return folder / "out"


def rewrite(exported, change):
    """A manifest as somebody malicious would write it: with the sums of what is there."""
    path = exported / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    for file in manifest["files"]:
        if (exported / file).is_file():
            blob = (exported / file).read_bytes()
            manifest["files"][file] = {
                "bytes": len(blob),
                "sha256": hashlib.sha256(blob).hexdigest(),
            }
    path.write_text(json.dumps(manifest))


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def tamper_header(exported):
    path = exported / "trials" / "trial-00000.parquet"
    record = records.read(path)
    header = dataclasses.replace(record.header, trial_uid="other/0")
    records.write(dataclasses.replace(record, header=header), path)
    rewrite(exported, lambda manifest: None)


def set_info(exported, **changes):
    path = exported / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    rewrite(exported, lambda manifest: None)


def outside(exported, file):
    (exported.parent / "secret").write_text("s")
    rewrite(exported, lambda manifest: manifest["files"].update({file: {"bytes": 1, "sha256": ""}}))


FAULTS = {
    "no manifest": (lambda e: (e / MANIFEST).unlink(), "no MANIFEST.json, which is written last"),
    "no json": (lambda e: (e / MANIFEST).write_text("{"), "not a manifest"),
    "a list": (lambda e: (e / MANIFEST).write_text("[1]"), "not a manifest"),
    "deep": (lambda e: (e / MANIFEST).write_text("[" * 100_000), "not a manifest"),
    "newer": (lambda e: rewrite(e, lambda m: m.update(format=99)), "format 99 is newer"),
    "file missing": (lambda e: (e / "trials/trial-00001.parquet").unlink(), "missing, so this"),
    "file too many": (lambda e: (e / "trials/x").write_text(""), "not in the manifest"),
    "bit flipped": (lambda e: flip(e / "trials/trial-00001.parquet"), "damaged or changed"),
    "weights": (lambda e: flip(e / "trials/trial-00000.safetensors"), "damaged or changed"),
    "attached": (
        lambda e: (e / "attached/report/index.html").write_text("x"),
        "damaged or changed",
    ),
    "a link": (lambda e: (e / "attached/link").symlink_to("/etc/passwd"), "only plain files"),
    "linked folder": (lambda e: (e / "attached/link").symlink_to("/etc"), "only plain files"),
    "a pipe": (lambda e: os.mkfifo(e / "attached/pipe"), "only plain files"),
    "climbs out": (lambda e: outside(e, "attached/../../secret"), "inside the folder"),
    "absolute": (lambda e: outside(e, "/etc/passwd"), "inside the folder"),
    "no place": (lambda e: outside(e, "trials/run.py"), "has no place in an export"),
    "another trial": (tamper_header, r"must be trial 0 of 'sweep-1' \(id-sweep-1/0\), is"),
    "name": (lambda e: set_info(e, name="../up"), "not a sweep description"),
    "other name": (lambda e: set_info(e, name="other"), "must be trial 0 of 'other'"),
    "state": (lambda e: set_info(e, state="running"), "cannot be 'running'"),
    "unknown field": (lambda e: set_info(e, more=1), "not a sweep description"),
    "config": (lambda e: set_info(e, config=[1]), "not a sweep description"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_as_it_was_exported_is_refused_before_anything_is_written(
    exported, tmp_path, other, fault
):
    break_it, message = FAULTS[fault]
    break_it(exported)
    other.prepare()
    with pytest.raises(TransferError, match=message):
        transfer.import_sweep(exported, other, home(tmp_path))
    assert other.sweeps() == []
    assert not (tmp_path / "home").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_edit_of_an_export_gets_through(exported, tmp_path, data):
    files = sorted(p for p in exported.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    blob = path.read_bytes()
    place = data.draw(st.integers(0, max(0, len(blob) - 1)))
    edited = data.draw(
        st.sampled_from(
            [
                blob[:place],
                blob[:place] + bytes([data.draw(st.integers(0, 255))]) + blob[place + 1 :],
                blob[:place] + data.draw(st.binary(max_size=20)) + blob[place:],
            ]
        )
    )
    try:
        path.write_bytes(edited)
        try:
            parcel = transfer.check_export(exported)
        except TransferError:
            pass
        else:
            # What may be edited without a trace is the manifest's own white space and signature.
            assert edited == blob or path.name == MANIFEST
            assert parcel.trials == tuple(STATES)
    finally:
        path.write_bytes(blob)
