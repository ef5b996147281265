"""A sweep: ask, plan, train, record, tell; and the same again after any interruption.

One driver process owns everything durable (Optuna, the store, a spool); executors train. For
each trial, in this order, every step idempotent:

1. ask: Optuna has it as RUNNING, its values are fixed, its seed is hash(sweep seed, number);
2. begin: the store has it as running;
3. train, by an executor;
4. spool: one Parquet file, written atomically; from here on it is never trained again;
5. publish: the store takes the file over;
6. tell: Optuna has its value;
7. unspool.

A driver that dies between any two is replayed by `resume`: what is spooled is published and
told, what is RUNNING without a spool file is trained again with the same values and seed.
"""

import contextlib
import dataclasses
import logging
import platform
import secrets
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
import torch
from optuna.trial import Trial, TrialState

from pipeline import records, sampling
from pipeline.config import Execution, SweepConfig, check
from pipeline.executors.base import Event, Executor, Lost, Raised, Reached, Stopped
from pipeline.home import Home
from pipeline.plan import Cohort, TrialSpec, plan
from pipeline.records import TrialHeader, TrialRecord
from pipeline.rows import Row
from pipeline.store import (
    NameInUseError,
    NoSuchSweepError,
    Store,
    StoreError,
    StoreFullError,
    SweepInfo,
    TrialStart,
)
from pipeline.train import build, diagnostics_of
from tasks.base import UnsuitableError

_RETRY_SECONDS = (0.5, 1, 2, 4, 8, 15, 30)
# A diverged trial is told a loss no finished one should reach, so that samplers turn away.
_DIVERGED_FACTOR = 10.0


class SweepError(RuntimeError):
    """The sweep cannot go on; what was measured so far is safe."""


@dataclass
class Progress:
    """What a sweep is doing, for whoever watches.

    Attributes:
        total: trials the design asks for.
        running: trial number → epoch it has reached.
        complete, diverged, failed: finished trials.
        best: lowest final validation loss so far and its trial, or None.
        epochs_each: of every trial, for the remaining time.
        last: a line about the latest event.
    """

    total: int
    epochs_each: int
    running: dict[int, int] = field(default_factory=dict)
    complete: int = 0
    diverged: int = 0
    failed: int = 0
    best: tuple[float, int] | None = None
    started: float = field(default_factory=time.monotonic)
    finished_before: int = 0
    is_stopping: bool = False
    last: str = ""

    @property
    def finished(self) -> int:
        """Trials that need no more training."""
        return self.complete + self.diverged + self.failed

    @property
    def eta_seconds(self) -> float | None:
        """Remaining seconds by the rate so far, or None before the first epoch."""
        done = (self.finished - self.finished_before) * self.epochs_each
        done += sum(self.running.values())
        left = (self.total - self.finished) * self.epochs_each - sum(self.running.values())
        elapsed = time.monotonic() - self.started
        return elapsed / done * left if done else None


@dataclass(frozen=True)
class Outcome:
    """How a run of the driver ended: complete, interrupted or failed (with the reason)."""

    state: str
    progress: Progress
    reason: str = ""


Listener = Callable[[Progress], None]


def preflight(config: SweepConfig) -> None:
    """Builds a network at the first and the last end of each range, and checks measurements.

    Raises UnsuitableError, MissingDataError: before anything is created anywhere.
    """
    limits = config.limits
    _check_device(config.execution)
    if config.execution.executor == "ray":
        # The workers' devices may not be this machine's.
        limits = dataclasses.replace(limits, device="cpu")
    first = {path: r.ends()[0] for path, r in config.space.items()}
    seen = set()
    for changed in ({}, *({path: r.ends()[-1]} for path, r in config.space.items())):
        spec = config.spec(0, {**first, **changed})
        if repr(spec) in seen:
            continue
        seen.add(repr(spec))
        cohort = plan([spec], limits)[0]
        population = build(cohort)
        diagnostics_of(cohort, population.network, population.task)


def _check_device(execution: Execution) -> None:
    kind, _, index = execution.device.partition(":")
    numbered = index.isdigit() if ":" in execution.device else True
    if kind not in ("cpu", "cuda") or not numbered or (kind == "cpu" and index):
        raise UnsuitableError(
            f"execution.device must be cpu, cuda or cuda:N, got {execution.device!r}"
        )
    if execution.executor == "ray":
        if index:
            raise UnsuitableError(
                "execution.device must be cpu or cuda with the executor ray, which gives every "
                f"worker its own GPU, got {execution.device!r}"
            )
    elif kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UnsuitableError(
            f"execution.device is {execution.device!r}, but torch sees "
            f"{torch.cuda.device_count()} CUDA devices here"
        )


def check_free(name: str, store: Store) -> None:
    """Raises NameInUseError where the store has a sweep of this name."""
    try:
        store.sweep(name)
    except NoSuchSweepError:
        return
    raise NameInUseError(f"a sweep named {name!r} exists already; `lyapsweep resume {name}`?")


def create(config: SweepConfig, name: str, store: Store) -> SweepInfo:
    """Makes a sweep known to the store. Raises NameInUseError."""
    info = SweepInfo(
        name=name,
        sweep_id=secrets.token_hex(8),
        config=config.tree,
        config_hash=config.hash,
        num_trials=config.trials,
        created_ms=_now_ms(),
        provenance=_provenance(),
    )
    store.create_sweep(info)
    return info


def stored_config(info: SweepInfo) -> SweepConfig:
    """The configuration a sweep was created with, checked again."""
    return check(info.config, source=f"sweep {info.name!r}")


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
        epochs = config.spec(0, {p: r.ends()[0] for p, r in config.space.items()}).trainer.epochs
        self.progress = Progress(config.trials, epochs)
        # Of this driver: one that resumes may be another version on another machine.
        self._provenance = _provenance()
        self._trials: dict[int, Trial] = {}
        self._specs: dict[int, TrialSpec] = {}
        self._starts: dict[int, TrialStart] = {}
        self._rows: dict[int, list[Row]] = {}
        self._attempts: dict[int, int] = {}
        self._lost_times: dict[int, int] = {}
        self._queue: deque[Cohort] = deque()
        self._in_flight = 0
        self._open_in_batch: set[int] = set()
        self._due: set[int] = set()
        self._unbegun: set[int] = set()
        self._waiting: deque[Path] = deque()
        self._retry_at, self._retries = 0.0, 0

    def request_stop(self) -> None:
        """Ask for no more trials, let those in training come to their next rung."""
        self.progress.is_stopping = True
        self.executor.stop()

    def run(self) -> Outcome:
        """Goes on from wherever the sweep stands. Raises SweepError, LockedError, OSError."""
        with self.home.lock():
            try:
                return self._run()
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
                text = str(getattr(error, "orig", None) or error.__cause__ or error)
                raise SweepError(
                    f"Optuna's database {self.home.optuna_url}: {text.strip().splitlines()[0]}"
                ) from error

    def _run(self) -> Outcome:
        self.study = _open_study(self.home, self.info)
        self.store.set_state(self.info.name, "running")
        self._reconcile()
        while True:
            reason = self._too_many_failed()
            if reason:
                return self._end("failed", reason)
            self._fill_slots()
            if not self._in_flight and (self.progress.is_stopping or not self._queue):
                # An adaptive sampler may have waited for what only now is told.
                self._drain()
                if self.progress.is_stopping or not self._ask():
                    break
                continue
            for event in self.executor.poll(timeout=0.2):
                self._handle(event)
            self._publish_waiting()
            self._listen(self.progress)
            reason = self._too_many_failed()
            if reason:
                return self._end("failed", reason)
        if self.progress.finished < self.progress.total:
            return self._end("interrupted", "stopped before all trials were done")
        return self._end("complete", "")

    # Asking and planning.

    def _reconcile(self) -> None:
        """Replays what an earlier driver left behind."""
        self.study.sampler = self._sampler(0)
        for path in self.home.spooled():
            record = records.read(path)
            if record.header.trial_uid != self._uid(record.header.trial):
                raise SweepError(
                    f"{path} is of another sweep that was named {self.info.name!r} too; "
                    "move it elsewhere or delete it"
                )
            self._specs_of(record)
            self._waiting.append(path)
        trials = self.study.get_trials(deepcopy=False)
        if not trials and self.store.states(self.info.name):
            raise SweepError(
                f"the store has trials of {self.info.name!r} of which Optuna's database "
                f"{self.home.optuna_url} knows nothing; go on from the folder in which the sweep "
                "was started, or set LYAPSWEEP_HOME or LYAPSWEEP_OPTUNA to what was used there"
            )
        self._drain()
        left, finished = [], []
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state.is_finished():
                self._count(frozen)
                finished.append(frozen)
            else:
                left.append(frozen)
        self.progress.finished_before = self.progress.finished
        # A batch that was asked for in part is completed first, so that it is planned as a whole.
        num_asked, size = len(left) + len(finished), self.config.batch_size
        missing = min(-num_asked % size, self.config.trials - num_asked)
        if left or missing:
            first = left[0].number if left else num_asked
            self.study.sampler = self._sampler(first - first % size)
            again = [Trial(self.study, frozen._trial_id) for frozen in left]
            self._enqueue([*again, *(self.study.ask() for _ in range(missing))], finished)

    def _fill_slots(self) -> None:
        while not self.progress.is_stopping and self._in_flight < self.executor.num_slots:
            if not self._queue and not self._ask():
                return
            cohort = self._queue.popleft()
            for spec in self._due_of(cohort):
                self._begin(spec.number)
            self.executor.submit(cohort)
            self._in_flight += 1

    def _ask(self) -> bool:
        """Asks for the next batch. False where there is none, or none yet."""
        first = len(self.study.get_trials(deepcopy=False))
        if first >= self.config.trials:
            return False
        if self.config.sampler.is_adaptive and self._open_in_batch:
            return False
        self.study.sampler = self._sampler(first)
        count = min(self.config.batch_size, self.config.trials - first)
        self._enqueue([self.study.ask() for _ in range(count)])
        return True

    def _enqueue(
        self, trials: Sequence[Trial], finished: Sequence[optuna.trial.FrozenTrial] = ()
    ) -> None:
        """Plans trials, batch by batch as they were asked for.

        Trials that an earlier driver finished keep their places: how many train together shows
        in the last bits, and a sweep that was interrupted shall equal one that was not. They
        are trained along where a cohort-mate is due, and nothing is recorded of them.
        """
        for trial in trials:
            values = sampling.suggest(trial, self.config.space)
            spec = self.config.spec(trial.number, values)
            self._trials[trial.number], self._specs[trial.number] = trial, spec
        self._open_in_batch = {trial.number for trial in trials}
        self._due |= self._open_in_batch
        size = self.config.batch_size
        for batch in sorted({trial.number // size for trial in trials}):
            specs = {t.number: self._specs[t.number] for t in trials if t.number // size == batch}
            for frozen in finished:
                if frozen.number // size == batch:
                    specs[frozen.number] = self.config.spec(frozen.number, frozen.params)
            cohorts = plan([specs[number] for number in sorted(specs)], self.config.limits)
            self._queue.extend(cohort for cohort in cohorts if self._due_of(cohort))

    def _due_of(self, cohort: Cohort) -> list[TrialSpec]:
        """The trials of a cohort that are still to be recorded."""
        return [spec for spec in cohort.trials if spec.number in self._due]

    def _sampler(self, first_number: int) -> optuna.samplers.BaseSampler:
        return sampling.make_sampler(
            self.config.sampler,
            self.config.space,
            seed=self.config.seed,
            first_number=first_number,
        )

    def _begin(self, number: int) -> None:
        spec, trial = self._specs[number], self._trials[number]
        if number not in self._attempts:
            self._attempts[number] = int(trial.user_attrs.get("attempt", 0))
        self._attempts[number] += 1
        trial.set_user_attr("attempt", self._attempts[number])
        self._rows[number] = []
        self._starts[number] = TrialStart(
            number=number,
            uid=self._uid(number),
            seed=spec.seed,
            params=self.config.params(spec),
            sampled=tuple(self.config.space),
            start_ms=_now_ms(),
            attempt=self._attempts[number],
            log_scaled=self._log_scaled,
        )
        self.progress.running[number] = 0
        # While the store is silent the trial can train; publishing begins it once it answers.
        self._unbegun.add(number)
        if time.monotonic() >= self._retry_at:
            try:
                self.store.begin_trial(self.info.name, self._starts[number])
                self._unbegun.discard(number)
            except StoreError as error:
                self._put_off(error)

    # Events.

    def _handle(self, event: Event) -> None:
        match event:
            case Reached(cohort, rung):
                for spec in self._due_of(cohort):
                    self._rows[spec.number] += rung.rows[spec.number]
                    self.progress.running[spec.number] = rung.epoch
                if rung.is_last:
                    self._in_flight -= 1
                    for spec in self._due_of(cohort):
                        self._finish(spec, rung)
            case Raised(cohort, traceback):
                self._in_flight -= 1
                if len(cohort.trials) > 1:
                    # Which member raised is unknown: try each alone, the others must not suffer.
                    self._requeue_alone(cohort)
                else:
                    self._fail(cohort.trials[0], traceback)
            case Lost(cohort, reason):
                self._in_flight -= 1
                self._lose(cohort, reason)
            case Stopped(cohort):
                self._in_flight -= 1
                for spec in self._due_of(cohort):
                    self._interrupt(spec.number, "stopped by the user")

    def _requeue_alone(self, cohort: Cohort) -> None:
        for spec in reversed(self._due_of(cohort)):
            self.progress.running.pop(spec.number, None)
            self._queue.extendleft(plan([spec], self.config.limits))

    def _lose(self, cohort: Cohort, reason: str) -> None:
        self.progress.last = f"worker lost ({reason}); its trials are tried again"
        again = []
        for spec in self._due_of(cohort):
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
                self.progress.running.pop(spec.number, None)
            if max(self._lost_times[s.number] for s in again) == 1:
                self._queue.append(cohort)
            else:
                for spec in again:
                    self._queue.extend(plan([spec], self.config.limits))

    def _interrupt(self, number: int, reason: str) -> None:
        self.progress.running.pop(number, None)
        with contextlib.suppress(StoreError):
            self.store.interrupt_trial(self.info.name, number, reason)

    # Recording.

    def _finish(self, spec: TrialSpec, rung: Any) -> None:
        diverged_at = rung.diverged_at.get(spec.number)
        chance = float(rung.provenance.get("chance_loss", 1.0))
        value = rung.val_loss[spec.number] if diverged_at is None else _DIVERGED_FACTOR * chance
        self._spool(
            spec,
            state="complete" if diverged_at is None else "diverged",
            value=value,
            diverged_at=diverged_at,
            provenance=rung.provenance,
            weights=rung.weights.get(spec.number),
        )

    def _fail(self, spec: TrialSpec, error: str) -> None:
        self._spool(spec, state="failed", value=None, error=error)
        self.progress.last = f"trial {spec.number} failed: {error.strip().splitlines()[-1]}"

    def _spool(
        self,
        spec: TrialSpec,
        *,
        state: records.TrialState,
        value: float | None,
        diverged_at: int | None = None,
        error: str | None = None,
        provenance: dict[str, Any] | None = None,
        weights: dict[str, Any] | None = None,
    ) -> None:
        number, start = spec.number, self._starts[spec.number]
        header = TrialHeader(
            sweep=self.info.name,
            trial=number,
            trial_uid=start.uid,
            seed=start.seed,
            state=state,
            params=start.params,
            sampled=start.sampled,
            value=value,
            diverged_at=diverged_at,
            attempt=start.attempt,
            start_ms=start.start_ms,
            end_ms=_now_ms(),
            error=error,
            provenance={**self._provenance, **(provenance or {})},
        )
        path = self.home.spool_path(number)
        if weights is not None:
            _write_weights(weights, path.with_suffix(".safetensors"))
        table = records.to_table(self.info.name, number, self._rows.pop(number, []))
        records.write(TrialRecord(header, table), path)
        self.progress.running.pop(number, None)
        self._due.discard(number)
        self._waiting.append(path)
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        """Publishes what is spooled; a store that does not answer is tried again later."""
        if time.monotonic() < self._retry_at:
            return
        while self._waiting:
            path = self._waiting[0]
            try:
                self._publish(path)
            except StoreFullError as error:
                self.progress.last = str(error)
                raise self._waiting_error() from error
            except StoreError as error:
                self._put_off(error)
                return
            self._waiting.popleft()
            self._retries = 0

    def _put_off(self, error: StoreError) -> None:
        """Leaves the store alone for a while, longer each time."""
        delay = _RETRY_SECONDS[min(self._retries, len(_RETRY_SECONDS) - 1)]
        self._retry_at, self._retries = time.monotonic() + delay, self._retries + 1
        self.progress.last = str(error)
        logging.getLogger("lyapsweep").warning("%s", error)

    def _publish(self, path: Path) -> None:
        header = records.read(path).header
        number = header.trial
        if number in self._unbegun:
            self.store.begin_trial(self.info.name, self._starts[number])
            self._unbegun.discard(number)
        self.store.publish(self.info.name, path)
        if header.state == "failed":
            self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        else:
            if header.state == "diverged":
                self._mark_diverged(number)
            self.study.tell(number, header.value, skip_if_finished=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        path.unlink()
        self._open_in_batch.discard(number)
        if number in self._trials:
            self._count_state(header.state, number, header.value)

    def _mark_diverged(self, number: int) -> None:
        trial = self._trials.get(number)
        if trial is None:
            frozen = self.study.get_trials(deepcopy=False)[number]
            if frozen.state.is_finished():
                return
            trial = Trial(self.study, frozen._trial_id)
        trial.set_user_attr("diverged", True)

    def _drain(self) -> None:
        """Publishes everything that waits, giving a silent store a last few chances."""
        for _ in range(len(_RETRY_SECONDS)):
            self._publish_waiting()
            if not self._waiting:
                return
            self._listen(self.progress)
            time.sleep(max(0.0, self._retry_at - time.monotonic()))
        raise self._waiting_error()

    def _waiting_error(self) -> SweepError:
        return SweepError(
            f"{self.progress.last}; {len(self._waiting)} finished trials are safe in "
            f"{self.home.spool} and `lyapsweep resume {self.info.name}` publishes them"
        )

    def _specs_of(self, record: TrialRecord) -> None:
        """Makes a spooled trial of an earlier driver publishable by this one."""
        header = record.header
        self._starts[header.trial] = TrialStart(
            number=header.trial,
            uid=header.trial_uid,
            seed=header.seed,
            params=header.params,
            sampled=header.sampled,
            start_ms=header.start_ms,
            attempt=header.attempt,
            log_scaled=self._log_scaled,
        )
        self._unbegun.add(header.trial)

    # Counting and ending.

    def _count(self, frozen: optuna.trial.FrozenTrial) -> None:
        if frozen.state == TrialState.FAIL:
            state = "failed"
        else:
            state = "diverged" if frozen.user_attrs.get("diverged") else "complete"
        self._count_state(state, frozen.number, frozen.value)

    def _count_state(self, state: str, number: int, value: float | None) -> None:
        progress = self.progress
        if state == "failed":
            progress.failed += 1
        elif state == "diverged":
            progress.diverged += 1
        else:
            progress.complete += 1
            if value is not None and (progress.best is None or value < progress.best[0]):
                progress.best = (value, number)

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
        queued = [spec.number for cohort in self._queue for spec in self._due_of(cohort)]
        for number in [*self.progress.running, *queued]:
            self._interrupt(number, reason)
        self.store.set_state(self.info.name, state)
        self._listen(self.progress)
        return Outcome(state, self.progress, reason)

    @property
    def _log_scaled(self) -> tuple[str, ...]:
        return tuple(path for path, r in self.config.space.items() if r.is_log)

    def _uid(self, number: int) -> str:
        return f"{self.info.sweep_id}/{number}"


def _provenance() -> dict[str, Any]:
    """Versions, host and git state, for the record."""
    packages = ("lyapsweep", "torch", "ray", "optuna", "mlflow", "pyarrow", "numpy", "pandas")
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[f"version_{package}"] = version(package)
    return {**found, **_git_state()}


def _git_state() -> dict[str, Any]:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        return {
            # Fails where we lie, installed, inside a project of somebody else's.
            "git_sha": git("ls-files", "--error-unmatch", "sweep.py") and git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


def _open_study(home: Home, info: SweepInfo) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options: dict[str, Any] = {}
    if home.optuna_url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 30}
    storage = optuna.storages.RDBStorage(home.optuna_url, engine_kwargs=options)
    return optuna.create_study(
        storage=storage,
        study_name=f"{info.name}-{info.sweep_id}",
        direction="minimize",
        load_if_exists=True,
    )


def _write_weights(weights: dict[str, Any], path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    temporary = path.with_name(f"{path.name}.tmp")
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, temporary)
    temporary.replace(path)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
