"""Sweeps taken up from checkpoints: as if nothing had happened, and counted so."""

import os
import shutil
import signal

import numpy as np
import optuna
import pytest
from safetensors.numpy import load_file

from pipeline import accounting, checkpoint_file, config, creating, records
from pipeline.executors.base import Lost, Reached
from pipeline.executors.inline import InlineExecutor
from pipeline.executors.process import ProcessExecutor
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.store import NoSuchSweepError
from pipeline.sweep import Driver

EPOCHS = 5
TREE = {
    "trials": 4,
    "sampler": {"batch": 4},
    "task": {"name": "planar", "points": 100},
    "network": {"name": "mlp", "width": 3, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": EPOCHS, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 5}, "ftle": {"probes": 5, "at": [0, 2, 5]}},
    "execution": {"cohort_size": 2, "executor": "inline", "checkpoint": 1, "keep_weights": True},
}
PRUNED = {
    **TREE,
    "trials": 9,
    "sampler": {"batch": 9},
    "pruner": {"name": "successive_halving", "reduction_factor": 2, "lag": 1},
    "execution": {**TREE["execution"], "cohort_size": 3},
}
STATEFUL = {
    **TREE,
    "trials": 2,
    "task": {
        "name": "char_text",
        "text": "pydoc",
        "characters": 800,
        "batch_size": 4,
        "seq_len": 10,
    },
    "network": {"name": "lstm", "units": 4, "dropout": {"uniform": [0, 0.3]}},
    "measure": {
        "lyapunov_spectrum": {"k": 2, "sequences": 2, "steps": 5, "warmup": 2},
        "gradient_norm": {"examples": 5, "steps": 10},
    },
}


def every(tree, epochs):
    return {**tree, "execution": {**tree["execution"], "checkpoint": epochs}}


class Sweep:
    """A sweep in a folder, driven as often as a test likes."""

    empty_optuna = None

    def __init__(self, root, tree):
        self.root, self.tree = root, tree
        self.home, self.store = Home(root / "home", "s"), FolderStore(root / "store")
        self.said = []
        if not self.home.root.exists():
            self.home.root.mkdir(parents=True)
            shutil.copy(Sweep.empty_optuna, self.home.root / "optuna.db")

    def run(self, executor=None):
        self.store.prepare()
        try:
            info = self.store.sweep("s")
        except NoSuchSweepError:
            info = creating.create(config.check(self.tree), "s", self.store)
        driver = Driver(
            creating.stored_config(info), info, self.store, self.home, executor or InlineExecutor()
        )
        driver._listen = lambda progress: self.said.append(progress.last)
        return driver.run()

    @property
    def headers(self):
        return {r.header.trial: r.header for r in self.store.records("s")}

    def content(self):
        """Results of every trial: state, epochs, value, all rows, final weights."""
        found = {}
        for record in self.store.records("s"):
            header = record.header
            path = self.root / "store" / "s" / "trials" / f"{header.trial:05d}.safetensors"
            weights = load_file(path) if path.exists() else {}
            found[header.trial] = (
                (header.state, header.value, header.epochs, header.pruned_at, header.seed),
                records.content_hash(record.table),
                {name: array.tobytes() for name, array in weights.items()},
            )
        return found

    def checkpoints(self):
        return sorted(self.home.checkpoints.rglob("epoch-*"))


@pytest.fixture(scope="session", autouse=True)
def _empty_optuna(tmp_path_factory):
    """Optuna's tables take a second to make, so they are made once."""
    Sweep.empty_optuna = tmp_path_factory.mktemp("optuna") / "optuna.db"
    optuna.storages.RDBStorage(f"sqlite:///{Sweep.empty_optuna}")


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Unbroken sweeps without checkpoints: tree → content, each run once."""
    found = {}

    def of(tree):
        tree = every(tree, None)
        if str(tree) not in found:
            one = Sweep(tmp_path_factory.mktemp("reference"), tree)
            assert one.run().state == "complete"
            found[str(tree)] = one.content()
        return found[str(tree)]

    return of


class DeathError(BaseException):
    """Ends a driver without a word, as far as one process can."""


class Dying(InlineExecutor):
    """Dies after so many rungs have been handled."""

    def __init__(self, rungs):
        super().__init__()
        self._left = rungs

    def poll(self, timeout):
        if self._left == 0:
            raise DeathError
        events = super().poll(timeout)
        self._left -= len(events)
        return events


class Losing(InlineExecutor):
    """Loses the worker where told: a set of (trials, epoch, how many-th visit)."""

    def __init__(self, at):
        super().__init__()
        self._at, self._visits = at, {}

    def poll(self, timeout):
        events = super().poll(timeout)
        for event in events:
            if isinstance(event, Reached):
                place = event.cohort.numbers, event.rung.epoch
                self._visits[place] = self._visits.get(place, 0) + 1
                if (*place, self._visits[place]) in self._at:
                    self._cohort = None
                    return (Lost(event.cohort, "killed by a test"),)
        return events


@pytest.mark.parametrize("tree", [TREE, PRUNED, STATEFUL], ids=["mlp", "pruned", "lstm"])
@pytest.mark.parametrize("interval", [1, 2])
def test_a_sweep_whose_driver_dies_at_any_rung_is_as_if_it_had_not(
    tmp_path, reference, tree, interval
):
    """Whoever goes on dies too, a few rungs later."""
    tree = every(tree, interval)
    for rungs in (2, 4, 7, 11):
        one = Sweep(tmp_path / str(rungs), tree)
        for allowed in (rungs, 3, 10_000):
            try:
                outcome = one.run(Dying(allowed))
            except DeathError:
                continue
            break
        assert outcome.state == "complete"
        assert one.content() == reference(tree), rungs
        assert one.checkpoints() == []
        progress = outcome.progress
        assert progress.epochs_spent == sum(h.epochs for h in one.headers.values())


def test_records_say_from_where_trials_were_taken_up_and_epochs_count_once(tmp_path, reference):
    one = Sweep(tmp_path, every(TREE, 2))
    # Rungs 0, 1, 2, 3 of the first cohort: what is beyond epoch 2 is trained again.
    with pytest.raises(DeathError):
        one.run(Dying(4))
    assert [p.name for p in one.checkpoints()] == ["epoch-00002.safetensors"]
    # The rung at epoch 2 once more, 3, 4.
    with pytest.raises(DeathError):
        one.run(Dying(3))
    assert [p.name for p in one.checkpoints()] == ["epoch-00004.safetensors"]
    outcome = one.run()
    assert "trials 0 to 1 go on from epoch 4" in one.said
    assert one.content() == reference(TREE)
    resumed = {n: h.provenance.get("resumed_at") for n, h in one.headers.items()}
    assert resumed == {0: [2, 4], 1: [2, 4], 2: None, 3: None}
    assert {n: h.epochs for n, h in one.headers.items()} == dict.fromkeys(range(4), EPOCHS)
    assert {n: h.attempt for n, h in one.headers.items()} == {0: 3, 1: 3, 2: 1, 3: 1}
    # Nobody was left to count epoch 3 of the first driver; nothing else was trained twice.
    assert outcome.progress.epochs_again == 0
    assert outcome.progress.epochs_spent == 4 * EPOCHS
    assert outcome.progress.epochs_before == 2 * 4
    starts = {n: h.start_ms for n, h in one.headers.items()}
    for record in one.store.records("s"):
        assert min(record.table["time_ms"].to_pylist()) >= starts[record.header.trial] - 1000


def test_a_lost_worker_costs_what_is_beyond_the_checkpoint(tmp_path, reference):
    one = Sweep(tmp_path, every(TREE, 2))
    outcome = one.run(Losing({((0, 1), 4, 1), ((2, 3), 1, 1)}))
    assert outcome.state == "complete"
    assert one.content() == reference(TREE)
    resumed = {n: h.provenance.get("resumed_at") for n, h in one.headers.items()}
    assert resumed == {0: [2], 1: [2], 2: None, 3: None}
    # Lost at rung 4, of which nobody heard: epoch 3 of two members.
    assert outcome.progress.epochs_again == 2
    assert accounting.load_again(one.home) == 2


def test_who_gets_further_each_time_may_be_lost_as_often_as_it_likes(tmp_path, reference):
    one = Sweep(tmp_path, TREE)
    outcome = one.run(Losing({((0, 1), epoch, 1) for epoch in (2, 3, 4, 5)}))
    assert outcome.state == "complete"
    assert outcome.progress.failed == 0
    assert one.content() == reference(TREE)
    assert one.headers[0].provenance["resumed_at"] == [1, 2, 3, 4]


def test_who_gets_no_further_is_tried_alone_from_the_beginning_and_then_given_up(tmp_path):
    one = Sweep(tmp_path, {**TREE, "execution": {**TREE["execution"], "max_failed_share": 0.5}})
    # The cohort of two after epoch 1, twice over; then trial 0 alone before it.
    outcome = one.run(Losing({((0, 1), 2, 1), ((0, 1), 2, 2), ((0,), 0, 1)}))
    assert outcome.state == "complete"
    states = {n: h.state for n, h in one.headers.items()}
    assert states == {0: "failed", 1: "complete", 2: "complete", 3: "complete"}
    assert "resumed_at" not in one.headers[1].provenance
    assert one.checkpoints() == []
    # Epoch 1 of two members, of which trial 0 then had no more, and 1 trained it once more.
    assert outcome.progress.epochs_again == 2


def test_a_damaged_checkpoint_costs_its_epochs_and_nothing_else(tmp_path, reference, caplog):
    one = Sweep(tmp_path, TREE)
    with pytest.raises(DeathError):
        one.run(Dying(4))
    (path,) = one.checkpoints()
    path.write_bytes(path.read_bytes()[:-3])
    outcome = one.run()
    assert outcome.state == "complete"
    assert one.content() == reference(TREE)
    assert any("refused" in message for message in caplog.messages)
    assert all("resumed_at" not in h.provenance for h in one.headers.values())
    assert outcome.progress.epochs_before == 0
    assert one.checkpoints() == []


def test_what_only_a_worker_can_refuse_starts_over_too(tmp_path, reference, caplog):
    """Well-formed, for this cohort, with a sha256 that fits; but not of this network."""
    # Epoch 3 of two members; of one, and epoch 1 of two who had left and are trained along.
    for tree, again in ((TREE, 6), (PRUNED, 5)):
        one = Sweep(tmp_path / str(tree["trials"]), tree)
        with pytest.raises(DeathError):
            one.run(Dying(4))
        (path,) = one.checkpoints()
        arrays, facts = checkpoint_file.unpacked(path.read_bytes())
        arrays = {**arrays, "begun": np.zeros((len(facts.numbers), 9))}
        path.write_bytes(checkpoint_file.packed(arrays, facts))
        caplog.clear()
        outcome = one.run()
        assert outcome.state == "complete"
        assert one.content() == reference(tree)
        assert any("begun: must be int64" in message for message in caplog.messages)
        assert all("resumed_at" not in h.provenance for h in one.headers.values())
        # What it held was trained, and is trained again.
        assert outcome.progress.epochs_again == again
        assert outcome.progress.epochs_spent == sum(h.epochs for h in one.headers.values())


def test_a_sweep_stopped_by_hand_goes_on_from_its_checkpoints(tmp_path, reference):
    one = Sweep(tmp_path, every(TREE, 2))
    one.store.prepare()
    info = creating.create(config.check(one.tree), "s", one.store)
    executor = InlineExecutor()
    driver = Driver(creating.stored_config(info), info, one.store, one.home, executor)

    def stop(progress):
        if progress.running.get(0) == 3:
            driver.request_stop()

    driver._listen = stop
    assert driver.run().state == "interrupted"
    # Epoch 3 of two members.
    assert accounting.load_again(one.home) == 2
    outcome = one.run()
    assert one.content() == reference(TREE)
    assert one.headers[0].provenance["resumed_at"] == [2]
    assert outcome.progress.epochs_again == 2


def test_checkpoints_of_other_cohorts_are_removed(tmp_path):
    one = Sweep(tmp_path, TREE)
    with pytest.raises(DeathError):
        one.run(Dying(4))
    assert len(one.checkpoints()) == 1
    info = one.store.sweep("s")
    other = config.check({**info.config, "execution": {**TREE["execution"], "cohort_size": 4}})
    driver = Driver(other, info, one.store, one.home, Dying(1))
    with pytest.raises(DeathError):
        driver.run()
    assert one.checkpoints() == []


def test_short_sweeps_write_no_checkpoints_of_themselves(tmp_path, monkeypatch):
    tree = {**TREE, "execution": {"cohort_size": 2, "executor": "inline"}}
    checked = config.check(tree)
    assert checked.execution.checkpoint == "auto"
    monkeypatch.setattr(checkpoint_file, "write", lambda *_: pytest.fail("nothing is due"))
    assert Sweep(tmp_path, tree).run().state == "complete"


@pytest.fixture
def processes():
    executor = ProcessExecutor(workers=2)
    yield executor
    executor.close()


@pytest.mark.parametrize("kind", ["process", "ray"])
def test_a_killed_worker_is_taken_up_where_its_checkpoint_stands(
    tmp_path, request, reference, kind
):
    executor = request.getfixturevalue({"process": "processes", "ray": "local_ray"}[kind])
    trainer = {**TREE["trainer"], "epochs": 60}
    tree = every({**TREE, "trials": 2, "trainer": trainer, "measure": {}}, 5)
    one = Sweep(tmp_path, tree)
    everyone, killed = set(executor.process_ids()), []
    one.store.prepare()
    info = creating.create(config.check(tree), "s", one.store)
    driver = Driver(creating.stored_config(info), info, one.store, one.home, executor)

    def kill_once(progress):
        if not killed and progress.running.get(0, 0) >= 7:
            killed.extend(everyone - set(executor.process_ids()))
            os.kill(killed[0], signal.SIGKILL)

    driver._listen = kill_once
    outcome = driver.run()
    assert outcome.state == "complete"
    assert len(killed) == 1
    assert one.content() == reference(tree)
    resumed = [h.provenance["resumed_at"] for h in one.headers.values() if h.attempt == 2]
    assert len(resumed) == 2
    assert all(len(at) == 1 and at[0] >= 5 and at[0] % 5 == 0 for at in resumed)
    assert outcome.progress.epochs_again < 2 * 60
