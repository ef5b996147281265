"""What Prometheus is told: scraped from a sweep in training, and read back by its own grammar."""

import os
import re
import threading
import urllib.error
import urllib.request

import pytest

from pipeline import config, creating, progress, running
from pipeline.accounting import Progress
from pipeline.executors.inline import InlineExecutor
from pipeline.faults import ConfigError
from pipeline.home import Home
from pipeline.journal import Journal
from pipeline.metrics import Meter, MetricsError, served
from pipeline.store import open_store
from tests.servers import free_port

TRIALS, EPOCHS = 4, 2
CONF = {
    "trials": TRIALS,
    "task": {"name": "planar", "points": 100, "batch_size": 20},
    "network": {"name": "mlp", "width": 3},
    "trainer": {"epochs": EPOCHS, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "execution": {"cohort_size": 2, "executor": "inline"},
}

_SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)\{sweep="(?P<sweep>[^"]+)"(,[a-z]+="(?P<label>\w+)")?\} (?P<value>\S+)'
)


def read(text):
    """(name, label) → value; every sample must follow the HELP and TYPE of its name."""
    found, declared = {}, None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            declared = line.split()[2]
        elif line.startswith("# TYPE "):
            kind = "counter" if declared.endswith("_total") else "gauge"
            assert line == f"# TYPE {declared} {kind}"
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample["name"] == declared
            key = declared.removeprefix("lyapsweep_"), sample["label"]
            assert key not in found
            found[key] = float(sample["value"])
    assert text.endswith("\n")
    return found


def scrape(port, path="/metrics"):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return read(answer.read().decode())


def listening(port):
    """Addresses on which this machine listens at the port, as the kernel writes them."""
    found = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as lines:
            for _, local, _, state, *_ in (line.split() for line in list(lines)[1:]):
                address, _, number = local.partition(":")
                if state == "0A" and int(number, 16) == port:
                    found.append(address)
    return found


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Runs a sweep as the command does; returns what was scraped after each of its events."""

    def run(port):
        store, home = open_store(f"folder:{tmp_path / 'store'}"), Home(tmp_path / "home", "seen")
        store.prepare()
        home.create()
        checked = config.check({**CONF, "execution": {**CONF["execution"], "metrics_port": port}})
        seen = []

        class Looking(progress.LineView):
            def show(self, progress):
                seen.append((listening(port), scrape(port)) if port else threading.enumerate())

        monkeypatch.setattr(progress, "view_for", Looking)
        info = creating.create(checked, "seen", store)
        running.drive(checked, info, store, home, InlineExecutor())
        return seen

    return run


def test_a_sweep_in_training_tells_its_numbers_on_loopback(swept):
    port = free_port()
    seen = swept(port)
    # 0100007F is 127.0.0.1, low byte first.
    assert [addresses for addresses, _ in seen] == [["0100007F"]] * len(seen)
    assert listening(port) == []
    found = [metrics for _, metrics in seen]
    assert all(sum(v for (n, _), v in one.items() if n == "trials") == TRIALS for one in found)
    for key in (("trials", "complete"), ("epochs", "spent")):
        values = [one[key] for one in found]
        assert values == sorted(values)
        assert len(set(values)) > 2
    assert any(one["trials", "running"] == 2 for one in found)
    assert found[0]["trials", "due"] > 0
    last = found[-1]
    assert (last["trials", "complete"], last["epochs", "spent"]) == (TRIALS, TRIALS * EPOCHS)
    assert (last["spooled_trials", None], last["lag_seconds", None]) == (0, 0)


def test_without_a_port_nobody_listens(swept):
    assert config.check(CONF).execution.metrics_port is None
    for threads in swept(None):
        assert "metrics" not in {thread.name for thread in threads}


def test_lag_retries_and_lost_workers_are_those_of_spool_and_log(tmp_path):
    home = Home(tmp_path, "seen")
    home.create()
    journal = Journal(home)
    for of, event in (
        ("store", "retry"),
        ("store", "retry"),
        ("optuna", "retry"),
        ("store", "back"),
    ):
        journal.write(event, of=of, num=1, cause="a secret")
    journal.write("lost", trials=[1], cause="killed")
    path = home.spool / "trial-00001.parquet"
    path.write_bytes(b"")
    os.utime(path, (path.stat().st_mtime - 90,) * 2)
    meter = Meter("seen", home)
    meter.show(Progress(5, 3, running={1: 2, 2: 2}, failed=1, epochs_ended=1, epochs_again=4))
    found = read(meter.text())
    assert "secret" not in meter.text()
    assert 90 <= found.pop(("lag_seconds", None)) < 150
    assert found == {
        ("trials", "complete"): 0, ("trials", "diverged"): 0, ("trials", "pruned"): 0,
        ("trials", "failed"): 1, ("trials", "running"): 2, ("trials", "due"): 2,
        ("epochs", "planned"): 15, ("epochs", "spent"): 5, ("epochs", "again"): 4,
        ("spooled_trials", None): 1,
        ("retries_total", "store"): 2, ("retries_total", "optuna"): 1,
        ("silent", "store"): 0, ("silent", "optuna"): 1,
        ("workers_lost_total", None): 1,
    }  # fmt: skip


def test_other_paths_and_a_port_that_is_taken_are_refused(tmp_path):
    home, port = Home(tmp_path, "seen"), free_port()
    home.create()
    with served(port, "seen", home):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(port, "/trials")
        taken = pytest.raises(MetricsError, match=rf"127\.0\.0\.1:{port} cannot be listened on")
        with taken, served(port, "seen", home):
            pass
    assert listening(port) == []


def test_a_port_out_of_range_is_a_fault_of_the_conf():
    with pytest.raises(ConfigError, match=r"execution\.metrics_port: must be at most 65535"):
        config.check({**CONF, "execution": {"metrics_port": 70000}})
