"""One suite for every executor: the contract of `pipeline.executors.base`."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pipeline import catalog, records
from pipeline.executors.base import Lost, Raised, Reached, Stopped
from pipeline.executors.inline import InlineExecutor
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
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


@pytest.fixture(params=["inline", "ray"])
def executor(request):
    """Idle before and after each test; Ray's workers are shared, since they take seconds."""
    if request.param == "inline":
        found = InlineExecutor()
        yield found
        found.close()
    else:
        found = request.getfixturevalue("local_ray")
        yield found
        found._is_stopping = False
        assert not found._busy


def gather(executor, cohorts, seconds=60):
    """Events until each of `cohorts` has ended, each checked against the contract."""
    open_ = {c.numbers: -1 for c in cohorts}
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


def test_ray_reports_a_killed_worker_as_lost_and_replaces_it(local_ray):
    before = local_ray.process_ids()
    running, other = cohort(0, 1, epochs=10_000), cohort(2, epochs=20)
    local_ray.submit(running)
    local_ray.submit(other)
    while not local_ray.poll(timeout=5.0):
        pass
    victim = before[-1]  # `submit` takes the idle worker that came last.
    os.kill(victim, signal.SIGKILL)
    events = []
    deadline = time.monotonic() + 60
    ends = {}
    while len(ends) < 2 and time.monotonic() < deadline:
        for event in local_ray.poll(timeout=1.0):
            events.append(event)
            if isinstance(event, Lost) or (isinstance(event, Reached) and event.rung.is_last):
                assert event.cohort.numbers not in ends
                ends[event.cohort.numbers] = event
    assert isinstance(ends[running.numbers], Lost)
    assert ends[running.numbers].reason
    assert "\n" not in ends[running.numbers].reason
    assert isinstance(ends[other.numbers], Reached)
    after = local_ray.process_ids()
    assert len(after) == 2
    assert victim not in after
    again = cohort(0, 1, epochs=1)
    local_ray.submit(again)
    assert gather(local_ray, [again])[-1].rung.is_last


def test_ray_reports_an_idle_worker_that_was_killed_when_next_used(local_ray):
    victim = local_ray.process_ids()[-1]
    os.kill(victim, signal.SIGKILL)
    wait_until_gone(victim)
    one = cohort(0)
    local_ray.submit(one)
    (event,) = gather(local_ray, [one])
    assert isinstance(event, Lost)
    local_ray.submit(one)
    assert gather(local_ray, [one])[-1].rung.is_last


def test_ray_workers_use_one_thread_and_our_packages(local_ray):
    """The driver's folder holds a stray tasks.py (see the fixture); here ours was trained."""
    one = cohort(0)
    local_ray.submit(one)
    provenance = gather(local_ray, [one])[-1].rung.provenance
    assert provenance["threads"] == 1


def test_a_hidden_package_is_named(tmp_path, monkeypatch):
    from pipeline.executors.ray import import_conflict

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
