"""What happened in a sweep, one JSON object a line, in `<home>/sweeps/<name>/log.jsonl`.

For people and their tools: nothing is resumed from it, and a disk that is full of it stops nothing.
Every line has `time` (seconds since 1970) and `event`; the others are those of the event:

started    pid, host, executor, trials     a driver has begun
asked      count                           a batch of trials is in Optuna's database
training   trials, epoch                   a cohort has been handed to a worker, at this epoch
ended      trial, state, epochs, cause     a trial is in the spool
published  trial                           the store has it, Optuna was told
retry      of, num, cause                  store or optuna is silent; asked again later
back       of, num, seconds                it answers again
lost       trials, cause                   a worker died; its trials are tried again
note       text                            anything else that was shown
stopped    state, cause                    the driver has ended
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.home import Home

_MOST_BYTES = 4_000_000
_MOST_CHARACTERS = 300


class Journal:
    """Appends to the log of one sweep; the file before the present one is kept too."""

    def __init__(self, home: Home, hide: Sequence[str] = ()) -> None:
        """`hide`: words that are written nowhere."""
        self._path, self._hide = path_of(home), [word for word in hide if word]
        self._size = -1

    def write(self, event: str, **fields: Any) -> None:
        """Texts are cut to their last line, as an exception's says most."""
        content = {"time": round(time.time(), 3), "event": event}
        content |= {key: self._brief(value) for key, value in fields.items() if value is not None}
        line = json.dumps(content, default=str) + "\n"
        with contextlib.suppress(OSError):
            if self._size < 0:
                self._size = self._path.stat().st_size if self._path.exists() else 0
            if self._size > _MOST_BYTES:
                os.replace(self._path, older(self._path))
                self._size = 0
            with self._path.open("a", encoding="utf-8") as sink:
                sink.write(line)
            self._size += len(line)

    def _brief(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = (value.strip().splitlines() or [""])[-1][:_MOST_CHARACTERS]
        for word in self._hide:
            text = text.replace(word, "***")
        return text


def path_of(home: Home) -> Path:
    """The log of a sweep."""
    return home.folder / "log.jsonl"


def older(path: Path) -> Path:
    """The one before it."""
    return path.with_name("log.1.jsonl")


def events(home: Home) -> Iterator[dict[str, Any]]:
    """Every line that can be read, the oldest first: the last may be cut short."""
    for path in (older(path_of(home)), path_of(home)):
        with (
            contextlib.suppress(FileNotFoundError),
            path.open(encoding="utf-8", errors="replace") as lines,
        ):
            for line in lines:
                with contextlib.suppress(ValueError):
                    content = json.loads(line)
                    if isinstance(content, dict) and isinstance(content.get("time"), int | float):
                        yield content


@dataclass(frozen=True)
class Pace:
    """What the log tells about the latest hour in which anything ended, and about all of it.

    Attributes:
        trials_per_hour, epochs_per_second: None before two trials have ended.
        retries: silent servers, by which of the two.
        silent: those that have not answered since, with what was said last.
        lost: cohorts whose worker died.
    """

    trials_per_hour: float | None
    epochs_per_second: float | None
    retries: dict[str, int]
    silent: dict[str, str]
    lost: int


def pace(home: Home) -> Pace:
    """Of one sweep, by its log."""
    ends: list[tuple[float, int]] = []
    retries: dict[str, int] = {}
    silent: dict[str, str] = {}
    lost = 0
    begun = 0.0
    for event in events(home):
        kind, of = event.get("event"), str(event.get("of", "?"))
        if kind == "started":
            # What lies between two drivers is nobody's slowness.
            begun, ends, silent = event["time"], [], {}
        elif kind == "ended" and isinstance(event.get("epochs"), int):
            ends.append((event["time"], event["epochs"]))
        elif kind == "retry":
            retries[of] = retries.get(of, 0) + 1
            silent[of] = str(event.get("cause", ""))
        elif kind == "back":
            silent.pop(of, None)
        elif kind == "lost":
            lost += 1
    recent = [end for end in ends if end[0] > ends[-1][0] - 3600]
    since = max(begun, recent[-1][0] - 3600) if recent else 0.0
    seconds = recent[-1][0] - since if len(recent) > 1 else 0.0
    if seconds <= 0:
        return Pace(None, None, retries, silent, lost)
    epochs = sum(count for _, count in recent)
    return Pace(len(recent) / seconds * 3600, epochs / seconds, retries, silent, lost)
