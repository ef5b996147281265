"""Where sweeps are kept: one protocol, behind it MLflow or a plain folder.

A store is written by one driver at a time and read by anyone. Every writing method is
idempotent: done twice it leaves what it left done once, so that a driver killed between any two
calls can be replayed (see `pipeline.sweep`).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlparse

from pipeline.records import TrialHeader, TrialRecord

DEFAULT_URI = "sqlite:///mlflow.db"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StoreError(RuntimeError):
    """The store cannot be reached, written or trusted."""


class StoreFullError(StoreError):
    """There is no space left under the store: trying again does not help."""


class StoreAwayError(StoreError):
    """The store's server did not answer, or with an error of its own; it may later."""


class NoSuchSweepError(StoreError):
    """No sweep of this name in this store; the message lists those there are."""


class NameInUseError(StoreError):
    """A sweep of this name exists already."""


@dataclass(frozen=True)
class SweepInfo:
    """A sweep as the store knows it.

    Attributes:
        name: chosen by the user, unique in the store.
        sweep_id: random, unique across stores.
        config: the resolved tree, ranges included.
        config_hash: sha256 of the canonical JSON of `config`.
        num_trials: how many the design asks for.
        created_ms: milliseconds since 1970 UTC.
        state: running, interrupted, complete or failed.
        provenance: versions, host, git state.
    """

    name: str
    sweep_id: str
    config: dict[str, Any]
    config_hash: str
    num_trials: int
    created_ms: int
    state: str = "running"
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialStart:
    """What is known of a trial when it starts.

    `log_scaled` names those sampled params whose range is logarithmic.
    """

    number: int
    uid: str
    seed: int
    params: dict[str, Any]
    sampled: tuple[str, ...]
    start_ms: int
    attempt: int = 1
    log_scaled: tuple[str, ...] = ()

    @classmethod
    def of(cls, header: TrialHeader, log_scaled: tuple[str, ...] = ()) -> "TrialStart":
        """How a trial that is on record began."""
        return cls(
            number=header.trial,
            uid=header.trial_uid,
            seed=header.seed,
            params=header.params,
            sampled=header.sampled,
            start_ms=header.start_ms,
            attempt=header.attempt,
            log_scaled=log_scaled,
        )


@dataclass(frozen=True)
class Entry:
    """One entry of a trial in a store, as it is. There should be one a trial.

    Attributes:
        number, uid: of the trial.
        state: running, interrupted, complete, diverged, pruned or failed.
        is_closed: whether what the store says besides the state agrees with it.
        key: what the store calls the entry.
    """

    number: int
    uid: str
    state: str
    is_closed: bool
    key: str


class Store(Protocol):
    """Duties: durable when a method returns, idempotent, one writer, many readers."""

    uri: str

    def prepare(self) -> None:
        """Creates what must exist before workers do. Raises StoreError if that is impossible."""

    def create_sweep(self, info: SweepInfo) -> None:
        """Raises NameInUseError."""

    def sweep(self, name: str) -> SweepInfo:
        """Raises NoSuchSweepError."""

    def sweeps(self) -> list[SweepInfo]:
        """All sweeps, the newest first."""

    def set_state(self, name: str, state: str) -> None:
        """running, interrupted, complete or failed."""

    def note(self, name: str, key: str) -> str | None:
        """A note kept with the sweep. Never from memory: another process may have written it."""

    def set_note(self, name: str, key: str, text: str | None) -> None:
        """Writes a note, at most 1000 characters; None removes it."""

    def begin_trial(self, name: str, start: TrialStart) -> None:
        """Finds or creates the trial by its uid and marks it running."""

    def interrupt_trial(self, name: str, number: int, reason: str) -> None:
        """Marks a trial that was begun and will be run again by a resume."""

    def publish(self, name: str, path: Path) -> None:
        """Takes over one trial's record file (left in place) and closes the trial."""

    def states(self, name: str) -> dict[int, str]:
        """Trial number → running, interrupted, complete, diverged, pruned or failed."""

    def entries(self, name: str) -> list[Entry]:
        """Every entry of a trial, by number: what `lyapsweep doctor` looks at."""

    def remove_entry(self, name: str, key: str) -> None:
        """Removes an entry that is not finished. Raises StoreError where it is."""

    def records(self, name: str) -> Iterator[TrialRecord]:
        """All published trials in order of their numbers. Raises RecordError on a bad file."""

    def record(self, name: str, number: int) -> TrialRecord:
        """One published trial. Raises KeyError."""

    def attach(self, name: str, path: Path, folder: str) -> None:
        """Keeps a file or folder (a report, say) with the sweep under `folder`."""

    def attached(self, name: str, folder: str = "") -> list[str]:
        """The files that are kept with the sweep (under `folder`), as FOLDER/FILE, sorted."""

    def fetch(self, name: str, file: str, target: Path) -> None:
        """Copies one of `attached` to the path `target`. Raises KeyError."""

    def fetch_trial(self, name: str, number: int, folder: Path) -> Path:
        """Copies a finished trial's files into `folder`, as `publish` takes them, and checks them.

        Returns the path of the record. Raises KeyError, RecordError.
        """


class BadNameError(ValueError):
    """A name that no sweep can have."""


def check_name(name: str) -> str:
    """Returns the name. Raises BadNameError where it is no safe name for a sweep."""
    if not NAME_PATTERN.fullmatch(name):
        raise BadNameError(
            f"sweep name {name!r}: must be 1 to 64 of letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    return name


_STATES = ("running", "interrupted", "complete", "failed")


def info_of(content: Any) -> SweepInfo:
    """A sweep from its description as stored. Raises ValueError where it cannot be one of ours."""
    if not isinstance(content, dict):
        raise ValueError("must be a mapping")
    try:
        info = SweepInfo(**content)
    except TypeError as error:
        raise ValueError(str(error)) from error
    kinds = {"config": dict, "provenance": dict, "num_trials": int, "created_ms": int}
    for field_ in fields(SweepInfo):
        kind = kinds.get(field_.name, str)
        value = getattr(info, field_.name)
        if type(value) is not kind:
            raise ValueError(f"{field_.name} must be {kind.__name__}, got {str(value)[:80]!r}")
    check_name(info.name)
    if info.state not in _STATES:
        raise ValueError(f"state must be one of {', '.join(_STATES)}, got {info.state[:80]!r}")
    if not (0 <= info.num_trials < 2**31 and 0 <= info.created_ms < 2**53):
        raise ValueError("num_trials or created_ms is out of range")
    return info


def hide_password(uri: str, text: str | None = None) -> str:
    """`text`, by default the URI itself, without the URI's password."""
    text = uri if text is None else text
    try:
        asked = parse_qs(urlparse(uri).query)
        secret_words = {urlparse(uri).password or ""}
    except ValueError:  # No URI at all: what stands before the @ is nobody's business.
        asked, secret_words = {}, {uri.partition("://")[2].rpartition("@")[0].partition(":")[2]}
    for key, values in asked.items():
        if "password" in key.lower() or "secret" in key.lower():
            secret_words |= set(values)
    for secret in {*secret_words, *map(unquote, secret_words), *map(_quoted, secret_words)} - {""}:
        text = text.replace(f":{secret}@", ":***@").replace(f"password={secret}", "password=***")
        text = text.replace(f"={secret}", "=***")
    return text


def _quoted(word: str) -> str:
    return quote(word, safe="")


def store_uri(uri: str | None = None) -> str:
    """`uri`, else LYAPSWEEP_STORE, else MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

    The last, in the working directory, is what a bare `mlflow ui` there opens. Paths are made
    absolute: MLflow keeps one connection a URI, wherever the working directory goes.
    """
    uri = uri or os.environ.get("LYAPSWEEP_STORE") or os.environ.get("MLFLOW_TRACKING_URI")
    uri = uri or DEFAULT_URI
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    if uri.startswith("folder:"):
        return f"folder:{Path(uri.removeprefix('folder:')).absolute()}"
    return uri


def open_store(uri: str | None = None) -> Store:
    """The store at `store_uri(uri)`: `folder:PATH`, or anything MLflow tracks to."""
    uri = store_uri(uri)
    if uri.startswith("folder:"):
        from pipeline.folder_store import FolderStore

        return FolderStore(Path(uri.removeprefix("folder:")))
    from pipeline.mlflow_store import MlflowStore

    return MlflowStore(uri)
