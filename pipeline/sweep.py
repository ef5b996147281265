"""A sweep: ask, plan, train, record, tell; and the same again after any interruption.

One driver process owns everything durable (Optuna, the store, a spool); executors train. For
each trial, in this order, every step idempotent:

1. ask: Optuna has it as RUNNING, its values are fixed, its seed is hash(sweep seed, number);
2. begin: the store has it as running;
3. train, by an executor, to its end or to the rung where the pruner lets it go (which starts
   before 2, so that workers do not wait for the store); meanwhile checkpoints are written;
4. spool: one Parquet file, written atomically; from here on it is never trained again;
5. publish: the store takes the file over;
6. tell: Optuna has its value;
7. unspool.

A driver that dies between any two is replayed by `resume`: what is spooled is published and
told, what is RUNNING without a spool file is trained again with the same values and seed, from
its last checkpoint where there is one (docs/durability.md).
"""

import contextlib
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, urlparse

import optuna
import sqlalchemy.exc

from pipeline import accounting, records
from pipeline.accounting import Progress
from pipeline.asking import Asker
from pipeline.checkpoints import Checkpoints, Resumption
from pipeline.config import SweepConfig
from pipeline.executors.base import Event, Executor, Lost, Raised, Reached, Stopped
from pipeline.home import Home
from pipeline.journal import Journal
from pipeline.lease import Lease
from pipeline.ledger import Ledger, StudyAwayError
from pipeline.plan import Cohort, TrialSpec
from pipeline.provenance import provenance
from pipeline.pruning import PrunerConfig, Referee, Trace
from pipeline.publishing import Ending, Publisher, SweepError, state_of
from pipeline.records import TrialHeader
from pipeline.retrying import RETRY_SECONDS, Retry
from pipeline.snapshot import Snapshot
from pipeline.store import NoSuchSweepError, Store, StoreError, StoreFullError, SweepInfo
from pipeline.train import Rung

_T = TypeVar("_T")

# A diverged trial is told a loss no finished one should reach, so that samplers turn away.
_DIVERGED_FACTOR = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a run of the driver ended: complete, interrupted or failed (with the reason)."""

    state: str
    progress: Progress
    reason: str = ""


Listener = Callable[[Progress], None]


class Driver:
    """Runs one sweep to its end, or to the rung at which it is asked to stop."""

    def __init__(
        self,
        config: SweepConfig,
        info: SweepInfo,
        store: Store,
        home: Home,
        executor: Executor,
        listener: Listener = lambda _: None,
    ) -> None:
        self.config, self.info, self.store = config, info, store
        self.home, self.executor, self._listen = home, executor, listener
        self.progress = Progress(config.trials, config.epochs)
        self._referee: Referee | None = None
        if config.judge is not None and isinstance(config.pruner.config, PrunerConfig):
            self._referee = Referee(config.judge, config.pruner.config.lag or 1)
        self._checkpoints = Checkpoints(home.checkpoints, info.sweep_id, self._say)
        self._saved: dict[int, int] = {}
        """Trial → epoch from which it would be taken up."""
        self._inherited: dict[int, int] = {}
        """Trial → epochs of it that an earlier driver trained."""
        self._lost_times: dict[int, int] = {}
        self._in_flight = 0
        self._pausing: dict[tuple[int, ...], tuple[Cohort, Rung]] = {}

    def request_stop(self) -> None:
        """Ask for no more trials, let those in training come to their next rung."""
        self.progress.is_stopping = True
        self.executor.stop()

    def run(self) -> Outcome:
        """Goes on from wherever the sweep stands. Raises SweepError, LockedError, OSError."""
        with self.home.lock():
            try:
                return self._run_leased()
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
                text = str(getattr(error, "orig", None) or error.__cause__ or error)
                raise SweepError(
                    f"Optuna's database {self.home.optuna_name}: {text.strip().splitlines()[0]}"
                ) from error
            except StudyAwayError as error:
                raise SweepError(
                    f"{error}; what has ended is safe, and `lyapsweep resume {self.info.name}` "
                    "goes on"
                ) from error

    def _run_leased(self) -> Outcome:
        secrets_of = (urlparse(url).password for url in (self.home.optuna_url, self.store.uri))
        hidden = {word for secret in secrets_of if secret for word in (secret, unquote(secret))}
        self._journal = Journal(self.home, sorted(hidden))
        self._lease = Lease(self.store, self.info.name, self._announce)
        self._patiently(self._lease.take)
        self._journal.write(
            "started",
            pid=os.getpid(),
            host=socket.gethostname(),
            executor=type(self.executor).__name__,
            trials=self.config.trials,
        )
        try:
            outcome = self._run()
            self._journal.write("stopped", state=outcome.state, cause=outcome.reason or None)
            return outcome
        except BaseException as error:
            self._journal.write("stopped", state="failed", cause=str(error) or type(error).__name__)
            raise
        finally:
            self._lease.release()

    def _run(self) -> Outcome:
        self._ledger = Ledger(self.home, self.info)
        with contextlib.closing(self._ledger):
            try:
                return self._run_with_ledger()
            except optuna.exceptions.UpdateFinishedTrialError:
                self._lease.check()  # Another driver may have ended the trial.
                raise

    def _run_with_ledger(self) -> Outcome:
        self._ledger.came_back = lambda num, seconds: self._journal.write(
            "back", of="optuna", num=num, seconds=round(seconds, 1)
        )
        self._patiently(lambda: self._set_state("running"))
        self._publisher = Publisher(
            self.config,
            self.info,
            self.store,
            self.home,
            self._ledger,
            provenance=provenance(),
            check=self._lease.check,
            told=self._told,
            say=self._say,
            journal=self._journal,
        )
        planned = self._referee.add if self._referee else lambda _: None
        self._asker = Asker(self.config, self._ledger, planned, whole=self._referee is not None)
        self._reconcile()
        while True:
            self._lease.check_patiently()
            reason = self._too_many_failed()
            if reason:
                return self._end("failed", reason)
            self._fill_slots()
            if not self._in_flight and (self.progress.is_stopping or not self._asker.queue):
                # An adaptive sampler may have waited for what only now is told.
                self._drain()
                if self.progress.is_stopping or not self._patiently(self._ask_now):
                    break
                continue
            for event in self.executor.poll(timeout=0.2):
                self._handle(event)
            self._answer_pauses()
            self._publisher.publish()
            if self._ledger.retry.seconds > self._patience():
                raise self._publisher.waiting_error()
            self._listen(self.progress)
            reason = self._too_many_failed()
            if reason:
                return self._end("failed", reason)
        if self.progress.finished < self.progress.total:
            return self._end("interrupted", "stopped before all trials were done")
        return self._end("complete", "")

    def _reconcile(self) -> None:
        """Replays what an earlier driver left behind."""
        self._publisher.adopt_spool()
        trials = self._patiently(self._ledger.trials)
        if not trials and self.store.states(self.info.name):
            raise SweepError(
                f"the store has trials of {self.info.name!r} of which Optuna's database "
                f"{self.home.optuna_name} knows nothing; go on from the folder in which the sweep "
                "was started, or set LYAPSWEEP_HOME or LYAPSWEEP_OPTUNA to what was used there"
            )
        if self._drain():
            trials = self._patiently(self._ledger.trials)
        finished = [frozen for frozen in trials if frozen.state.is_finished()]
        for frozen in finished:
            epochs = int(frozen.user_attrs.get("epochs", self.config.epochs))
            self.progress.count(state_of(frozen), frozen.number, frozen.value, epochs)
        self.progress.epochs_before = self.progress.epochs_ended
        self.progress.epochs_again = accounting.load_again(self.home)
        if self._referee and finished:
            for record in self.store.records(self.info.name):
                self._referee.restore(_trace(record, self._referee.pruner.quantities))
        self._patiently(lambda: self._asker.resume(trials))
        self._checkpoints.drop_all_but(self._asker.queue)

    def _fill_slots(self) -> None:
        submitted: list[tuple[Cohort, Resumption | None]] = []
        while not self.progress.is_stopping and self._in_flight < self.executor.num_slots:
            if not self._asker.queue and not self._ask():
                break
            cohort = self._asker.queue.popleft()
            due = [spec.number for spec in self._asker.due_of(cohort)]
            point = self._checkpoints.load(cohort, due)
            if point is not None:
                self._say(f"trials {due[0]} to {due[-1]} go on from epoch {point.snapshot.epoch}")
            self.executor.submit(cohort, None if point is None else point.snapshot)
            self._in_flight += 1
            epoch = 0 if point is None else point.snapshot.epoch
            self._journal.write("training", trials=due, epoch=epoch)
            submitted.append((cohort, point))
        # While they train: nothing of a trial is recorded before the next poll.
        for cohort, point in submitted:
            for spec in self._asker.due_of(cohort):
                self._begin(spec, point)

    def _ask(self) -> bool:
        """False where there is no next batch, or Optuna's database is silent: training goes on."""
        if not self._ledger.retry.is_due:
            return False
        try:
            return self._ask_now()
        except StudyAwayError as error:
            self._publisher.say_away(error)
            return False

    def _ask_now(self) -> bool:
        before = len(self._asker.attempts)
        is_asked = self._asker.ask()
        if is_asked:
            self._journal.write("asked", count=len(self._asker.attempts) - before)
        return is_asked

    def _drain(self) -> int:
        """Publishes and tells all that waits; returns how much that was."""
        num = self._publisher.num_waiting
        self._publisher.drain(lambda: self._listen(self.progress), self._patience)
        return num

    def _set_state(self, state: str) -> None:
        self._lease.check()
        self.store.set_state(self.info.name, state)

    def _patience(self) -> float:
        """Seconds to wait for who is silent. Whoever asks for a stop wants no long wait."""
        return 0.0 if self.progress.is_stopping else self.config.execution.patience

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Calls until store and ledger answer. For when nothing trains meanwhile."""
        retry = Retry()
        while True:
            try:
                return call()
            except (StoreFullError, NoSuchSweepError):
                raise
            except (StoreError, StudyAwayError) as error:
                retry.failed()
                if retry.num >= len(RETRY_SECONDS) and retry.seconds >= self._patience():
                    raise
                self._announce(str(error))
                time.sleep(retry.wait)

    def _begin(self, spec: TrialSpec, point: Resumption | None) -> None:
        number = spec.number
        start = self._publisher.begin(spec, self._asker.attempts[number], point)
        self._stand(number, 0 if point is None else point.snapshot.epoch)
        if self._referee:
            self._referee.begin(number, start.params)
            rows = [] if point is None else point.rows[number]
            for row in rows:
                if row.quantity == "val_loss":
                    seen = rows if row.epoch == 0 else []
                    self._referee.see(number, row.epoch, float(row.values), seen)

    def _stand(self, number: int, epoch: int) -> None:
        """A trial is trained on from an epoch; what of it was trained beyond is so again."""
        before = self._inherited.get(number)
        inherited = epoch if before is None else min(before, epoch)
        self.progress.epochs_before += inherited - (before or 0)
        self.progress.epochs_again += max(0, self._saved.get(number, 0) - epoch)
        self.progress.running[number] = self._saved[number] = epoch
        self._inherited[number] = inherited

    # Events.

    def _handle(self, event: Event) -> None:
        match event:
            case Reached(cohort, rung):
                self._take(cohort, rung)
            case Raised(cohort, traceback):
                self._in_flight -= 1
                self._checkpoints.drop(cohort)
                due = self._asker.due_of(cohort)
                if len(cohort.trials) > 1:
                    # Which member raised is unknown: try each alone, the others must not suffer.
                    for spec in due:
                        self._forget(spec.number)
                    self._asker.again_alone(due)
                else:
                    self._fail(cohort.trials[0], traceback)
            case Lost(cohort, reason):
                self._in_flight -= 1
                self._lose(cohort, reason)
            case Stopped(cohort):
                self._in_flight -= 1
                self._pausing.pop(cohort.numbers, None)
                for spec in self._asker.due_of(cohort):
                    self._interrupt(spec.number, "stopped by the user")

    def _take(self, cohort: Cohort, rung: Rung) -> None:
        """Records what came of a cohort's members at a rung, and who ends there."""
        due = self._asker.due_of(cohort)
        if rung.refused:
            self._start_over(cohort, rung.refused)
        if rung.epoch > 0 and not rung.is_resumed:
            trained = sum(1 for number in cohort.numbers if rung.rows[number])
            self.progress.epochs_again += trained - len(due)
        for spec in due:
            number = spec.number
            self._publisher.add(number, rung.rows[number])
            self.progress.running[number] = rung.epoch
            if self._referee:
                loss = rung.val_loss[number]
                self._referee.see(number, rung.epoch, loss, rung.rows[number])
        if rung.is_last:
            self._in_flight -= 1
        for spec in due:
            if rung.is_last or spec.number in rung.diverged_at:
                self._finish(spec, rung)
        if rung.is_last:
            self._checkpoints.drop(cohort)
        elif rung.snapshot is not None:
            self._save(cohort, rung.snapshot)
        if not rung.is_last and rung.epoch in cohort.pauses:
            self._pausing[cohort.numbers] = cohort, dataclasses.replace(rung, snapshot=None)

    def _save(self, cohort: Cohort, snapshot: Snapshot) -> None:
        """Writes down where a cohort stands, now that those who ended there are spooled."""
        numbers = [spec.number for spec in self._asker.due_of(cohort)]
        rows, begun = self._publisher.rows(numbers), self._publisher.start_ms(numbers)
        if numbers and self._checkpoints.keep(cohort, snapshot, rows, begun):
            for number in numbers:
                self._saved[number] = snapshot.epoch
                # Whoever comes further each time may be lost as often as it likes.
                self._lost_times.pop(number, None)

    def _start_over(self, cohort: Cohort, reason: str) -> None:
        """A worker could not go on from a checkpoint, and has begun from the beginning."""
        self._checkpoints.refuse(cohort, reason)
        for spec in self._asker.due_of(cohort):
            start = self._publisher.start_over(spec.number)
            self._stand(spec.number, 0)
            if self._referee:
                self._referee.begin(spec.number, start.params)

    def _answer_pauses(self) -> None:
        """Tells pausing cohorts who leaves, as soon as that can be said.

        One that is released may be what another waits for. Those that pause while the sweep is
        stopped are stopped by the executor.
        """
        assert self._referee or not self._pausing
        is_changed = True
        while self._referee and is_changed and not self.progress.is_stopping:
            is_changed = False
            for cohort, rung in list(self._pausing.values()):
                leaving = self._referee.decide(cohort, rung.epoch)
                if leaving is None:
                    continue
                is_changed = True
                del self._pausing[cohort.numbers]
                for spec in self._asker.due_of(cohort):
                    if spec.number in leaving:
                        self._prune(spec, rung)
                if self._asker.due_of(cohort):
                    self.executor.advance(cohort, leaving)
                else:
                    self._in_flight -= 1
                    self._checkpoints.drop(cohort)
                    self.executor.release(cohort)

    def _lose(self, cohort: Cohort, reason: str) -> None:
        self.progress.last = f"worker lost ({reason}); its trials are tried again"
        due = [spec.number for spec in self._asker.due_of(cohort)]
        self._journal.write("lost", trials=due, cause=reason)
        again = []
        for spec in self._asker.due_of(cohort):
            lost = self._lost_times
            lost[spec.number] = lost.get(spec.number, 0) + 1
            if lost[spec.number] >= self.config.execution.attempts:
                self._fail(spec, f"worker lost {lost[spec.number]} times, last: {reason}")
            else:
                again.append(spec)
        if self.progress.is_stopping:
            for spec in again:
                self._interrupt(spec.number, "worker lost while stopping")
        elif again:
            for spec in again:
                self._forget(spec.number)
            if max(self._lost_times[s.number] for s in again) == 1:
                self._asker.again(cohort)
            else:
                # Not from the checkpoint, which may be what no worker survives.
                self._checkpoints.drop(cohort)
                self._asker.again_alone(again)

    def _forget(self, number: int) -> None:
        """An attempt at a trial comes to nothing beyond its last checkpoint."""
        if number in self.progress.running:
            epoch = self.progress.running.pop(number)
            self.progress.epochs_again += epoch - self._saved.get(number, 0)

    def _interrupt(self, number: int, reason: str) -> None:
        self._forget(number)
        self._publisher.interrupt(number, reason)

    # Endings.

    def _finish(self, spec: TrialSpec, rung: Rung) -> None:
        diverged_at = rung.diverged_at.get(spec.number)
        chance = float(rung.provenance.get("chance_loss", 1.0))
        self._close(
            spec,
            Ending(
                state="complete" if diverged_at is None else "diverged",
                value=rung.val_loss[spec.number]
                if diverged_at is None
                else _DIVERGED_FACTOR * chance,
                epochs=rung.epoch,
                diverged_at=diverged_at,
                provenance=rung.provenance,
                weights=rung.weights.get(spec.number),
            ),
        )

    def _prune(self, spec: TrialSpec, rung: Rung) -> None:
        self._close(
            spec,
            Ending(
                state="pruned",
                value=rung.val_loss[spec.number],
                epochs=rung.epoch,
                pruned_at=rung.epoch,
                provenance=rung.provenance,
            ),
        )

    def _fail(self, spec: TrialSpec, error: str) -> None:
        epochs = self.progress.running.get(spec.number, 0)
        self._close(spec, Ending(state="failed", value=None, epochs=epochs, error=error))
        self.progress.last = f"trial {spec.number} failed: {error.strip().splitlines()[-1]}"

    def _close(self, spec: TrialSpec, ending: Ending) -> None:
        self._publisher.end(spec.number, ending)
        self.progress.running.pop(spec.number, None)
        self._asker.done(spec.number)
        if self._referee:
            self._referee.end(spec.number, ending.state, ending.value)

    def _told(self, header: TrialHeader) -> None:
        self._asker.told(header)
        if header.trial in self._asker.attempts:
            epochs = self.config.epochs if header.epochs is None else header.epochs
            self.progress.count(header.state, header.trial, header.value, epochs)

    def _say(self, line: str) -> None:
        self.progress.last = line

    def _announce(self, line: str) -> None:
        """Shows a line while nothing else happens."""
        self._journal.write("note", text=line)
        self._say(line)
        logging.getLogger("lyapsweep").warning("%s", line)
        self._listen(self.progress)

    def _too_many_failed(self) -> str:
        share = self.config.execution.max_failed_share
        failed = self.progress.failed
        if failed and failed > share * self.progress.total:
            return (
                f"{failed} of {self.progress.total} trials raised, more than "
                f"execution.max_failed_share = {share:g} allows; {self.progress.last}"
            )
        return ""

    def _end(self, state: str, reason: str) -> Outcome:
        if state == "failed":
            self.executor.stop()
        queued = [spec.number for c in self._asker.queue for spec in self._asker.due_of(c)]
        for number in [*self.progress.running, *queued]:
            self._interrupt(number, reason)
        accounting.save_again(self.home, self.progress.epochs_again)
        self._patiently(lambda: self._set_state(state))
        self._listen(self.progress)
        return Outcome(state, self.progress, reason)


def _trace(record: records.TrialRecord, quantities: tuple[str, ...]) -> Trace:
    header = record.header
    names = set(record.table["quantity"].unique().to_pylist())
    wanted = [n for n in names if any(n == q or n.startswith(f"{q}.") for q in quantities)]
    losses = records.to_rows(record.table, ["val_loss"])
    return Trace(
        number=header.trial,
        params=header.params,
        losses={row.epoch: float(row.values) for row in losses},
        rows=records.to_rows(record.table, wanted) if wanted else [],
        state=header.state,
        value=header.value,
    )
