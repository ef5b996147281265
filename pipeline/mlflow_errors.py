"""What MLflow, its database and its server raise, as errors of ours that name the store."""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException

from pipeline.mlflow_place import is_server
from pipeline.store import StoreAwayError, StoreError, StoreFullError, hide_password

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Forgetful(Protocol):
    uri: str

    def forget(self) -> None:
        """Forgets what it knows of the store, so that the next call asks it."""
        ...


_S = TypeVar("_S", bound=_Forgetful)


def guarded(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
    """A method of a store, with one StoreError for the many exceptions it may raise."""

    def inner(store: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(store, *args, **kwargs)
        except (
            MlflowException,
            sqlalchemy.exc.SQLAlchemyError,
            requests.RequestException,
            OSError,
        ) as error:
            # What failed may have happened all the same: look again next time.
            store.forget()
            raise _translated(store.uri, error) from error

    inner.__name__, inner.__doc__ = method.__name__, method.__doc__
    return inner


def _translated(uri: str, error: Exception) -> StoreError:
    brief = _brief(error)
    kind: type[StoreError] = StoreError
    if "is full" in brief or "No space left" in brief:
        kind = StoreFullError
    elif is_server(uri) and not _is_refusal(error):
        kind = StoreAwayError
    return kind(hide_password(uri, f"MLflow store {uri}: {brief}"))


def _is_refusal(error: Exception) -> bool:
    """Whether a server has answered, and that this cannot be had: 401, 403, 404, …"""
    if not isinstance(error, MlflowException):
        return False
    return 400 <= int(error.get_http_status_code()) < 500  # type: ignore[no-untyped-call]


def _brief(error: Exception) -> str:
    """The one line of an exception that says what happened."""
    cause = error.__cause__ if isinstance(error, MlflowException) else None
    text = str(getattr(cause, "orig", None) or getattr(error, "orig", None) or error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]
