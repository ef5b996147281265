"""A tracking server that fails at any one request of a trial: tried again, it is on record once."""

import itertools

import pytest
from mlflow import MlflowClient

from pipeline import records
from pipeline.rows import Row
from pipeline.store import StoreError, SweepInfo, TrialStart, open_store
from tests.chaos.proxy import HTTP_FAULTS, HttpProxy
from tests.servers import mlflow_server

NAME = "once"
NUMBERS = itertools.count()

# Of a trial, from begin to close.
REQUESTS = range(6)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """A proxy before a server on SQLite."""
    folder = tmp_path_factory.mktemp("tracking")
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}") as server:
        proxy = HttpProxy(server.port, seconds=0.1)
        proxy.start()
        yield proxy, server
        proxy.stop()


@pytest.fixture(scope="module")
def sweep(tracking):
    _, server = tracking
    store = open_store(server.url)
    store.create_sweep(
        SweepInfo(
            name=NAME, sweep_id="ab", config={"trials": 1000}, config_hash="x", num_trials=1000,
            created_ms=1,
        )
    )  # fmt: skip
    return store


def until_it_is_done(step):
    """As the driver does, without its pauses; returns how often it failed."""
    for failed in range(20):
        try:
            step()
        except StoreError:
            continue
        return failed
    raise AssertionError("it never succeeded")


def one_trial(store, proxy, folder, fault, after):
    number = next(NUMBERS)
    start = TrialStart(
        number=number, uid=f"ab/{number}", seed=1, params={"a": 1}, sampled=("a",), start_ms=5
    )
    header = records.TrialHeader(
        sweep=NAME, trial=number, trial_uid=start.uid, seed=1, state="complete", params={"a": 1},
        sampled=("a",), value=0.5, epochs=1, epochs_planned=1, start_ms=5, end_ms=9,
    )  # fmt: skip
    rows = [Row(epoch, epoch, "val_loss", 0.5, time_ms=6 + epoch) for epoch in (0, 1)]
    path = folder / f"trial-{number:05d}.parquet"
    records.write(records.TrialRecord(header, records.to_table(NAME, number, rows)), path)
    proxy.arm(fault, after=after)
    until_it_is_done(lambda: store.begin_trial(NAME, start))
    until_it_is_done(lambda: store.publish(NAME, path))
    proxy.disarm()
    return number


# Those after which something was done of which the client does not know.
TREACHEROUS = ("500 after it was done", "reset after it was done", "request cut in its body")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in TREACHEROUS else pytest.mark.slow)
        for fault in HTTP_FAULTS
        if fault != "delay"
    ],
)
def test_a_trial_is_on_record_once(tracking, sweep, tmp_path, fault):
    proxy, server = tracking
    store = open_store(proxy.url)
    # Looks up what it looks up once, so that what is harmed first is the making of a run.
    one_trial(store, proxy, tmp_path, fault, 100)
    before = proxy.harmed[fault]
    numbers = {one_trial(store, proxy, tmp_path, fault, after) for after in REQUESTS}
    assert proxy.harmed[fault] - before == len(REQUESTS)
    found = [e for e in open_store(server.url).entries(NAME) if e.number in numbers]
    assert [(e.number, e.state, e.is_closed) for e in found] == [
        (number, "complete", True) for number in sorted(numbers)
    ]
    kept = {r.header.trial: r for r in open_store(server.url).records(NAME)}
    assert all(kept[number].table.num_rows == 2 for number in numbers)


def test_a_run_that_was_made_after_we_looked_for_it_is_removed(tracking, sweep, tmp_path):
    _, server = tracking
    store = open_store(server.url)
    store.create_sweep(
        SweepInfo(
            name="late", sweep_id="cd", config={"trials": 2}, config_hash="x", num_trials=2,
            created_ms=1,
        )
    )  # fmt: skip
    client = MlflowClient(server.url)
    for number in (0, 1):
        start = TrialStart(
            number=number, uid=f"cd/{number}", seed=1, params={"a": 1}, sampled=("a",), start_ms=5
        )
        store.begin_trial("late", start)
        first = next(e for e in store.entries("late") if e.number == number)
        if number == 0:
            client.set_tag(first.key, "lyapsweep.state", "complete")
        run = client.get_run(first.key)
        client.create_run(
            run.info.experiment_id, start_time=1,
            tags={**run.data.tags, "lyapsweep.state": "running"},
        )  # fmt: skip
    assert [e.number for e in store.entries("late")] == [0, 0, 1, 1]
    assert store.states("late") == {0: "complete", 1: "running"}
    store.forget()
    store.set_state("late", "complete")
    assert [(e.number, e.state) for e in store.entries("late")] == [(0, "complete"), (1, "running")]
