"""What a person sees while a sweep runs: a live view on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.accounting import Progress

_LINE_EVERY_SECONDS = 5.0
_MOST_RUNNING_SHOWN = 12


class View(Protocol):
    """Shows progress while a `with` block runs."""

    def __enter__(self) -> "View": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, progress: Progress) -> None:
        """Called by the driver after every event."""


def view_for(name: str) -> View:
    """Live on a terminal, lines elsewhere. Both write to standard error."""
    return LiveView(name) if sys.stderr.isatty() else LineView(name)


class LineView:
    """One line whenever a trial ends, at most every few seconds, and at the end."""

    def __init__(self, name: str) -> None:
        self._name, self._shown, self._at = name, "", 0.0

    def __enter__(self) -> "LineView":
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, progress: Progress) -> None:
        """Prints if something changed and the last line is old enough."""
        line = f"{self._name}: {summary(progress)}"
        is_end = progress.finished == progress.total
        is_due = time.monotonic() - self._at >= _LINE_EVERY_SECONDS
        if line != self._shown and (is_due or is_end):
            self._shown, self._at = line, time.monotonic()
            print(line, file=sys.stderr, flush=True)


class LiveView:
    """A few lines that update in place."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        """Replaces what is shown."""
        self._live.update(render(self._name, progress))


def render(name: str, progress: Progress) -> RenderableType:
    """The live view: bar, counts, best, what is running."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    # What a trial that ended early did not train is done with all the same.
    done = sum(progress.running.values()) + progress.finished * progress.epochs_each
    bar = ProgressBar(total=progress.epochs_planned, completed=done, width=40)
    grid.add_row(name, bar)
    grid.add_row("trials", summary(progress, with_epochs=False))
    if progress.running:
        shown = sorted(progress.running.items())[:_MOST_RUNNING_SHOWN]
        text = "  ".join(f"{n}:{epoch}/{progress.epochs_each}" for n, epoch in shown)
        more = len(progress.running) - len(shown)
        grid.add_row("epochs", text + (f"  and {more} more" if more else ""))
    lines: list[RenderableType] = [grid]
    if progress.is_stopping:
        lines.append(Text("stopping at the next epoch; Ctrl-C again to stop at once", "yellow"))
    if progress.last:
        lines.append(Text(progress.last, "yellow", overflow="ellipsis", no_wrap=True))
    return Group(*lines)


def summary(progress: Progress, *, with_epochs: bool = True) -> str:
    """Counts, best and time left in one line."""
    parts = [f"{progress.finished}/{progress.total} done"]
    if progress.running:
        running = f"{len(progress.running)} running"
        if with_epochs:
            low, high = min(progress.running.values()), max(progress.running.values())
            span = str(low) if low == high else f"{low}-{high}"
            running += f" (epoch {span}/{progress.epochs_each})"
        parts.append(running)
    counts = (progress.diverged, progress.pruned, progress.failed)
    for count, word in zip(counts, ("diverged", "pruned", "failed"), strict=True):
        if count:
            parts.append(f"{count} {word}")
    if progress.best is not None:
        loss, number = progress.best
        parts.append(f"best val_loss {loss:.4f} (trial {number})")
    eta = progress.eta_seconds
    if eta is not None and progress.finished < progress.total:
        parts.append(f"{duration(eta)} left")
    return ", ".join(parts)


def epochs(spent: int, planned: int, again: int) -> str:
    """What a sweep has trained, of what it would have without anyone leaving early."""
    share = f" ({spent / planned:.0%})" if planned else ""
    more = f", {again} more for nothing that is on record" if again else ""
    return f"{spent} of {planned} epochs{share}{more}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
