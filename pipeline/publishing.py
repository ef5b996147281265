"""From a trial that begins or ends to all who keep record of it: spool, store, sampler.

A trial that ends is spooled first (one file, written atomically), then published, then told to
the sampler, then unspooled. Each step may be repeated; whatever is spooled when a driver dies is
published by the next. A store that does not answer is tried again later, while training goes on.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline import records
from pipeline.checkpoints import Resumption
from pipeline.config import SweepConfig
from pipeline.home import Home
from pipeline.journal import Journal
from pipeline.ledger import Ledger, StudyAwayError
from pipeline.plan import TrialSpec
from pipeline.records import TrialHeader, TrialRecord
from pipeline.retrying import RETRY_SECONDS, Retry
from pipeline.rows import Row, now_ms
from pipeline.store import Store, StoreError, StoreFullError, SweepInfo, TrialStart
from pipeline.unfinished import Showcase


class SweepError(RuntimeError):
    """The sweep cannot go on; what was measured so far is safe."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended, and with what."""

    state: records.TrialState
    value: float | None
    epochs: int
    diverged_at: int | None = None
    pruned_at: int | None = None
    error: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None


class Publisher:
    """Keeps a sweep's store and ledger abreast of its trials.

    Args:
        provenance: of this driver; one that resumes may be another version on another machine.
        check: raises where this driver may write no more, and StoreError where that is unknown.
        told: called with the header of each trial of which the sampler has been told.
        say: shows a line to whoever watches.
        journal: what happens is written there.
    """

    def __init__(
        self,
        config: SweepConfig,
        info: SweepInfo,
        store: Store,
        home: Home,
        ledger: Ledger,
        *,
        provenance: Mapping[str, Any],
        check: Callable[[], None],
        told: Callable[[TrialHeader], None],
        say: Callable[[str], None],
        journal: Journal,
    ) -> None:
        self._journal = journal
        self._config, self._info, self._store = config, info, store
        self._home, self._ledger, self._provenance = home, ledger, provenance
        self._check, self._told, self._say, self._last = check, told, say, ""
        self._log_scaled = tuple(path for path, r in config.space.items() if r.is_log)
        self._starts: dict[int, TrialStart] = {}
        self._rows: dict[int, list[Row]] = {}
        self._resumed: dict[int, tuple[int, ...]] = {}
        self._unbegun: set[int] = set()
        self._waiting: deque[Path] = deque()
        self.retry = Retry()
        """Of the store."""
        self._published: Path | None = None
        self._unnoted: dict[int, int] = {}
        self._showcase = Showcase(home)

    def begin(self, spec: TrialSpec, attempts: int, point: Resumption | None = None) -> TrialStart:
        """A trial is trained, once more if it was before: from its start, or from a checkpoint.

        `attempts`: how often earlier drivers began it.
        """
        number = spec.number
        attempt = 1 + (self._starts[number].attempt if number in self._starts else attempts)
        self._unnoted[number] = attempt
        self._note()
        self._rows[number] = [] if point is None else list(point.rows[number])
        self._resumed[number] = () if point is None else point.resumed_at
        self._starts[number] = TrialStart(
            number=number,
            uid=self.uid(number),
            seed=spec.seed,
            params=self._config.params(spec),
            sampled=tuple(self._config.space),
            start_ms=now_ms() if point is None else point.start_ms.get(number, now_ms()),
            attempt=attempt,
            log_scaled=self._log_scaled,
        )
        # While the store is silent the trial can train; publishing begins it once it answers.
        self._unbegun.add(number)
        if self.retry.is_due:
            try:
                self._check()
                self._store.begin_trial(self._info.name, self._starts[number])
                self._unbegun.discard(number)
            except StoreError as error:
                self._put_off(error)
        return self._starts[number]

    def add(self, number: int, rows: list[Row]) -> None:
        """What came of a trial at a rung."""
        self._rows[number] += rows
        self._showcase.note()

    def rows(self, numbers: Iterable[int]) -> dict[int, list[Row]]:
        """What came of trials so far."""
        return {number: self._rows[number] for number in numbers}

    def start_ms(self, numbers: Iterable[int]) -> dict[int, int]:
        """When trials were begun."""
        return {number: self._starts[number].start_ms for number in numbers}

    def start_over(self, number: int) -> TrialStart:
        """A trial that was to go on from a checkpoint is trained from its start after all."""
        self._rows[number], self._resumed[number] = [], ()
        return self._starts[number]

    def end(self, number: int, ending: Ending) -> None:
        """Spools a trial; from here on it is never trained again. Raises OSError, SweepError."""
        start = self._starts[number]
        resumed_at = self._resumed.get(number)
        resumed = {"resumed_at": list(resumed_at)} if resumed_at else {}
        header = replace(
            self._header(start),
            state=ending.state,
            value=ending.value,
            diverged_at=ending.diverged_at,
            pruned_at=ending.pruned_at,
            epochs=ending.epochs,
            end_ms=now_ms(),
            error=ending.error,
            provenance={**self._provenance, **ending.provenance, **resumed},
        )
        path = self._home.spool_path(number)
        if ending.weights is not None:
            _write_weights(ending.weights, path.with_suffix(".safetensors"))
        table = records.to_table(self._info.name, number, self._rows.pop(number, []))
        records.write(TrialRecord(header, table), path)
        self._waiting.append(path)
        self._showcase.note()
        self._journal.write(
            "ended",
            trial=number,
            state=ending.state,
            epochs=ending.epochs,
            cause=ending.error,
        )
        self.publish()

    def _header(self, start: TrialStart) -> TrialHeader:
        """Of a trial in training."""
        return TrialHeader(
            sweep=self._info.name,
            trial=start.number,
            trial_uid=start.uid,
            seed=start.seed,
            state="running",
            params=start.params,
            sampled=start.sampled,
            value=None,
            epochs_planned=self._config.epochs,
            attempt=start.attempt,
            start_ms=start.start_ms,
            provenance=dict(self._provenance),
        )

    def interrupt(self, number: int, reason: str) -> None:
        """A trial that was begun will be trained again by another driver."""
        with contextlib.suppress(StoreError):
            self._check()
            self._store.interrupt_trial(self._info.name, number, reason)

    def adopt_spool(self) -> None:
        """Takes over what an earlier driver spooled. Raises SweepError, RecordError."""
        for path in self._home.spooled():
            header = records.read(path).header
            if header.trial_uid != self.uid(header.trial):
                raise SweepError(
                    f"{path} is of another sweep that was named {self._info.name!r} too; "
                    "move it elsewhere or delete it"
                )
            self._starts[header.trial] = TrialStart.of(header, self._log_scaled)
            self._unbegun.add(header.trial)
            self._waiting.append(path)

    def publish(self) -> None:
        """Publishes what is spooled; a store that does not answer is tried again later.

        What is in training is shown beside the spool.
        """
        self._showcase.show((self._header(self._starts[n]) for n in self._rows), self._rows)
        self._note()
        while self._waiting and self.retry.is_due and self._ledger.retry.is_due:
            path = self._waiting[0]
            try:
                self._publish(path)
            except StoreFullError as error:
                self._last = str(error)
                raise self.waiting_error() from error
            except StoreError as error:
                self._put_off(error)
                return
            except StudyAwayError as error:
                self.say_away(error)
                return
            self._waiting.popleft()
            self._journal.write("published", trial=int(path.stem.rpartition("-")[2]))
            if self.retry.num:
                num, seconds = self.retry.num, round(self.retry.seconds, 1)
                self._journal.write("back", of="store", num=num, seconds=seconds)
            self.retry.answered()

    def drain(self, listen: Callable[[], None], patience: Callable[[], float]) -> None:
        """Publishes everything that waits, giving who is silent a last few chances.

        `patience`: for how many seconds, if that is more. Raises SweepError.
        """
        while True:
            self.publish()
            if not self._waiting:
                return
            retries = (self.retry, self._ledger.retry)
            if any(r.num >= len(RETRY_SECONDS) and r.seconds >= patience() for r in retries):
                raise self.waiting_error()
            listen()
            time.sleep(min(0.5, max(r.wait for r in retries)))

    @property
    def num_waiting(self) -> int:
        """Trials that have ended and are not published and told."""
        return len(self._waiting)

    def uid(self, number: int) -> str:
        """Of a trial, unique across stores."""
        return f"{self._info.sweep_id}/{number}"

    def _publish(self, path: Path) -> None:
        self._check()
        header = records.read(path).header
        number = header.trial
        if number in self._unbegun:
            self._store.begin_trial(self._info.name, self._starts[number])
            self._unbegun.discard(number)
        if path != self._published:
            self._store.publish(self._info.name, path)
            self._published = path
        self._ledger.tell(header)
        self._unnoted.pop(number, None)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        path.unlink()
        self._told(header)

    def _note(self) -> None:
        """How often trials were begun, where the ledger does not know yet."""
        while self._unnoted and self._ledger.retry.is_due:
            number, attempt = next(iter(self._unnoted.items()))
            try:
                self._ledger.note(number, "attempt", attempt)
            except StudyAwayError as error:
                self.say_away(error)
                return
            del self._unnoted[number]

    def _put_off(self, error: StoreError) -> None:
        """Leaves the store alone for a while, longer each time."""
        self.retry.failed()
        self.say_away(error)

    def say_away(self, error: StoreError | StudyAwayError) -> None:
        """Shows who does not answer; training goes on."""
        self._last = str(error)
        of = "store" if isinstance(error, StoreError) else "optuna"
        num = (self.retry if of == "store" else self._ledger.retry).num
        self._journal.write("retry", of=of, num=num, cause=self._last)
        self._say(self._last)
        logging.getLogger("lyapsweep").warning("%s", error)

    def waiting_error(self) -> SweepError:
        """What to say when somebody was silent for too long."""
        return SweepError(
            f"{self._last}; {len(self._waiting)} finished trials are safe in "
            f"{self._home.spool} and `lyapsweep resume {self._info.name}` publishes them"
        )


def state_of(trial: FrozenTrial) -> str:
    """The state in our words of a trial that the sampler was told of."""
    if trial.state == TrialState.FAIL:
        return "failed"
    if trial.state == TrialState.PRUNED:
        return "pruned"
    return "diverged" if trial.user_attrs.get("diverged") else "complete"


def _write_weights(weights: Mapping[str, Any], path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save

    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as sink:
        sink.write(save({name: np.asarray(w, order="C") for name, w in weights.items()}))
        sink.flush()
        os.fsync(sink.fileno())
    # The folder is made to last with the record that follows.
    temporary.replace(path)
