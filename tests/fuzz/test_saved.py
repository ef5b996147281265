"""Fitted predictors and plans on record that a stranger wrote."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import strategies as st

from analysis import models
from analysis.forecaster import ModelError
from analysis.frame import AnalysisError, SweepFrame
from analysis.hypotheses import plan_of
from analysis.predict import forecaster
from analysis.preregistration import FILE, FOLDER, preregistration_of, register
from pipeline.faults import ConfigError
from pipeline.folder_store import FolderStore
from tests.analysis import synthetic
from tests.fuzz import parquet
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import RAW, STEPS, bytes_of, json_of, tree_of
from tests.fuzz.test_settings import PLAN

CASES = st.tuples(st.integers(0, 9), STEPS, RAW)


@pytest.fixture(scope="module")
def made():
    """Of a sweep of forty trials, seen at epoch 2."""
    trials = synthetic.sweep("planted", 40, seed=4)
    frame = SweepFrame.from_records(synthetic.info(num_trials=40), trials)
    return forecaster(frame, 2)


@pytest.mark.parametrize("count", [100, pytest.param(5_000, marks=pytest.mark.slow)])
def test_predictors(sandbox, try_many, count, made):
    folder = sandbox / "predictor"
    folder.mkdir()
    models._write(made, folder)
    paths = folder / "predictor.json", folder / "training.parquet"
    blobs = [path.read_bytes() for path in paths]
    tree, table = json.loads(blobs[0]), parquet.pq.read_table(parquet.io.BytesIO(blobs[1]))
    assert models.load(folder).digest == made.digest
    guard = Guard(sandbox, "predictors", ModelError)

    def check(case):
        kind, steps, raw = case
        new = list(blobs)
        if kind < 4:
            new[0] = json_of(tree_of(tree, steps)).encode(errors="surrogatepass")
        elif kind < 8:
            new[1] = parquet.written(parquet.changed(table, steps))
            if kind == 7:
                new[1] = bytes_of(blobs[1], steps)
            digest = hashlib.sha256(new[1]).hexdigest()
            new[0] = json.dumps({**tree, "sha256": digest}).encode()
        elif kind == 8:
            new[0] = bytes_of(blobs[0], steps)
        else:
            new[0] = raw
        for path, blob in zip(paths, new, strict=True):
            path.write_bytes(blob)
        found = guard(lambda: models.load(folder), says=str(folder))
        if found is not None:
            assert found.digest
            assert len(found.outcome) == len(found.seen)

    try_many(CASES, count, check)


@pytest.mark.parametrize("what", ["a pickle", "metadata that is deep", "no row", "nothing"])
def test_a_planted_predictor_does_nothing(sandbox, made, what):
    folder = sandbox / "predictor"
    folder.mkdir()
    models._write(made, folder)
    guard = Guard(sandbox, "planted as predictors", ModelError)
    table = parquet.pq.read_table(folder / "training.parquet")
    blob = parquet.planted(table, what, guard.outside)
    (folder / "training.parquet").write_bytes(blob)
    tree = json.loads((folder / "predictor.json").read_text())
    tree["sha256"] = hashlib.sha256(blob).hexdigest()
    (folder / "predictor.json").write_text(json.dumps(tree))
    # What MLflow would run, were it asked to.
    (folder / "MLmodel").write_text(
        f"flavors: !!python/object/apply:os.mkdir ['{guard.outside}/made']"
    )
    (folder / "python_model.pkl").write_bytes(parquet.pickle.dumps(parquet.Payload(guard.outside)))
    found = guard(lambda: models.load(folder), says=str(folder))
    assert found is None or what == "metadata that is deep"


@pytest.mark.parametrize("count", [80, pytest.param(3_000, marks=pytest.mark.slow)])
def test_plans_on_record(sandbox, try_many, count):
    store = FolderStore(sandbox / "store")
    store.prepare()
    name = "sweep-1"
    store.create_sweep(
        dataclasses.replace(synthetic.info(num_trials=20), name=name, state="running")
    )
    register(store, name, plan_of(PLAN, "plan"))
    path = store.root / name / FOLDER / FILE
    blob = path.read_bytes()
    guard = Guard(sandbox, "plans on record", AnalysisError, ConfigError)

    def check(case):
        kind, steps, raw = case
        data = raw if kind == 9 else bytes_of(blob, steps)
        if kind < 7:
            data = json_of(tree_of(json.loads(blob), steps)).encode(errors="surrogatepass")
        path.write_bytes(data)
        found = guard(
            lambda: preregistration_of(store, name), says="preregistration",
            writes=(sandbox / "tmp",),
        )  # fmt: skip
        if found is not None:
            assert found.when
            assert found.num_ended <= 2**53

    assert preregistration_of(store, name) is not None
    try_many(CASES, count, check)
