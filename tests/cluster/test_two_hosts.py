"""A sweep on a Ray cluster of two hosts, one of which is cut off and dies in the middle."""

import json
import subprocess
import time

import pytest

from pipeline import doctor
from pipeline.home import Home
from pipeline.store import open_store
from tests.cluster import nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS = 60
CONF = {
    "trials": TRIALS,
    "task": {"name": "planar", "points": 1000, "batch_size": 40},
    "network": {"name": "mlp", "width": {"choice": [8, 9]}, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 60, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 10, "at": [0, 30, 60]}},
    "execution": {"cohort_size": 2},
}


@pytest.fixture
def cluster(tmp_path):
    """Two hosts, on the first of which Ray runs, and what starts it on the second."""
    reason = nodes.can_make_hosts()
    if reason:
        pytest.skip(reason)
    with nodes.short_temporary_folder() as temp, nodes.two_hosts(tmp_path) as (a, b):
        a.start_ray(temp=temp)
        _wait_for_nodes(a, 1)
        yield a, b, lambda: b.start_ray(a, temp=temp)


def _wait_for_nodes(head, number, seconds=90):
    asks = (
        "import ray, sys;"
        "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False);"
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    deadline = time.monotonic() + seconds
    said = ""
    while time.monotonic() < deadline:
        asked = head.popen(
            [nodes.sys.executable, "-c", asks, f"{head.address}:{nodes.PORT}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        said, complaint = asked.communicate(timeout=60)
        if said.strip() == str(number):
            return
        time.sleep(1)
    raise RuntimeError(f"not {number} nodes but {said}: {complaint[-800:]}")


def finished(store):
    return sum(state == "complete" for state in store.states("two").values())


def sweep(head, folder, *more):
    (folder / "c.yaml").write_text(json.dumps(CONF))
    return head.popen(
        [
            *nodes.LYAPSWEEP, "sweep", "c.yaml", "--name", "two", "--store", "folder:store",
            "--address", f"{head.address}:{nodes.PORT}", *more,
        ],
        cwd=folder, log="sweep.log", env={"LYAPSWEEP_HOME": str(folder / "home")},
    )  # fmt: skip


def test_a_host_that_is_cut_off_and_dies_costs_no_trial(cluster, tmp_path, capsys):
    a, b, join = cluster
    join()
    _wait_for_nodes(a, 2)
    driver = sweep(a, tmp_path)
    store = open_store(f"folder:{tmp_path / 'store'}")
    times = []
    begun = time.monotonic()

    def wait_for(number, seconds=400):
        while True:
            with_sweep = (tmp_path / "store" / "two" / "sweep.json").exists()
            have = finished(store) if with_sweep else 0
            times.append((time.monotonic(), have))
            if have >= number:
                return
            assert driver.poll() is None, (a.folder / "sweep.log").read_text()[-3000:]
            assert time.monotonic() < begun + seconds, "stands still"
            time.sleep(0.5)

    wait_for(20)
    b.pull_cable()
    cut = time.monotonic()
    time.sleep(3)
    b.kill()
    wait_for(50)
    assert driver.wait(300) == 0, (a.folder / "sweep.log").read_text()[-3000:]
    times.append((time.monotonic(), finished(store)))

    found = doctor.examine(store, "two", Home(tmp_path / "home", "two"))
    assert (found.findings, found.unchecked) == ([], [])
    assert list(found.ends.values()) == ["complete"] * TRIALS
    uids = [r.header.trial_uid for r in store.records("two")]
    assert len(set(uids)) == TRIALS
    assert any(r.header.attempt > 1 for r in store.records("two")), "nothing was in training there"

    def rate(between):
        (t0, n0), *_, (t1, n1) = between
        return (n1 - n0) / (t1 - t0)

    first = next(t for t, n in times if n > 0)
    with capsys.disabled():
        before = rate([p for p in times if first <= p[0] <= cut])
        after = rate([p for p in times if p[0] > cut])
        print(f"\ntwo hosts {before:.2f} trials/s, from the cut on {after:.2f} trials/s")


def test_a_host_that_joins_in_the_middle_gets_work(cluster, tmp_path):
    a, _, join = cluster
    driver = sweep(a, tmp_path)
    store = open_store(f"folder:{tmp_path / 'store'}")
    while not (tmp_path / "store" / "two" / "sweep.json").exists() or finished(store) < 4:
        assert driver.poll() is None, (a.folder / "sweep.log").read_text()[-3000:]
        time.sleep(0.5)
    alone = {r.header.provenance["worker"] for r in store.records("two")}
    assert len(alone) == 1
    join()
    assert driver.wait(400) == 0, (a.folder / "sweep.log").read_text()[-3000:]
    workers = {r.header.provenance["worker"] for r in store.records("two")}
    assert len(workers) == 2, "the host that joined trained nothing"
    found = doctor.examine(store, "two", Home(tmp_path / "home", "two"))
    assert (found.findings, len(found.ends)) == ([], TRIALS)


def test_nodes_get_the_drivers_code_wherever_they_keep_theirs(cluster, tmp_path):
    """The nodes' own working folder has stray packages; the driver's travel and come first."""
    a, _, _ = cluster
    for name in ("tasks", "pipeline", "analysis"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a stray file was imported')\n")
    driver = sweep(a, tmp_path, "trials=4", "trainer.epochs=2", "measure.gradient_norm.at=[0,2]")
    assert driver.wait(200) == 0, (a.folder / "sweep.log").read_text()[-3000:]
    assert finished(open_store(f"folder:{tmp_path / 'store'}")) == 4
