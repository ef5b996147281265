"""Sweeps on real servers: PostgreSQL under both databases, an MLflow server that proxies files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import config, creating, doctor, journal, records, sweep
from pipeline.executors.inline import InlineExecutor
from pipeline.home import Home
from pipeline.store import open_store
from tests import servers

CONF = {
    "trials": 6,
    "task": {"name": "planar", "points": 200, "batch_size": 40},
    "network": {"name": "mlp", "width": {"choice": [3, 4]}, "dropout": {"uniform": [0, 0.3]}},
    "trainer": {"epochs": 2, "learning_rate": {"log_uniform": [1e-3, 1e-1]}},
    "measure": {"gradient_norm": {"examples": 10, "at": [0, 2]}},
    "execution": {"cohort_size": 2, "executor": "inline", "keep_weights": True},
}

# The console script: `python -m` would put the working folder first on the path.
LYAPSWEEP = [str(Path(sys.executable).with_name("lyapsweep"))]

pytestmark = pytest.mark.skipif(
    servers.postgres_programs() is None,
    reason="no PostgreSQL here (Debian: apt-get install postgresql)",
)


@pytest.fixture(scope="module")
def postgres():
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mlflow(postgres, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow-server")
    with servers.mlflow_server(folder, postgres.make("mlflow")) as server:
        yield server


@pytest.fixture
def optuna_url(postgres, monkeypatch, request):
    url = postgres.make(f"optuna_{abs(hash(request.node.name))}")
    monkeypatch.setenv("LYAPSWEEP_OPTUNA", url)
    return url


def run(store, home, tree=CONF, name="served"):
    store.prepare()
    checked = config.check(tree)
    info = creating.create(checked, name, store)
    return sweep.Driver(checked, info, store, home, InlineExecutor()).run()


def test_a_sweep_on_servers_is_the_sweep_it_is_on_files(mlflow, optuna_url, tmp_path):
    store, home = open_store(mlflow.url), Home(tmp_path / "home", "served")
    assert run(store, home).state == "complete"
    found = doctor.examine(open_store(mlflow.url), "served", home)
    assert (found.findings, found.unchecked) == ([], [])
    assert list(found.ends.values()) == ["complete"] * 6
    assert not (tmp_path / "home" / "optuna.db").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LYAPSWEEP_OPTUNA")
        folder = open_store(f"folder:{tmp_path / 'store'}")
        assert run(folder, Home(tmp_path / "home2", "served")).state == "complete"
    hashes = [
        {r.header.trial: records.content_hash(r.table) for r in one.records("served")}
        for one in (store, folder)
    ]
    assert hashes[0] == hashes[1]

    # Weights and records travelled through the server, and come back through it.
    kept = sorted(p.name for p in (mlflow.folder / "artifacts").rglob("*.safetensors"))
    assert kept == [f"trial-{n:05d}.safetensors" for n in range(6)]
    (tmp_path / "back").mkdir()
    store.fetch_trial("served", 3, tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == [
        "trial-00003.parquet",
        "trial-00003.safetensors",
    ]


def test_no_password_is_on_record(mlflow, optuna_url, tmp_path):
    store, home = open_store(mlflow.url), Home(tmp_path / "home", "secretive")
    assert run(store, home, name="secretive").state == "complete"
    from mlflow import MlflowClient

    client = MlflowClient(mlflow.url)
    experiment = client.get_experiment_by_name("secretive")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 7
    said = json.dumps([r.to_dictionary() for r in runs], default=str)
    said += "".join(repr(r.header) + str(r.table.to_pylist()) for r in store.records("secretive"))
    assert servers.PASSWORD not in said
    files = [p for p in [*tmp_path.rglob("*"), *mlflow.folder.rglob("*")] if p.is_file()]
    assert files
    for path in files:
        assert servers.PASSWORD.encode() not in path.read_bytes(), path


def test_a_postgres_that_is_away_is_an_error_without_the_password(postgres, tmp_path, monkeypatch):
    url = postgres.url("nowhere").replace(str(postgres.port), str(servers.free_port()))
    environment = {**os.environ, "LYAPSWEEP_OPTUNA": url, "OMP_NUM_THREADS": "1"}
    (tmp_path / "c.yaml").write_text(json.dumps(CONF))
    done = subprocess.run(
        [*LYAPSWEEP, "sweep", "c.yaml", "--store", "folder:st"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Optuna's database" in done.stderr
    assert "Traceback" not in done.stderr
    assert servers.PASSWORD not in done.stderr + done.stdout


SHORT = {
    **CONF,
    "trials": 500,
    "execution": {"cohort_size": 10, "workers": 4, "executor": "process"},
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["servers", "files"])
def test_five_hundred_short_trials_by_four_workers(kind, request, tmp_path, capsys):
    """Everything is there, on servers and on SQLite, without one wait for a lock; how fast."""
    (tmp_path / "c.yaml").write_text(json.dumps(SHORT))
    home = Home(tmp_path / "home", "many")
    if kind == "servers":
        request.getfixturevalue("optuna_url")
        uri = request.getfixturevalue("mlflow").url
    else:
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    begun = time.monotonic()
    done = subprocess.run(
        [*LYAPSWEEP, "sweep", "c.yaml", "--name", "many", "--store", uri],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "LYAPSWEEP_HOME": str(home.root)},
        capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    assert "locked" not in done.stdout + done.stderr
    happened = list(journal.events(home))
    assert sum(one["event"] == "published" for one in happened) == 500
    assert not [one for one in happened if one["event"] in ("retry", "lost")]
    found = doctor.examine(open_store(uri), "many", home)
    assert (found.findings, found.unchecked) == ([], [])
    assert list(found.ends.values()) == ["complete"] * 500
    with capsys.disabled():
        print(f"\n{kind}: 500 trials in {seconds:.0f} s, {500 / seconds:.1f} trials/s")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_resume_waits_for_a_server_that_is_not_there_yet(mlflow, optuna_url, tmp_path):
    """As after a power cut, when all machines start at the same time."""
    store, home = open_store(mlflow.url), Home(tmp_path / "home", "early")
    store.prepare()
    checked = config.check(CONF)
    info = creating.create(checked, "early", store)
    assert sweep.Driver(checked, info, store, home, InlineExecutor()).run().state == "complete"
    mlflow.stop()
    resumed = subprocess.Popen(
        [*LYAPSWEEP, "resume", "early", "--store", mlflow.url],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "LYAPSWEEP_HOME": str(home.root)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert "asking again for 600 s" in resumed.stdout.readline()
    mlflow.start()
    said, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, said
    assert "6/6 done" in said
