"""docs/cluster.md as a new user walks through it: every command, in order, as it is written there.

Two hosts: `server` and `head` are one, `node1` is the other. What is put in is what the page asks
for: addresses, the password and the folder of artifacts; and fewer trials. Not typed are the
set-up of Python's environment (this one is used instead), of Docker and of Debian's packages, and
the tunnel, for which there is no need where `server` is `head`. A Ray job is submitted where Ray's
dashboard is there, which `lyapsweep[cluster]` brings and a set-up for tests does not.

With LYAPSWEEP_WRITE_RUNBOOK=1 what the commands printed is written into the page.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import servers
from tests.cluster import nodes, runbook
from tests.cluster.runbook import Terminal

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cluster.md"
BIN = Path(sys.executable).parent
TRIALS = 256
NOT_TYPED = ("python3 -m venv", "pip install", "docker compose", "apt-get install", "ssh -N")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]


@pytest.fixture
def hosts(tmp_path):
    reason = nodes.can_make_hosts()
    if reason is None and servers.postgres_programs() is None:
        reason = "no PostgreSQL here (Debian: apt-get install postgresql)"
    if reason is None and not all((BIN / name).exists() for name in ("lyapsweep", "ray", "mlflow")):
        reason = "the commands are not beside this Python: the page's first section was not done"
    if reason:
        pytest.skip(reason)
    with nodes.short_temporary_folder() as temp, nodes.two_hosts(tmp_path) as (head, node):
        temp.chmod(0o755)
        yield head, node, temp


def environment(temp):
    """What a login on such a machine has; section 1 put the environment's `bin` on the path."""
    (temp / "bin").mkdir(exist_ok=True)
    # Root needs no sudo, and has none on a bare Debian; PGHOST must come through.
    sudo = temp / "bin" / "sudo"
    sudo.write_text('#!/bin/sh\nshift; user=$1; shift\nexec runuser -u "$user" -- "$@"\n')
    sudo.chmod(0o755)
    return {
        "PATH": f"{temp / 'bin'}:{BIN}:{os.environ['PATH']}",
        "PGHOST": str(temp / "postgres"),
        "RAY_TMPDIR": str(temp / "ray"),  # not into the way of a Ray that runs on this machine
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def start_postgres(host, temp):
    """As `apt-get install postgresql` leaves it: port 5432 of loopback, peer by socket."""
    folder, programs = temp / "postgres", servers.postgres_programs()
    folder.mkdir()
    shutil.chown(folder, "postgres", "postgres")
    as_postgres = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [
            *as_postgres, programs / "initdb", "--pgdata", folder / "data", "--encoding", "UTF8",
            "--auth-local", "peer", "--auth-host", "scram-sha-256", "--no-sync",
        ],
        check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=300,
    )  # fmt: skip
    process = host.popen(
        [*as_postgres, str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)],
        log="postgres.log", cwd=folder,
    )  # fmt: skip
    servers.wait_until(
        (folder / ".s.PGSQL.5432").exists, process, host.folder / "postgres.log", 120
    )


class Walk:
    """The commands of the page, taken one after the other."""

    def __init__(self, head, node, file):
        self._file = file
        self._left = [
            (section, command)
            for section, found in runbook.commands(PAGE.read_text()).items()
            for command in found
            if not command.startswith(NOT_TYPED)
        ]
        self._put_in = {
            "HEAD": head.address,
            "NODE1": node.address,
            "PASSWORD": servers.PASSWORD,
            "/srv/mlflow": str(head.folder / "srv" / "mlflow"),
            "trials=2000": f"trials={TRIALS}",
        }
        self.printed = {}

    def next(self, *starts):
        """The next command of the page, as typed here; it must be the one that we think it is."""
        section, command = self._left.pop(0)
        assert command.startswith(starts), f"section {section} goes on with {command!r}"
        self.written = command
        for word, value in self._put_in.items():
            command = command.replace(word, value)
        return command

    def keep(self, said):
        """Shown on the page as the output of the command taken last."""
        self.printed[self.written] = self.as_written(said)
        self._file.write_text(str(self))
        return said

    def as_written(self, text):
        """With the words of the page in the place of what was put in."""
        for word, value in self._put_in.items():
            text = text.replace(value, word)
        return text

    def __str__(self):
        return "".join(f"\n$ {typed}\n{said}" for typed, said in self.printed.items())

    @property
    def is_over(self):
        return not self._left


def test_the_page_from_its_first_line_to_the_report(hosts, tmp_path, capsys):
    head, node, temp = hosts
    walk, login = Walk(head, node, tmp_path / "walk.txt"), environment(temp)
    work = head.folder / "work"
    work.mkdir()
    (head.folder / "srv").mkdir()

    # 2. Where results are kept
    start_postgres(head, temp)
    server = Terminal(head, work, login)
    server.run(walk.next("sudo -u postgres createuser"), servers.PASSWORD, servers.PASSWORD)
    server.run(walk.next("sudo -u postgres createdb"))
    server.run(walk.next("sudo -u postgres createdb"))
    server.type(walk.next("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server"))
    shell = Terminal(head, work, login)
    wait_for(lambda: "OK" in shell.run("curl -s http://127.0.0.1:5000/health || true"))
    exports = [walk.next("export LYAPSWEEP_STORE="), walk.next("export LYAPSWEEP_OPTUNA=")]

    # 3. Ray on the nodes
    exports.append(walk.next("export RAY_AUTH_MODE=token"))
    for line in exports:
        shell.run(line)
    shell.run(walk.next("ray get-auth-token --generate"))
    token = head.folder / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    walk.keep(shell.run(walk.next("ray start --head")))
    (node.folder / ".ray").mkdir()
    shutil.copy(token, node.folder / ".ray" / "auth_token")
    other = Terminal(node, node.folder, login)
    other.run(exports[-1])
    walk.keep(other.run(walk.next("ray start --address")))

    # 4. The sweep
    said = walk.keep(shell.run(walk.next("lyapsweep plan")))
    assert "time" in said
    shell.type(walk.next("lyapsweep sweep"))
    as_job, job_written = walk.next("ray job submit"), walk.written

    # 5. While it runs, and when something breaks: here the driver, by kill -9
    second = Terminal(head, work, login)
    for line in exports:
        second.run(line)
    log = work / ".lyapsweep" / "sweeps" / "big" / "log.jsonl"
    wait_for(lambda: log.exists() and '"published"' in log.read_text(), 1800)
    said = walk.keep(second.run(walk.next("lyapsweep status")))
    assert re.search(rf"\brunning\b.*\b\d+/{TRIALS}\b", said)
    assert "driven by" in said
    (driver,) = (pid for pid in head.pids() if b"sweep\0planar" in command_of(pid))
    os.kill(driver, signal.SIGKILL)
    code, said = shell.result(60)
    assert code == 128 + signal.SIGKILL, said
    second.type(walk.next("lyapsweep doctor"))
    code, said = second.result(1800)
    walk.keep(said)
    assert "trials on record" in said, (code, said)
    said = walk.keep(second.run(walk.next("lyapsweep resume"), seconds=1800))
    assert f"{TRIALS}/{TRIALS}" in said
    assert f"{TRIALS} of {TRIALS} trials on record" in second.run("lyapsweep doctor big")

    # 6. The report
    walk.keep(second.run(walk.next("lyapsweep report")))
    assert (work / "reports" / "big" / "index.html").exists()
    walk.keep(second.run(walk.next("lyapsweep export")))
    assert walk.is_over
    laptop = Terminal(node, node.folder, login)
    laptop.run(f"lyapsweep import {work / 'big-exported'}")
    assert f"{TRIALS}/{TRIALS}" in laptop.run("lyapsweep status big")

    # The other half of 4: a job needs no terminal
    if importlib.util.find_spec("aiohttp_cors"):
        as_job = as_job.replace("--name big", "--name job").replace(f"={TRIALS}", "=4")
        walk.written = job_written
        walk.keep(second.run(as_job))
        wait_for(lambda: "4/4" in second.run("lyapsweep status job || true"), 1800)

    with capsys.disabled():
        print(walk)
    assert set(runbook.shown(PAGE.read_text())) <= walk.printed.keys()
    if os.environ.get("LYAPSWEEP_WRITE_RUNBOOK") == "1":
        PAGE.write_text(runbook.show(PAGE.read_text(), walk.printed))


def command_of(pid):
    with contextlib.suppress(OSError):  # It may be gone by now.
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def wait_for(is_so, seconds=300):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "stands still"
        time.sleep(1)
