"""Whole sweeps, and what becomes of them when something dies between any two steps."""

import collections
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pyarrow.compute as pc
import pytest

from pipeline import config, creating, records, retrying
from pipeline.executors.base import Lost, Raised, Reached, Stopped
from pipeline.executors.inline import InlineExecutor
from pipeline.home import Home, LockedError
from pipeline.store import StoreError, StoreFullError, open_store
from pipeline.sweep import Driver, SweepError
from pipeline.worker import CohortError, Worker
from tasks.networks.mlp import MLP

NAME = "tiny"
CONF = {
    "trials": 6,
    "task": {"name": "planar", "points": 200, "batch_size": 40},
    "network": {"name": "mlp", "width": {"choice": [3, 4]}, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 2, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 10, "at": [0, 2]}},
    "execution": {"cohort_size": 2, "executor": "inline"},
}


def conf(**sections):
    return {**CONF, **sections}


class Sweep:
    """A sweep in a folder, driven in this process as often as a test likes."""

    empty_optuna = None

    def __init__(self, root, store_uri, tree=None, name=NAME, home="home"):
        self.root, self.uri, self.name = root, store_uri, name
        self.home = Home(root / home, name)
        self.tree = CONF if tree is None else tree
        if not self.home.root.exists():
            self.home.root.mkdir()
            shutil.copy(Sweep.empty_optuna, self.home.root / "optuna.db")

    @property
    def store(self):
        return open_store(self.uri)

    def driver(self, executor=None, listener=lambda _: None, store=None):
        store = store or self.store
        store.prepare()
        try:
            info = store.sweep(self.name)
        except StoreError:
            info = creating.create(config.check(self.tree), self.name, store)
        checked = creating.stored_config(info)
        return Driver(checked, info, store, self.home, executor or InlineExecutor(), listener)

    def run(self, *args, **kwargs):
        return self.driver(*args, **kwargs).run()

    @property
    def study(self):
        info = self.store.sweep(self.name)
        return optuna.load_study(
            storage=self.home.optuna_url, study_name=f"{self.name}-{info.sweep_id}"
        )

    def tables(self):
        return {r.header.trial: r.table for r in self.store.records(self.name)}

    def hashes(self):
        return {number: records.content_hash(table) for number, table in self.tables().items()}

    def params(self):
        return {t.number: t.params for t in self.study.trials}


@pytest.fixture(scope="session", autouse=True)
def _empty_optuna(tmp_path_factory):
    """Optuna's tables take a second to make, so they are made once."""
    Sweep.empty_optuna = tmp_path_factory.mktemp("optuna") / "optuna.db"
    optuna.storages.RDBStorage(f"sqlite:///{Sweep.empty_optuna}")


@pytest.fixture
def tiny(tmp_path, store_uri):
    return Sweep(tmp_path, store_uri)


@pytest.fixture
def in_folder(tmp_path):
    return lambda tree, name=NAME: Sweep(tmp_path, f"folder:{tmp_path / 'store'}", tree, name)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Undisturbed sweeps: tree → (tables, params), each run once."""
    found = {}

    def of(tree):
        key = json.dumps(tree, sort_keys=True)
        if key not in found:
            root = tmp_path_factory.mktemp("reference")
            one = Sweep(root, f"folder:{root / 'store'}", tree)
            assert one.run().state == "complete"
            found[key] = one.tables(), one.params()
        return found[key]

    return of


def assert_close(found, expected):
    """Equal but for the rounding of float32, which depends on how many train together."""
    assert found.keys() == expected.keys()
    for number, table in expected.items():
        rows, others = table.to_pylist(), found[number].to_pylist()
        named = [[(r["epoch"], r["quantity"]) for r in part] for part in (rows, others)]
        assert named[0] == named[1]
        for row, other in zip(rows, others, strict=True):
            for name in ("epoch", "update", "quantity", "axes", "shape", "unit", "flags"):
                assert row[name] == other[name]
            assert other["values"] == pytest.approx(row["values"], rel=1e-4, abs=1e-5)


def assert_exactly_once(one, reference_of_tree, *, same_cohorts=True):
    """Every trial once in Optuna, in the store, in Parquet; and as if nothing had happened."""
    tables, params = reference_of_tree
    trials = one.study.trials
    assert [t.number for t in trials] == list(range(len(tables)))
    assert all(t.state.is_finished() for t in trials)
    assert one.params() == params
    found = list(one.store.records(one.name))
    assert [r.header.trial for r in found] == list(range(len(tables)))
    assert_close(one.tables(), tables)
    if same_cohorts:
        assert one.hashes() == {n: records.content_hash(t) for n, t in tables.items()}
    for trial, record in zip(trials, found, strict=True):
        assert trial.value == record.header.value
    assert len({r.header.trial_uid for r in found}) == len(found)
    states = {"complete", "diverged", "pruned", "failed"}
    assert set(one.store.states(one.name).values()) <= states
    assert one.store.sweep(one.name).state == "complete"
    assert list(one.home.spool.iterdir()) == []
    if one.uri.startswith("sqlite"):
        assert_exactly_once_in_mlflow(one, found)


def assert_exactly_once_in_mlflow(one, found):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(one.uri)
    experiment = client.get_experiment_by_name(one.name)
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    children = {
        int(r.data.tags["lyapsweep.trial_number"]): r
        for r in runs
        if "mlflow.parentRunId" in r.data.tags
    }
    assert len(children) == len(found) == len(runs) - 1
    for record in found:
        run = children[record.header.trial]
        assert run.info.status in ("FINISHED", "FAILED")
        for quantity in ("val_loss", "train_loss", "gradient_norm"):
            scalars = records.scalars(record.table)
            expected = scalars[scalars["quantity"] == quantity].dropna(subset="value")
            history = client.get_metric_history(run.info.run_id, quantity)
            assert [(m.step, m.value) for m in history] == list(
                zip(expected["epoch"], expected["value"], strict=True)
            )
        artifacts = [a.path for a in client.list_artifacts(run.info.run_id)]
        assert artifacts == [f"trial-{record.header.trial:05d}.parquet"]


# The undisturbed sweep.


def test_a_sweep_runs_every_trial_once_and_says_how_it_goes(tiny, reference):
    seen = []
    outcome = tiny.run(listener=lambda p: seen.append((p.finished, dict(p.running), p.eta_seconds)))
    assert outcome.state == "complete"
    assert outcome.progress.finished == outcome.progress.complete == 6
    assert seen[-1][:2] == (6, {})
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)
    assert max(epoch for _, running, _ in seen for epoch in running.values()) <= 2
    assert all(eta is None or eta >= 0 for _, _, eta in seen)
    best = min((t.value, t.number) for t in tiny.study.trials)
    assert outcome.progress.best == best
    assert_exactly_once(tiny, reference(CONF))


def test_running_a_finished_sweep_again_changes_nothing(tiny, reference):
    tiny.run()
    outcome = tiny.run()
    assert outcome.state == "complete"
    assert outcome.progress.finished == 6
    assert_exactly_once(tiny, reference(CONF))


@pytest.mark.parametrize("sampler", ["qmc", "random", "tpe"])
def test_cohorts_change_no_trial(in_folder, reference, sampler):
    """Same design and seeds; the numbers agree as cohorts of 1 and of 6 do."""
    tree = conf(sampler={"name": sampler, "batch": 6})
    alone = in_folder({**tree, "execution": {"cohort_size": 1}}, "alone")
    alone.run()
    assert_exactly_once(alone, reference(tree), same_cohorts=False)


def test_weights_are_kept_on_request(in_folder):
    one = in_folder(conf(execution={"cohort_size": 2, "keep_weights": True}))
    one.run()
    kept = sorted(p.name for p in (one.root / "store").rglob("*.safetensors"))
    assert kept == [f"{n:05d}.safetensors" for n in range(6)]
    assert list(one.home.spool.iterdir()) == []


class Scrambled:
    """Several slots in this process, whose rungs arrive in an order of their own."""

    def __init__(self, num_slots, seed):
        self.num_slots, self._random = num_slots, random.Random(seed)
        self._slots, self._leave, self._snapshots = {}, {}, {}
        self._is_stopping = False
        self.pauses = 0

    def submit(self, cohort, snapshot=None):
        assert len(self._slots) < self.num_slots
        self._slots[cohort.numbers] = cohort, Worker()
        self._snapshots[cohort.numbers] = snapshot
        self._leave[cohort.numbers] = None

    def advance(self, cohort, leave=()):
        assert cohort.numbers not in self._leave
        self._leave[cohort.numbers] = leave

    def release(self, cohort):
        assert cohort.numbers not in self._leave
        del self._slots[cohort.numbers]

    def poll(self, timeout):
        ready = self._slots if self._is_stopping else self._leave
        if not ready:
            assert not self._slots, "all pause, and nobody says a word"
            return ()
        numbers = self._random.choice(sorted(ready))
        cohort, worker = self._slots[numbers]
        leave = self._leave.pop(numbers, None)
        if self._is_stopping:
            del self._slots[numbers]
            return (Stopped(cohort),)
        try:
            start = self._snapshots[numbers]
            rung = worker.start(cohort, start) if leave is None else worker.advance(leave)
        except CohortError as error:
            del self._slots[numbers]
            return (Raised(cohort, str(error)),)
        if rung.is_last:
            del self._slots[numbers]
        elif rung.epoch in cohort.pauses:
            self.pauses += 1
        else:
            self._leave[numbers] = ()
        return (Reached(cohort, rung),)

    def stop(self):
        self._is_stopping = True

    def close(self):
        self._slots, self._leave = {}, {}


@pytest.mark.parametrize("sampler", ["qmc", "tpe", "cmaes"])
def test_neither_workers_nor_their_order_change_a_sweep(in_folder, sampler):
    tree = conf(trials=15, sampler={"name": sampler, "batch": 5})
    found = []
    for slots, seed in ((1, 0), (3, 1), (3, 2)):
        one = in_folder(tree, f"run-{slots}-{seed}")
        assert one.run(Scrambled(slots, seed)).state == "complete"
        found.append((one.params(), one.hashes()))
    assert found[0] == found[1] == found[2]
    assert len({str(p) for p in found[0][0].values()}) == 15


def test_ray_and_inline_give_identical_records(tmp_path, local_ray, reference):
    from pipeline.executors.ray import RayExecutor

    assert isinstance(local_ray, RayExecutor)
    one = Sweep(tmp_path, f"folder:{tmp_path / 'store'}")
    assert one.run(local_ray).state == "complete"
    assert_exactly_once(one, reference(CONF))


# Trials that leave early.

PRUNED = {
    "trials": 14,
    "sampler": {"batch": 14},
    "pruner": {"name": "successive_halving", "reduction_factor": 2, "lag": 2},
    "task": {"name": "planar", "points": 100},
    "network": {"name": "mlp", "width": 3, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 5, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 5, "at": [0, 1, 5]}},
    "execution": {"cohort_size": 3, "executor": "inline"},
}


def test_trials_that_are_pruned_are_results_up_to_where_they_left(tiny, reference):
    tiny.tree = PRUNED
    outcome = tiny.run()
    assert outcome.state == "complete"
    states = tiny.store.states(NAME)
    pruned = {n for n, s in states.items() if s == "pruned"}
    assert len(pruned) >= 6
    assert set(states.values()) == {"pruned", "complete"}
    progress = outcome.progress
    assert (progress.pruned, progress.complete) == (len(pruned), 14 - len(pruned))
    whole, _ = reference({**PRUNED, "pruner": {"name": "none"}})
    spent = 0
    for record in tiny.store.records(NAME):
        header = record.header
        number, rows = header.trial, record.table.to_pylist()
        assert header.epochs_planned == 5
        spent += header.epochs
        if number not in pruned:
            assert (header.pruned_at, header.epochs) == (None, 5)
            assert_close({0: record.table}, {0: whole[number]})
            continue
        assert header.pruned_at == header.epochs
        assert header.pruned_at in (1, 2, 4)
        assert max(row["epoch"] for row in rows) == header.pruned_at
        # What it recorded is what it would have recorded by then, had it stayed.
        by_then = whole[number].filter(pc.less_equal(whole[number]["epoch"], header.pruned_at))
        assert_close({0: record.table}, {0: by_then})
        losses = {r["epoch"]: r["values"][0] for r in rows if r["quantity"] == "val_loss"}
        trial = tiny.study.trials[number]
        assert trial.state == optuna.trial.TrialState.PRUNED
        assert trial.value == header.value == losses[header.pruned_at]
        assert trial.intermediate_values == {header.pruned_at: header.value}
    assert (progress.epochs_spent, progress.epochs_planned) == (spent, 14 * 5)
    assert spent < 60
    assert progress.epochs_again == 0
    assert progress.best == min(
        (t.value, t.number) for t in tiny.study.trials if t.number not in pruned
    )
    again = tiny.run().progress
    assert (again.pruned, again.epochs_spent, again.best) == (len(pruned), spent, progress.best)
    if tiny.uri.startswith("sqlite"):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tiny.uri)
        found = client.search_runs(
            [client.get_experiment_by_name(NAME).experiment_id],
            "tags.`lyapsweep.state` = 'pruned'",
        )
        assert {int(r.data.tags["lyapsweep.trial_number"]) for r in found} == pruned
        assert {r.info.status for r in found} == {"FINISHED"}
        assert all(int(r.data.tags["lyapsweep.pruned_at"]) in (1, 2, 4) for r in found)


MEDIAN = {
    **PRUNED,
    "trials": 18,
    "sampler": {"batch": 18},
    "pruner": {"name": "median", "n_startup_trials": 2, "lag": 2},
}
HYPERBAND = {**PRUNED, "pruner": {"name": "hyperband", "reduction_factor": 2, "lag": 1}}
STEERED = {**PRUNED, "sampler": {"name": "tpe", "batch": 7, "startup": 3}}


@pytest.mark.parametrize(
    "tree",
    [PRUNED, MEDIAN, HYPERBAND, STEERED],
    ids=lambda t: str(t["pruner"]["name"]) + t["sampler"].get("name", ""),
)
def test_neither_workers_nor_their_order_change_who_leaves(in_folder, reference, tree):
    pauses = set()
    for slots, seed in ((2, 1), (3, 2), (5, 3)):
        one = in_folder(tree, f"run-{slots}")
        executor = Scrambled(slots, seed)
        assert one.run(executor).state == "complete"
        assert_exactly_once(one, reference(tree))
        pauses.add(executor.pauses)
    states = collections.Counter(one.store.states(one.name).values())
    assert states["pruned"] >= 2
    assert states["complete"] >= 2
    assert len(pauses) == 1
    assert pauses.pop() > 0


@pytest.mark.parametrize("after", [0, 2, 5, 9])
def test_a_stopped_sweep_with_a_pruner_is_resumed_as_if_it_had_not_been(
    in_folder, reference, after
):
    one = in_folder(PRUNED)
    for _ in range(3):
        driver = one.driver(Scrambled(2, after))

        def stop(progress, driver=driver, after=after):
            if progress.finished >= after and progress.running:
                driver.request_stop()

        driver._listen = stop
        outcome = driver.run()
        if outcome.state == "complete":
            break
        assert "running" not in one.store.states(NAME).values()
        after += 2
    outcome = one.run(Scrambled(3, 0))
    assert outcome.state == "complete"
    assert_exactly_once(one, reference(PRUNED))
    # What was trained for nothing is counted, over all drivers.
    assert outcome.progress.epochs_again > 0
    assert one.run().progress.epochs_again == outcome.progress.epochs_again


def test_who_leaves_is_decided_alike_by_ray_and_inline(tmp_path, local_ray, reference):
    one = Sweep(tmp_path, f"folder:{tmp_path / 'store'}", PRUNED)
    assert one.run(local_ray).state == "complete"
    assert_exactly_once(one, reference(PRUNED))


def test_lost_workers_change_nobody_who_leaves(in_folder, reference):
    one = in_folder(PRUNED)
    assert one.run(LosingExecutor({0: 1, 3: 1, 9: 1})).state == "complete"
    assert_exactly_once(one, reference(PRUNED))


def test_members_that_diverge_are_on_record_at_once_and_leave(in_folder):
    tree = conf(
        trials=4,
        network={"name": "mlp", "activation": "identity"},
        trainer={
            "epochs": 12,
            "optimiser": "sgd",
            "learning_rate": {"choice": [0.01, 900.0]},
            "weight_decay": 0.9,
        },
        measure={},
        execution={"cohort_size": 4, "keep_weights": True},
    )
    one = in_folder(tree)
    seen = []
    outcome = one.run(listener=lambda p: seen.append((p.diverged, dict(p.running))))
    assert outcome.progress.diverged == max(d for d, _ in seen) > 0
    assert any(d and running for d, running in seen), "recorded only when the last has ended"
    for record in one.store.records(NAME):
        if record.header.state == "diverged":
            last = max(record.table["epoch"].to_pylist())
            assert record.header.epochs == last < 12
    kept = sorted(p.name for p in (one.root / "store").rglob("*.safetensors"))
    assert kept == [f"{n:05d}.safetensors" for n in range(4)]
    headers = [r.header for r in one.store.records(NAME)]
    assert outcome.progress.epochs_spent == sum(h.epochs for h in headers) < 48
    assert one.run().progress.epochs_spent == outcome.progress.epochs_spent


def test_epochs_of_members_trained_along_are_counted_apart(in_folder, reference):
    """A cohort-mate is on record already; to train the other alike, it trains along."""
    one = in_folder(CONF)

    class BrokenError(Exception):
        pass

    genuine, calls = records.write, []

    def dies(record, path):
        calls.append(path)
        if len(calls) == 2:
            raise BrokenError
        genuine(record, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "write", dies)
        with pytest.raises(BrokenError):
            one.run()
    outcome = one.run()
    assert_exactly_once(one, reference(CONF))
    assert outcome.progress.epochs_again == 2
    assert outcome.progress.epochs_spent == 12


def test_changed_settings_in_the_store_are_refused(in_folder):
    one = in_folder(CONF)
    one.run()
    path = one.root / "store" / NAME / "sweep.json"
    content = json.loads(path.read_text())
    content["config"]["trainer"]["epochs"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(SweepError, match="somebody changed them"):
        one.run()
    content["config"]["trainer"]["epochs"] = 2
    content["config"]["execution"]["attempts"] = 7
    path.write_text(json.dumps(content))
    assert one.run().state == "complete"


def test_a_cohort_size_is_fixed_when_the_sweep_is_created(in_folder, monkeypatch):
    tree = conf(execution={"executor": "inline"})
    one = in_folder(tree)
    driver = one.driver()
    stored = one.store.sweep(NAME).config
    size = stored["execution"]["cohort_size"]
    assert 1 <= size <= 6
    assert stored["sampler"]["batch"] == 8 * size
    monkeypatch.setattr("pipeline.sizing.measure", lambda *_, **__: pytest.fail("measured again"))
    assert driver.run().state == "complete"
    assert one.run().progress.finished == 6


# Trials that go wrong.


def test_a_diverged_trial_is_a_result_with_a_finite_value(tiny):
    tiny.tree = conf(
        network={"name": "mlp", "activation": "identity"},
        trainer={
            "epochs": 4,
            "optimiser": "sgd",
            "learning_rate": {"choice": [0.01, 900.0]},
            "weight_decay": 0.9,
        },
        measure={},
    )
    outcome = tiny.run()
    assert outcome.state == "complete"
    states = tiny.store.states(NAME)
    values = {t.number: (t.params["trainer.learning_rate"], t.value) for t in tiny.study.trials}
    for number, (rate, value) in values.items():
        assert states[number] == ("diverged" if rate == 900 else "complete")
        if rate == 900:
            assert value == pytest.approx(10 * 0.6931, rel=1e-3)
    assert outcome.progress.diverged == sum(s == "diverged" for s in states.values()) > 0
    assert outcome.progress.failed == 0
    assert tiny.run().progress.diverged == outcome.progress.diverged


@pytest.fixture
def fragile(monkeypatch):
    """Networks with an init_scale of 13 cannot be built."""
    genuine = MLP.__init__

    def fails(self, configs, **options):
        if any(c.init_scale == 13 for c in configs):
            raise RuntimeError("thirteen is an unlucky scale")
        genuine(self, configs, **options)

    monkeypatch.setattr(MLP, "__init__", fails)
    return conf(
        trials=8,
        network={"name": "mlp", "width": 3, "init_scale": {"choice": [1.0, 2.0, 3.0, 13.0]}},
        sampler={"name": "qmc", "batch": 8},
        execution={"cohort_size": 4, "max_failed_share": 0.5},
    )


def test_a_trial_that_raises_is_recorded_and_hurts_no_other(tiny, fragile):
    tiny.tree = fragile
    outcome = tiny.run()
    assert outcome.state == "complete"
    unlucky = {t.number for t in tiny.study.trials if t.params["network.init_scale"] == 13}
    assert 0 < len(unlucky) < 4
    expected = {n: "failed" if n in unlucky else "complete" for n in range(8)}
    assert tiny.store.states(NAME) == expected
    assert outcome.progress.failed == len(unlucky)
    for record in tiny.store.records(NAME):
        if record.header.trial in unlucky:
            assert record.header.value is None
            assert record.header.error.startswith("Traceback")
            assert "thirteen is an unlucky scale" in record.header.error
    failed = {t.number for t in tiny.study.trials if t.state == optuna.trial.TrialState.FAIL}
    assert failed == unlucky
    again = tiny.run()
    assert (again.state, again.progress.failed) == ("complete", len(unlucky))


def test_too_many_failures_stop_the_sweep(tiny, fragile):
    tiny.tree = {**fragile, "execution": {"cohort_size": 1, "max_failed_share": 0.0}}
    outcome = tiny.run()
    assert outcome.state == "failed"
    assert "execution.max_failed_share = 0 allows" in outcome.reason
    assert "thirteen" in outcome.reason
    assert outcome.progress.finished < 8
    assert tiny.store.sweep(NAME).state == "failed"
    assert "running" not in tiny.store.states(NAME).values()


class LosingExecutor(InlineExecutor):
    """Loses the worker of a cohort, as often as told, after its first rung."""

    def __init__(self, losses):
        super().__init__()
        self.losses, self._rungs = losses, 0

    def poll(self, timeout):
        events = super().poll(timeout)
        for event in events:
            self._rungs = self._rungs + 1 if isinstance(event, Reached) else 0
            if self._rungs == 2 and self.losses.get(event.cohort.numbers[0], 0) > 0:
                self.losses[event.cohort.numbers[0]] -= 1
                self._rungs, self._cohort = 0, None
                return (Lost(event.cohort, "killed by a test"),)
            if isinstance(event, Reached) and event.rung.is_last:
                self._rungs = 0
        return events


def test_trials_of_lost_workers_are_tried_again(tiny, reference):
    outcome = tiny.run(LosingExecutor({0: 2}))
    assert outcome.state == "complete"
    assert_exactly_once(tiny, reference(CONF), same_cohorts=False)
    attempts = {r.header.trial: r.header.attempt for r in tiny.store.records(NAME)}
    assert attempts[0] == 3
    assert min(attempts.values()) == 1


def test_a_trial_that_loses_every_worker_fails_at_last(tiny):
    tiny.tree = conf(execution={"cohort_size": 1, "attempts": 3, "max_failed_share": 0.5})
    outcome = tiny.run(LosingExecutor({1: 99}))
    assert outcome.state == "complete"
    assert {n: s for n, s in tiny.store.states(NAME).items() if s != "complete"} == {1: "failed"}
    error = tiny.store.record(NAME, 1).header.error
    assert error == "worker lost 3 times, last: killed by a test"


def test_a_killed_ray_worker_needs_no_command(tmp_path, local_ray, reference):
    tree = conf(trials=4, trainer={**CONF["trainer"], "epochs": 40}, measure={})
    one = Sweep(tmp_path, f"folder:{tmp_path / 'store'}", tree)
    victims = local_ray.process_ids()[-1:]
    messages = []

    def kill_once(progress):
        messages.append(progress.last)
        if victims and progress.running:
            os.kill(victims.pop(), signal.SIGKILL)

    assert one.run(local_ray, kill_once).state == "complete"
    assert any("worker lost" in message for message in messages)
    assert_exactly_once(one, reference(tree))


# Stores that go away.


@pytest.fixture
def impatient(monkeypatch):
    """Silent stores are tried again at once, and not for a minute."""
    monkeypatch.setattr(retrying, "RETRY_SECONDS", (0.001,) * 7)


@pytest.mark.parametrize("method", ["publish", "begin_trial"])
@pytest.mark.parametrize("sampler", ["qmc", "tpe"])
def test_a_store_that_is_down_for_a_while_costs_nothing(
    tiny, reference, impatient, monkeypatch, method, sampler
):
    tiny.tree = conf(sampler={"name": sampler, "batch": 2})
    store = tiny.store
    genuine, failures = getattr(type(store), method), []

    def flaky(self, *args):
        if len(failures) < 6:
            failures.append(args)
            raise StoreError("the store is away")
        return genuine(self, *args)

    monkeypatch.setattr(type(store), method, flaky)
    outcome = tiny.run(store=store)
    assert len(failures) == 6
    assert (outcome.state, outcome.reason) == ("complete", "")
    assert_exactly_once(tiny, reference(tiny.tree))


def test_a_folder_that_vanishes_and_comes_back_costs_nothing(tiny, reference, impatient):
    """The real thing: where the artifacts go there is a file in the way for some rungs."""
    place = tiny.root / ("store" if tiny.uri.startswith("folder") else "mlruns")
    aside = tiny.root / "aside"
    away = []

    def meddle(progress):
        if progress.finished == 2 and not away:
            place.rename(aside)
            place.write_text("in the way")
            away.append(0)
        elif away and aside.exists():
            away.append(progress.last)
            if len(away) == 4:
                place.unlink()
                aside.rename(place)

    outcome = tiny.run(listener=meddle)
    assert not aside.exists()
    assert outcome.state == "complete"
    assert_exactly_once(tiny, reference(CONF))


@pytest.mark.slow
def test_a_database_locked_for_longer_than_mlflow_waits_costs_nothing(
    tmp_path, empty_mlflow, reference
):
    database = shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    one = Sweep(tmp_path, f"sqlite:///{database}")
    timers, messages = [], []

    def lock(progress):
        messages.append(progress.last)
        if progress.finished == 2 and not timers:
            other = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            timers.append(threading.Timer(30, other.close))
            timers[0].start()

    assert one.run(listener=lock).state == "complete"
    assert any("locked" in message for message in messages)
    assert_exactly_once(one, reference(CONF))


def test_a_store_that_stays_away_loses_nothing(tiny, reference, impatient, monkeypatch):
    tiny.tree = conf(execution={**CONF["execution"], "patience": 0})
    store = tiny.store

    def gone(self, *_):
        raise StoreError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "publish", gone)
        with pytest.raises(SweepError) as caught:
            tiny.run(store=store)
    message = str(caught.value)
    assert "the store is away" in message
    assert f"lyapsweep resume {NAME}" in message
    assert len(list(tiny.home.spool.glob("*.parquet"))) == 6
    assert not any(t.state.is_finished() for t in tiny.study.trials)
    trained = InlineExecutor()
    monkeypatch.setattr(trained, "submit", lambda _: pytest.fail("a trial was trained again"))
    assert tiny.run(trained).state == "complete"
    assert_exactly_once(tiny, reference(CONF))


def test_a_full_store_stops_the_sweep_at_once(tiny, reference, monkeypatch):
    store = tiny.store

    def full(self, *_):
        raise StoreFullError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "publish", full)
        with pytest.raises(SweepError, match="no space left"):
            tiny.run(store=store)
    assert tiny.run().state == "complete"
    assert_exactly_once(tiny, reference(CONF))


def test_a_spool_that_cannot_be_written_loses_nothing(tiny, reference, monkeypatch):
    genuine = records.write
    calls = []

    def full(record, path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        genuine(record, path)

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(OSError, match="No space left"):
        tiny.run()
    assert tiny.run().state == "complete"
    assert_exactly_once(tiny, reference(CONF))


# One driver, and going on.


def test_two_drivers_of_one_sweep_are_one_too_many(tiny):
    driver = tiny.driver()
    with tiny.home.lock(), pytest.raises(LockedError, match=f"process {os.getpid()} on"):
        driver.run()
    assert driver.run().state == "complete"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_sweep_is_resumed_as_if_it_had_not_been(tiny, reference, after):
    driver = tiny.driver(Scrambled(2, after))

    def stop(progress):
        if progress.finished >= after and progress.running:
            driver.request_stop()

    driver._listen = stop
    outcome = driver.run()
    assert outcome.state == "interrupted"
    assert outcome.progress.finished < 6
    assert tiny.store.sweep(NAME).state == "interrupted"
    states = tiny.store.states(NAME)
    assert "running" not in states.values()
    assert "interrupted" in states.values()
    outcome = tiny.run()
    assert (outcome.state, outcome.progress.finished) == ("complete", 6)
    assert_exactly_once(tiny, reference(CONF))


def test_stopping_while_a_cohort_is_tried_in_parts_leaves_none_running(tiny, fragile):
    tiny.tree = fragile
    driver = tiny.driver()

    def stop(_):
        if driver._asker.queue and driver._publisher._starts:
            driver.request_stop()

    driver._listen = stop
    assert driver.run().state == "interrupted"
    assert "running" not in tiny.store.states(NAME).values()
    assert tiny.run().state == "complete"


def test_a_home_that_knows_nothing_of_the_sweep_is_refused(tiny):
    """Resuming from another folder would train everything a second time."""
    tiny.run()
    elsewhere = Sweep(tiny.root, tiny.uri, home="elsewhere")
    with pytest.raises(SweepError, match="LYAPSWEEP_HOME"):
        elsewhere.run()
    assert len(list(tiny.store.records(NAME))) == 6


def test_a_spool_of_another_sweep_of_the_same_name_is_refused(tiny, impatient, monkeypatch):
    tiny.tree = conf(execution={**CONF["execution"], "patience": 0})
    store = tiny.store

    def gone(self, *_):
        raise StoreError("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "publish", gone)
        with pytest.raises(SweepError):
            tiny.run(store=store)
    other = Sweep(tiny.root, f"folder:{tiny.root / 'new-store'}")
    with pytest.raises(SweepError, match="is of another sweep that was named 'tiny' too"):
        other.run()


def test_a_broken_optuna_database_is_one_line(tiny):
    tiny.home.create()
    (tiny.root / "home" / "optuna.db").write_text("this is no database " * 300)
    with pytest.raises(SweepError, match=r"Optuna's database .*optuna\.db") as caught:
        tiny.run()
    assert "\n" not in str(caught.value)


# Drivers that are killed.

CRASHING = {
    "trials": 40,
    "sampler": {"batch": 2},
    "task": {"name": "planar", "points": 100},
    "network": {"name": "mlp", "width": 3, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 1, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 5}},
    "execution": {"cohort_size": 2, "executor": "inline"},
}


@pytest.fixture(scope="session")
def crasher():
    """Runs drivers in children of a helper process (see crash.py)."""
    helper = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("crash.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def drive(one, kill=None):
        job = {"conf": one.tree, "name": one.name, "store": one.uri, "kill": kill}
        job |= {"home": str(one.home.root), "cwd": str(one.root)}
        helper.stdin.write(json.dumps(job) + "\n")
        helper.stdin.flush()
        return json.loads(helper.stdout.readline())

    yield drive
    helper.stdin.close()
    helper.wait(timeout=60)


EVERYWHERE = (
    "create_sweep",
    "set_state",
    "ask",
    "suggest",
    "suggest_float",
    "ask_ledger",
    "create_trial",
    "attempt",
    "begin",
    "submit",
    "train",
    "spool",
    "rename",
    "publish",
    "tell",
    "unlink",
)
IN_MLFLOW = ("create_run", "log_batch", "log_artifact", "set_terminated")


@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "mlflow"])
def test_a_driver_killed_at_every_step_in_turn_loses_nothing(
    tmp_path, empty_mlflow, crasher, reference, kind
):
    """One sweep, killed before and after each step, resumed each time, to the end."""
    store_uri = f"folder:{tmp_path / 'store'}"
    if kind == "mlflow":
        store_uri = f"sqlite:///{shutil.copy(empty_mlflow, tmp_path / 'mlflow.db')}"
    crasher(Sweep(tmp_path, store_uri, {**CRASHING, "trials": 2}, "warm-up"))
    one = Sweep(tmp_path, store_uri, CRASHING)
    calls = EVERYWHERE + (IN_MLFLOW if kind == "mlflow" else ())
    for call in calls:
        for when in ("before", "after"):
            nth = 2 if call in ("suggest_float", "rename", "log_batch") else 1
            if call == "create_sweep" and when == "after":
                continue  # Created already, unless the kill before it does not work.
            answer = crasher(one, {"call": call, "when": when, "nth": nth})
            assert answer == {"killed": True}, (call, when, answer)
    answer = crasher(one)
    assert answer.get("state") == "complete", answer.get("error")
    assert_exactly_once(one, reference(CRASHING))


@pytest.mark.parametrize(
    "kills",
    [
        [("spool", "after", 1), ("rename", "before", 5), ("tell", "before", 3)],
        [("unlink", "before", 4), ("train", "after", 9), ("publish", "after", 6)],
    ],
)
def test_a_driver_with_a_pruner_loses_nothing_when_killed(tmp_path, crasher, reference, kills):
    """At a rung some of a cohort are on record and some train on."""
    one = Sweep(tmp_path, f"folder:{tmp_path / 'store'}", PRUNED)
    for call, when, nth in kills:
        answer = crasher(one, {"call": call, "when": when, "nth": nth})
        assert answer == {"killed": True}, (call, when, answer)
    answer = crasher(one)
    assert answer.get("state") == "complete", answer.get("error")
    assert_exactly_once(one, reference(PRUNED))


@pytest.mark.parametrize("checkpoint", [pytest.param(None, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 19])
def test_a_driver_with_a_pruner_killed_before_any_operation_loses_nothing(
    tmp_path, crasher, reference, step, checkpoint
):
    """Every `step`-th rename, fsync, unlink and commit, those of checkpoints among them."""
    execution = {"cohort_size": 3, "executor": "inline", "checkpoint": checkpoint}
    tree = {**PRUNED, "trials": 5, "execution": execution}
    store_uri = f"folder:{tmp_path / 'store'}"
    operations = crasher(Sweep(tmp_path, store_uri, tree, "whole"))["operations"]
    assert operations > 30
    for operation in range(step, operations + 1, step):
        one = Sweep(tmp_path, store_uri, tree, f"killed-{operation}")
        first = crasher(one, {"operation": operation})
        answer = crasher(one)
        assert answer.get("state") == "complete", (operation, first, answer)
        assert_exactly_once(one, reference(tree))


@pytest.mark.slow
def test_a_driver_killed_before_any_operation_that_lasts_loses_nothing(
    tmp_path, store_uri, crasher, reference
):
    """Every rename, fsync, unlink and database commit of a whole sweep, one sweep for each."""
    tree = {**CRASHING, "trials": 4}
    whole = Sweep(tmp_path, store_uri, tree, "whole")
    operations = crasher(whole)["operations"]
    assert operations > 30
    for operation in range(1, operations + 1):
        one = Sweep(tmp_path, store_uri, tree, f"killed-{operation}")
        first = crasher(one, {"operation": operation})
        answer = crasher(one)
        assert answer.get("state") == "complete", (operation, first, answer)
        assert_exactly_once(one, reference(tree))
