"""What a storm breaks: a driver and its workers, servers behind proxies, a local Ray, small disks.

Everything started here is ended here, by pid; what it started in turn is known from the kernel's
table of processes, looked at again and again.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import processes
from tests.chaos.counter import Places
from tests.chaos.proxy import HttpProxy, TcpProxy
from tests.servers import MlflowServer, Postgres, postgres_programs

LYAPSWEEP = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()"]

# Read by the driver's and the workers' Python as they start. Debian's libfaketime 0.9.10 is no way:
# under it `time.sleep` of Python 3.11 raises EINVAL, whether or not the clock has jumped.
_CLOCK = """\
import time

def _ahead():
    with open({path!r}) as file:
        return float(file.read())

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _ahead()
time.time_ns = lambda: _time_ns() + int(_ahead() * 1e9)
"""

_DISK = "24m"


def conf(trials: int, epochs: int) -> dict:
    """A sweep in float64, whose workers may be lost as often as a storm likes."""
    return {
        "seed": 7,
        "trials": trials,
        "task": {"name": "planar", "points": 400, "batch_size": 40},
        "network": {"name": "mlp", "width": {"choice": [6, 7]}, "dropout": {"uniform": [0, 0.3]}},
        "trainer": {
            "epochs": epochs,
            "learning_rate": {"log_uniform": [1e-3, 1e-1]},
            "dtype": "float64",
        },
        "measure": {"gradient_norm": {"examples": 10, "at": [0, epochs // 2, epochs]}},
        "execution": {
            "cohort_size": 2, "workers": 2, "threads": 1, "attempts": 100,
            "max_failed_share": 0, "checkpoint": max(1, epochs // 5),
        },
    }  # fmt: skip


@dataclass
class Disk:
    """A folder, on a small file system of its own where we may mount one."""

    folder: Path
    is_own: bool = False

    def mount(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0 and shutil.which("mount"):
            made = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "lyapsweep-chaos", self.folder],
                capture_output=True,
            )
            self.is_own = made.returncode == 0

    def fill(self) -> None:
        """To the last byte."""
        with (self.folder / "filler").open("wb", buffering=0) as sink:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while sink.write(b"x" * size) == size:
                        pass

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.is_own:
            subprocess.run(["umount", "--lazy", self.folder], check=True, capture_output=True)
            self.is_own = False


@dataclass
class Servers:
    """PostgreSQL and MLflow's server, and a proxy before either."""

    folder: Path

    @contextlib.contextmanager
    def running(self) -> Iterator["Servers"]:
        programs = postgres_programs()
        assert programs is not None
        self.seen: set[processes.Process] = set()
        self.disk = Disk(self.folder / "mlflow" / "artifacts")
        self.postgres = Postgres(self.folder / "postgres", programs)
        self.postgres.create()
        self.postgres.start()
        try:
            backend = self.postgres.make("mlflow")
            self.postgres.make("optuna")
            self.mlflow = MlflowServer(self.folder / "mlflow", backend)
            self.disk.mount()
            self.mlflow.start()
            self.http, self.tcp = HttpProxy(self.mlflow.port), TcpProxy(self.postgres.port)
            self.http.start()
            self.tcp.start()
            yield self
        finally:
            self.look()
            for name in ("http", "tcp"):
                if hasattr(self, name):
                    getattr(self, name).stop()
            if hasattr(self, "mlflow"):
                self.mlflow.stop()
            self.postgres.stop()
            processes.end_all(self.seen)
            self.disk.unmount()

    def look(self) -> None:
        for server in (self.postgres, getattr(self, "mlflow", None)):
            if server is not None and server.process is not None:
                self.seen.update(processes.tree(server.process.pid))

    @property
    def optuna_url(self) -> str:
        """Through the proxy."""
        return self.postgres.url("optuna").replace(f":{self.postgres.port}/", f":{self.tcp.port}/")

    def calm(self) -> None:
        self.http.disarm()
        self.tcp.disarm()


@dataclass
class Stage:
    """One sweep, and where its parts are."""

    folder: Path
    name: str
    conf: dict
    servers: Servers | None = None
    ray: bool = False
    """Whether the workers are Ray's, on loopback, as the driver starts it; no clock jumps then."""

    def set_up(self) -> None:
        self.work = self.folder / "work"
        self.work.mkdir(parents=True)
        (self.work / "c.yaml").write_text(json.dumps(self.conf))
        self.home = Disk(self.folder / "home")
        self.home.mount()
        self.store = self.servers.disk if self.servers else Disk(self.folder / "store")
        if not self.servers:
            self.store.mount()
        self.clock, self.log = self.folder / "clock", self.folder / "driver.log"
        self.set_clock(0)
        (self.folder / "python").mkdir()
        (self.folder / "python" / "sitecustomize.py").write_text(
            _CLOCK.format(path=str(self.clock))
        )
        self.driver: subprocess.Popen | None = None
        self.seen: set[processes.Process] = set()

    def tear_down(self) -> None:
        self.look()
        processes.end_all(self.seen)
        if self.driver is not None:
            self.driver.wait(10)
        self.home.unmount()
        if not self.servers:
            self.store.unmount()

    @property
    def places(self) -> Places:
        """For the counter, which goes past the proxies."""
        if self.servers:
            dsn = self.servers.postgres.dsn
            return Places(self.name, dsn("mlflow"), self.store.folder, dsn("optuna"))
        return Places(
            self.name,
            str(self.store.folder / "mlflow.db"),
            self.store.folder / "mlruns",
            str(self.home.folder / "optuna.db"),
        )

    @property
    def environment(self) -> dict[str, str]:
        found = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "LYAPSWEEP_HOME": str(self.home.folder),
            "LYAPSWEEP_STORE": f"sqlite:///{self.store.folder / 'mlflow.db'}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        # What tests set for themselves; a user's driver has its own way with an absent server.
        found.pop("MLFLOW_HTTP_REQUEST_MAX_RETRIES", None)
        if self.servers:
            found["LYAPSWEEP_STORE"] = self.servers.http.url
            found["LYAPSWEEP_OPTUNA"] = self.servers.optuna_url
        if not self.ray:
            # The wall clock alone jumps, as it does when somebody sets it.
            found["PYTHONPATH"] = str(self.folder / "python")
        return found

    def set_clock(self, seconds: float) -> None:
        """How far ahead `time.time` of the driver and its workers is."""
        temporary = self.clock.with_suffix(".tmp")
        temporary.write_text(f"{seconds:+.0f}\n")
        temporary.replace(self.clock)

    def start_driver(self, command: str) -> None:
        """`sweep` or `resume`, as a user would type it."""
        words = ["c.yaml", "--name", self.name] if command == "sweep" else [self.name]
        if self.ray:
            words += ["--executor", "ray"]
        with self.log.open("ab") as log:
            log.write(f"\n=== {command}\n".encode())
            self.driver = subprocess.Popen(
                [*LYAPSWEEP, command, *words],
                cwd=self.work, env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def trains(self) -> bool:
        """Whether the latest driver has taken the sweep's lock."""
        lock = self.home.folder / "sweeps" / self.name / "lock"
        with contextlib.suppress(OSError, ValueError, KeyError):
            return (
                self.driver is not None and json.loads(lock.read_text())["pid"] == self.driver.pid
            )
        return False

    def said(self) -> str:
        """What the latest driver printed."""
        return self.log.read_text(errors="replace").rpartition("\n=== ")[2]

    def ask(self, *words: str) -> tuple[int, str]:
        """Another command, to its end."""
        done = subprocess.run(
            [*LYAPSWEEP, *words], cwd=self.work, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        return done.returncode, done.stdout

    def workers(self) -> list[processes.Process]:
        """Those that train for the driver now."""
        mark = "ray::_Actor" if self.ray else "pipeline.executors.process"
        return [one for one in self._descendants() if mark in one.command]

    def raylet(self) -> processes.Process | None:
        """Ray's own process, whose workers and driver do not survive it."""
        return next((one for one in self._descendants() if "/raylet/raylet " in one.command), None)

    def _descendants(self) -> list[processes.Process]:
        return processes.tree(self.driver.pid)[1:] if self.driver else []

    def look(self) -> None:
        """Remembers who was started by whom, before who started them is gone."""
        if self.driver is not None:
            self.seen.update(processes.tree(self.driver.pid))
        if self.servers:
            self.servers.look()

    def restart(self, server: Postgres | MlflowServer) -> None:
        """After its death, as an init system does: until it stays."""
        if server.process is not None:
            server.process.wait(20)
        for attempt in range(5):
            try:
                server.start()
                return
            except RuntimeError:
                # PostgreSQL refuses while a process of the dead one still lives.
                if attempt == 4:
                    raise
                time.sleep(1)

    def end_driver(self, how: int = signal.SIGKILL) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.send_signal(how)
