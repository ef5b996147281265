"""Stores to test against. MLflow's tables take seconds to make, so they are made once."""

import contextlib
import shutil
import sqlite3

import pytest

try:
    import sqlalchemy
except ImportError:  # Machines that only test the engine may lack it.
    connecting = lambda function: function  # noqa: E731
else:
    connecting = sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")


@connecting
def _without_waiting_for_the_disk(connection, _):
    """Tests kill processes, not the power: what the kernel has is safe enough, and faster."""
    if type(connection).__module__.startswith("sqlite3"):
        with contextlib.suppress(sqlite3.DatabaseError):  # Not a database: not ours to say.
            connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """An MLflow database with tables and no content, to be copied."""
    from pipeline.mlflow_store import MlflowStore

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowStore(f"sqlite:///{path}").prepare()
    return path


@pytest.fixture(params=["folder", "mlflow"])
def store_uri(request, tmp_path):
    """URI of an empty store in `tmp_path`."""
    if request.param == "folder":
        return f"folder:{tmp_path / 'store'}"
    shutil.copy(request.getfixturevalue("empty_mlflow"), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """A local Ray, started as a sweep starts it: from a folder with a stray tasks.py in it."""
    from pipeline.executors.ray import RayExecutor

    folder = tmp_path_factory.mktemp("stray")
    for name in ("tasks", "pipeline", "analysis"):
        (folder / f"{name}.py").write_text("raise ImportError('a stray file was imported')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        executor = RayExecutor(workers=2)
    yield executor
    executor.close()
