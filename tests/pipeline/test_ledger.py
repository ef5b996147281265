"""Optuna's database fails at every call in turn: a sweep goes on as if it had not."""

import itertools
import os
import shutil
import signal
import sqlite3
import threading
import time

import optuna
import pytest
import sqlalchemy
from sqlalchemy.engine.default import DefaultDialect

from pipeline import config, creating, doctor, records, retrying
from pipeline.executors.inline import InlineExecutor
from pipeline.executors.process import ProcessExecutor
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.ledger import Ledger, StudyAwayError
from pipeline.records import TrialHeader
from pipeline.sweep import Driver, SweepError
from tests import servers

NAME = "tiny"
QMC = {
    "trials": 6,
    "sampler": {"batch": 4},
    "task": {"name": "planar", "points": 60},
    "network": {"name": "mlp", "width": 3, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 1, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {},
    "execution": {"cohort_size": 2, "executor": "inline", "checkpoint": None},
}
TPE = {**QMC, "trials": 8, "sampler": {"name": "tpe", "batch": 3, "startup": 2}}
PRUNED = {
    **QMC,
    "trainer": {**QMC["trainer"], "epochs": 3},
    "sampler": {"name": "tpe", "batch": 6, "startup": 2},
    "pruner": {"name": "successive_halving", "reduction_factor": 2, "lag": 1},
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(retrying, "RETRY_SECONDS", (0.001,) * 7)


@pytest.fixture(scope="module")
def empty_optuna(tmp_path_factory):
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    return path


class Sweep:
    def __init__(self, root, tree, empty=None):
        self.tree = config.check(tree)
        self.home, self.store = Home(root / "home", NAME), FolderStore(root / "store")
        self.store.prepare()
        self.info = creating.create(self.tree, NAME, self.store)
        self.said = []
        if empty is not None:
            self.home.root.mkdir(parents=True)
            shutil.copy(empty, self.home.root / "optuna.db")

    def run(self, executor=None, listen=lambda _: None):
        def hear(progress):
            self.said.append(progress.last)
            listen(progress)

        executor = executor or InlineExecutor()
        return Driver(self.tree, self.info, self.store, self.home, executor, hear).run()

    def content(self):
        """What must not depend on the database: values drawn, and everything measured."""
        found = doctor.examine(self.store, NAME, self.home)
        assert (found.findings, found.unchecked) == ([], [])
        assert list(found.ends) == list(range(self.tree.trials))
        told = self.trials()
        assert [t.number for t in told] == list(range(self.tree.trials))
        assert {t.user_attrs["attempt"] for t in told} == {1}
        return [
            (r.header.params, r.header.state, r.header.value, records.content_hash(r.table))
            for r in self.store.records(NAME)
        ], [(t.params, t.state, t.value, t.intermediate_values) for t in told]

    def trials(self):
        study = f"{NAME}-{self.info.sweep_id}"
        return optuna.load_study(study_name=study, storage=self.home.optuna_url).get_trials()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, empty_optuna):
    found = {}

    def of(tree):
        if str(tree) not in found:
            one = Sweep(tmp_path_factory.mktemp("undisturbed"), tree, empty_optuna)
            assert one.run().state == "complete"
            found[str(tree)] = one.content()
        return found[str(tree)]

    return of


class Faults:
    """Breaks the connection at the calls of the given numbers, counted once the study is open."""

    def __init__(self, monkeypatch, method, when, numbers):
        self.calls, self.hits = 0, 0
        is_open = [False]
        genuine_init, genuine = Ledger.__init__, getattr(DefaultDialect, method)

        def opened(ledger, *args):
            genuine_init(ledger, *args)
            is_open[0] = True

        def flaky(dialect, *args, **kwargs):
            if not is_open[0]:
                return genuine(dialect, *args, **kwargs)
            self.calls += 1
            is_hit = self.calls in numbers
            self.hits += is_hit
            if is_hit and when == "before":
                raise sqlite3.OperationalError("server closed the connection unexpectedly")
            found = genuine(dialect, *args, **kwargs)
            if is_hit:
                raise sqlite3.OperationalError("server closed the connection unexpectedly")
            return found

        monkeypatch.setattr(Ledger, "__init__", opened)
        monkeypatch.setattr(DefaultDialect, method, flaky)


@pytest.mark.parametrize("tree", [QMC, TPE, PRUNED], ids=["qmc", "tpe", "pruned"])
@pytest.mark.parametrize(
    ("method", "when"), [("do_commit", "before"), ("do_commit", "after"), ("do_execute", "before")]
)
@pytest.mark.parametrize("some", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_database_fails_at_each_call_in_turn(
    tmp_path, empty_optuna, undisturbed, tree, method, when, some
):
    expected = undisturbed(tree)
    step = {"do_commit": 11, "do_execute": 67}[method] if some else 1
    for number in itertools.count(1, step):
        (tmp_path / str(number)).mkdir()
        one = Sweep(tmp_path / str(number), tree, empty_optuna)
        with pytest.MonkeyPatch.context() as patch:
            # Twice in a row: the answer to the second try is lost too.
            faults = Faults(patch, method, when, {number, number + 1})
            assert one.run().state == "complete"
        assert one.content() == expected, number
        if not faults.hits:
            break
    assert number > 15


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["ask", "note", "tell", "trials"])
@pytest.mark.parametrize("tree", [QMC, PRUNED], ids=["qmc", "pruned"])
def test_every_call_fails_once(
    tmp_path, empty_optuna, undisturbed, monkeypatch, tree, method, when
):
    genuine, failed = getattr(Ledger, method), set()

    def flaky(self, *args):
        with self._asking():
            key = str(args[:1])
            is_first = key not in failed
            failed.add(key)
            if is_first and when == "before":
                raise StudyAwayError("away")
            found = genuine(self, *args)
            if is_first:
                raise StudyAwayError("away")
            return found

    monkeypatch.setattr(Ledger, method, flaky)
    one = Sweep(tmp_path, tree, empty_optuna)
    assert one.run().state == "complete"
    assert len(failed) == (1 if method == "trials" else 6)
    monkeypatch.undo()
    assert one.content() == undisturbed(tree)
    assert "away" in one.said or method == "tell"


def test_a_trial_made_by_a_transaction_that_was_late_is_not_made_twice(tmp_path, empty_optuna):
    """It was looked for in vain, and is there when the next one is made."""
    one = Sweep(tmp_path, QMC, empty_optuna)
    ledger = Ledger(one.home, one.info)
    drawn = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    ledger.ask(0, drawn)
    late = Ledger(one.home, one.info)
    late._storage.expected = 1
    late._storage.create_new_trial(late._study)
    with pytest.raises(StudyAwayError, match="trial 1 was to be made, and trial 2 is next"):
        ledger.ask(1, drawn)
    ledger.ask(1, drawn)
    ledger.ask(2, drawn)
    assert [t.number for t in ledger.trials()] == [0, 1, 2]


def test_a_half_drawn_trial_of_an_earlier_version_is_completed(tmp_path, empty_optuna, undisturbed):
    """Values were written one by one; a driver that died left some of them."""
    one = Sweep(tmp_path, QMC, empty_optuna)
    study = optuna.create_study(
        study_name=f"{NAME}-{one.info.sweep_id}", storage=one.home.optuna_url
    )
    expected = undisturbed(QMC)
    study.ask()
    half = study.ask()
    path, r = next(iter(one.tree.space.items()))
    value = expected[0][1][0][path]
    study.enqueue_trial({path: value})
    study._storage.set_trial_param(
        half._trial_id,
        path,
        value,
        optuna.distributions.FloatDistribution(r.low, r.high, log=r.is_log),
    )
    study._storage.set_trial_state_values(
        study.get_trials()[2]._trial_id, optuna.trial.TrialState.RUNNING
    )
    assert one.run().state == "complete"
    assert one.content()[0] == expected[0]


def test_training_goes_on_while_the_database_is_away_and_an_end_is_told_once(
    tmp_path, empty_optuna, undisturbed, monkeypatch
):
    one = Sweep(tmp_path, QMC, empty_optuna)
    genuine, spooled = Ledger.tell, []

    def away(self, header: TrialHeader):
        spooled.append(len(list(one.home.spool.glob("*.parquet"))))
        if max(spooled) < 4:
            with self._asking():
                raise StudyAwayError("away")
        genuine(self, header)

    monkeypatch.setattr(Ledger, "tell", away)
    published = []
    monkeypatch.setattr(
        FolderStore,
        "publish",
        lambda self, name, path, genuine=FolderStore.publish: (
            published.append(path.name), genuine(self, name, path)
        ),
    )  # fmt: skip
    assert one.run().state == "complete"
    assert max(spooled) == 4, "the whole batch was trained while nothing could be told"
    assert sorted(published) == sorted(set(published)), "published again for a lost tell"
    assert one.content() == undisturbed(QMC)


def test_patience_ends_and_everything_is_safe(tmp_path, empty_optuna, undisturbed, monkeypatch):
    tree = {**QMC, "execution": {**QMC["execution"], "patience": 0.2}}
    one = Sweep(tmp_path, tree, empty_optuna)

    def away(self, *_):
        with self._asking():
            raise StudyAwayError("Optuna's database somewhere: away")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "tell", away)
        with pytest.raises(SweepError, match=f"away; . finished .* `lyapsweep resume {NAME}`"):
            one.run()
    waiting = len(list(one.home.spool.glob("*.parquet")))
    assert waiting >= 1
    assert one.run().state == "complete"
    assert [h[:3] for h in one.content()[0]] == [h[:3] for h in undisturbed(QMC)[0]]


def test_a_locked_file_is_waited_for(tmp_path, empty_optuna, undisturbed, monkeypatch):
    monkeypatch.setattr("pipeline.ledger._options", lambda _: {"connect_args": {"timeout": 0.05}})
    one = Sweep(tmp_path, QMC, empty_optuna)
    timers = []

    def lock(progress):
        if progress.running and not timers:
            other = sqlite3.connect(one.home.optuna_file, check_same_thread=False)
            other.isolation_level = None
            other.execute("BEGIN EXCLUSIVE")
            timers.append(threading.Timer(1, other.close))
            timers[0].start()

    assert one.run(listen=lock).state == "complete"
    assert any("locked" in said for said in one.said)
    assert one.content() == undisturbed(QMC)


def test_a_fault_that_waiting_does_not_mend_ends_the_driver_at_once(tmp_path, empty_optuna):
    one = Sweep(tmp_path, QMC, empty_optuna)

    def destroy(progress):
        if progress.running:
            for path in one.home.root.glob("optuna.db*"):
                path.write_bytes(b"no database" * 2000)

    began = time.monotonic()
    with pytest.raises(SweepError, match=r"Optuna's database .*optuna\.db"):
        one.run(listen=destroy)
    assert time.monotonic() - began < 30


@pytest.fixture(scope="module")
def postgres():
    if servers.postgres_programs() is None:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    with servers.postgres() as server:
        yield server


@pytest.mark.parametrize("how", ["kill", "restart", "pause"])
def test_a_postgres_that_dies_in_the_middle(
    tmp_path, postgres, undisturbed, monkeypatch, caplog, how
):
    monkeypatch.setattr(retrying, "RETRY_SECONDS", (0.1,) * 7)
    monkeypatch.setenv("LYAPSWEEP_OPTUNA", postgres.make(f"optuna_{how}"))
    tree = {**TPE, "execution": {**TPE["execution"], "executor": "process", "workers": 2}}
    one = Sweep(tmp_path, tree)
    away, timers = [], []

    def meddle(progress):
        if any(timer.is_alive() for timer in timers):
            return
        if progress.running and len(away) < 2 and progress.finished >= 3 * len(away):
            away.append(progress.finished)
            if how == "pause":
                os.killpg(postgres.process.pid, signal.SIGSTOP)
                back = threading.Timer(2, os.killpg, (postgres.process.pid, signal.SIGCONT))
            else:
                postgres.stop(signal.SIGKILL if how == "kill" else signal.SIGINT)
                back = threading.Timer(1, postgres.start)
            back.start()
            timers.append(back)

    executor = ProcessExecutor(workers=2, threads=1, device="cpu")
    try:
        assert one.run(executor, meddle).state == "complete"
    finally:
        executor.close()
        for timer in timers:
            timer.join(60)
    # A paused one holds the driver up, and may let it end before the second time.
    assert len(away) == 2 or (how == "pause" and away)
    assert any("Optuna's database" in said for said in one.said) or how == "pause"
    assert one.content()[0] == undisturbed(TPE)[0]
    assert servers.PASSWORD not in caplog.text + str(one.said)


def test_postgres_is_asked_whether_it_lives(postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_OPTUNA", postgres.make("optuna_options") + "?connect_timeout=3")
    engine = Ledger(Home(tmp_path, NAME), Sweep(tmp_path, QMC).info)._storage.engine
    assert engine.pool._pre_ping
    with engine.connect() as connection:
        parameters = connection.connection.driver_connection.info.get_parameters()
    assert parameters["connect_timeout"] == "3"
    assert parameters["tcp_user_timeout"] == "30000"
    assert isinstance(engine, sqlalchemy.Engine)
