"""The sweep's study in Optuna's database: which trials were asked for, and how they ended.

Values are drawn in memory (`pipeline.asking`); here a trial is written with all of them in one
transaction, and so is its end. A database that does not answer is a StudyAwayError, after which
the same call may be repeated as often as it takes: what it may have done unheard is found first.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlparse

import optuna
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import (
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
    TimeoutError,
)

from pipeline.home import Home
from pipeline.records import TrialHeader
from pipeline.retrying import Retry
from pipeline.store import SweepInfo, hide_password

# A server that is gone without a word is given up after half a minute, not after two hours.
_POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
_SILENCE = (OperationalError, InterfaceError, PendingRollbackError, TimeoutError)


class StudyAwayError(RuntimeError):
    """Optuna's database does not answer just now; the call can be repeated."""


class Ledger:
    """One sweep's study, made where it is not there. Only one driver writes it.

    Raises of every method: StudyAwayError; SQLAlchemyError, OptunaError where asking again is no
    use. The constructor raises the latter two alone.

    Attributes:
        retry: how long the database has been silent.
    """

    def __init__(self, home: Home, info: SweepInfo) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._url, self.retry = home.optuna_url, Retry()
        self._name = home.optuna_name
        self._storage = _Storage(self._url, engine_kwargs=_options(self._url))
        name = f"{info.name}-{info.sweep_id}"
        try:
            self._study = self._storage.create_new_study([StudyDirection.MINIMIZE], name)
        except DuplicatedStudyError:
            self._study = self._storage.get_study_id_from_name(name)
        sqlalchemy.event.listen(self._storage.engine, "handle_error", self._translate)
        self._ids: dict[int, int] = {}
        self._is_unsure = False
        self.came_back: Callable[[int, float], None] = lambda num, seconds: None
        """Called when it answers again: after how many failures, and seconds."""

    def close(self) -> None:
        """Gives its connections back."""
        self._storage.engine.dispose()

    def trials(self) -> list[FrozenTrial]:
        """All there are, by number."""
        with self._asking():
            found = self._storage.get_all_trials(self._study, deepcopy=False)
        self._ids = {t.number: t._trial_id for t in found if not t.state.is_finished()}
        return sorted(found, key=lambda trial: trial.number)

    def ask(self, number: int, drawn: FrozenTrial) -> None:
        """Writes down that trial `number` is asked for, with its values. Once is enough."""
        if number in self._ids:
            return
        with self._asking():
            if self._is_unsure:
                with contextlib.suppress(KeyError):
                    self._ids[number] = self._find(number)
                    self._is_unsure = False
                    return
            self._is_unsure = True
            self._storage.expected = number
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=drawn.params,
                distributions=drawn.distributions,
                system_attrs=drawn.system_attrs,
            )
            self._ids[number] = self._storage.create_new_trial(self._study, template)
            self._is_unsure = False

    def fill(self, trial: FrozenTrial, drawn: FrozenTrial) -> None:
        """Gives a trial the values it lacks: earlier versions wrote them one by one."""
        with self._asking():
            for name in drawn.params.keys() - self._storage.get_trial(trial._trial_id).params:
                distribution = drawn.distributions[name]
                internal = distribution.to_internal_repr(drawn.params[name])
                self._storage.set_trial_param(trial._trial_id, name, internal, distribution)

    def note(self, number: int, key: str, value: int) -> None:
        """Keeps an attribute of a trial that has not ended."""
        with self._asking():
            self._storage.set_trial_user_attr(self._id(number), key, value)

    def tell(self, header: TrialHeader) -> None:
        """How a trial ended. Does nothing where that is known."""
        with self._asking():
            trial = self._id(header.trial)
            if self._storage.get_trial(trial).state.is_finished():
                return
            # Attributes first: a trial that has ended can no more be changed.
            if header.state != "complete" and header.epochs is not None:
                self._storage.set_trial_user_attr(trial, "epochs", header.epochs)
            if header.state == "diverged":
                self._storage.set_trial_user_attr(trial, "diverged", True)
            if header.state == "pruned":
                assert header.value is not None
                assert header.pruned_at is not None
                self._storage.set_trial_intermediate_value(trial, header.pruned_at, header.value)
            state = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED}
            values = None if header.state == "failed" or header.value is None else [header.value]
            ended = state.get(header.state, TrialState.COMPLETE)
            self._storage.set_trial_state_values(trial, ended, values)
        self._ids.pop(header.trial, None)

    def _id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._find(number)
        return self._ids[number]

    def _find(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study, number)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except StudyAwayError:
            self.retry.failed()
            raise
        except (SQLAlchemyError, StorageInternalError) as error:
            if not isinstance(error.__cause__ or error, _SILENCE):
                raise
            self.retry.failed()
            raise self._away(error.__cause__ or error) from error
        if self.retry.num:
            self.came_back(self.retry.num, self.retry.seconds)
        self.retry.answered()

    def _translate(self, context: Any) -> None:
        """Called by SQLAlchemy. Optuna takes what is not its own kind of error for final.

        It would else try five times to make a trial, and have made two if only the answer to the
        first was lost.
        """
        error = context.sqlalchemy_exception
        if context.is_disconnect or isinstance(error, _SILENCE):
            raise self._away(error or context.original_exception)

    def _away(self, error: BaseException) -> StudyAwayError:
        text = str(getattr(error, "orig", None) or error).strip()
        brief = (text.splitlines() or [type(error).__name__])[0][:300]
        return StudyAwayError(hide_password(self._url, f"Optuna's database {self._name}: {brief}"))


class _Storage(RDBStorage):
    """Makes the trial that is expected or none.

    A transaction that was given up for lost may be carried out late, after we have looked for it.
    """

    expected = 0

    def _get_prepared_new_trial(self, *args: Any) -> Any:
        trial = super()._get_prepared_new_trial(*args)
        if trial.number != self.expected:
            # Rolled back; whoever asks again finds what is there.
            raise StudyAwayError(
                f"trial {self.expected} was to be made, and trial {trial.number} is next: "
                "an answer was late, or another driver writes the study"
            )
        return trial


def _options(url: str) -> dict[str, Any]:
    """Of SQLAlchemy's engine."""
    if url.startswith("sqlite"):
        # Longer waits are ours: training goes on meanwhile.
        return {"connect_args": {"timeout": 5}}
    if url.startswith("postgres"):
        said = parse_qs(urlparse(url).query)
        limits = {key: value for key, value in _POSTGRES.items() if key not in said}
        return {"pool_pre_ping": True, "connect_args": limits}
    return {"pool_pre_ping": True}
