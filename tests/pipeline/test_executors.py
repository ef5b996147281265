"""One suite for every executor: the contract of `pipeline.executors.base`."""

import dataclasses
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline import catalog, records, worker
from pipeline.executors import process
from pipeline.executors.base import ExecutorError, Lost, Raised, Reached, Stopped
from pipeline.executors.inline import InlineExecutor
from pipeline.executors.process import ProcessExecutor
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.populations import load_task
from pipeline.worker import Worker
from tasks.base import seed_for
from tasks.char_text import CharText
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.planar import Planar

PLANAR = Choice("planar", Planar.Config(points=400))
TEXT = Choice("char_text", CharText.Config(characters=4000, batch_size=4, seq_len=20))


def cohort(*numbers, epochs=2, task=PLANAR, network=None, measure=()):
    network = network or MLP.Config(width=4, dropout=0.1)
    name = "lstm" if isinstance(network, LSTM.Config) else "mlp"
    return Cohort(
        sweep_seed=3,
        trials=tuple(
            TrialSpec(n, seed_for(3, n), task, Choice(name, network), Trainer(epochs=epochs))
            for n in numbers
        ),
        measure=measure,
    )


def raising_at(epoch):
    """A measurement whose budget is no number, which shows when it is first looked at."""
    config = catalog.load("diagnostics", "gradient_norm").Config(at=(epoch,), budget="dear")
    return (Choice("gradient_norm", config),)


@pytest.fixture(scope="session")
def local_processes(tmp_path_factory):
    """Workers started as a sweep starts them: from a folder with a stray tasks.py in it."""
    folder = tmp_path_factory.mktemp("stray")
    for name in ("tasks", "pipeline", "analysis"):
        (folder / f"{name}.py").write_text("raise ImportError('a stray file was imported')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend("")
        executor = ProcessExecutor(workers=2)
    yield executor
    executor.close()


@pytest.fixture(params=["inline", "process", "ray"])
def executor(request):
    """Idle before and after each test; workers are shared, since they take seconds."""
    if request.param == "inline":
        found = InlineExecutor()
        yield found
        found.close()
    else:
        found = request.getfixturevalue(
            {"process": "local_processes", "ray": "local_ray"}[request.param]
        )
        yield found
        found._is_stopping = False
        assert not found._busy


@pytest.fixture(params=["process", "ray"])
def workers(request):
    """An executor whose workers may be killed."""
    return request.getfixturevalue(
        {"process": "local_processes", "ray": "local_ray"}[request.param]
    )


def gather(executor, cohorts, seconds=60, first=0):
    """Events until each of `cohorts` has ended, each checked against the contract."""
    open_ = {c.numbers: first - 1 for c in cohorts}
    events = []
    deadline = time.monotonic() + seconds
    while open_:
        assert time.monotonic() < deadline, f"no end of {list(open_)}"
        for event in executor.poll(timeout=1.0):
            events.append(event)
            numbers = event.cohort.numbers
            assert numbers in open_, "an event after the end, or of a cohort never submitted"
            if isinstance(event, Reached):
                assert event.rung.epoch == open_[numbers] + 1
                open_[numbers] = event.rung.epoch
                assert set(event.rung.rows) == set(numbers)
                if event.rung.is_last:
                    del open_[numbers]
            else:
                del open_[numbers]
    assert executor.poll(timeout=0.01) == ()
    return events


def hashes(events):
    rows = {}
    for event in events:
        if isinstance(event, Reached):
            for number, more in event.rung.rows.items():
                rows.setdefault(number, []).extend(more)
    return {n: records.content_hash(records.to_table("s", n, r)) for n, r in rows.items()}


def test_a_cohort_reaches_every_rung(executor):
    one = cohort(0, 1, epochs=3)
    executor.submit(one)
    events = gather(executor, [one])
    assert [e.rung.epoch for e in events] == [0, 1, 2, 3]
    assert [e.rung.is_last for e in events] == [False, False, False, True]
    assert all(e.cohort == one for e in events)


def test_polling_an_idle_executor_gives_nothing(executor):
    assert executor.poll(timeout=0.01) == ()


def test_several_cohorts_one_after_the_other_and_at_once(executor):
    waiting = [cohort(0, 1), cohort(2), cohort(3, 4, 5), cohort(6)]
    expected = list(waiting)
    events = []
    while waiting:
        batch = [waiting.pop(0) for _ in range(min(executor.num_slots, len(waiting)))]
        for one in batch:
            executor.submit(one)
        events += gather(executor, batch)
    ended = [e.cohort.numbers for e in events if isinstance(e, Reached) and e.rung.is_last]
    assert sorted(ended) == sorted(c.numbers for c in expected)


def test_a_cohort_goes_on_from_a_snapshot_that_another_executor_took(executor):
    one = dataclasses.replace(cohort(0, 1, epochs=4), checkpoint=2)
    inline = InlineExecutor()
    inline.submit(one)
    unbroken = [event.rung for event in gather(inline, [one])]
    assert [rung.epoch for rung in unbroken if rung.snapshot] == [2]
    executor.submit(one, unbroken[2].snapshot)
    rungs = [event.rung for event in gather(executor, [one], first=2)]
    assert [(rung.epoch, rung.is_resumed) for rung in rungs] == [(2, True), (3, False), (4, False)]
    assert rungs[0].val_loss == unbroken[2].val_loss
    for rung, expected in zip(rungs[1:], unbroken[3:], strict=True):
        for n in (0, 1):
            tables = [records.to_table("s", n, r.rows[n]) for r in (rung, expected)]
            assert records.content_hash(tables[0]) == records.content_hash(tables[1])
    # The next cohort of the same worker starts from its own beginning.
    executor.submit(one)
    assert [event.rung.epoch for event in gather(executor, [one])] == [0, 1, 2, 3, 4]


def test_results_are_bit_for_bit_those_of_the_inline_executor(executor):
    for one in (
        cohort(0, 1, 2),
        cohort(3, 4, task=TEXT, network=LSTM.Config(units=5, dropout=0.2)),
    ):
        inline = InlineExecutor()
        inline.submit(one)
        executor.submit(one)
        found = hashes(gather(executor, [one]))
        assert found == hashes(gather(inline, [one]))
        assert set(found) == set(one.numbers)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_exception_ends_the_cohort_with_its_traceback(executor, epoch):
    one = cohort(0, 1, measure=raising_at(epoch))
    executor.submit(one)
    events = gather(executor, [one])
    assert [type(e) for e in events] == [Reached] * epoch + [Raised]
    traceback = events[-1].traceback
    assert traceback.startswith("Traceback (most recent call last)")
    assert traceback.strip().splitlines()[-1].startswith("TypeError")
    assert "pipeline/train.py" in traceback


def test_a_cohort_that_cannot_be_built_raises(executor):
    one = cohort(0, task=TEXT)
    executor.submit(one)
    (event,) = gather(executor, [one])
    assert isinstance(event, Raised)
    assert "UnsuitableError: network mlp takes vector, task char_text gives tokens" in (
        event.traceback
    )


def test_an_executor_serves_on_after_an_exception(executor):
    bad, good = cohort(0, measure=raising_at(1)), cohort(1)
    executor.submit(bad)
    gather(executor, [bad])
    executor.submit(good)
    assert gather(executor, [good])[-1].rung.is_last


def test_stopping_ends_every_cohort_at_its_next_rung(executor):
    running = [cohort(n, epochs=10_000) for n in range(executor.num_slots)]
    for one in running:
        executor.submit(one)
    while not executor.poll(timeout=1.0):
        pass
    executor.stop()
    executor.stop()
    ended = set()
    after = {one.numbers: 0 for one in running}
    while len(ended) < len(running):
        for event in executor.poll(timeout=5.0):
            assert event.cohort.numbers not in ended
            if isinstance(event, Stopped):
                ended.add(event.cohort.numbers)
            else:
                after[event.cohort.numbers] += 1
    assert max(after.values()) <= 1
    assert executor.poll(timeout=0.01) == ()


def test_a_cohort_at_its_last_rung_ends_as_finished_although_stopping(executor):
    one = cohort(0, epochs=1)
    executor.submit(one)
    events = []
    while not events:
        events += executor.poll(timeout=1.0)
    executor.stop()
    while not (isinstance(events[-1], Stopped) or events[-1].rung.is_last):
        events += executor.poll(timeout=1.0)
    ends = [e for e in events if isinstance(e, Stopped) or (e.rung.epoch == 1)]
    assert len(ends) == 1
    assert executor.poll(timeout=0.01) == ()


def paused(one, *epochs):
    return dataclasses.replace(one, pauses=frozenset(epochs))


def until_it_pauses(executor, epoch):
    """Events until the rung of `epoch`, after which nothing comes by itself."""
    events = []
    while not events or events[-1].rung.epoch < epoch:
        events += executor.poll(timeout=1.0)
    assert executor.poll(timeout=0.05) == ()
    return events


def test_a_cohort_waits_where_it_pauses_and_goes_on_without_those_who_leave(executor):
    one = paused(cohort(0, 1, 2, epochs=5), 1, 3)
    executor.submit(one)
    events = until_it_pauses(executor, 1)
    assert [e.rung.epoch for e in events] == [0, 1]
    executor.advance(one, [1])
    events += until_it_pauses(executor, 3)
    executor.advance(one)
    while not events[-1].rung.is_last:
        events += executor.poll(timeout=1.0)
    assert [e.rung.epoch for e in events] == [0, 1, 2, 3, 4, 5]
    assert [bool(e.rung.rows[1]) for e in events] == [True, True, *[False] * 4]
    assert all(e.rung.rows[0] and e.rung.rows[2] for e in events)
    inline = InlineExecutor()
    inline.submit(one)
    expected = until_it_pauses(inline, 1)
    inline.advance(one, frozenset({1}))
    expected += until_it_pauses(inline, 3)
    inline.advance(one, ())
    while not expected[-1].rung.is_last:
        expected += inline.poll(timeout=1.0)
    assert hashes(events) == hashes(expected)


def test_a_cohort_that_is_released_is_over_and_its_slot_free(executor):
    cohorts = [paused(cohort(n, epochs=9), 1) for n in range(executor.num_slots)]
    for one in cohorts:
        executor.submit(one)
    reached = []
    while len(reached) < 2 * len(cohorts):
        reached += executor.poll(timeout=1.0)
    for one in cohorts:
        executor.release(one)
    assert executor.poll(timeout=0.05) == ()
    again = [cohort(n) for n in range(executor.num_slots)]
    for one in again:
        executor.submit(one)
    gather(executor, again)


def test_stopping_ends_a_cohort_that_pauses(executor):
    one = paused(cohort(0, epochs=9), 1)
    executor.submit(one)
    until_it_pauses(executor, 1)
    executor.stop()
    events = list(executor.poll(timeout=1.0))
    assert [type(e) for e in events] == [Stopped]
    assert events[0].cohort == one
    assert executor.poll(timeout=0.01) == ()


def test_closing_drops_what_is_running():
    executor = InlineExecutor()
    executor.submit(cohort(0, epochs=10_000))
    executor.poll(timeout=0)
    executor.close()
    assert executor.poll(timeout=0.01) == ()


def test_ray_close_frees_the_workers_and_leaves_a_cluster_it_did_not_start(local_ray):
    import ray

    from pipeline.executors.ray import RayExecutor

    # No CPUs reserved: the shared workers hold them all.
    guest = RayExecutor(workers=1, threads=0)
    (pid,) = guest.process_ids()
    guest.submit(cohort(0, epochs=10_000))
    assert guest.poll(timeout=30)
    guest.close()
    assert guest.poll(timeout=0.01) == ()
    wait_until_gone(pid)
    assert ray.is_initialized()
    assert len(local_ray.process_ids()) == 2


def wait_until_gone(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()[0]
        if state == "Z":
            return
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_a_killed_worker_is_lost_and_replaced(workers):
    before = workers.process_ids()
    running, other = cohort(0, 1, epochs=10_000), cohort(2, epochs=20)
    workers.submit(running)
    workers.submit(other)
    while not workers.poll(timeout=5.0):
        pass
    victim = before[-1]  # `submit` takes the idle worker that came last.
    os.kill(victim, signal.SIGKILL)
    events = []
    deadline = time.monotonic() + 60
    ends = {}
    while len(ends) < 2 and time.monotonic() < deadline:
        for event in workers.poll(timeout=1.0):
            events.append(event)
            if isinstance(event, Lost) or (isinstance(event, Reached) and event.rung.is_last):
                assert event.cohort.numbers not in ends
                ends[event.cohort.numbers] = event
    assert isinstance(ends[running.numbers], Lost)
    assert ends[running.numbers].reason
    assert "\n" not in ends[running.numbers].reason
    assert isinstance(ends[other.numbers], Reached)
    after = workers.process_ids()
    assert len(after) == 2
    assert victim not in after
    again = cohort(0, 1, epochs=1)
    workers.submit(again)
    assert gather(workers, [again])[-1].rung.is_last


def test_an_idle_worker_that_was_killed_is_lost_when_next_used(workers):
    victim = workers.process_ids()[-1]
    os.kill(victim, signal.SIGKILL)
    wait_until_gone(victim)
    one = cohort(0)
    workers.submit(one)
    (event,) = gather(workers, [one])
    assert isinstance(event, Lost)
    workers.submit(one)
    assert gather(workers, [one])[-1].rung.is_last


def test_workers_use_one_thread_and_our_packages(workers):
    """The driver's folder holds a stray tasks.py (see the fixture); here ours was trained."""
    one = cohort(0)
    workers.submit(one)
    provenance = gather(workers, [one])[-1].rung.provenance
    assert provenance["threads"] == 1


def test_a_worker_says_why_it_died(local_processes):
    one = cohort(0, measure=(Choice("gradient_norm", Deadly()),))
    local_processes.submit(one)
    (event,) = gather(local_processes, [one])
    assert isinstance(event, Lost)
    assert re.fullmatch(r"worker process \d+ was killed by SIGABRT: out of luck", event.reason)


@dataclasses.dataclass(frozen=True)
class Deadly:
    """Settings whose arrival is too much for a worker."""

    def __reduce__(self):
        return exec, ("import os; print('out of luck', flush=True); os.abort()",)


def test_ctrl_c_in_the_terminal_leaves_worker_processes_to_the_driver(local_processes):
    one = cohort(0, epochs=30)
    local_processes.submit(one)
    events = []
    while not events:
        events += local_processes.poll(timeout=5.0)
    for hand, _ in local_processes._busy.values():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(hand.process.pid, number)
    while not events[-1].rung.is_last:
        events += local_processes.poll(timeout=5.0)
    assert [event.rung.epoch for event in events] == list(range(31))


def test_rungs_of_an_abandoned_cohort_are_dropped(local_processes):
    """A worker that ran ahead of its driver has sent rungs that nobody wants any more."""
    one, other = cohort(0, epochs=10_000), cohort(1, epochs=3)
    for first in (one, cohort(2, epochs=10_000)):
        local_processes.submit(first)
    while not local_processes.poll(timeout=5.0):
        pass
    time.sleep(0.3)
    local_processes.stop()
    ended = []
    while len(ended) < 2:
        ended += [e for e in local_processes.poll(timeout=5.0) if isinstance(e, Stopped)]
    local_processes._is_stopping = False
    local_processes.submit(other)
    events = gather(local_processes, [other])
    assert [event.rung.epoch for event in events] == [0, 1, 2, 3]


DRIVER = """
import os, pickle, sys
from pipeline.executors.process import ProcessExecutor
executor = ProcessExecutor(workers=2)
print(*executor.process_ids(), flush=True)
for cohort in pickle.load(sys.stdin.buffer):
    executor.submit(cohort)
while True:
    if executor.poll(timeout=5.0):
        print("training", flush=True)
"""


def test_worker_processes_end_with_a_driver_that_is_killed():
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        pids = [int(word) for word in driver.stdout.readline().split()]
        assert len(pids) == 2
        # Epochs of minutes: workers must not wait for their end.
        slow = Choice("planar", Planar.Config(points=1_000_000, batch_size=1))
        pickle.dump([cohort(n, task=slow, epochs=2) for n in (0, 1)], driver.stdin)
        driver.stdin.close()
        assert driver.stdout.readline() == b"training\n"
    finally:
        driver.kill()
        driver.wait()
    for pid in pids:
        wait_until_gone(pid, seconds=5)


def test_worker_processes_listen_nowhere(local_processes):
    assert listeners(local_processes.process_ids()) == []


def test_a_warm_worker_has_loaded_the_task_before_it_is_needed():
    executor = ProcessExecutor(workers=1, warm=cohort(0, task=TEXT))
    try:
        # An MLP takes no text: what cannot be loaded is reported when it is trained.
        executor.submit(cohort(0, task=TEXT))
        (event,) = gather(executor, [cohort(0, task=TEXT)])
        assert isinstance(event, Raised)
        executor.submit(cohort(1))
        assert gather(executor, [cohort(1)])[-1].rung.is_last
    finally:
        executor.close()


def test_warming_loads_the_task_and_changes_no_result(monkeypatch):
    loaded = []
    monkeypatch.setattr(worker, "load_task", lambda c: loaded.append(c) or load_task(c))
    warmed, cold = Worker(), Worker()
    warmed.warm(cohort(7))
    assert len(loaded) == 1
    rungs = warmed.start(cohort(0)), cold.start(cohort(0))
    assert len(loaded) == 2
    assert len({str(rung.val_loss) for rung in rungs}) == 1


def test_of_several_gpus_each_worker_sees_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert process._gpus("cuda") == ["2", "5"]
    assert process._gpus("cuda:1") == process._gpus("cpu") == []


def test_a_hidden_package_is_named(tmp_path, monkeypatch):
    from pipeline.executors.packages import import_conflict

    assert import_conflict() is None
    message = import_conflict(str(tmp_path))
    assert str(tmp_path) in message
    assert "rename that file or start elsewhere" in message


def listeners(pids):
    """(pid, address, port) of every listening TCP socket of the processes."""
    sockets = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                packed = b"".join(
                    int(address[i : i + 8], 16).to_bytes(4, "little")
                    for i in range(0, len(address), 8)
                )
                sockets[f"socket:[{fields[9]}]"] = socket.inet_ntop(family, packed), int(port, 16)
    found = []
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target in sockets:
                found.append((pid, *sockets[target]))
    return found


def ours(session):
    """This process and every process that names Ray's session folder, with their children."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[-1].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    for pid in parents:
        try:
            if session.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
        except OSError:
            continue
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return [pid for pid in found if Path(f"/proc/{pid}/fd").is_dir()]


def test_ray_listens_on_loopback_only(local_ray):
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    found = listeners(ours(session))
    assert len(found) >= 3, "no listeners found: the test sees the wrong processes"
    outside = [f for f in found if f[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert not outside


def test_a_local_ray_is_its_own_beside_one_that_runs_already():
    """`ray start` leaves a note of itself, which Ray would follow; here it leads nowhere."""
    asks = (
        "from pipeline.executors.ray_cluster import Cluster; found = Cluster(None, cpus=1);"
        "print(found.room(1, 0)); found.close()"
    )
    with tempfile.TemporaryDirectory(prefix="lyr", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
        done = subprocess.run(
            [sys.executable, "-P", "-c", asks], env={**os.environ, "RAY_TMPDIR": folder},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr[-2000:]


def test_a_local_ray_that_does_not_come_up_is_one_line(monkeypatch):
    """Ray raises Exception itself where its node is too slow, as on a busy machine."""
    import ray

    from pipeline.executors.ray_cluster import Cluster

    def slow(**_):
        raise Exception("The current node timed out during startup.\nThis could happen because …")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ExecutorError) as caught:
        Cluster(None, cpus=1)
    said = "a local Ray cannot be used: The current node timed out during startup."
    assert str(caught.value) == said
