"""The driver's own folder: lock, spool and Optuna's database, beside the user's work.

<home>/optuna.db                    every study of this folder
<home>/sweeps/<name>/lock           held while a driver runs the sweep
<home>/sweeps/<name>/spool/         finished trials not yet taken over by the store
<home>/sweeps/<name>/checkpoints/   where trials in training stood last
<home>/sweeps/<name>/unfinished.parquet  what has come of them, to be looked at
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.sqlite_files import fold, prefer_wal
from pipeline.store import hide_password

DEFAULT_HOME = ".lyapsweep"


class LockedError(RuntimeError):
    """Another driver runs this sweep."""


class HomeError(OSError):
    """The driver's folder cannot be written."""


@dataclass(frozen=True)
class Home:
    """A driver's folder for one sweep."""

    root: Path
    name: str

    @classmethod
    def of(cls, name: str, root: str | None = None) -> "Home":
        """In `root`, else LYAPSWEEP_HOME, else `.lyapsweep` in the working directory."""
        chosen = root or os.environ.get("LYAPSWEEP_HOME") or DEFAULT_HOME
        return cls(Path(chosen).absolute(), name)

    @property
    def folder(self) -> Path:
        """Of the sweep."""
        return self.root / "sweeps" / self.name

    @property
    def spool(self) -> Path:
        """Where finished trials wait to be published."""
        return self.folder / "spool"

    @property
    def unfinished(self) -> Path:
        """What has come of trials in training, see `pipeline.unfinished`."""
        return self.folder / "unfinished.parquet"

    @property
    def checkpoints(self) -> Path:
        """Where cohorts in training can be taken up."""
        return self.folder / "checkpoints"

    @property
    def optuna_url(self) -> str:
        """LYAPSWEEP_OPTUNA, else a SQLite file here. Never MLflow's: both own a version table."""
        return os.environ.get("LYAPSWEEP_OPTUNA") or f"sqlite:///{self.root / 'optuna.db'}"

    @property
    def optuna_name(self) -> str:
        """`optuna_url` to be shown: without its password."""
        return hide_password(self.optuna_url)

    @property
    def optuna_file(self) -> Path | None:
        """The SQLite file here, None where LYAPSWEEP_OPTUNA names something else."""
        return None if os.environ.get("LYAPSWEEP_OPTUNA") else self.root / "optuna.db"

    def create(self) -> None:
        """Raises HomeError where the folder cannot be written."""
        try:
            self.spool.mkdir(parents=True, exist_ok=True)
            # Named so that `spooled` removes it should we die between the next two lines.
            probe = self.spool / f"write-test-{os.getpid()}.tmp"
            probe.write_bytes(b"x")
            probe.unlink()
            if self.optuna_file is not None:
                prefer_wal(self.optuna_file)
        except OSError as error:
            raise HomeError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def spooled(self) -> list[Path]:
        """Finished trials waiting, by number. What a dead driver left half-written is removed."""
        for left in self.spool.glob("*.tmp"):
            left.unlink()
        return sorted(self.spool.glob("trial-*.parquet"))

    def spool_path(self, number: int) -> Path:
        """Where trial `number` waits."""
        return self.spool / f"trial-{number:05d}.parquet"

    def is_locked(self) -> bool:
        """True while a driver on this machine runs the sweep."""
        try:
            with (self.folder / "lock").open("r") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One driver a sweep. Raises LockedError naming the one that runs.

        The lock is the kernel's (flock): it ends with its process, however that ends.
        """
        self.create()
        with (self.folder / "lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                raise LockedError(
                    f"sweep {self.name!r} is being run by another driver ({_holder(handle.read())})"
                ) from None
            handle.seek(0)
            handle.truncate()
            handle.write(
                json.dumps(
                    {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
                )
            )
            handle.flush()
            try:
                yield
            finally:
                if self.optuna_file is not None:
                    fold(self.optuna_file)


def _holder(text: str) -> str:
    try:
        content = json.loads(text)
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown process"
