"""Real servers on loopback for tests: PostgreSQL and MLflow's, each in a folder of its own.

Every process is started here and ended here, by its own pid. Where Debian's PostgreSQL is not
installed, `postgres_programs` is None and tests skip, saying so.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

PASSWORD = "s3cret-word"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


def wait_until(is_ready: Callable[[], bool], process: subprocess.Popen, log: Path, seconds: float):
    """Raises RuntimeError with the end of the log where the server dies or does not answer."""
    deadline = time.monotonic() + seconds
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args[0]} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def _end(process: subprocess.Popen, how: int = signal.SIGTERM) -> None:
    """The process and the group it leads."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@dataclass
class Postgres:
    """A cluster in `folder`; `start` and `kill` may follow each other as often as a test likes."""

    folder: Path
    programs: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    def create(self) -> None:
        """PostgreSQL refuses to run as root, so that root hands it to the user `postgres`."""
        self.folder.mkdir(parents=True)
        (self.folder / "password").write_text(PASSWORD)
        if self._user:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, self._user, self._user)
            for parent in self.folder.parents:
                if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp/"):
                    parent.chmod(parent.stat().st_mode | 0o011)
        subprocess.run(
            [
                str(self.programs / "initdb"), "--pgdata", str(self.folder / "data"),
                "--username", "lyapsweep", "--pwfile", str(self.folder / "password"),
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync",
            ],
            check=True, stdout=subprocess.DEVNULL, timeout=120, **self._as_user,
        )  # fmt: skip

    @property
    def _user(self) -> str | None:
        return "postgres" if os.getuid() == 0 else None

    @property
    def _as_user(self) -> dict:
        if self._user is None:
            return {"cwd": self.folder}
        entry = pwd.getpwnam(self._user)
        return {
            "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": self.folder,
        }  # fmt: skip

    def start(self) -> None:
        log = self.folder.with_name(f"{self.folder.name}.log")
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [
                    str(self.programs / "postgres"), "-D", str(self.folder / "data"),
                    "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
                    "-c", f"unix_socket_directories={self.folder}", "-c", "max_connections=50",
                ],
                stdout=sink, stderr=sink, start_new_session=True, **self._as_user,
            )  # fmt: skip
        wait_until(self._is_ready, self.process, log, 60)

    def _is_ready(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
            return True
        return False

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown; SIGKILL goes to the whole group."""
        if self.process is not None:
            _end(self.process, how)
            self.process = None

    def make(self, database: str) -> str:
        """An empty database; returns its SQLAlchemy URL."""
        import psycopg

        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def dsn(self, database: str) -> str:
        return f"postgresql://lyapsweep:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def url(self, database: str) -> str:
        return self.dsn(database).replace("postgresql://", "postgresql+psycopg://")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """In a folder of its own: that of pytest is closed to others whenever another pytest starts."""
    programs = postgres_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="lyapsweep-"))
    server = Postgres(folder / "postgres", programs)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class MlflowServer:
    """`mlflow server` with one worker, its artifacts proxied, in a process group of its own."""

    folder: Path
    backend: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "server.log"
        # By module: the script that pip writes is not on every machine's path.
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1", "--backend-store-uri", self.backend,
            "--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                command, stdout=sink, stderr=sink, env=environment, start_new_session=True,
                cwd=self.folder,
            )  # fmt: skip
        wait_until(self._is_ready, self.process, log, 120)

    def _is_ready(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/health", timeout=2).status_code == 200
        return False

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            _end(self.process, how)
            self.process = None


@contextlib.contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[MlflowServer]:
    server = MlflowServer(folder, backend)
    server.start()
    try:
        yield server
    finally:
        server.stop()
