"""Is everything that a sweep has measured on record, once, and readable? And what can be mended.

What is checked is the invariant of docs/durability.md: a trial is complete when the store has one
entry of it, closed, with a record of the recorded sha256 whose header says how it ended; when
Optuna has been told the same; and when nothing of it waits in the spool.

Findings are of three kinds: *lost* (measured, and no more to be had), *wrong* (the records
contradict each other), *untidy* (a driver that died left something half done, nothing is lost).
"""

import collections
import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import optuna
import sqlalchemy.exc
from optuna.trial import FrozenTrial

from pipeline import records
from pipeline.config import hash_of
from pipeline.home import Home, LockedError
from pipeline.lease import holder
from pipeline.publishing import state_of
from pipeline.records import FINISHED, RecordError, TrialRecord
from pipeline.store import Entry, Store, SweepInfo

Kind = Literal["lost", "wrong", "untidy"]
# Of one that ended well, every epoch has it; the sampler is told that of the last.
_LOSS = "val_loss"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be.

    Attributes:
        trial: its number, None for the sweep as a whole.
        what: the law and what was found instead.
        remedy: what `repair` does about it, "" where nothing can.
        action: `reconcile` (what a driver does first), `spool` (take the record from the store
            and publish it again), `set aside` (a file), `close` (an entry), or none.
        path: of the file, or key of the entry, that `action` is about.
    """

    kind: Kind
    trial: int | None
    what: str
    remedy: str = ""
    action: str = ""
    path: str = ""


@dataclass
class Examination:
    """What was found and what it was found in.

    Attributes:
        ends: trial number → how it ended, of those with a good record.
        waiting: numbers in the spool.
        unchecked: what could not be looked at, and why.
    """

    info: SweepInfo
    is_running: bool
    ends: dict[int, str] = field(default_factory=dict)
    waiting: tuple[int, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    num_rows: int = 0

    @property
    def is_sound(self) -> bool:
        """Nothing was found."""
        return not self.findings


def examine(
    store: Store, name: str, home: Home, listener: Callable[[int, int], None] = lambda *_: None
) -> Examination:
    """Checks a sweep whole; changes nothing. Raises NoSuchSweepError, StoreError."""
    info = store.sweep(name)
    found = Examination(info, home.is_locked())
    found.findings += _of_lease(store, name, found)
    is_trained = "imported" not in info.config
    if found.is_running:
        found.unchecked.append(
            "a driver runs this sweep here: what is under way is not looked at, and nothing mended"
        )
    found.findings += _of_description(info, found.is_running)
    entries = store.entries(name)
    spooled, faults = _spooled(home, info)
    found.findings += faults
    found.waiting = tuple(sorted(spooled))
    good = _of_entries(store, info, entries, spooled, found, listener)
    if not is_trained:
        _count(info, good, found)
        return found
    told = _told(info, home, found)
    if told is not None:
        found.findings += _of_sampler(info, told, good, entries, spooled, found.is_running)
    if spooled and not found.is_running:
        found.findings += [
            Finding("untidy", n, "finished, and not yet published", "publish it", "reconcile")
            for n in sorted(spooled)
        ]
    _count(info, good, found)
    return found


def _of_lease(store: Store, name: str, found: Examination) -> Iterator[Finding]:
    """Whoever drives it from another folder is at work on what would be called half done."""
    if found.is_running:
        return
    try:
        who = holder(store, name)
    except LockedError as error:
        yield Finding("wrong", None, str(error))
        return
    if who is None:
        return
    if who.is_known_dead:
        yield Finding(
            "untidy", None, f"its lease is held by {who}, which is no more",
            "take it over and give it back", "reconcile",
        )  # fmt: skip
    else:
        found.unchecked.append(
            f"its lease is held by {who}: a driver that runs elsewhere, or died there without a "
            "word. If it runs, what is found half done may be under way; resume tells which"
        )


def _of_description(info: SweepInfo, is_running: bool) -> Iterator[Finding]:
    if hash_of(info.config) != info.config_hash:
        yield Finding(
            "wrong", None, "the stored settings are not those the sweep was created with (sha256)"
        )
    if info.state != "running" or is_running:
        return
    if "imported" in info.config:
        what = "the import broke off; the same import-spectra goes on"
        yield Finding("untidy", None, what)
    else:
        yield Finding(
            "untidy", None, "said to be running, but no driver of this folder runs it",
            "call it interrupted", "reconcile",
        )  # fmt: skip


def _spooled(home: Home, info: SweepInfo) -> tuple[dict[int, Path], list[Finding]]:
    """Good files in the spool by trial, and what is wrong with the others."""
    good: dict[int, Path] = {}
    faults = []
    for path in sorted(home.spool.glob("trial-*.parquet")):
        aside = f"move it to {home.folder / 'damaged'}; the trial is trained again"
        try:
            header = records.read(path).header
        except FileNotFoundError:
            continue  # A driver that runs has just published it.
        except RecordError as error:
            faults.append(Finding("wrong", None, str(error), aside, "set aside", str(path)))
            continue
        if header.trial_uid == f"{info.sweep_id}/{header.trial}":
            good[header.trial] = path
        else:
            what = f"{path} is of another sweep of this name ({header.trial_uid})"
            aside = f"move it to {home.folder / 'damaged'}"
            faults.append(Finding("wrong", None, what, aside, "set aside", str(path)))
    return good, faults


def _of_entries(
    store: Store,
    info: SweepInfo,
    entries: list[Entry],
    spooled: Mapping[int, Path],
    found: Examination,
    listener: Callable[[int, int], None],
) -> dict[int, TrialRecord]:
    """Looks at each entry and its record; returns the good records, without their rows."""
    good: dict[int, TrialRecord] = {}
    by_number: dict[int, list[Entry]] = collections.defaultdict(list)
    for entry in entries:
        by_number[entry.number].append(entry)
    for done, (number, all_of_it) in enumerate(sorted(by_number.items())):
        listener(done, len(by_number))
        if not 0 <= number < info.num_trials:
            what = f"the sweep has trials 0 to {info.num_trials - 1}, and the store this one"
            found.findings.append(Finding("wrong", number, what))
        finished = [e for e in all_of_it if e.state in FINISHED]
        if len(all_of_it) > 1:
            found.findings += _of_duplicates(number, all_of_it, finished)
        for entry in all_of_it:
            if entry.uid != f"{info.sweep_id}/{number}":
                what = f"its entry {entry.key} is of another sweep ({entry.uid})"
                found.findings.append(Finding("wrong", number, what))
        if finished:
            found.findings += _of_record(store, info, finished[0], spooled, found, good)
        elif number not in spooled and not found.is_running:
            found.findings += _of_unfinished(all_of_it)
    listener(len(by_number), len(by_number))
    return good


def _of_duplicates(number: int, entries: list[Entry], finished: list[Entry]) -> Iterator[Finding]:
    for extra in [e for e in entries if e not in finished]:
        if finished:
            yield Finding(
                "untidy", number, f"has a second entry, {extra.key}, {extra.state}",
                "delete that one", "close", extra.key,
            )  # fmt: skip
    if len(finished) > 1:
        keys = ", ".join(e.key for e in finished)
        yield Finding("wrong", number, f"is on record {len(finished)} times ({keys})")
    elif not finished:
        yield Finding("wrong", number, f"has {len(entries)} entries, none of them finished")


def _of_unfinished(entries: list[Entry]) -> Iterator[Finding]:
    for entry in entries:
        if entry.state == "running" or not entry.is_closed:
            yield Finding(
                "untidy", entry.number, "said to be running, and nobody trains it",
                "call it interrupted; resume trains it again", "reconcile",
            )  # fmt: skip


def _of_record(
    store: Store,
    info: SweepInfo,
    entry: Entry,
    spooled: Mapping[int, Path],
    found: Examination,
    good: dict[int, TrialRecord],
) -> Iterator[Finding]:
    number = entry.number
    try:
        record = store.record(info.name, number)
    except (RecordError, KeyError) as error:
        text = str(error).strip("'\"")
        if number in spooled:
            yield Finding("untidy", number, text, "publish the one in the spool", "reconcile")
        else:
            yield Finding("lost", number, text)
        return
    header = record.header
    found.num_rows += record.table.num_rows
    faults = list(_of_content(info, entry, record))
    yield from faults
    if not faults:
        good[number] = TrialRecord(header, record.table.slice(0, 0))
        if not entry.is_closed and number not in spooled:
            yield Finding(
                "untidy", number, f"{header.state}, but its entry {entry.key} is not closed",
                "publish its record again", "spool",
            )  # fmt: skip


def _of_content(info: SweepInfo, entry: Entry, record: TrialRecord) -> Iterator[Finding]:
    """What a record says against its entry, and against itself."""
    header, number = record.header, entry.number
    said = header.sweep, header.trial, header.trial_uid
    if said != (info.name, number, f"{info.sweep_id}/{number}"):
        what = f"its record is of trial {header.trial} of {header.sweep!r} ({header.trial_uid})"
        yield Finding("wrong", number, what)
        return
    if header.state != entry.state:
        what = f"{entry.state} in the store, {header.state} in its record"
        yield Finding("wrong", number, what)
    if header.state != "failed" and header.value is None and "imported" not in info.config:
        yield Finding("wrong", number, f"{header.state}, but no value that a sampler could be told")
    pairs = list(
        zip(record.table["epoch"].to_pylist(), record.table["quantity"].to_pylist(), strict=True)
    )
    twice = [pair for pair, count in collections.Counter(pairs).items() if count > 1]
    if twice:
        epoch, quantity = twice[0]
        what = f"{len(twice)} quantities are recorded twice, {quantity} of epoch {epoch} among them"
        yield Finding("wrong", number, what)
    if header.state != "failed" and header.epochs is not None and "imported" not in info.config:
        missing = set(range(header.epochs + 1)) - {e for e, q in pairs if q == _LOSS}
        late = [e for e, _ in pairs if e > header.epochs]
        if missing:
            what = f"trained for {header.epochs} epochs, but {_LOSS} lacks epoch {min(missing)}"
            yield Finding("lost", number, what)
        if late:
            what = f"trained for {header.epochs} epochs, but rows of epoch {max(late)} are there"
            yield Finding("wrong", number, what)


def _told(info: SweepInfo, home: Home, found: Examination) -> list[FrozenTrial] | None:
    """What Optuna has; None where its database is not to be had here."""
    if home.optuna_file is not None and not home.optuna_file.exists():
        found.unchecked.append(
            f"Optuna: no {home.optuna_file} here; run this in the folder where the sweep was "
            "started, or set LYAPSWEEP_HOME or LYAPSWEEP_OPTUNA"
        )
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(home.optuna_url)
        study = optuna.load_study(study_name=f"{info.name}-{info.sweep_id}", storage=storage)
        return study.get_trials(deepcopy=False)
    except KeyError:
        found.unchecked.append(f"Optuna: {home.optuna_name} has no study of this sweep")
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        brief = (str(getattr(error, "orig", None) or error).strip().splitlines() or ["?"])[0]
        found.findings.append(Finding("wrong", None, f"Optuna: {home.optuna_name}: {brief}"))
    return None


def _of_sampler(
    info: SweepInfo,
    told: list[FrozenTrial],
    good: Mapping[int, TrialRecord],
    entries: list[Entry],
    spooled: Mapping[int, Path],
    is_running: bool,
) -> Iterator[Finding]:
    """Optuna against the records."""
    known = {trial.number: trial for trial in told}
    on_record = {e.number for e in entries if e.state in FINISHED}
    for number, trial in known.items():
        if not trial.state.is_finished():
            if number in good and number not in spooled and not is_running:
                yield Finding(
                    "untidy", number, "on record, and Optuna was not told",
                    "publish its record again and tell Optuna", "spool",
                )  # fmt: skip
        elif number not in on_record and number not in spooled:
            what = f"Optuna was told that it ended {state_of(trial)}, and the store has no record"
            yield Finding("lost", number, what)
        elif number in good:
            header = good[number].header
            if (state_of(trial), trial.value) != (header.state, header.value):
                what = (
                    f"its record says {header.state}, {header.value}, and Optuna was told "
                    f"{state_of(trial)}, {trial.value}"
                )
                yield Finding("wrong", number, what)
    for number in sorted(on_record - known.keys()):
        yield Finding("wrong", number, "on record, and Optuna knows no such trial")
    if len(told) > info.num_trials:
        what = f"the design has {info.num_trials} trials, and Optuna {len(told)}"
        yield Finding("wrong", None, what)


def _count(info: SweepInfo, good: Mapping[int, TrialRecord], found: Examination) -> None:
    found.ends = {number: record.header.state for number, record in sorted(good.items())}
    if info.state == "complete":
        have = set(found.ends) | {f.trial for f in found.findings}
        for number in sorted(set(range(info.num_trials)) - have):
            found.findings.append(
                Finding("lost", number, "the sweep is said to be complete, and has no such trial")
            )


def mend(
    examination: Examination, store: Store, home: Home, reconcile: Callable[[], None]
) -> list[Finding]:
    """Does what the findings name as remedy; returns those it acted on.

    Args:
        reconcile: does what a driver does before it trains: publishes and tells what waits, and
            closes what nobody trains.

    Nothing is deleted that is the only copy of a measurement. Raises StoreError, OSError, and
    LockedError where a driver runs the sweep.
    """
    name = examination.info.name
    acted = [f for f in examination.findings if f.action]
    if not acted:
        return []
    with home.lock():
        for finding in acted:
            if finding.action == "set aside":
                aside = home.folder / "damaged"
                aside.mkdir(exist_ok=True)
                path = Path(finding.path)
                for file in (path, path.with_suffix(".safetensors")):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.move(file, _free(aside / file.name))
            elif finding.action == "spool":
                assert finding.trial is not None
                _respool(store, name, finding.trial, home)
            elif finding.action == "close":
                store.remove_entry(name, finding.path)
    if any(f.action in ("reconcile", "spool") for f in acted):
        reconcile()
    return acted


def _respool(store: Store, name: str, number: int, home: Home) -> None:
    """Takes a trial's files from the store into the spool, the record last and at once."""
    target = home.spool_path(number)
    incoming = home.folder / "incoming"
    incoming.mkdir(exist_ok=True)
    try:
        path = store.fetch_trial(name, number, incoming)
        weights = path.with_suffix(".safetensors")
        if weights.exists():
            weights.replace(target.with_suffix(".safetensors"))
        path.replace(target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _free(path: Path) -> Path:
    """`path`, or the first of path.1, path.2, … that is not taken."""
    found, n = path, 0
    while found.exists():
        n += 1
        found = path.with_name(f"{path.name}.{n}")
    return found
