"""What a reader may do while it reads what a stranger wrote: read, within seconds and a gigabyte.

`Guard` watches the process through its audit hook: files opened to be written, processes started,
modules imported that nobody asked for, anything unpickled. Memory is the peak of the process, which
the kernel resets on request; seconds are those of the processor, for machines are busy.

An audit hook can never be removed, so there is one for good, which only listens inside a guard.
"""

import os
import re
import signal
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

SECONDS = 5.0
WAITING_SECONDS = 60.0
MOST_BYTES = 2**30

CASES: Counter[str] = Counter()
"""How many inputs were tried, by target, for the summary at the end."""
REFUSED: Counter[str] = Counter()
"""How many of them were refused with an error of ours."""

_ROOTS = tuple(
    os.path.realpath(root)
    for root in (
        sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"),
        Path(__file__).parents[2],
    )
)  # fmt: skip
# MLflow looks for pyspark whenever it reads tags, installed or not.
_OURS = {"tasks", "pipeline", "analysis", "pyspark"}
_INSTALLED = sys.stdlib_module_names | {*packages_distributions(), *_OURS}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTS = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "subprocess.Popen", "pty.spawn", "pickle.find_class", "ctypes.dlopen", "socket.connect",
    "webbrowser.open", "code.__new__", "os.chdir", "os.putenv",
}  # fmt: skip
_CHANGES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "shutil.rmtree", "shutil.move",
}  # fmt: skip


def _changed(event: str, args: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Paths that an event changes, each with the descriptor of the folder it is relative to."""
    match event:
        case "os.rename":
            return [(args[0], args[2]), (args[1], args[3])]
        case "os.link":
            return [(args[1], args[3])]
        case "os.symlink":
            return [(args[1], args[2])]
        case "os.remove" | "os.rmdir":
            return [(args[0], args[1])]
        case "os.mkdir":
            return [(args[0], args[2])]
        case "shutil.move":
            return [(path, -1) for path in args[:2]]
    is_path = isinstance(args[0], str | bytes | os.PathLike)
    return [(args[0], -1)] if is_path else []


class ForbiddenError(AssertionError):
    """A reader did what no reader may."""


class Hang(BaseException):
    """A reader took too long; no `except Exception` may swallow it."""


class _Watch:
    def __init__(self) -> None:
        self.is_on = False
        self.writable: tuple[str, ...] = ()
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in _STARTS:
            self._note(event, args)
        elif event == "open":
            path, mode, flags = args
            is_written = flags & _WRITES if mode is None else set(str(mode)) & set("wax+")
            if is_written and isinstance(path, str | bytes | os.PathLike):
                self._check(event, path)
        elif event in _CHANGES:
            for path, folder in _changed(event, args):
                self._check(event, path, folder)
        elif event == "import":
            top = str(args[0]).partition(".")[0]
            if top not in sys.modules and top not in _INSTALLED:
                self._note(event, args[:1])
        elif event == "exec":
            name = getattr(args[0], "co_filename", "")
            # Dataclasses and named tuples compile from text that has no file.
            if not name.startswith("<") and not os.path.realpath(name).startswith(_ROOTS):
                self._note(event, (name,))

    def _check(self, event: str, path: Any, folder: Any = -1) -> None:
        where = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            where = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), where)
        # The link itself is changed, wherever it leads.
        parent, name = os.path.split(where)
        where = os.path.realpath(where if event == "open" else parent)
        where = where if event == "open" else os.path.join(where, name)
        if where != os.devnull and not where.startswith(self.writable):
            self._note(event, (where,))

    def _note(self, event: str, args: Any) -> None:
        self.seen.append(f"{event} {args!r}"[:300])


_watch = _Watch()
_is_installed = False


class Guard:
    """Runs readers in a folder of their own.

    Args:
        folder: where cases lie; what may be written lies below it.
        expected: exceptions of ours that a reader documents; they must name what they are about.
    """

    def __init__(self, folder: Path, name: str, *expected: type[Exception]) -> None:
        global _is_installed
        if not _is_installed:
            sys.addaudithook(_watch)
            _is_installed = True
        self.folder, self.name, self._expected = folder, name, expected
        self.outside = folder.parent / "outside"
        self.outside.mkdir(exist_ok=True)
        (self.outside / "secret").write_text("a secret")
        self._before = self._state()

    def __call__(
        self, read: Callable[[], Any], *, says: str | None = None, writes: tuple[Path, ...] = ()
    ) -> Any:
        """What `read` returns, None where it refuses. `says` must be in what it says then."""
        CASES[self.name] += 1
        result = text = None
        with watched(*writes):
            try:
                result = read()
            except self._expected as error:
                REFUSED[self.name] += 1
                text = str(error)
                kind = type(error).__name__
        if text is not None:
            assert text.strip(), f"{kind} without a word"
            assert len(text) < 100_000, f"{len(text)} characters of error"
            assert says is None or says in text, f"does not name {says!r}: {text[:500]}"
        assert self._state() == self._before, "something changed outside the folder"
        return result

    def _state(self) -> list[tuple[str, int, int]]:
        found = []
        for folder in (self.folder.parent, self.outside):
            for entry in os.scandir(folder):
                about = entry.stat(follow_symlinks=False)
                is_file = entry.is_file(follow_symlinks=False)
                found.append((entry.path, about.st_size, about.st_mtime_ns) if is_file
                             else (entry.path, 0, 0))  # fmt: skip
        return sorted(found)


@contextmanager
def watched(*writable: Path) -> Iterator[None]:
    """Raises ForbiddenError for what was done inside, Hang where it took too long."""
    _reset_peak()
    before = _memory("VmRSS")
    _watch.writable = tuple(os.path.realpath(path) for path in writable)
    _watch.seen = []
    began, began_cpu = time.monotonic(), time.process_time()
    before_handlers = {n: signal.signal(n, _too_long) for n in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    _watch.is_on = True
    try:
        yield
    finally:
        _watch.is_on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before_handlers.items():
            signal.signal(number, handler)
    if _watch.seen:
        raise ForbiddenError("; ".join(_watch.seen))
    taken, waited = time.process_time() - began_cpu, time.monotonic() - began
    assert taken < SECONDS, f"took {taken:.1f} s of the processor"
    assert waited < WAITING_SECONDS, f"took {waited:.1f} s"
    grown = _memory("VmHWM") - before
    assert grown < MOST_BYTES, f"took {grown / 2**20:.0f} MB of memory"


def _too_long(number: int, frame: Any) -> None:
    raise Hang(f"still running after {SECONDS:g} s of the processor")


def _reset_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as sink:
            sink.write("5")
    except OSError:  # A kernel that does not offer it: the peak so far counts, which is stricter.
        pass


def _memory(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, field
    return int(found[1]) * 1024
