"""MLflow's tables: made once, kept in the user's cache, copied from there."""

import sqlite3

import pytest

from pipeline import mlflow_place
from pipeline.mlflow_place import create_database, pristine_database


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return pristine_database("1.2.3")


def tables_for(made):
    """Fills a database as MLflow does: tables, and an entry that says where it lies."""

    def make_tables(uri):
        made.append(uri)
        with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
            connection.execute("CREATE TABLE experiments (artifact_location TEXT)")
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO experiments VALUES (?)", [uri])
            connection.execute("INSERT INTO alembic_version VALUES ('abc')")

    return make_tables


def content(database):
    with sqlite3.connect(database) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table}").fetchall()
            for table in ("experiments", "alembic_version")
        }


def test_tables_are_made_once_and_copied_without_entries(tmp_path, cache):
    made = []
    for name in ("first", "second"):
        create_database(tmp_path / name, tables_for(made), cache)
    assert len(made) == 1
    assert content(tmp_path / "first") == {
        "experiments": [(made[0],)],
        "alembic_version": [("abc",)],
    }
    assert content(tmp_path / "second") == {"experiments": [], "alembic_version": [("abc",)]}
    assert not list(tmp_path.glob("*.tmp*"))
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize("damage", [b"", b"no database", None])
def test_damaged_tables_are_made_again(tmp_path, cache, damage):
    made = []
    create_database(tmp_path / "first", tables_for(made), cache)
    cache.write_bytes(cache.read_bytes()[:-700] if damage is None else damage)
    create_database(tmp_path / "second", tables_for(made), cache)
    create_database(tmp_path / "third", tables_for(made), cache)
    assert len(made) == 2
    assert content(tmp_path / "third")["alembic_version"] == [("abc",)]


def test_without_a_cache_tables_are_made_every_time(tmp_path, cache):
    cache.parent.parent.write_text("a file where the folder should be")
    made = []
    for name in ("first", "second"):
        create_database(tmp_path / name, tables_for(made), cache)
    assert len(made) == 2


def test_what_another_made_meanwhile_stays(tmp_path, cache):
    create_database(tmp_path / "first", tables_for([]), cache)
    (tmp_path / "second").write_text("somebody's")
    create_database(tmp_path / "second", tables_for([]), cache)
    assert (tmp_path / "second").read_text() == "somebody's"


def test_mlflow_takes_a_copy_for_its_own(tmp_path, cache, monkeypatch):
    """Its own tables, and the default experiment where it belongs."""
    from pipeline.store import open_store

    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        if name == "second":
            monkeypatch.setattr("pipeline.mlflow_store._touch", pytest.fail)
        open_store(f"sqlite:///{folder}/mlflow.db").prepare()
        with sqlite3.connect(folder / "mlflow.db") as connection:
            (found,) = connection.execute("SELECT name, artifact_location FROM experiments")
        assert found == ("Default", f"{folder}/mlruns/0")
    assert len(list(mlflow_place.cache_folder().iterdir())) == 1
