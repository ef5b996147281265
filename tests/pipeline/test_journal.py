"""The log of a sweep, and what `lyapsweep status` makes of it."""

import json
import time

import pytest

from pipeline import config, creating, journal, retrying, status, sweep
from pipeline.executors.inline import InlineExecutor
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.journal import Journal, events, older, pace, path_of
from pipeline.ledger import Ledger, StudyAwayError
from pipeline.store import StoreError
from tasks.networks.mlp import MLP

NAME = "tiny"
TREE = {
    "trials": 6,
    "sampler": {"batch": 6},
    "task": {"name": "planar", "points": 60},
    "network": {"name": "mlp", "width": 3, "init_scale": {"choice": [1.0, 2.0, 13.0]}},
    "trainer": {"epochs": 2},
    "execution": {"cohort_size": 1, "executor": "inline", "max_failed_share": 1},
}


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home", NAME)
    home.create()
    return home


def run(home, tmp_path):
    store = FolderStore(tmp_path / "store")
    store.prepare()
    tree = config.check(TREE)
    info = creating.create(tree, NAME, store)
    assert sweep.Driver(tree, info, store, home, InlineExecutor()).run().state == "complete"
    return info, store


def test_what_happens_is_in_the_log_and_status_sums_it_up(home, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "RETRY_SECONDS", (0.001,) * 7)
    build, publish, tell, times = MLP.__init__, FolderStore.publish, Ledger.tell, []

    def unlucky(self, configs, **options):
        if any(c.init_scale == 13 for c in configs):
            raise RuntimeError("thirteen is an unlucky scale")
        build(self, configs, **options)

    def flaky(self, *args):
        times.append(0)
        if len(times) < 3:
            raise StoreError("the store is away")
        publish(self, *args)

    def silent(self, header):
        with self._asking():
            times.append(0)
            if 4 < len(times) < 7:
                raise StudyAwayError("the database is away")
        tell(self, header)

    monkeypatch.setattr(MLP, "__init__", unlucky)
    monkeypatch.setattr(FolderStore, "publish", flaky)
    monkeypatch.setattr(Ledger, "tell", silent)
    info, store = run(home, tmp_path)
    lines = list(events(home))
    kinds = [event["event"] for event in lines]
    assert (kinds[0], kinds[-1]) == ("started", "stopped")
    assert lines[-1]["state"] == "complete"
    ended = {e["trial"]: e for e in lines if e["event"] == "ended"}
    assert sorted(ended) == list(range(6))
    headers = {r.header.trial: r.header for r in store.records(NAME)}
    for number, header in headers.items():
        assert (ended[number]["state"], ended[number]["epochs"]) == (header.state, header.epochs)
        cause = "RuntimeError: thirteen is an unlucky scale" if header.state == "failed" else None
        assert ended[number].get("cause") == cause
    assert sorted(e["trial"] for e in lines if e["event"] == "published") == list(range(6))
    assert [e["of"] for e in lines if e["event"] == "back"] == ["store", "optuna"]
    assert [e["time"] for e in lines] == sorted(e["time"] for e in lines)

    failed = [n for n, h in headers.items() if h.state == "failed"]
    assert len(failed) > 1
    said = list(status.details(info, store, home))
    shown = ", ".join(map(str, failed))
    assert f"failed: RuntimeError: thirteen is an unlucky scale (trials {shown})" in said
    (again,) = [line for line in said if line.startswith("retries: ")]
    assert again == "retries: 1 of optuna, 2 of store"
    assert any(line.startswith("pace: ") for line in said)
    assert not any("did not answer" in line or "driven by" in line for line in said)


def test_pace_is_that_of_the_latest_driver(home):
    now = time.time()
    lines = [{"time": now - 90000, "event": "started"}]
    lines += [{"time": now - 90000 + n, "event": "ended", "epochs": 5} for n in range(50)]
    lines += [{"time": now - 1000, "event": "started"}]
    lines += [{"time": now - 1000 + 100 * n, "event": "ended", "epochs": 5} for n in range(1, 11)]
    lines += [{"time": now, "event": "retry", "of": "store", "cause": "away"}]
    path_of(home).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = pace(home)
    assert found.trials_per_hour == pytest.approx(36)
    assert found.epochs_per_second == pytest.approx(0.05)
    assert (found.retries, found.silent, found.lost) == ({"store": 1}, {"store": "away"}, 0)


def test_the_log_is_bounded_and_keeps_what_is_newest(home, monkeypatch):
    monkeypatch.setattr(journal, "_MOST_BYTES", 3000)
    log = Journal(home)
    for number in range(500):
        log.write("ended", trial=number)
    assert path_of(home).stat().st_size + older(path_of(home)).stat().st_size < 6400
    trials = [event["trial"] for event in events(home)]
    assert trials == list(range(trials[0], 500))
    assert len(trials) > 30
    assert len(list(home.folder.glob("log*"))) == 2


def test_no_secret_is_in_the_log_and_a_text_is_one_line(home):
    log = Journal(home, ["s3cret"])
    log.write("note", text="cannot reach\npostgresql://me:s3cret@host/db\n")
    (event,) = events(home)
    assert event["text"] == "postgresql://me:***@host/db"


def test_lines_that_are_none_are_passed_over(home):
    path_of(home).write_bytes(b'{"time": 1, "event": "a"}\n[]\n{"event": 3}\n\xff\n{"time": 2, "ev')
    assert [event["event"] for event in events(home)] == ["a"]


def test_a_log_that_cannot_be_written_stops_nothing(home, tmp_path):
    path_of(home).mkdir()
    run(home, tmp_path)
    with pytest.raises(IsADirectoryError):
        path_of(home).read_text()
