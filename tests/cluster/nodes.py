"""Two hosts on one machine: network namespaces joined by a cable that a test may pull.

Each host has its own loopback and an address on the cable, and runs its own Ray node. What is
started here is ended here, by pid; the namespaces are removed with what is in them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.213.77"
RAY = str(Path(sys.executable).with_name("ray"))
LYAPSWEEP = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()"]
PORT = 6391


def can_make_hosts() -> str | None:
    """Why not, or None."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2 (Debian: apt-get install iproute2)"
    name = f"lyap-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces cannot be made here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@dataclass
class Host:
    """One of the two: `address` on the cable, in the namespace `space`."""

    space: str
    link: str
    address: str
    folder: Path
    processes: list[subprocess.Popen] = field(default_factory=list)

    def popen(self, command: list[str], *, log: str | None = None, **options) -> subprocess.Popen:
        """Starts a command on this host, as the leader of a process group."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            "NO_COLOR": "1",
            "HOME": str(self.folder),
            **options.pop("env", {}),
        }
        if log is not None:
            options |= {"stdout": (self.folder / log).open("ab"), "stderr": subprocess.STDOUT}
        made = subprocess.Popen(
            ["ip", "netns", "exec", self.space, *command],
            env=environment,
            start_new_session=True,
            text=True,
            **options,
        )
        self.processes.append(made)
        return made

    def start_ray(self, head: "Host | None" = None, *, cpus: int = 1, temp: Path) -> None:
        """A Ray node of this host; the first one is the head."""
        command = [
            RAY, "start", "--block", "--disable-usage-stats", "--num-cpus", str(cpus),
            "--node-ip-address", self.address, "--object-store-memory", str(100 * 2**20),
        ]  # fmt: skip
        if head is None:
            command += ["--head", "--port", str(PORT), "--include-dashboard", "false"]
            command += ["--temp-dir", str(temp)]
        else:
            command += ["--address", f"{head.address}:{PORT}"]
        self.ray = self.popen(command, log="ray.log")

    def pids(self) -> list[int]:
        """Every process in this host, of whoever started it."""
        said = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True, timeout=20
        )
        return [int(pid) for pid in said.stdout.split()]

    def kill(self) -> None:
        """The host loses power: every process at once."""
        for _ in range(10):
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                break
            time.sleep(0.2)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)

    def pull_cable(self) -> None:
        """From now on nothing reaches it, and nothing that it sends arrives."""
        _ip("-n", self.space, "link", "set", self.link, "down")

    def plug_in(self) -> None:
        """The cable is back."""
        _ip("-n", self.space, "link", "set", self.link, "up")


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Hosts with nothing running on them."""
    tag = str(os.getpid())[-6:]
    hosts = []
    for number, letter in enumerate("ab", start=1):
        home = folder / f"host-{letter}"
        home.mkdir()
        hosts.append(Host(f"lyap-{tag}-{letter}", f"ly{tag}{letter}", f"{SUBNET}.{number}", home))
    first, second = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.space)
            _ip("-n", host.space, "link", "set", "lo", "up")
        _ip("-n", first.space, "link", "add", first.link, "type", "veth",
            "peer", "name", second.link, "netns", second.space)  # fmt: skip
        for host in hosts:
            _ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.link)
            _ip("-n", host.space, "link", "set", host.link, "up")
        yield first, second
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.space], capture_output=True)


@contextlib.contextmanager
def short_temporary_folder() -> Iterator[Path]:
    """Ray's sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="lyr", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
