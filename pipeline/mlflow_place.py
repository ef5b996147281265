"""Where an MLflow store lies: its SQLite file, made whole, its artifacts, its URI to be shown."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.sqlite_files import prefer_wal
from pipeline.store import StoreError


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other."""
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).absolute()
    return None


def create_database(database: Path, make_tables: Callable[[str], None]) -> None:
    """Has `make_tables` fill a file under another name first, given that file's URI.

    MLflow's migrations are no transaction: a driver killed, or a disk full, among them would leave
    a file that MLflow refuses for ever.
    """
    # A name never used before: MLflow keeps its connection to each file it has seen.
    temporary = database.with_name(f"{database.name}.{secrets.token_hex(4)}.tmp")
    try:
        make_tables(f"sqlite:///{temporary}")
        with contextlib.suppress(FileExistsError):
            # Unlike a rename, a link never replaces what another process made meanwhile.
            os.link(temporary, database)
            prefer_wal(database)
    finally:
        for left in database.parent.glob(f"{temporary.name}*"):
            left.unlink()


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
    if uri.startswith(("http://", "https://")):
        return None
    chosen = os.environ.get("LYAPSWEEP_ARTIFACTS")
    if chosen:
        return chosen if "://" in chosen else str(Path(chosen).absolute())
    database = sqlite_path(uri)
    folder = Path.cwd() if database is None else database.parent
    return str(folder.absolute() / "mlruns")


def hide_password(uri: str, text: str | None = None) -> str:
    """`text`, by default the URI itself, without the URI's password."""
    text = uri if text is None else text
    parsed = urlparse(uri)
    for secret in {parsed.password or "", unquote(parsed.password or "")} - {""}:
        text = text.replace(f":{secret}@", ":***@").replace(f"password={secret}", "password=***")
    return text
