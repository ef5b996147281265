"""Processes as the kernel lists them: who descends from whom, and signals by pid.

Only what a test has started, and what descends from it, is ever signalled. A pid alone may be
somebody else's by now; with the moment its process began it is not.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that was there when we looked."""

    pid: int
    began: int
    command: str

    def signal(self, how: int) -> bool:
        """False where it is gone."""
        if (now := _stat(self.pid)) is None or now[1] != self.began:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, how)
            return True
        return False

    @property
    def is_alive(self) -> bool:
        """False of a zombie as well."""
        now = _stat(self.pid)
        return now is not None and now[1] == self.began and now[2] != "Z"


def _stat(pid: int) -> tuple[int, int, str] | None:
    """Parent, start time in ticks, state."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return None
    words = text[text.rindex(")") + 2 :].split()
    return int(words[1]), int(words[19]), words[0]


def _process(pid: int, began: int) -> Process:
    try:
        command = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        command = ""
    return Process(pid, began, command)


def tree(root: int) -> list[Process]:
    """A process and all that descend from it, as they stand now."""
    children: dict[int, list[int]] = {}
    began: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := _stat(int(entry.name))) is not None:
            children.setdefault(found[0], []).append(int(entry.name))
            began[int(entry.name)] = found[1]
    if root not in began:
        return []
    found_pids = [root]
    for pid in found_pids:
        found_pids += children.get(pid, [])
    return [_process(pid, began[pid]) for pid in found_pids]


def end_all(seen: Iterable[Process], patience: float = 10.0) -> list[Process]:
    """Kills those that still live; returns who survived that, too."""
    living = [one for one in seen if one.is_alive]
    for one in living:
        one.signal(signal.SIGKILL)
        one.signal(signal.SIGCONT)
    deadline = time.monotonic() + patience
    while living and time.monotonic() < deadline:
        living = [one for one in living if one.is_alive]
        time.sleep(0.05)
    return living
