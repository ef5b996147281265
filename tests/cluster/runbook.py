"""A runbook as someone reads it who has its machines: what it says to type, at which prompt.

Commands are the paragraphs indented by four spaces, by the number of their section. A fenced block
shows what one of them prints; the comment before it says which:

    <!-- printed by: lyapsweep status big -->
"""

import queue
import re
import subprocess
import threading
import time
from pathlib import Path

from tests.cluster.nodes import Host

_SHOWN = re.compile(r"(<!-- printed by: (.+?) -->\n+```text\n)(.*?)(```\n)", re.DOTALL)
_MOST_LINES = 10


def commands(text: str) -> dict[int, list[str]]:
    """Section → its commands, continued lines joined, comments at their ends left out."""
    found: dict[int, list[str]] = {}
    section = 0
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        if line.startswith("## "):
            number = re.match(r"## (\d+)\.", line)
            section = int(number[1]) if number else 0
        elif section and line.startswith("    ") and line.strip():
            found.setdefault(section, []).append(re.sub(r"\s+# .*", "", line.strip()))
    return found


def shown(text: str) -> list[str]:
    """The commands of which the page says what they print."""
    return [command for _, command, _, _ in _SHOWN.findall(text)]


def show(text: str, printed: dict[str, str]) -> str:
    """The page with what these commands print now, the middle of it left out where it is long."""
    return _SHOWN.sub(lambda m: m[1] + _brief(printed[m[2]]) + m[4], text)


def _brief(printed: str) -> str:
    lines = printed.rstrip("\n").splitlines()
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES // 2], "…", *lines[-_MOST_LINES // 2 :]]
    return "\n".join(lines) + "\n"


class CommandError(AssertionError):
    """A command ended with another code than 0, or not in time."""


class Terminal:
    """A shell on a host; what is exported in it stays, and what is typed ahead is read."""

    def __init__(self, host: Host, folder: Path, environment: dict[str, str]) -> None:
        self._shell = host.popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env={"COLUMNS": "100", **environment}, bufsize=1,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._count = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._shell.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def type(self, command: str, *answers: str) -> None:
        """Does not wait for its end; that is for `result`."""
        self._count += 1
        self._command = command
        # On one line: a program that reads answers may read whatever else was typed, too.
        lines = [f'{command}; printf "\\n--- %d {self._count}\\n" $?', *answers]
        self._shell.stdin.write("\n".join(lines) + "\n")
        self._shell.stdin.flush()

    def result(self, seconds: float) -> tuple[int, str]:
        """The code of what was typed last, and all that it printed."""
        deadline, said = time.monotonic() + seconds, []
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise CommandError(
                    f"{self._command}: no end after {seconds:.0f} s\n{''.join(said)}"
                ) from None
            if line is None:
                raise CommandError(f"{self._command}: the shell is gone\n{''.join(said)}")
            if end := re.fullmatch(rf"--- (\d+) {self._count}\n", line):
                return int(end[1]), "".join(said).strip("\n") + "\n"
            said.append(line)

    def run(self, command: str, *answers: str, seconds: float = 1800) -> str:
        """What it printed; raises CommandError where its code is not 0."""
        self.type(command, *answers)
        code, said = self.result(seconds)
        if code != 0:
            raise CommandError(f"{command} ended with {code}:\n{said}")
        return said
