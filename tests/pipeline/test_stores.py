"""One suite for every store, then what only MLflow shows."""

import dataclasses
import json
import math
import shutil
import time

import pytest

from pipeline import records, store
from pipeline.records import RecordError
from pipeline.store import NameInUseError, NoSuchSweepError, StoreError
from tests.pipeline.stored import NAME, ROWS, info, scalar, spool, start


@pytest.fixture
def opened(store_uri):
    found = store.open_store(store_uri)
    found.prepare()
    found.create_sweep(info())
    return found


def again(opened):
    """The same store, as another process sees it."""
    return store.open_store(opened.uri)


def test_a_sweep_comes_back_as_it_was_created(opened):
    for reader in (opened, again(opened)):
        assert reader.sweep(NAME) == info()
        assert [i.name for i in reader.sweeps()] == [NAME]
        assert reader.states(NAME) == {}
        assert list(reader.records(NAME)) == []


def test_preparing_twice_changes_nothing(opened):
    again(opened).prepare()
    assert again(opened).sweep(NAME) == info()


def test_a_name_can_be_used_once(opened):
    for writer in (opened, again(opened)):
        with pytest.raises(NameInUseError, match=f"'{NAME}' exists already"):
            writer.create_sweep(info(sweep_id="other"))
    assert opened.sweep(NAME).sweep_id == f"id-{NAME}"


def test_the_newest_sweep_comes_first(opened):
    for n in (2, 3):
        time.sleep(0.002)
        opened.create_sweep(info(f"sweep-{n}", created_ms=1_700_000_000_000 + n))
    assert [i.name for i in again(opened).sweeps()] == ["sweep-3", "sweep-2", NAME]


def test_an_unknown_sweep_is_an_error_that_lists_those_there_are(opened):
    for call in (
        lambda: opened.sweep("nope"),
        lambda: opened.states("nope"),
        lambda: list(opened.records("nope")),
        lambda: opened.set_state("nope", "complete"),
    ):
        with pytest.raises(NoSuchSweepError, match="no sweep 'nope'"):
            call()
    with pytest.raises(NoSuchSweepError, match=f"there are {NAME}"):
        opened.sweep("nope")
    with pytest.raises(StoreError):
        opened.begin_trial("nope", start())


@pytest.mark.parametrize("state", ["running", "interrupted", "complete", "failed"])
def test_states_of_a_sweep_come_back(opened, state):
    opened.set_state(NAME, state)
    assert again(opened).sweep(NAME) == info(state=state)


def test_a_trial_runs_is_interrupted_runs_again_and_ends(opened, tmp_path):
    opened.begin_trial(NAME, start())
    opened.begin_trial(NAME, start())
    assert again(opened).states(NAME) == {0: "running"}
    opened.interrupt_trial(NAME, 0, "stopped by the user")
    assert again(opened).states(NAME) == {0: "interrupted"}
    with pytest.raises(KeyError, match="no finished trial 0"):
        opened.record(NAME, 0)
    later = again(opened)
    later.begin_trial(NAME, start(attempt=2))
    assert later.states(NAME) == {0: "running"}
    path = spool(tmp_path)
    later.publish(NAME, path)
    assert path.exists()
    assert again(opened).states(NAME) == {0: "complete"}
    assert again(opened).record(NAME, 0).header == records.read(path).header


def test_interrupting_what_was_never_begun_does_no_harm(opened, tmp_path):
    opened.interrupt_trial(NAME, 4, "stopped")
    assert opened.states(NAME) == {}
    opened.begin_trial(NAME, start(4))
    opened.publish(NAME, spool(tmp_path, 4))
    assert opened.states(NAME) == {4: "complete"}


@pytest.mark.parametrize(
    "ending",
    [
        {"state": "complete"},
        {"state": "diverged", "value": 7.0, "diverged_at": 0},
        {"state": "pruned"},
        {"state": "failed", "value": None, "error": "Traceback\nValueError: no"},
    ],
    ids=lambda e: e["state"],
)
def test_every_ending_is_published_whole(opened, tmp_path, ending):
    path = spool(tmp_path, rows=[] if ending["state"] == "failed" else ROWS, **ending)
    opened.begin_trial(NAME, start())
    opened.publish(NAME, path)
    expected = records.read(path)
    for reader in (opened, again(opened)):
        found = reader.record(NAME, 0)
        assert found.header == expected.header
        assert records.content_hash(found.table) == records.content_hash(expected.table)
        assert reader.states(NAME) == {0: ending["state"]}


def test_records_come_in_the_order_of_their_numbers(opened, tmp_path):
    for n in (11, 2, 7):
        opened.begin_trial(NAME, start(n))
    for n in (7, 11):
        opened.publish(NAME, spool(tmp_path, n))
    assert [r.header.trial for r in again(opened).records(NAME)] == [7, 11]
    assert opened.states(NAME) == {2: "running", 7: "complete", 11: "complete"}


def test_publishing_again_changes_nothing(opened, tmp_path):
    path = spool(tmp_path)
    opened.begin_trial(NAME, start())
    opened.publish(NAME, path)
    before = opened.states(NAME), opened.record(NAME, 0).header
    replay = again(opened)
    replay.begin_trial(NAME, start())
    replay.publish(NAME, path)
    replay.publish(NAME, path)
    assert (replay.states(NAME), replay.record(NAME, 0).header) == before
    assert len(list(replay.records(NAME))) == 1


def test_weights_travel_with_the_record(opened, tmp_path):
    opened.begin_trial(NAME, start())
    opened.publish(NAME, spool(tmp_path, weights=b"weights of trial 0"))
    (kept,) = [p for p in tmp_path.rglob("*.safetensors") if p.parent.name != "spool"]
    assert kept.read_bytes() == b"weights of trial 0"


def test_a_corrupt_record_is_noticed_and_named(opened, tmp_path):
    opened.begin_trial(NAME, start())
    opened.publish(NAME, spool(tmp_path))
    (kept,) = [p for p in tmp_path.rglob("*.parquet") if p.parent.name != "spool"]
    whole = kept.read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 3] ^= 0xFF
    for content in (bytes(spoilt), whole[:-20], b""):
        kept.write_bytes(content)
        for call in (lambda: opened.record(NAME, 0), lambda: list(opened.records(NAME))):
            with pytest.raises(RecordError, match=kept.name) as caught:
                call()
            assert "\n" not in str(caught.value)


def test_publishing_a_corrupt_file_is_refused(opened, tmp_path):
    path = spool(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    opened.begin_trial(NAME, start())
    with pytest.raises(RecordError):
        opened.publish(NAME, path)
    assert opened.states(NAME) == {0: "running"}


def test_files_and_folders_are_attached(opened, tmp_path):
    report = tmp_path / "report"
    (report / "tables").mkdir(parents=True)
    (report / "report.html").write_text("one")
    (report / "tables" / "a.csv").write_text("two")
    for _ in range(2):
        opened.attach(NAME, report, "report")
        opened.attach(NAME, report / "report.html", "single")
    found = {
        str(p).split("/report/")[-1]: p.read_text()
        for p in tmp_path.rglob("*")
        if p.is_file() and report not in p.parents and p.suffix in (".html", ".csv")
    }
    assert found["report.html"] == "one"
    assert found["tables/a.csv"] == "two"
    assert len(found) == 3


def test_a_store_that_vanished_is_a_store_error(opened, tmp_path):
    """What a driver outlives: nothing but StoreError may come out of a writing method."""
    opened.begin_trial(NAME, start())
    path = spool(tmp_path)
    for name in ("store", "mlruns"):
        if (tmp_path / name).exists():
            shutil.rmtree(tmp_path / name)
            (tmp_path / name).write_text("in the way")
    with pytest.raises(StoreError) as caught:
        opened.publish(NAME, path)
    assert "\n" not in str(caught.value)
    assert path.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "a b", "x" * 65, "ü", "a\n"])
def test_unsafe_names_are_refused(name):
    with pytest.raises(ValueError, match="sweep name"):
        store.check_name(name)


def test_safe_names_are_taken():
    for name in ("a", "A-1_b.c", "7", "x" * 64):
        assert store.check_name(name) == name


class TestMlflow:
    """What a person sees in the MLflow UI."""

    @pytest.fixture
    def client(self, empty_mlflow, tmp_path, monkeypatch):
        from mlflow.tracking import MlflowClient

        shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
        monkeypatch.chdir(tmp_path)
        return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")

    @pytest.fixture
    def opened(self, client):
        """The default store, as a user gets it who sets nothing."""
        found = store.open_store()
        found.prepare()
        found.create_sweep(info())
        return found

    def runs(self, client):
        experiment = client.get_experiment_by_name(NAME)
        found = client.search_runs([experiment.experiment_id])
        (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
        children = [r for r in found if r.info.run_id != parent.info.run_id]
        return parent, sorted(children, key=lambda r: r.info.run_name)

    def test_trials_hang_under_one_run_a_sweep(self, opened, client):
        for n in (0, 1):
            opened.begin_trial(NAME, start(n))
        parent, children = self.runs(client)
        assert parent.info.run_name == NAME
        assert [c.info.run_name for c in children] == ["trial-00000", "trial-00001"]
        assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
        assert [c.data.tags["lyapsweep.trial_uid"] for c in children] == [
            start(0).uid,
            start(1).uid,
        ]
        assert parent.data.tags["lyapsweep.host"] == "h"

    def test_params_are_bare_with_log_twins(self, opened, client):
        opened.begin_trial(NAME, start())
        _, (child,) = self.runs(client)
        params = child.data.params
        assert params["network.units"] == "64"
        assert params["network.bias"] == "true"
        assert params["trainer.clip_norm"] == "none"
        assert float(params["trainer.learning_rate"]) == pytest.approx(1.2345678901e-05, rel=1e-9)
        assert params["trainer.dropout"] == "0"
        twin = float(params["log10.trainer.learning_rate"])
        assert twin == pytest.approx(math.log10(1.2345678901e-05), rel=1e-9)
        assert "log10.trainer.dropout" not in params
        assert "log10.network.units" not in params

    def test_metric_histories_are_exact_even_when_published_twice(self, opened, client, tmp_path):
        path = spool(tmp_path)
        for _ in range(3):
            writer = store.open_store()
            writer.begin_trial(NAME, start())
            writer.publish(NAME, path)
        _, (child,) = self.runs(client)

        def history(key):
            found = client.get_metric_history(child.info.run_id, key)
            return [(m.step, m.value, m.timestamp) for m in found]

        assert history("val_loss") == [(0, 0.7, 1001), (1, 0.5, 1003)]
        assert history("train_loss") == [(1, 0.6, 1002)]
        assert history("lyapunov.max") == [(1, -0.25, 1004)]
        assert history("final.val_loss") == [(0, 0.5, 1003)]
        assert history("cost.measure_share") == [(0, 0.25, 2000)]
        assert history("diverged") == [(0, 0.0, 2000)]
        assert set(child.data.metrics) == {
            "val_loss",
            "train_loss",
            "lyapunov.max",
            "final.val_loss",
            "cost.measure_share",
            "cost.train_seconds",
            "diverged",
        }

    def test_nan_and_inf_are_never_metrics(self, opened, client, tmp_path):
        rows = [
            scalar(0, "val_loss", 0.7, 1001),
            scalar(1, "val_loss", math.nan, 1002, flags=("diverged",)),
            scalar(1, "val_perplexity", math.inf, 1003),
            scalar(1, "lyapunov.min", -math.inf, 1004),
        ]
        opened.begin_trial(NAME, start())
        opened.publish(
            NAME, spool(tmp_path, rows=rows, state="diverged", value=7.0, diverged_at=13)
        )
        _, (child,) = self.runs(client)
        assert child.data.metrics == {"val_loss": 0.7, "diverged": 1.0}
        assert child.data.tags["lyapsweep.diverged_at"] == "13"
        assert all(math.isfinite(v) for v in child.data.metrics.values())

    @pytest.mark.parametrize(
        ("state", "status"),
        [
            ("complete", "FINISHED"),
            ("diverged", "FINISHED"),
            ("pruned", "FINISHED"),
            ("failed", "FAILED"),
        ],
    )
    def test_run_status_follows_the_state(self, opened, client, tmp_path, state, status):
        opened.begin_trial(NAME, start())
        _, (child,) = self.runs(client)
        assert child.info.status == "RUNNING"
        opened.interrupt_trial(NAME, 0, "stopped by the user")
        _, (child,) = self.runs(client)
        assert child.info.status == "KILLED"
        assert child.data.tags["lyapsweep.reason"] == "stopped by the user"
        opened.begin_trial(NAME, start(attempt=2))
        _, (child,) = self.runs(client)
        assert child.info.status == "RUNNING"
        error = "Traceback\nValueError: no" if state == "failed" else None
        opened.publish(NAME, spool(tmp_path, state=state, error=error))
        _, (child,) = self.runs(client)
        assert (child.info.status, child.info.end_time) == (status, 2000)
        assert child.data.tags["lyapsweep.state"] == state
        assert child.data.tags["lyapsweep.attempt"] == "2"
        artifacts = {a.path for a in client.list_artifacts(child.info.run_id)}
        assert artifacts == {"trial-00000.parquet"} | ({"error.txt"} if error else set())

    @pytest.mark.parametrize(
        ("state", "status"),
        [("running", "RUNNING"), ("interrupted", "KILLED"), ("complete", "FINISHED")],
    )
    def test_the_parent_run_shows_the_state_of_the_sweep(self, opened, client, state, status):
        opened.set_state(NAME, "interrupted")
        opened.set_state(NAME, state)
        parent, _ = self.runs(client)
        assert parent.info.status == status

    def test_a_bare_mlflow_in_the_same_folder_finds_everything(
        self, opened, client, tmp_path, monkeypatch
    ):
        import mlflow

        opened.begin_trial(NAME, start())
        opened.publish(NAME, spool(tmp_path))
        before = mlflow.get_tracking_uri()
        try:
            mlflow.set_tracking_uri(None)
            found = mlflow.search_runs(experiment_names=[NAME], output_format="list")
            (child,) = [r for r in found if "mlflow.parentRunId" in r.data.tags]
            # Artifacts are found from any folder: their location is absolute.
            monkeypatch.chdir("/")
            local = client.download_artifacts(child.info.run_id, "trial-00000.parquet")
            assert records.read(type(tmp_path)(local)).header.trial == 0
        finally:
            mlflow.set_tracking_uri(before)
        assert (tmp_path / "mlruns" / NAME).is_dir()

    def test_a_sweep_half_created_by_a_dead_driver_does_not_block_its_name(
        self, client, monkeypatch
    ):
        from mlflow.tracking import MlflowClient

        def dies(*_, **__):
            raise KeyboardInterrupt

        for step in ("create_run", "log_dict", "set_tag"):
            writer = store.open_store()
            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, step, dies)
                with pytest.raises(KeyboardInterrupt):
                    writer.create_sweep(info())
            reader = store.open_store()
            assert reader.sweeps() == []
            with pytest.raises(NoSuchSweepError):
                reader.sweep(NAME)
        writer = store.open_store()
        writer.create_sweep(info())
        assert writer.sweep(NAME) == info()
        self.runs(client)

    @pytest.mark.parametrize("name", ["Default", NAME])
    def test_experiments_of_others_are_left_alone(self, client, name):
        if name != "Default":
            client.create_run(client.create_experiment(name))
        with pytest.raises(NameInUseError, match="not ours"):
            store.open_store().create_sweep(info(name))

    def test_a_run_that_was_made_though_the_store_failed_is_not_made_twice(
        self, opened, client, monkeypatch
    ):
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        genuine = MlflowClient.create_run

        def lost_answer(self, *args, **kwargs):
            genuine(self, *args, **kwargs)
            raise MlflowException("connection lost")

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "create_run", lost_answer)
            with pytest.raises(StoreError, match="connection lost"):
                opened.begin_trial(NAME, start())
        opened.begin_trial(NAME, start())
        _, children = self.runs(client)
        assert len(children) == 1

    def test_a_newer_schema_is_refused(self, opened, client):
        parent, _ = self.runs(client)
        client.set_tag(parent.info.run_id, "lyapsweep.schema_version", "3")
        with pytest.raises(StoreError, match="newer than this program reads"):
            store.open_store().sweep(NAME)

    def test_the_config_can_be_read_without_us(self, opened, client):
        parent, _ = self.runs(client)
        path = client.download_artifacts(parent.info.run_id, "sweep.json")
        with open(path) as file:
            assert json.load(file) == dataclasses.asdict(info())


@pytest.mark.parametrize(
    "uri", ["http://user:s3cret@127.0.0.1:1", "http://user:s3%40cret@127.0.0.1:1"]
)
def test_a_password_in_the_uri_is_never_shown_and_failure_is_quick(uri):
    remote = store.open_store(uri)
    started = time.monotonic()
    calls = [
        remote.prepare,
        remote.sweeps,
        lambda: remote.sweep("x"),
        lambda: remote.create_sweep(info()),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert "cret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 30


def test_a_password_is_hidden_in_errors_about_names(opened, monkeypatch):
    from pipeline import mlflow_store

    if not isinstance(opened, mlflow_store.MlflowStore):
        pytest.skip("folders have no passwords")
    opened.uri = "postgresql+psycopg://user:s3cret@host/db"
    for call in (lambda: opened.create_sweep(info()), lambda: opened.sweep("nope")):
        with pytest.raises(StoreError) as caught:
            call()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["sqlite:////nonexistent/folder/mlflow.db", "folder:/proc/nowhere", "sqlite:////proc/x"]
)
def test_a_place_that_cannot_be_written_is_one_line(uri):
    with pytest.raises(StoreError) as caught:
        store.open_store(uri).prepare()
    assert "\n" not in str(caught.value)


def test_a_database_that_is_none_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, but long enough to look at" * 99)
    with pytest.raises(StoreError) as caught:
        store.open_store(f"sqlite:///{tmp_path / 'mlflow.db'}").prepare()
    assert "\n" not in str(caught.value)
