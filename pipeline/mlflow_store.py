"""Sweeps in MLflow: one experiment and one parent run a sweep, one nested run a trial.

The experiment has the sweep's name. Runs are found by tags, never by remembered ids, so that a
driver which died and one which goes on agree. Metrics carry the time stamps of the records;
writing them again changes nothing (MLflow keeps one value per key, step, time and value).

MLflow is the browser and the archive; the numbers themselves are in the Parquet artifacts.
"""

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Set before mlflow is imported: it reads them once.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# A server that is away is tried again by the driver, which must not stand still for the minutes
# of MLflow's own seven retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import logging

import mlflow
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline import mlflow_artifacts as artifacts
from pipeline import plain_file, reading, records
from pipeline.mlflow_errors import guarded
from pipeline.mlflow_fields import metrics_of, note, params_of
from pipeline.mlflow_once import asked_once
from pipeline.mlflow_place import (
    artifact_location,
    check_writable,
    create_database,
    is_server,
    pristine_database,
    sqlite_path,
)
from pipeline.mlflow_tags import tagged_runs
from pipeline.reading import File
from pipeline.records import FINISHED, TrialRecord
from pipeline.sqlite_files import fold
from pipeline.store import (
    Entry,
    NameInUseError,
    NoSuchSweepError,
    StoreError,
    SweepInfo,
    TrialStart,
    hide_password,
    info_of,
)

_PREFIX = "lyapsweep."
_SWEEP, _KIND, _STATE = f"{_PREFIX}sweep", f"{_PREFIX}kind", f"{_PREFIX}state"
_UID, _NUMBER, _SHA = f"{_PREFIX}trial_uid", f"{_PREFIX}trial_number", f"{_PREFIX}sha256"
_VERSION = f"{_PREFIX}schema_version"
_RUN_STATUS = {
    "running": "RUNNING",
    "interrupted": "KILLED",
    "complete": "FINISHED",
    "diverged": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
}

_TRIAL_NUMBER = re.compile(r"[0-9]{1,10}")

# MLflow takes a thousand entries at a time, tags among them.
_MOST_METRICS = 900

# Files fetched at once, and how many of them may wait for whoever asks.
_FETCHERS = 4
_FETCHED_AHEAD = 64


class MlflowStore:
    """`pipeline.store.Store` over an MLflow tracking URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # It logs, with a traceback, what it raises, and we say in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._runs: dict[str, dict[int, str]] = {}
        self._doubles: dict[str, list[str]] = {}
        self._is_in_doubt = False

    def forget(self) -> None:
        """Forgets which runs there are, so that the next call asks the store."""
        self._experiments, self._parents, self._runs = {}, {}, {}
        self._is_in_doubt = True

    @guarded
    def prepare(self) -> None:
        """Creates or upgrades the database: in one process, before any worker exists."""
        database = sqlite_path(self.uri)
        if database is not None:
            if not database.parent.is_dir():
                raise StoreError(f"{database.parent}: no such folder, for the store {self.uri}")
            check_writable(database)
            if not database.exists():
                create_database(database, _touch, pristine_database(mlflow.__version__))
        self._connect().search_experiments(max_results=1)

    @guarded
    def create_sweep(self, info: SweepInfo) -> None:
        """Creates the experiment and the parent run; its name tag is set last."""
        client = self._connect()
        experiment_id = self._experiment(info.name)
        if experiment_id is None:
            location = artifact_location(self.uri)
            experiment_id = client.create_experiment(
                info.name,
                artifact_location=None if location is None else f"{location}/{info.name}",
                # Without the kind MLflow opens on its pages for language models.
                tags={
                    f"{_PREFIX}experiment": info.name,
                    "mlflow.experimentKind": "custom_model_development",
                    "mlflow.note.content": note(info),
                },
            )
            self._experiments[info.name] = experiment_id
        elif self._parent(info.name) is not None:
            raise NameInUseError(
                f"a sweep named {info.name!r} exists already in {hide_password(self.uri)}"
            )
        elif f"{_PREFIX}experiment" not in client.get_experiment(experiment_id).tags:
            raise NameInUseError(
                f"an experiment named {info.name!r} that is not ours exists already in "
                f"{hide_password(self.uri)}; choose another --name"
            )
        else:
            # Left by a driver that died while creating this sweep.
            for left in client.search_runs([experiment_id]):
                client.delete_run(left.info.run_id)
        tags = {
            _KIND: "sweep",
            _STATE: info.state,
            _VERSION: str(records.SCHEMA_VERSION),
            f"{_PREFIX}sweep_id": info.sweep_id,
            f"{_PREFIX}config_hash": info.config_hash,
            "mlflow.runName": info.name,
            **{
                f"{_PREFIX}{key}": str(value)
                for key, value in info.provenance.items()
                if not isinstance(value, dict)
            },
        }
        with asked_once():
            run = client.create_run(experiment_id, start_time=info.created_ms, tags=tags)
        client.log_dict(run.info.run_id, asdict(info), "sweep.json")
        client.log_dict(run.info.run_id, info.config, "config.yaml")
        client.set_tag(run.info.run_id, _SWEEP, info.name)
        self._parents[info.name] = run.info.run_id
        self._runs[info.name] = {}

    @guarded
    def sweep(self, name: str) -> SweepInfo:
        """Reads sweep.json of the parent run."""
        parent = self._parent(name) if self._exists() else None
        if parent is None:
            names = [info.name for info in self.sweeps()]
            raise NoSuchSweepError(
                f"no sweep {name!r} in {hide_password(self.uri)}; "
                f"there are {', '.join(names) or 'none'}"
            )
        run = self._connect().get_run(parent)
        version = run.data.tags.get(_VERSION, "")
        if version.isdigit() and int(version) > records.SCHEMA_VERSION:
            raise StoreError(
                f"sweep {name!r} was written with schema version {version}, newer than this "
                f"program reads ({records.SCHEMA_VERSION}); upgrade lyapsweep"
            )
        with self._artifact(parent, run.info.artifact_uri, "sweep.json") as path:
            try:
                content = plain_file.json_of(path)
                return info_of({**content, "state": run.data.tags[_STATE]})
            except (ValueError, TypeError, KeyError) as error:
                raise StoreError(f"{path}: not a sweep description ({error})") from error

    @guarded
    def sweeps(self) -> list[SweepInfo]:
        """Every experiment with a parent run of ours."""
        if not self._exists():
            return []
        client = self._connect()
        found = []
        token = None
        while True:
            page = client.search_experiments(
                filter_string=f"tags.`{_PREFIX}experiment` LIKE '%'",
                order_by=["creation_time DESC"],
                page_token=token,
            )
            found += [e.name for e in page]
            token = page.token
            if not token:
                break
        return [self.sweep(name) for name in found if self._parent(name) is not None]

    @guarded
    def set_state(self, name: str, state: str) -> None:
        """Tag and status of the parent run. At the end no trial has a second run."""
        client, parent = self._connect(), self._require_parent(name)
        if state != "running":
            self._remove_doubles(name)
        client.set_tag(parent, _STATE, state)
        if state == "running":
            client.update_run(parent, status="RUNNING")
        else:
            client.set_terminated(parent, status=_RUN_STATUS[state])
            database = sqlite_path(self.uri)
            if database is not None:
                fold(database)

    @guarded
    def note(self, name: str, key: str) -> str | None:
        """A tag of the parent run."""
        run = self._connect().get_run(self._require_parent(name))
        text = run.data.tags.get(f"{_PREFIX}{key}")
        return text or None

    @guarded
    def set_note(self, name: str, key: str, text: str | None) -> None:
        """Sets the tag; an empty one is none."""
        client, parent = self._connect(), self._require_parent(name)
        try:
            client.set_tag(parent, f"{_PREFIX}{key}", text or "")
        except MlflowException:
            # Of two that make a tag at the same moment MLflow lets one fail; now it is there.
            client.set_tag(parent, f"{_PREFIX}{key}", text or "")

    @guarded
    def begin_trial(self, name: str, start: TrialStart) -> None:
        """Finds or creates the run with this uid; parameters are those of every attempt."""
        client = self._connect()
        run_id = self._trials(name).get(start.number)
        if run_id is None:
            experiment_id, parent = self._require_experiment(name), self._require_parent(name)
            with asked_once():
                run = client.create_run(
                    experiment_id,
                    start_time=start.start_ms,
                    run_name=f"trial-{start.number:05d}",
                    tags={
                        "mlflow.parentRunId": parent,
                        _KIND: "trial",
                        _SWEEP: name,
                        _UID: start.uid,
                        _NUMBER: str(start.number),
                        _STATE: "running",
                        f"{_PREFIX}attempt": str(start.attempt),
                        f"{_PREFIX}seed": str(start.seed),
                    },
                )
            run_id = run.info.run_id
            self._trials(name)[start.number] = run_id
        else:
            client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
            client.set_tag(run_id, _STATE, "running")
            client.set_tag(run_id, f"{_PREFIX}attempt", str(start.attempt))
        client.log_batch(run_id, params=[Param(*p) for p in params_of(start).items()])

    @guarded
    def interrupt_trial(self, name: str, number: int, reason: str) -> None:
        """KILLED, with the reason; a resume sets it running again."""
        run_id = self._trials(name).get(number)
        if run_id is not None:
            client = self._connect()
            client.set_tag(run_id, _STATE, "interrupted")
            client.set_tag(run_id, f"{_PREFIX}reason", reason)
            client.set_terminated(run_id, status="KILLED")

    @guarded
    def publish(self, name: str, path: Path) -> None:
        """Metrics with their own time stamps, the file under a fixed name, then the status."""
        record = records.read(path)
        header = record.header
        client = self._connect()
        run_id = self._trials(name).get(header.trial)
        if run_id is None:
            raise StoreError(f"trial {header.trial} of {name!r} was never begun")
        client.log_artifact(run_id, str(path))
        weights = path.with_suffix(".safetensors")
        if weights.exists():
            client.log_artifact(run_id, str(weights))
        if header.error:
            client.log_text(run_id, header.error, "error.txt")
        tags = {
            _SHA: hashlib.sha256(path.read_bytes()).hexdigest(),
            f"{_PREFIX}value": repr(header.value),
            **({f"{_PREFIX}diverged_at": str(header.diverged_at)} if header.diverged_at else {}),
            **({f"{_PREFIX}pruned_at": str(header.pruned_at)} if header.pruned_at else {}),
            _STATE: header.state,
        }
        # The state last: whoever reads it may read the file, and every metric.
        metrics = [Metric(*point) for point in metrics_of(record)]
        while len(metrics) > _MOST_METRICS:
            client.log_batch(run_id, metrics=metrics[:_MOST_METRICS])
            metrics = metrics[_MOST_METRICS:]
        client.log_batch(run_id, metrics=metrics, tags=[RunTag(k, v) for k, v in tags.items()])
        client.set_terminated(run_id, status=_RUN_STATUS[header.state], end_time=header.end_ms)

    @guarded
    def states(self, name: str) -> dict[int, str]:
        """From the runs' tags."""
        self.sweep(name)
        runs = sorted(self._search(name), key=_preference, reverse=True)
        found = {int(run.data.tags[_NUMBER]): run.data.tags[_STATE] for run in runs}
        return dict(sorted(found.items()))

    @guarded
    def entries(self, name: str) -> list[Entry]:
        """Every run of a trial."""
        self.sweep(name)
        found = []
        for run in self._search(name):
            tags, status = run.data.tags, run.info.status
            state = tags[_STATE]
            found.append(
                Entry(
                    number=int(tags[_NUMBER]),
                    uid=tags.get(_UID, ""),
                    state=state,
                    is_closed=status == _RUN_STATUS[state],
                    key=run.info.run_id,
                )
            )
        return sorted(found, key=lambda entry: entry.number)

    @guarded
    def remove_entry(self, name: str, key: str) -> None:
        """Deletes a run, as MLflow deletes: `mlflow gc` makes it final."""
        run = self._connect().get_run(key)
        if run.data.tags.get(_SWEEP) != name or run.data.tags.get(_STATE) in FINISHED:
            raise StoreError(f"run {key} is not an unfinished one of {name!r}; it stays")
        self._connect().delete_run(key)
        self.forget()

    @guarded
    def records(self, name: str) -> Iterator[TrialRecord]:
        """Reads each finished run's Parquet and checks its sha256."""
        self.sweep(name)
        runs = [r for r in self._search(name) if r.data.tags[_STATE] in FINISHED]
        runs.sort(key=lambda run: int(run.data.tags[_NUMBER]))
        return self._read_all(runs)

    @guarded
    def record(self, name: str, number: int) -> TrialRecord:
        """One finished run's Parquet."""
        self.sweep(name)
        run_id = self._trials(name).get(number)
        run = None if run_id is None else self._connect().get_run(run_id)
        if run is None or run.data.tags[_STATE] not in FINISHED:
            raise KeyError(f"sweep {name!r} has no finished trial {number}")
        return self._read(run)

    @guarded
    def attach(self, name: str, path: Path, folder: str) -> None:
        """Artifacts of the parent run."""
        client, parent = self._connect(), self._require_parent(name)
        if path.is_dir():
            client.log_artifacts(parent, str(path), folder)
        else:
            client.log_artifact(parent, str(path), folder)

    @guarded
    def attached(self, name: str, folder: str = "") -> list[str]:
        """Every artifact of the parent run but what describes the sweep."""
        found = artifacts.listed(self._connect(), self._require_parent(name), folder)
        return sorted(set(found) - {"sweep.json", "config.yaml"})

    @guarded
    def fetch(self, name: str, file: str, target: Path) -> None:
        """Downloads it."""
        parent = self._require_parent(name)
        if file not in self.attached(name, file.rpartition("/")[0]):
            raise KeyError(f"sweep {name!r} has no file {file!r}")
        artifacts.download(self._connect(), parent, file, target)

    @guarded
    def fetch_trial(self, name: str, number: int, folder: Path) -> Path:
        """Downloads record and weights."""
        self.record(name, number)
        client, run_id = self._connect(), self._trials(name)[number]
        target = folder / f"trial-{number:05d}.parquet"
        weights = target.with_suffix(".safetensors")
        artifacts.download(client, run_id, target.name, target)
        if weights.name in artifacts.listed(client, run_id):
            artifacts.download(client, run_id, weights.name, weights)
        return target

    def _exists(self) -> bool:
        """False for a SQLite file not there yet, which merely looking must not create."""
        database = sqlite_path(self.uri)
        return database is None or database.exists()

    def _connect(self) -> MlflowClient:
        if self._client is None:
            self._client = MlflowClient(self.uri)
        return self._client

    def _experiment(self, name: str) -> str | None:
        if name not in self._experiments:
            experiment = self._connect().get_experiment_by_name(name)
            if experiment is None or experiment.lifecycle_stage != "active":
                if experiment is not None:
                    raise NameInUseError(
                        f"experiment {name!r} was deleted in MLflow but still holds its name; "
                        "choose another --name or remove it with `mlflow gc`"
                    )
                return None
            self._experiments[name] = experiment.experiment_id
        return self._experiments[name]

    def _parent(self, name: str) -> str | None:
        if name not in self._parents:
            experiment_id = self._experiment(name)
            if experiment_id is None:
                return None
            runs = self._connect().search_runs(
                [experiment_id],
                f"tags.`{_KIND}` = 'sweep' and tags.`{_SWEEP}` = '{name}'",
                max_results=2,
            )
            if not runs:
                return None
            self._parents[name] = runs[0].info.run_id
        return self._parents[name]

    def _require_parent(self, name: str) -> str:
        parent = self._parent(name)
        if parent is None:
            raise NoSuchSweepError(f"no sweep {name!r} in {hide_password(self.uri)}")
        return parent

    def _require_experiment(self, name: str) -> str:
        experiment_id = self._experiment(name)
        if experiment_id is None:
            raise NoSuchSweepError(f"no sweep {name!r} in {hide_password(self.uri)}")
        return experiment_id

    def _search(self, name: str) -> list[Any]:
        """The runs of trials, with our tags at least."""
        client, experiment_id = self._connect(), self._require_experiment(name)
        if not is_server(self.uri):
            return _sound(tagged_runs(client, experiment_id, {_KIND: "trial"}, _PREFIX))
        found: list[Any] = []
        token = None
        while True:
            page = client.search_runs(
                [experiment_id],
                f"tags.`{_KIND}` = 'trial'",
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=1000,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return _sound(found)

    def _trials(self, name: str) -> dict[int, str]:
        """Trial number → run id. One writer, so what this process created it knows."""
        if name not in self._runs:
            self._runs[name], self._doubles[name] = {}, []
            # A finished one first: who publishes once more must not finish another.
            for run in sorted(self._search(name), key=_preference):
                number = int(run.data.tags[_NUMBER])
                if number not in self._runs[name]:
                    self._runs[name][number] = run.info.run_id
                elif run.data.tags[_STATE] not in FINISHED:
                    self._doubles[name].append(run.info.run_id)
        return self._runs[name]

    def _remove_doubles(self, name: str) -> None:
        """Deletes second runs of trials, unless finished.

        A server that was given up for silent may have made a run all the same, and later than we
        looked for it.
        """
        if self._is_in_doubt:
            self._runs.pop(name, None)
            self._trials(name)
        for run_id in self._doubles.pop(name, ()):
            self._connect().delete_run(run_id)
        self._is_in_doubt = False

    def _read_all(self, runs: Sequence[Any]) -> Iterator[TrialRecord]:
        """In their order; those that lie elsewhere, some ahead of the one asked for."""
        paths = [self._record_of(run).local for run in runs]
        files = [
            File(path, run.data.tags.get(_SHA))
            for path, run in zip(paths, runs, strict=True)
            if path is not None
        ]
        if len(files) == len(runs):
            yield from reading.read_all(files)
            return
        pool = ThreadPoolExecutor(_FETCHERS, "lyapsweep-fetch")
        try:
            ahead = deque(pool.submit(self._read, run) for run in runs[:_FETCHED_AHEAD])
            for run in [*runs[_FETCHED_AHEAD:], *[None] * len(ahead)]:
                record = ahead.popleft().result()
                if run is not None:
                    ahead.append(pool.submit(self._read, run))
                yield record
        finally:
            pool.shutdown(cancel_futures=True)

    @guarded
    def _read(self, run: Any) -> TrialRecord:
        with self._record_of(run) as path:
            return reading.read(File(path, run.data.tags.get(_SHA)))

    def _record_of(self, run: Any) -> artifacts.Artifact:
        number = int(run.data.tags[_NUMBER])
        return self._artifact(run.info.run_id, run.info.artifact_uri, f"trial-{number:05d}.parquet")

    def _artifact(self, run_id: str, root: str, name: str) -> artifacts.Artifact:
        return artifacts.Artifact(self._connect(), run_id, root, name)


def _preference(run: Any) -> tuple[bool, int, str]:
    """Of several runs of a trial, the smallest is the trial's."""
    return run.data.tags[_STATE] not in FINISHED, run.info.start_time, run.info.run_id


def _sound(runs: list[Any]) -> list[Any]:
    """The runs. Raises StoreError where the tags of one are not those of a trial."""
    for run in runs:
        number, state = run.data.tags.get(_NUMBER, ""), run.data.tags.get(_STATE)
        if not _TRIAL_NUMBER.fullmatch(number) or state not in _RUN_STATUS:
            raise StoreError(
                f"run {run.info.run_id}: its tags {_NUMBER} ({number[:80]!r}) and {_STATE} "
                f"({str(state)[:80]!r}) are not those of a trial; put them back in MLflow, or "
                "delete the run"
            )
    return runs


def _touch(uri: str) -> None:
    """Makes MLflow create or upgrade its tables."""
    MlflowClient(uri).search_experiments(max_results=1)
