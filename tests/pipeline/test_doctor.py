"""A sweep is injured in every way we know; the doctor must see it, and mend what can be mended."""

import contextlib
import multiprocessing
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import optuna
import pyarrow as pa
import pytest

from pipeline import config, creating, doctor, records, sweep, transfer
from pipeline.executors.inline import InlineExecutor
from pipeline.home import Home, LockedError
from pipeline.store import StoreError, TrialStart, open_store

NAME = "tiny"
CONF = {
    "trials": 6,
    "task": {"name": "planar", "points": 200, "batch_size": 40},
    "network": {"name": "mlp", "width": {"choice": [3, 4]}, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 1, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 10}},
    "execution": {"cohort_size": 2, "executor": "inline"},
}


class _StopsAfter(InlineExecutor):
    """Ctrl-C while the last cohort trains."""

    num = 0

    def submit(self, *args, **kwargs):
        super().submit(*args, **kwargs)
        self.num += 1
        if self.num == 3:
            self.driver.request_stop()


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A whole sweep and one that was stopped: what they exported, and their homes."""
    found = {}
    for kind, executor in (("whole", InlineExecutor()), ("stopped", _StopsAfter())):
        root = tmp_path_factory.mktemp(kind)
        store, home = open_store(f"folder:{root / 'store'}"), Home(root / "home", NAME)
        store.prepare()
        checked = config.check(CONF)
        driver = sweep.Driver(checked, creating.create(checked, NAME, store), store, home, executor)
        executor.driver = driver
        driver.run()
        parcel = transfer.export_sweep(store, NAME, root / "out")
        assert len(parcel.trials) == (6 if kind == "whole" else 4)
        found[kind] = root
    return found


@dataclass
class Patient:
    store: object
    home: Home
    root: Path

    def examine(self):
        return doctor.examine(open_store(self.store.uri), NAME, self.home)

    def told(self):
        return [(f.kind, f.trial) for f in self.examine().findings]

    def mend(self):
        store = open_store(self.store.uri)
        return doctor.mend(self.examine(), store, self.home, self.reconcile)

    def reconcile(self):
        store = open_store(self.store.uri)
        info = store.sweep(NAME)
        driver = sweep.Driver(
            creating.stored_config(info), info, store, self.home, InlineExecutor()
        )
        driver.request_stop()
        driver.run()

    def record_path(self, number):
        (found,) = [
            p
            for p in self.root.rglob(f"*{number:05d}.parquet")
            if "spool" not in p.parts and "aside" not in p.parts
        ]
        return found

    def sql(self, *statements):
        with contextlib.closing(sqlite3.connect(self.home.root / "optuna.db")) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def study(self):
        info = self.store.sweep(NAME)
        return optuna.load_study(storage=self.home.optuna_url, study_name=f"{NAME}-{info.sweep_id}")

    @property
    def is_mlflow(self):
        return self.store.uri.startswith("sqlite")

    def client(self):
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.store.uri)

    def spool(self, number):
        self.home.create()
        return self.store.fetch_trial(NAME, number, self.home.spool)

    def start(self, number):
        header = self.store.record(NAME, 0).header
        uid = f"{self.store.sweep(NAME).sweep_id}/{number}"
        return TrialStart(number, uid, 1, header.params, header.sampled, 1000)


def make(kind, originals, store_uri, tmp_path):
    store = open_store(store_uri)
    store.prepare()
    home = Home(tmp_path / "home", NAME)
    transfer.import_sweep(originals[kind] / "out", store, home)
    shutil.copy(originals[kind] / "home" / "optuna.db", home.root / "optuna.db")
    return Patient(store, home, tmp_path)


@pytest.fixture
def whole(originals, store_uri, tmp_path):
    return make("whole", originals, store_uri, tmp_path)


@pytest.fixture
def stopped(originals, store_uri, tmp_path):
    return make("stopped", originals, store_uri, tmp_path)


def damage(path):
    """As a disk does that lost a block."""
    blob = path.read_bytes()
    half = len(blob) // 2
    path.write_bytes(blob[:half] + bytes(len(blob) - half))


def test_sound_sweeps_are_called_so(whole, stopped_too):
    found = whole.examine()
    assert found.is_sound
    assert found.unchecked == []
    assert list(found.ends) == list(range(6))
    assert found.num_rows == sum(r.table.num_rows for r in whole.store.records(NAME)) > 6
    assert doctor.mend(found, whole.store, whole.home, pytest.fail) == []
    assert stopped_too.examine().is_sound


@pytest.fixture
def stopped_too(originals, tmp_path):
    (tmp_path / "b").mkdir()
    return make("stopped", originals, f"folder:{tmp_path / 'b' / 'store'}", tmp_path / "b")


def test_a_damaged_record_is_lost_unless_the_spool_has_it(whole):
    damage(whole.record_path(2))
    (finding,) = whole.examine().findings
    assert (finding.kind, finding.trial, finding.action) == ("lost", 2, "")
    assert 2 not in whole.examine().ends


def test_a_damaged_record_is_mended_from_the_spool(whole):
    whole.spool(2)
    damage(whole.record_path(2))
    assert {kind for kind, _ in whole.told()} == {"untidy"}
    whole.mend()
    assert whole.examine().is_sound
    assert list(whole.home.spool.iterdir()) == []


def test_a_record_that_is_gone_is_lost(whole):
    whole.record_path(1).unlink()
    assert whole.told() == [("lost", 1)]


def test_a_trial_of_which_optuna_was_not_told_is_told(whole):
    before = {t.number: (t.state, t.value) for t in whole.study().trials}
    whole.sql(
        "DELETE FROM trial_values WHERE trial_id IN (SELECT trial_id FROM trials WHERE number = 3)",
        "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 3",
    )
    assert whole.told() == [("untidy", 3)]
    whole.mend()
    assert whole.examine().is_sound
    assert {t.number: (t.state, t.value) for t in whole.study().trials} == before


def test_what_optuna_was_told_and_nobody_has_is_lost(whole):
    if whole.is_mlflow:
        client = whole.client()
        (entry,) = [e for e in whole.store.entries(NAME) if e.number == 4]
        client.delete_run(entry.key)
    else:
        whole.record_path(4).unlink()
    assert whole.told() == [("lost", 4)]


def test_another_value_than_optuna_was_told_is_wrong(whole):
    whole.sql(
        "UPDATE trial_values SET value = 7 "
        "WHERE trial_id IN (SELECT trial_id FROM trials WHERE number = 5)"
    )
    (finding,) = whole.examine().findings
    assert (finding.kind, finding.trial) == ("wrong", 5)
    assert "Optuna was told complete, 7.0" in finding.what


def test_a_trial_half_published_is_published(whole):
    if whole.is_mlflow:
        (entry,) = [e for e in whole.store.entries(NAME) if e.number == 0]
        whole.client().update_run(entry.key, status="RUNNING")
    else:
        whole.store.begin_trial(NAME, whole.start(0))
    (finding,) = whole.examine().findings
    assert (finding.kind, finding.trial) == ("untidy", 0)
    assert "is not closed" in finding.what
    whole.mend()
    assert whole.examine().is_sound
    assert len(whole.store.entries(NAME)) == 6


def test_trials_that_nobody_trains_any_more_are_called_interrupted(stopped):
    left = max(set(range(6)) - set(stopped.examine().ends))
    stopped.store.begin_trial(NAME, stopped.start(left))
    stopped.store.set_state(NAME, "running")
    assert sorted(stopped.told(), key=str) == [("untidy", left), ("untidy", None)]
    assert stopped.mend()
    assert stopped.examine().is_sound
    assert open_store(stopped.store.uri).states(NAME)[left] == "interrupted"
    assert open_store(stopped.store.uri).sweep(NAME).state == "interrupted"


@pytest.mark.parametrize("store_uri", ["mlflow"], indirect=True)  # A folder cannot have two.
def test_a_second_entry_of_a_trial(whole):
    client = whole.client()
    entry = whole.store.entries(NAME)[1]
    run = client.get_run(entry.key)

    def copy(state, status):
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.user")}
        made = client.create_run(run.info.experiment_id, tags={**tags, "lyapsweep.state": state})
        client.set_terminated(made.info.run_id, status=status)
        return made.info.run_id

    extra = copy("interrupted", "KILLED")
    assert whole.told() == [("untidy", 1)]
    whole.mend()
    assert whole.examine().is_sound
    assert client.get_run(extra).info.lifecycle_stage == "deleted"
    twice = copy("complete", "FINISHED")
    (finding,) = whole.examine().findings
    assert (finding.kind, finding.trial, finding.action) == ("wrong", 1, "")
    assert "on record 2 times" in finding.what
    with pytest.raises(StoreError, match="it stays"):
        whole.store.remove_entry(NAME, twice)
    with pytest.raises(StoreError, match="it stays"):
        whole.store.remove_entry(NAME, whole.store.entries(NAME)[0].key)


def test_what_waits_in_the_spool_is_published(whole):
    whole.spool(2)
    assert whole.told() == [("untidy", 2)]
    assert whole.examine().waiting == (2,)
    whole.mend()
    assert whole.examine().is_sound


def test_a_spool_file_that_cannot_be_read_is_set_aside_not_deleted(whole):
    whole.home.create()
    for _ in range(2):
        whole.home.spool_path(3).write_bytes(b"rubbish")
        assert whole.told() == [("wrong", None)]
        whole.mend()
        assert whole.examine().is_sound
    aside = sorted(p.name for p in (whole.home.folder / "damaged").iterdir())
    assert aside == ["trial-00003.parquet", "trial-00003.parquet.1"]


def test_a_spool_file_of_another_sweep_is_set_aside(whole):
    path = whole.spool(1)
    record = records.read(path)
    header = records.TrialHeader(**{**vars(record.header), "trial_uid": "other/1"})
    records.write(records.TrialRecord(header, record.table), path)
    assert whole.told() == [("wrong", None)]
    whole.mend()
    assert whole.examine().is_sound


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "wrong", "recorded twice"),
        (lambda t: t.filter(pa.compute.field("epoch") != 1), "lost", "val_loss lacks epoch 1"),
    ],
)
def test_records_that_contradict_themselves(whole, change, kind, words):
    path = whole.spool(2)
    record = records.read(path)
    records.write(records.TrialRecord(record.header, change(record.table)), path)
    whole.store.publish(NAME, path)
    path.unlink()
    (finding,) = whole.examine().findings
    assert (finding.kind, finding.trial, finding.action) == (kind, 2, "")
    assert words in finding.what


def test_trials_that_the_design_does_not_have(whole):
    path = whole.spool(2)
    record = records.read(path)
    extra = whole.start(6)
    header = records.TrialHeader(**{**vars(record.header), "trial": 6, "trial_uid": extra.uid})
    whole.store.begin_trial(NAME, extra)
    moved, place = whole.home.spool_path(6), record.table.schema.get_field_index("trial")
    six = pa.array([6] * record.table.num_rows, pa.int32())
    table = record.table.set_column(place, records.SCHEMA.field("trial"), six)
    records.write(records.TrialRecord(header, table), moved)
    whole.store.publish(NAME, moved)
    for left in (path, moved):
        left.unlink()
    assert set(whole.told()) == {("wrong", 6)}


def test_a_sweep_called_complete_that_is_not(stopped):
    left = sorted(set(range(6)) - set(stopped.examine().ends))
    assert len(left) == 2
    stopped.store.set_state(NAME, "complete")
    assert stopped.told() == [("lost", number) for number in left]


def test_changed_settings_are_seen(whole, monkeypatch):
    info = whole.store.sweep(NAME)
    store = type(whole.store)
    changed = {**info.config, "trials": 7}
    monkeypatch.setattr(
        store, "sweep", lambda self, name: type(info)(**{**vars(info), "config": changed})
    )
    assert ("wrong", None) in whole.told()


def test_without_the_folder_it_ran_in_only_the_store_is_checked(whole, tmp_path):
    shutil.rmtree(whole.home.root)
    found = whole.examine()
    assert found.is_sound
    assert len(found.unchecked) == 1
    assert "Optuna: no " in found.unchecked[0]


def test_an_optuna_database_that_is_none_is_a_finding(whole):
    (whole.home.root / "optuna.db").write_bytes(b"no database" * 1000)
    (finding,) = whole.examine().findings
    assert finding.kind == "wrong"
    assert "Optuna" in finding.what


def _hold(home, ready, done):
    with home.lock():
        ready.set()
        done.wait(30)


def test_nothing_is_mended_while_a_driver_runs(whole):
    whole.spool(2)
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    holder = fork.Process(target=_hold, args=(whole.home, ready, done))
    holder.start()
    try:
        assert ready.wait(30)
        found = whole.examine()
        assert found.is_running
        assert found.is_sound
        assert "a driver runs this sweep" in found.unchecked[0]
        found.findings.append(doctor.Finding("untidy", 2, "made up", "x", "reconcile"))
        with pytest.raises(LockedError):
            doctor.mend(found, whole.store, whole.home, pytest.fail)
    finally:
        done.set()
        holder.join()
    assert whole.told() == [("untidy", 2)]
