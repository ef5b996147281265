"""Whole sweeps between stores, through a folder that says what must be in it.

<folder>/sweep.json            the sweep as the store knows it
<folder>/trials/               a record a finished trial, and its weights where they were kept
<folder>/attached/             plan, reports and models that were kept with the sweep
<folder>/MANIFEST.json         size and sha256 of every file above; written last

A folder without a manifest is no export. Nothing of a folder is read into a store before all of
it was checked: files are data, never run, and none may lie outside the folder.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import plain_file, records, space
from pipeline.home import Home
from pipeline.provenance import provenance
from pipeline.records import FINISHED, RecordError
from pipeline.store import (
    NameInUseError,
    NoSuchSweepError,
    Store,
    SweepInfo,
    TrialStart,
    hide_password,
    info_of,
)

FORMAT = 1
MANIFEST = "MANIFEST.json"
_MOST_MANIFEST_BYTES = 24 * 2**20
_TRIAL = re.compile(r"trials/trial-(\d{5,})\.(parquet|safetensors)")

Listener = Callable[[int, int], None]


class TransferError(RuntimeError):
    """A folder that cannot be trusted as an export, or cannot take one."""


@dataclass(frozen=True)
class Parcel:
    """What an export holds: the sweep, its finished trials, and how many files and bytes."""

    info: SweepInfo
    trials: tuple[int, ...]
    attached: tuple[str, ...]
    num_bytes: int


def export_sweep(
    store: Store, name: str, target: Path, listener: Listener = lambda done, total: None
) -> Parcel:
    """Copies a sweep, what it has measured by now and what is attached to it, into a new folder.

    Raises TransferError where `target` exists, NoSuchSweepError, StoreError, RecordError, OSError.
    """
    if target.exists():
        raise TransferError(f"{target}: must not exist, so that an export is never a mixture")
    info = store.sweep(name)
    if info.state == "running":
        # True of the store it comes from, never of a copy.
        info = replace(info, state="interrupted")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent))
    try:
        _write_json(partial / "sweep.json", asdict(info))
        (partial / "trials").mkdir()
        numbers = [n for n, state in store.states(name).items() if state in FINISHED]
        for done, number in enumerate(numbers):
            listener(done, len(numbers))
            store.fetch_trial(name, number, partial / "trials")
        listener(len(numbers), len(numbers))
        attached = store.attached(name)
        for file in attached:
            path = partial / "attached" / _safe(file, "attached to the sweep")
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, file, path)
        files = {p.relative_to(partial).as_posix(): _entry(p) for p in _files(partial)}
        content = {"format": FORMAT, "sweep": name, "sweep_id": info.sweep_id, "files": files}
        _write_json(partial / MANIFEST, {**content, "made_by": provenance().get("lyapsweep")})
        partial.chmod(0o755)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    size = sum(entry["bytes"] for entry in files.values())
    return Parcel(info, tuple(numbers), tuple(attached), size)


def check_export(source: Path) -> Parcel:
    """Reads an export whole and checks it against its manifest. Raises TransferError."""
    files = _manifest(source)
    found = {path.relative_to(source).as_posix() for path in _files(source)} - {MANIFEST}
    for file in sorted(found ^ set(files)):
        fault = "missing" if file in files else "not in the manifest"
        raise TransferError(f"{source / file}: {fault}, so this is not what was exported")
    for file, entry in files.items():
        if _entry(source / file) != entry:
            raise TransferError(
                f"{source / file}: damaged or changed: its size or sha256 is not the manifest's"
            )
    info = _info(source / "sweep.json")
    numbers = []
    for file in files:
        match = _TRIAL.fullmatch(file)
        if match and match[2] == "parquet":
            numbers.append(int(match[1]))
            _check_record(source / file, int(match[1]), info)
    attached = tuple(f.removeprefix("attached/") for f in files if f.startswith("attached/"))
    size = sum(entry["bytes"] for entry in files.values())
    return Parcel(info, tuple(sorted(numbers)), attached, size)


def check_free(parcel: Parcel, store: Store) -> None:
    """Raises NameInUseError where the name stands for another sweep in the store."""
    with contextlib.suppress(NoSuchSweepError):
        there = store.sweep(parcel.info.name)
        if there.sweep_id != parcel.info.sweep_id:
            raise NameInUseError(
                f"a sweep named {parcel.info.name!r} exists already in "
                f"{hide_password(store.uri)} and is another "
                "one; import into another store"
            )


def import_sweep(
    source: Path, store: Store, home: Home, listener: Listener = lambda done, total: None
) -> tuple[Parcel, int]:
    """Publishes an export into a store; returns what it holds and how many trials were new.

    Trials that the store has already are left as they are, so that an import that broke off goes
    on when repeated. Raises TransferError, NameInUseError, LockedError, StoreError, OSError.
    """
    parcel = check_export(source)
    info = parcel.info
    check_free(parcel, store)
    with home.lock():
        try:
            store.sweep(info.name)
        except NoSuchSweepError:
            store.create_sweep(replace(info, state="running"))
        there = store.states(info.name)
        due = [n for n in parcel.trials if there.get(n) not in FINISHED]
        log_scaled = _log_scaled(info.config)
        for done, number in enumerate(due):
            listener(done, len(due))
            path = source / "trials" / f"trial-{number:05d}.parquet"
            store.begin_trial(info.name, TrialStart.of(records.read(path).header, log_scaled))
            store.publish(info.name, path)
        listener(len(due), len(due))
        for file in parcel.attached:
            folder = PurePosixPath(file).parent.as_posix()
            store.attach(info.name, source / "attached" / file, folder)
        store.set_state(info.name, info.state)
    return parcel, len(due)


def _manifest(source: Path) -> dict[str, dict[str, Any]]:
    path = source / MANIFEST
    try:
        content = plain_file.json_of(path, _MOST_MANIFEST_BYTES)
        number, files = int(content["format"]), dict(content["files"])
        entries = {
            _safe(file, str(path)): {"bytes": int(e["bytes"]), "sha256": str(e["sha256"])}
            for file, e in files.items()
        }
    except FileNotFoundError:
        raise TransferError(
            f"{source}: not an export of a sweep: it has no {MANIFEST}, which is written last"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise TransferError(f"{path}: not a manifest ({error})") from error
    if number > FORMAT:
        raise TransferError(
            f"{path}: format {number} is newer than this program reads ({FORMAT}); "
            "upgrade lyapsweep"
        )
    for file in entries:
        if file != "sweep.json" and not file.startswith("attached/") and not _TRIAL.fullmatch(file):
            raise TransferError(f"{path}: {file!r} has no place in an export")
    if "sweep.json" not in entries:
        raise TransferError(f"{path}: must list sweep.json")
    return entries


def _info(path: Path) -> SweepInfo:
    try:
        found = info_of(plain_file.json_of(path))
    except (OSError, ValueError) as error:
        raise TransferError(f"{path}: not a sweep description ({error})") from error
    if found.state not in ("interrupted", "complete", "failed"):
        raise TransferError(f"{path}: the state of an exported sweep cannot be {found.state!r}")
    return found


def _check_record(path: Path, number: int, info: SweepInfo) -> None:
    try:
        header = records.read(path).header
    except RecordError as error:
        raise TransferError(str(error)) from error
    expected = info.name, number, f"{info.sweep_id}/{number}"
    if (header.sweep, header.trial, header.trial_uid) != expected:
        raise TransferError(
            f"{path}: must be trial {number} of {info.name!r} ({expected[2]}), is trial "
            f"{header.trial} of {header.sweep!r} ({header.trial_uid})"
        )


def _log_scaled(config: dict[str, Any]) -> tuple[str, ...]:
    """Dotted paths of the logarithmic ranges in a conf tree."""
    found = []
    for path, node in space.walk(config):
        with contextlib.suppress(space.RangeError):
            parsed = space.parse_range(node)
            if parsed is not None and parsed.is_log:
                found.append(path)
    return tuple(found)


def _safe(file: str, source: str) -> str:
    """A relative path that stays inside. Raises TransferError."""
    parts = PurePosixPath(file).parts
    if (
        not parts
        or PurePosixPath(file).is_absolute()
        or any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in file.split("/"))
    ):
        raise TransferError(f"{source}: {file!r} must be a path inside the folder")
    return file


def _files(folder: Path) -> Iterator[Path]:
    """Every plain file under a folder. Raises TransferError at a link or anything else."""
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield path
        elif not stat.S_ISDIR(mode):
            raise TransferError(f"{path}: an export has only plain files and folders")


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as sink:
        json.dump(content, sink, indent=1, sort_keys=True)
        sink.flush()
        os.fsync(sink.fileno())
