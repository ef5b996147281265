"""A Ray cluster to train on: started here or joined, with our code on every node.

A local cluster binds to loopback. Without `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`, set before ray
is imported, Ray 2.60 on Linux listens on all interfaces even on a laptop.

Nodes of a cluster that runs already need what we import, and not ourselves: the three packages
travel with the driver as Ray's `working_dir`, which comes first on the path of every worker. A Ray
job (`ray job submit --working-dir`) has brought its own.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.executors.base import ExecutorError
from pipeline.executors.packages import PACKAGES, parent_of

# Set by Ray in the driver of a job.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class Cluster:
    """Ray, initialised in this process; `close` ends it where this object began it.

    Args:
        address: of a running cluster (`auto`, `HOST:PORT`, `ray://HOST:PORT`); None starts one.
        cpus: of a cluster that is started.

    Raises ExecutorError where Ray cannot be started or reached.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        # Before ray is imported, which fixes for good where this process listens.
        if address is None:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        else:
            _check_reachable(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray: ModuleType = ray
        self.is_joined = address is not None
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            self._start(address, cpus)

    def room(self, threads: int, gpus: float) -> int | None:
        """How many workers the nodes that are alive have place for, whoever takes it.

        Counted node by node: two halves of a worker on two nodes hold none. None where a worker
        reserves nothing.
        """
        if not threads and not gpus:
            return None
        found = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                fits = [int(have.get("CPU", 0) // threads)] if threads else []
                fits += [int(have.get("GPU", 0) / gpus + 1e-9)] if gpus else []
                found += min(fits)
        return found

    def is_alive(self) -> bool:
        """Whether some node can train. A dead one is known to be after half a minute."""
        try:
            return any(node["Alive"] for node in self.ray.nodes())
        except (self.ray.exceptions.RayError, OSError, RuntimeError):
            return False

    def close(self) -> None:
        """Leaves Ray, and ends it where it was started here."""
        if self._is_ours:
            self.ray.shutdown()
            self._folder.cleanup()

    def _start(self, address: str | None, cpus: int) -> None:
        # Ray puts the driver's working folder first on every worker's path, where a stray
        # tasks.py would hide ours: start it from another, which must outlive it.
        self._folder = tempfile.TemporaryDirectory(prefix="lyapsweep-")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {
                # By no address Ray would mean one that `ray start` left running here.
                "address": "local",
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": 256 * 2**20,
            }
        else:
            options["address"] = address
            if _JOB not in os.environ:
                _pack(Path(self._folder.name))
                options["runtime_env"] = {"working_dir": self._folder.name}
        try:
            with _inside(self._folder.name):
                self.ray.init(**options)
        except Exception as error:
            # Not narrower: of a node that did not come up in time Ray raises Exception itself.
            where = "a local Ray" if address is None else f"Ray at {address!r}"
            raise ExecutorError(f"{where} cannot be used: {first_line(str(error))}") from error


def first_line(text: str) -> str:
    """Of a long error, what fits on a line."""
    return (text.strip().splitlines() or ["unknown reason"])[0][:300]


def _pack(target: Path) -> None:
    """Copies our three packages: a megabyte, without what Python has compiled."""
    for name in PACKAGES:
        parent = parent_of(name)
        assert parent is not None, "a driver has all three packages"
        shutil.copytree(parent / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _check_reachable(address: str) -> None:
    """Raises ExecutorError where nothing listens: Ray itself would try for ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # `auto`, or a name that Ray knows how to resolve
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ExecutorError(f"no Ray cluster answers at {address!r} ({error})") from error
