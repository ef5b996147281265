"""How one sweep stands, in lines for a person: its cost and pace, and what is in its way."""

import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.accounting import epochs_of
from pipeline.home import Home, LockedError
from pipeline.journal import pace
from pipeline.lease import holder
from pipeline.progress import duration, epochs
from pipeline.records import TrialHeader
from pipeline.store import Store, SweepInfo

_MOST_TRIALS_SHOWN = 8


def details(info: SweepInfo, store: Store, home: Home) -> Iterator[str]:
    """Reads the headers of all records, and the log beside the spool. Raises StoreError."""
    headers = [record.header for record in store.records(info.name)]
    counted = epochs_of(headers, home)
    if counted.planned:
        yield f"trained: {epochs(counted.spent, counted.planned, counted.again)}"
    finished = [
        (h.value, h.trial) for h in headers if h.state == "complete" and h.value is not None
    ]
    if finished:
        loss, number = min(finished)
        yield f"best: val_loss {loss:.5f} (trial {number})"
    yield from _of_driver(info, store, home)
    for cause, trials in _causes(headers):
        yield f"failed: {cause} (trials {trials})"
    if info.state != "complete" and not home.is_locked():
        yield f"go on with: lyapsweep resume {info.name}"


def _of_driver(info: SweepInfo, store: Store, home: Home) -> Iterator[str]:
    found = pace(home)
    if found.trials_per_hour is not None:
        yield f"pace: {found.trials_per_hour:.0f} trials/h, {found.epochs_per_second:.3g} epochs/s"
    num, seconds = waiting(home)
    if num:
        yield (
            f"waiting on disk to be published: {num}, the first for {duration(seconds)} "
            f"(lyapsweep resume {info.name})"
        )
    retries = [f"{num} of {of}" for of, num in sorted(found.retries.items())]
    if retries:
        yield f"retries: {', '.join(retries)}"
    if found.lost:
        yield f"workers lost: {found.lost}"
    for of, cause in sorted(found.silent.items()):
        yield f"{of} did not answer when it was asked last: {cause}"
    try:
        who = holder(store, info.name)
    except LockedError as error:
        yield str(error)
    else:
        if who is not None:
            yield f"driven by: {who}{', which is no more' if who.is_known_dead else ''}"


def waiting(home: Home) -> tuple[int, float]:
    """How many trials are in the spool, and for how many seconds the first of them has been."""
    since = [_written(path) for path in home.spool.glob("trial-*.parquet")]
    return len(since), max(0.0, time.time() - min(since)) if since else 0.0


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # Published since the folder was listed.
        return time.time()


def _causes(headers: list[TrialHeader]) -> Iterator[tuple[str, str]]:
    """Failures by the last line of what was raised, the most frequent first."""
    by_cause: dict[str, list[int]] = {}
    for header in headers:
        if header.state == "failed":
            lines = (header.error or "").strip().splitlines() or ["no cause is on record"]
            by_cause.setdefault(lines[-1][:200], []).append(header.trial)
    for cause, trials in sorted(by_cause.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(str(number) for number in trials[:_MOST_TRIALS_SHOWN])
        more = len(trials) - _MOST_TRIALS_SHOWN
        yield cause, f"{shown} and {more} more" if more > 0 else shown
