"""Where an MLflow store lies: its SQLite file, made whole, its artifacts, its URI to be shown."""

import contextlib
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from pipeline.sqlite_files import prefer_wal
from pipeline.store import StoreError
from tasks.datasets import cache_folder

# MLflow makes the default experiment, with the place of its artifacts, where there is none.
_EMPTY = "experiments"


def is_server(uri: str) -> bool:
    """Whether a store is reached by asking an MLflow server."""
    return uri.startswith(("http://", "https://"))


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other."""
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).absolute()
    return None


def create_database(
    database: Path, make_tables: Callable[[str], None], pristine: Path | None = None
) -> None:
    """Has `make_tables` fill a file under another name first, given that file's URI.

    MLflow's migrations are no transaction: a driver killed, or a disk full, among them would leave
    a file that MLflow refuses for ever. `pristine` is where a copy without entries is kept, and
    taken from next time: the migrations take a second and a half, whatever the file.
    """
    # A name never used before: MLflow keeps its connection to each file it has seen.
    temporary = database.with_name(f"{database.name}.{secrets.token_hex(4)}.tmp")
    try:
        if pristine is None or not _copied(pristine, temporary):
            make_tables(f"sqlite:///{temporary}")
            if pristine is not None:
                _keep(temporary, pristine)
        with contextlib.suppress(FileExistsError):
            # Unlike a rename, a link never replaces what another process made meanwhile.
            os.link(temporary, database)
            prefer_wal(database)
    finally:
        for left in database.parent.glob(f"{temporary.name}*"):
            left.unlink()


def pristine_database(version: str) -> Path:
    """Where the tables of this version of MLflow are kept, in the user's cache."""
    return cache_folder() / f"mlflow-{version}.db"


def _copied(pristine: Path, target: Path) -> bool:
    """Whether the tables kept there are whole, and are now in `target`."""
    try:
        shutil.copyfile(pristine, target)
        with contextlib.closing(sqlite3.connect(target)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
            is_whole = verdict == "ok" and _EMPTY in _tables_of(connection)
        with target.open("r+b") as file:
            os.fsync(file.fileno())
    except (OSError, sqlite3.DatabaseError):
        is_whole = False
    if not is_whole:
        target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            pristine.unlink(missing_ok=True)
    return is_whole


def _keep(made: Path, pristine: Path) -> None:
    """Keeps the tables of a fresh database, without the one entry that says where it lies."""
    temporary = pristine.with_name(f"{pristine.name}.{secrets.token_hex(4)}.tmp")
    # A cache that cannot be written is none.
    with contextlib.suppress(OSError, sqlite3.DatabaseError):
        pristine.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(made, temporary)
            with contextlib.closing(sqlite3.connect(temporary)) as connection:
                connection.execute(f"DELETE FROM {_EMPTY}")
                connection.commit()
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, pristine)
        finally:
            temporary.unlink(missing_ok=True)


def _tables_of(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def check_writable(database: Path) -> None:
    """By trying: MLflow itself would try for minutes before it says so. Raises StoreError."""
    probe = database.with_name(f".write-test-{os.getpid()}")
    try:
        if database.exists():
            database.open("r+b").close()
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(f"{database}: cannot be written ({error.strerror})") from error


def artifact_location(uri: str) -> str | None:
    """Absolute folder for artifacts of stores without a server; a server has its own."""
    if is_server(uri):
        return None
    chosen = os.environ.get("LYAPSWEEP_ARTIFACTS")
    if chosen:
        return chosen if "://" in chosen else str(Path(chosen).absolute())
    database = sqlite_path(uri)
    folder = Path.cwd() if database is None else database.parent
    return str(folder.absolute() / "mlruns")
