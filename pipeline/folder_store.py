"""Sweeps in a plain folder: `<root>/<sweep>/sweep.json` and `trials/00000.parquet`, …

For machines without MLflow, for tests, and for handing a sweep on by copying it.
"""

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pipeline import plain_file, reading, records
from pipeline.reading import File
from pipeline.records import TrialRecord
from pipeline.store import (
    Entry,
    NameInUseError,
    NoSuchSweepError,
    StoreError,
    StoreFullError,
    SweepInfo,
    TrialStart,
    check_name,
    info_of,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _guarded(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turns what the file system raises into a StoreError, which drivers know how to outlive."""

    def inner(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            kind = StoreFullError if error.errno == errno.ENOSPC else StoreError
            raise kind(f"{error.filename or args[0]}: {error.strerror or error}") from error

    inner.__name__, inner.__doc__ = method.__name__, method.__doc__
    return inner


_NUMBER = re.compile(r"[0-9]{5,10}")
_UNFINISHED = ("running", "interrupted")


class FolderStore:
    """`pipeline.store.Store` over a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = f"folder:{self.root}"

    def prepare(self) -> None:
        """Creates the root folder."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(f"{self.root}: cannot be written ({error.strerror})") from error

    @_guarded
    def create_sweep(self, info: SweepInfo) -> None:
        """Creates the sweep's folder."""
        folder = self.root / info.name
        if (folder / "sweep.json").exists():
            raise NameInUseError(f"a sweep named {info.name!r} exists already in {self.uri}")
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        (folder / "running").mkdir(exist_ok=True)
        _write_json(folder / "sweep.json", asdict(info))

    def sweep(self, name: str) -> SweepInfo:
        """Reads sweep.json."""
        path = self.root / check_name(name) / "sweep.json"
        try:
            return info_of(plain_file.json_of(path))
        except FileNotFoundError:
            names = [info.name for info in self.sweeps()]
            raise NoSuchSweepError(
                f"no sweep {name!r} in {self.uri}; there are {', '.join(names) or 'none'}"
            ) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: not a sweep description ({error})") from error

    def sweeps(self) -> list[SweepInfo]:
        """Every sub-folder that holds a sweep.json."""
        found = [self.sweep(p.parent.name) for p in self.root.glob("*/sweep.json")]
        return sorted(found, key=lambda info: info.created_ms, reverse=True)

    @_guarded
    def set_state(self, name: str, state: str) -> None:
        """Rewrites sweep.json."""
        info = replace(self.sweep(name), state=state)
        _write_json(self.root / name / "sweep.json", asdict(info))

    @_guarded
    def note(self, name: str, key: str) -> str | None:
        """Reads `<root>/<sweep>/<key>.note`."""
        try:
            return (self.root / name / f"{key}.note").read_text()
        except FileNotFoundError:
            return None

    @_guarded
    def set_note(self, name: str, key: str, text: str | None) -> None:
        """Replaces the file, which need not survive a power cut."""
        path = self.root / name / f"{key}.note"
        if text is None:
            path.unlink(missing_ok=True)
            return
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        temporary.write_text(text)
        os.replace(temporary, path)

    @_guarded
    def begin_trial(self, name: str, start: TrialStart) -> None:
        """Writes a marker that `publish` removes."""
        _write_json(self._marker(name, start.number), {**asdict(start), "state": "running"})

    @_guarded
    def interrupt_trial(self, name: str, number: int, reason: str) -> None:
        """Rewrites the marker."""
        marker = self._marker(name, number)
        if marker.exists():
            content = self._marked(marker)
            _write_json(marker, {**content, "state": "interrupted", "reason": reason})

    @_guarded
    def publish(self, name: str, path: Path) -> None:
        """Copies weights and file under their final names, then removes the marker."""
        number = records.read(path).header.trial
        target, weights = self._file(name, number), path.with_suffix(".safetensors")
        if plain_file.is_one(weights):
            _copy(weights, target.with_suffix(".safetensors"))
        _copy(path, target)
        self._marker(name, number).unlink(missing_ok=True)

    def states(self, name: str) -> dict[int, str]:
        """From the files and the markers; a file outranks a marker."""
        found: dict[int, str] = {}
        for marker in (self.root / name / "running").glob("*.json"):
            content = self._marked(marker)
            found[content["number"]] = content["state"]
        self.sweep(name)
        for path in (self.root / name / "trials").glob("*.parquet"):
            header = records.read_header(path)
            found[header.trial] = header.state
        return dict(sorted(found.items()))

    def entries(self, name: str) -> list[Entry]:
        """Files, and markers of trials that have none or are also said to be running."""
        self.sweep(name)
        found = []
        for path in (self.root / name / "trials").glob("*.parquet"):
            number = self._number(path)
            has_marker = self._marker(name, number).exists()
            try:
                header = records.read_header(path)
                uid, state = header.trial_uid, header.state
            except records.RecordError:
                uid, state = f"{self.sweep(name).sweep_id}/{number}", "complete"
            found.append(Entry(number, uid, state, not has_marker, path.name))
        there = {entry.number for entry in found}
        for marker in (self.root / name / "running").glob("*.json"):
            content = self._marked(marker)
            if content["number"] not in there:
                state = content["state"]
                found.append(Entry(content["number"], content["uid"], state, True, marker.name))
        return sorted(found, key=lambda entry: entry.number)

    @_guarded
    def remove_entry(self, name: str, key: str) -> None:
        """Removes a marker."""
        if not key.endswith(".json"):
            raise StoreError(f"{key} of {name!r} is a record, which is not removed")
        (self.root / name / "running" / Path(key).name).unlink(missing_ok=True)

    def records(self, name: str) -> Iterator[TrialRecord]:
        """All trials' files."""
        self.sweep(name)
        paths = sorted((self.root / name / "trials").glob("*.parquet"))
        for path in paths:
            self._number(path)
        yield from reading.read_all([File(path) for path in paths])

    def record(self, name: str, number: int) -> TrialRecord:
        """One trial's file."""
        try:
            return records.read(self._file(name, number))
        except FileNotFoundError:
            raise KeyError(f"sweep {name!r} has no finished trial {number}") from None

    @_guarded
    def attach(self, name: str, path: Path, folder: str) -> None:
        """Copies into `<root>/<sweep>/<folder>`."""
        target = self.root / name / folder
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / path.name)

    def attached(self, name: str, folder: str = "") -> list[str]:
        """Every file but those of the trials and the description."""
        self.sweep(name)
        root = self.root / name
        ours = {root / "trials", root / "running"}
        return sorted(
            path.relative_to(root).as_posix()
            for path in (root / folder).rglob("*")
            if path.is_file()
            and path.resolve().is_relative_to(root.resolve())
            and path.parent != root
            and not ours & set(path.parents)
        )

    @_guarded
    def fetch(self, name: str, file: str, target: Path) -> None:
        """Copies it."""
        if file not in self.attached(name, str(Path(file).parent)):
            raise KeyError(f"sweep {name!r} has no file {file!r}")
        shutil.copyfile(self.root / name / file, target)

    @_guarded
    def fetch_trial(self, name: str, number: int, folder: Path) -> Path:
        """Copies record and weights."""
        self.record(name, number)
        source, target = self._file(name, number), folder / f"trial-{number:05d}.parquet"
        shutil.copyfile(source, target)
        weights = source.with_suffix(".safetensors")
        if plain_file.is_one(weights):
            shutil.copyfile(weights, target.with_suffix(".safetensors"))
        return target

    def _number(self, path: Path) -> int:
        if not _NUMBER.fullmatch(path.stem):
            raise StoreError(f"{path}: must be named by the number of a trial, as 00012")
        return int(path.stem)

    def _marked(self, marker: Path) -> dict[str, Any]:
        """What a marker says. Raises StoreError."""
        try:
            content: dict[str, Any] = plain_file.json_of(marker)
            number, state, uid = content["number"], content["state"], content["uid"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{marker}: not a marker of a trial ({error})") from error
        if number != self._number(marker) or state not in _UNFINISHED or type(uid) is not str:
            raise StoreError(f"{marker}: not a marker of trial {marker.stem}")
        return content

    def _file(self, name: str, number: int) -> Path:
        return self.root / name / "trials" / f"{number:05d}.parquet"

    def _marker(self, name: str, number: int) -> Path:
        return self.root / name / "running" / f"{number:05d}.json"


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    _fsync(temporary)
    os.replace(temporary, target)
    _fsync(target.parent)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
