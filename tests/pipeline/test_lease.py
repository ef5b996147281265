"""Two drivers of one sweep, from two folders: one is refused, or finds that it was replaced."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, replace

import optuna
import pytest

from pipeline import config, doctor, lease, sweep
from pipeline.executors.inline import InlineExecutor
from pipeline.home import Home, LockedError
from pipeline.lease import Holder, Lease, LeaseLostError
from pipeline.store import SweepInfo, open_store

NAME = "tiny"
TREE = {
    "trials": 4,
    "task": {"name": "planar", "points": 60},
    "network": {"name": "mlp", "width": 3},
    "trainer": {"epochs": 1, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "execution": {"cohort_size": 1, "executor": "inline"},
}
ELSEWHERE = Holder("feed", "another-host", 4711, "another boot/1", "99", 1_700_000_000)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)


@pytest.fixture
def store(store_uri):
    store = open_store(store_uri)
    store.prepare()
    tree = config.check(TREE)
    store.create_sweep(SweepInfo(NAME, "ab" * 8, tree.tree, tree.hash, 4, 1))
    return store


def put(store, holder):
    store.set_note(NAME, lease.KEY, json.dumps(asdict(holder)))


def taken(store, said=None):
    one = Lease(store, NAME, (said if said is not None else []).append)
    one.take()
    return one


def fresh(store):
    return open_store(store.uri)


def test_notes_are_kept_replaced_and_removed(store):
    assert store.note(NAME, "x") is None
    store.set_note(NAME, "x", "one")
    store.set_note(NAME, "x", "two")
    assert fresh(store).note(NAME, "x") == "two"
    store.set_note(NAME, "x", None)
    store.set_note(NAME, "x", None)
    assert fresh(store).note(NAME, "x") is None
    assert store.attached(NAME) == []


def test_a_lease_that_lives_is_not_taken(store):
    first = taken(store)
    try:
        with pytest.raises(LockedError, match=f"process {os.getpid()} on .*, since 20"):
            taken(fresh(store))
        first.check()
    finally:
        first.release()
    assert lease.holder(store, NAME) is None
    taken(fresh(store)).release()


def test_a_lease_of_another_machine_is_watched_before_it_is_taken(store):
    put(store, ELSEWHERE)
    said, began = [], time.monotonic()
    second = taken(store, said)
    assert time.monotonic() - began >= 3 * lease.BEAT_SECONDS
    assert "driven by process 4711 on another-host" in said[0]
    second.release()


def test_one_that_beats_on_another_machine_is_left_alone(store):
    put(store, ELSEWHERE)
    args = (NAME, lease._BEAT_KEY, "feed 1")
    threading.Timer(0.15, fresh(store).set_note, args).start()
    with pytest.raises(LockedError, match="another-host"):
        taken(store)
    assert lease.holder(store, NAME).id == "feed"


@pytest.mark.parametrize("remains", ["gone", "pid used again", "released badly"])
def test_a_lease_of_a_dead_process_here_is_taken_at_once(store, monkeypatch, remains):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 1000)
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    here = replace(ELSEWHERE, machine=lease._machine(), pid=child.pid)
    if remains == "pid used again":
        here = replace(here, pid=os.getppid())
    if remains == "released badly":
        here = replace(here, pid=os.getpid(), born=lease._born(os.getpid()))
    put(store, here)
    second = taken(store)
    second.check()
    second.release()


def test_the_counter_advances_by_itself(store):
    one = taken(store)
    try:
        before = lease.holder(store, NAME)
        time.sleep(0.5)
        after = lease.holder(store, NAME)
        assert after == replace(before, beat=after.beat)
        assert after.beat > before.beat
    finally:
        one.release()


def test_who_was_replaced_stops_and_leaves_the_lease_alone(store):
    one = taken(store)
    put(fresh(store), ELSEWHERE)
    time.sleep(0.4)
    with pytest.raises(LeaseLostError, match=r"taken over by another driver .process 4711"):
        one.check()
    one.release()
    assert lease.holder(store, NAME) == ELSEWHERE


def test_whoever_starts_at_the_same_moment_only_one_gets_it(store, monkeypatch):
    """All have looked and found nobody when the first of them writes."""
    gate, genuine, looked = threading.Barrier(4), lease.holder, set()

    def hold(store, name):
        found = genuine(store, name)
        thread = threading.current_thread().name
        if thread.startswith("start") and thread not in looked:
            looked.add(thread)
            gate.wait(20)
        return found

    monkeypatch.setattr(lease, "holder", hold)
    got, refused = [], []

    def start(own):
        try:
            got.append(taken(own))
        except LockedError as error:
            refused.append(str(error))

    threads = [
        threading.Thread(target=start, args=(fresh(store),), name=f"start{n}") for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    time.sleep(0.5)  # Whoever wrote while another had read back is found out by a beat.
    living = []
    for one in got:
        try:
            one.check()
            living.append(one)
        except LeaseLostError:
            pass
        one.release()
    assert len(living) == 1
    assert len(got) + len(refused) == 4


def test_a_lease_that_no_driver_wrote_is_an_error_and_no_crash(store):
    for text in ("[", '{"id": 3}', json.dumps({**asdict(ELSEWHERE), "pid": "x"})):
        store.set_note(NAME, lease.KEY, text)
        with pytest.raises(LockedError, match="if no driver runs, delete it"):
            taken(store)


# Whole drivers.


def driver_of(store, root, executor=None):
    home = Home(root, NAME)
    tree = config.check(TREE)
    return sweep.Driver(tree, store.sweep(NAME), store, home, executor or InlineExecutor())


HEARD, LATE, BEATING = "hears in time", "hears late", "was in a beat"


def _drive(uri, root, ready, go, how):
    lease.BEAT_SECONDS = 0.2
    polls, beats, genuine = threading.Event(), threading.Event(), lease._named

    def look(store, name):
        found = genuine(store, name)
        is_beat = threading.current_thread().name == "lyapsweep-lease"
        if how == BEATING and is_beat and polls.is_set():
            beats.set()
            go.wait(60)
        return found

    lease._named = look
    if how == LATE:
        Lease._beat = lambda self: None

    class Waits(InlineExecutor):
        def poll(self, timeout):
            polls.set()
            assert how != BEATING or beats.wait(60)
            ready.set()
            go.wait(60)
            return super().poll(timeout)

    try:
        driver_of(open_store(uri), root, Waits()).run()
    except LeaseLostError:
        os._exit(7)
    os._exit(0)


@pytest.fixture(params=[HEARD])
def other(request, tmp_path, store):
    """A driver in a process of its own, in the middle of its sweep."""
    shared = tmp_path / "optuna.db"
    optuna.storages.RDBStorage(f"sqlite:///{shared}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYAPSWEEP_OPTUNA", f"sqlite:///{shared}")
        fork = multiprocessing.get_context("fork")
        ready, go = fork.Event(), fork.Event()
        args = (store.uri, tmp_path / "a", ready, go, request.param)
        process = fork.Process(target=_drive, args=args)
        process.go = go
        process.start()
        assert ready.wait(60)
        yield process
        process.kill()
        process.join()


def test_a_second_driver_from_another_folder_is_refused(store, other, tmp_path):
    with pytest.raises(LockedError, match=f"process {other.pid} on"):
        driver_of(fresh(store), tmp_path / "b").run()
    other.go.set()
    other.join(60)
    assert other.exitcode == 0
    assert fresh(store).sweep(NAME).state == "complete"
    assert lease.holder(store, NAME) is None


def test_the_sweep_of_a_killed_driver_is_taken_over_from_another_folder(store, other, tmp_path):
    other.kill()
    other.join()
    shutil.rmtree(tmp_path / "a")
    assert driver_of(fresh(store), tmp_path / "b").run().state == "complete"
    found = doctor.examine(fresh(store), NAME, Home(tmp_path / "b", NAME))
    assert (found.findings, found.unchecked, len(found.ends)) == ([], [], 4)


@pytest.mark.parametrize("other", [HEARD, LATE, BEATING], indirect=True)
def test_a_driver_that_was_suspended_finds_that_it_was_replaced(store, other, tmp_path):
    os.kill(other.pid, signal.SIGSTOP)
    try:
        assert driver_of(fresh(store), tmp_path / "b").run().state == "complete"
        entries = {e.key: e for e in fresh(store).entries(NAME)}
        put(fresh(store), ELSEWHERE)  # Yet another, which still runs.
    finally:
        os.kill(other.pid, signal.SIGCONT)
    other.go.set()
    other.join(60)
    assert other.exitcode == 7
    assert {e.key: e for e in fresh(store).entries(NAME)} == entries
    assert lease.holder(store, NAME) == ELSEWHERE
    store.set_note(NAME, lease.KEY, None)
    found = doctor.examine(fresh(store), NAME, Home(tmp_path / "b", NAME))
    assert (found.findings, len(found.ends)) == ([], 4)
