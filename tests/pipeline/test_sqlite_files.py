"""WAL mode for our own SQLite files, and a single whole file when a sweep has ended."""

import shutil
import sqlite3
from contextlib import closing

import pytest

from pipeline import sqlite_files
from pipeline.sqlite_files import fold, prefer_wal


def mode(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


@pytest.fixture
def on_local_disk(monkeypatch):
    monkeypatch.setattr(sqlite_files, "_file_system", lambda _: "ext4")


def test_a_new_file_is_in_wal_mode_and_stays_so(tmp_path, on_local_disk):
    prefer_wal(tmp_path / "a.db")
    assert mode(tmp_path / "a.db") == "wal"
    prefer_wal(tmp_path / "a.db")
    assert mode(tmp_path / "a.db") == "wal"


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs", ""])
def test_files_of_a_network_are_left_alone(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sqlite_files, "_file_system", lambda _: kind)
    prefer_wal(tmp_path / "a.db")
    assert not (tmp_path / "a.db").exists()


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    inner = tmp_path / "data"
    inner.mkdir()
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:5 / {inner} rw shared:1 - nfs4 server:/x rw\n"
        f"3 1 0:6 / {inner}-not rw - xfs /dev/b rw\n"
    )
    monkeypatch.setattr(sqlite_files, "_MOUNTS", table)
    assert sqlite_files._file_system(inner / "a.db") == "nfs4"
    assert sqlite_files._file_system(tmp_path / "a.db") == "ext4"


def test_a_copy_of_a_folded_file_is_whole(tmp_path, on_local_disk):
    path = tmp_path / "a.db"
    prefer_wal(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE numbers (n)")
        connection.execute("INSERT INTO numbers VALUES (7)")
        connection.commit()
        with closing(sqlite3.connect(shutil.copy(path, tmp_path / "before.db"))) as copy:
            assert copy.execute("SELECT * FROM sqlite_master").fetchall() == []
        fold(path)
        with closing(sqlite3.connect(shutil.copy(path, tmp_path / "after.db"))) as copy:
            assert copy.execute("SELECT n FROM numbers").fetchall() == [(7,)]


def test_what_is_no_database_is_left_alone(tmp_path, on_local_disk):
    path = tmp_path / "a.db"
    path.write_text("this is no database, but long enough to look at" * 99)
    before = path.read_bytes()
    prefer_wal(path)
    fold(path)
    assert path.read_bytes() == before
    fold(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
