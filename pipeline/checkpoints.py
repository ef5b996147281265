"""Snapshots on the driver's disk, so that a trial of hours survives a crash in its middle.

Workers hand snapshots to the driver, and it alone writes them: no folder has to be shared by the
machines of a cluster, and a worker that was given up for lost can overwrite nothing.

<sweep>/checkpoints/cohort-<first number>x<trials>-<key>/
    rows-<epoch>.parquet          rows since the checkpoint before, of trials still to be recorded
    epoch-<epoch>.safetensors     arrays and facts, see `pipeline.checkpoint_file`

The key is a hash of all that shapes the cohort's results, so that no checkpoint is taken for that
of another. The safetensors file is written last: a checkpoint is there when that file is. Then
the one before is removed.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import checkpoint_file as files
from pipeline.checkpoint_file import CheckpointError, Facts, Segment
from pipeline.faults import ConfigError, Faults
from pipeline.plan import Cohort
from pipeline.rows import Row
from pipeline.snapshot import Snapshot


@dataclass(frozen=True)
class Resumption:
    """What a cohort goes on from.

    Attributes:
        rows: trial number → all rows up to the snapshot, of the trials asked for.
        resumed_at: epochs from which it was taken up, this time included.
        start_ms: when each of these trials was begun first.
    """

    snapshot: Snapshot
    rows: dict[int, list[Row]]
    resumed_at: tuple[int, ...]
    start_ms: dict[int, int]


@dataclass
class _Kept:
    """What is on disk of a cohort in training."""

    segments: tuple[Segment, ...] = ()
    resumed_at: tuple[int, ...] = ()
    num_rows: dict[int, int] = field(default_factory=dict)


class Checkpoints:
    """Those of one sweep; written by its driver alone.

    Args:
        folder: where to keep them; made when the first is written.
        sweep_id: of the sweep.
        say: shows a line to whoever watches.
    """

    def __init__(
        self, folder: Path, sweep_id: str, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._folder, self._sweep_id, self._say = folder, sweep_id, say
        self._kept: dict[tuple[int, ...], _Kept] = {}

    def folder_of(self, cohort: Cohort) -> Path:
        """Where a cohort's files lie."""
        name = f"cohort-{cohort.numbers[0]:05d}x{len(cohort.numbers)}-{self._key(cohort)[:16]}"
        return self._folder / name

    def keep(
        self,
        cohort: Cohort,
        snapshot: Snapshot,
        rows: Mapping[int, list[Row]],
        start_ms: Mapping[int, int],
    ) -> bool:
        """Writes a checkpoint: when this returns True it is durable and the older are gone.

        `rows` are all rows so far of the trials still to be recorded. Where the disk refuses,
        the checkpoint before stays, training goes on, and the driver's log says so.
        """
        kept = self._kept.setdefault(cohort.numbers, _Kept())
        folder = self.folder_of(cohort)
        new = {number: found[kept.num_rows.get(number, 0) :] for number, found in rows.items()}
        try:
            self._make(folder)
            segment = files.write_rows(folder, snapshot.epoch, new)
            segments = (*kept.segments, segment)
            facts = Facts(
                format=files.FORMAT,
                key=self._key(cohort),
                epoch=snapshot.epoch,
                update=snapshot.update,
                numbers=snapshot.numbers,
                diverged_at=snapshot.diverged_at,
                spent=snapshot.spent,
                segments=segments,
                resumed_at=kept.resumed_at,
                start_ms=dict(start_ms),
            )
            path = folder / files.state_name(snapshot.epoch)
            files.write(path, files.packed(snapshot.arrays, facts))
            files.sync(folder)
        except (OSError, CheckpointError) as error:
            self._warn(f"no checkpoint at epoch {snapshot.epoch} ({error}); training goes on")
            return False
        for other in files.states(folder):
            if other != path:
                files.remove(other)
        kept.segments = segments
        kept.num_rows = {number: len(found) for number, found in rows.items()}
        return True

    def load(self, cohort: Cohort, due: Collection[int]) -> Resumption | None:
        """What a cohort can go on from, with the rows of the trials that are `due`.

        None where there is nothing, or nothing to be trusted, which the driver's log says.
        """
        self._kept.pop(cohort.numbers, None)
        folder = self.folder_of(cohort)
        if not (files.is_folder(self._folder) and files.is_folder(folder)):
            return None
        for left in folder.glob("*.tmp"):
            files.remove(left)
        for path in sorted(files.states(folder), reverse=True):
            try:
                facts, arrays = self._read(path, cohort, due)
                rows = files.read_rows(folder, facts, due)
            except (CheckpointError, OSError) as error:
                self._warn(f"{path}: refused, {error}; its cohort goes back further")
                continue
            resumed_at = (*facts.resumed_at, facts.epoch)
            self._kept[cohort.numbers] = _Kept(
                facts.segments, resumed_at, {number: len(found) for number, found in rows.items()}
            )
            snapshot = Snapshot(
                facts.epoch, facts.update, facts.numbers, facts.diverged_at, arrays, facts.spent
            )
            return Resumption(snapshot, rows, resumed_at, facts.start_ms)
        self.drop(cohort)
        return None

    def refuse(self, cohort: Cohort, reason: str) -> None:
        """Removes a cohort's, which a worker could not go on from."""
        self._warn(
            f"{self.folder_of(cohort)}: checkpoint refused ({reason}); "
            "its trials start again from their beginning"
        )
        self.drop(cohort)

    def drop(self, cohort: Cohort) -> None:
        """Removes a cohort's: all of it is on record, or it starts from the beginning."""
        self._kept.pop(cohort.numbers, None)
        if files.is_folder(self._folder):
            files.remove(self.folder_of(cohort))

    def drop_all_but(self, cohorts: Iterable[Cohort]) -> None:
        """Removes what is of no cohort that is still to be trained."""
        wanted = {self.folder_of(cohort).name for cohort in cohorts}
        if not files.is_folder(self._folder):
            return
        for folder in self._folder.iterdir():
            if folder.name not in wanted and folder.name.startswith("cohort-"):
                files.remove(folder)

    def _read(
        self, path: Path, cohort: Cohort, due: Collection[int]
    ) -> tuple[Facts, dict[str, np.ndarray]]:
        arrays, facts = files.unpacked(files.bytes_of(path))
        epochs = cohort.trials[0].trainer.epochs
        numbers = set(facts.numbers)
        if facts.key != self._key(cohort):
            raise CheckpointError("it is of another sweep or cohort")
        if files.state_name(facts.epoch) != path.name or not 0 < facts.epoch < epochs:
            raise CheckpointError(f"its epoch, {facts.epoch}, is not that of its name and trials")
        left = [number for number in due if number not in numbers]
        if left:
            raise CheckpointError(f"it lacks trial {left[0]}, which is still to be recorded")
        known = numbers | facts.diverged_at.keys()
        if not known <= set(cohort.numbers) or len(numbers) != len(facts.numbers):
            raise CheckpointError("it holds trials that are not the cohort's")
        if numbers & facts.diverged_at.keys():
            raise CheckpointError("it holds trials that have diverged")
        if any(a.ndim == 0 or len(a) != len(numbers) for a in arrays.values()):
            raise CheckpointError(f"its arrays must all lead with {len(numbers)} members")
        measured = {choice.name for choice in cohort.measure}
        for name, settings in facts.spent.fitted.items():
            faults = Faults({}, "its settings of")
            if name not in measured:
                faults.add(name, "no measurement of this sweep")
            faults.named("diagnostics", name, name, settings)
            try:
                faults.raise_any()
            except ConfigError as error:
                raise CheckpointError(str(error)) from error
        return facts, arrays

    def _key(self, cohort: Cohort) -> str:
        content = [
            self._sweep_id,
            cohort.sweep_seed,
            [dataclasses.asdict(trial) for trial in cohort.trials],
            [dataclasses.asdict(choice) for choice in cohort.measure],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _make(self, folder: Path) -> None:
        for one in (self._folder, folder):
            if not one.exists():
                one.mkdir()
                files.sync(one.parent)
            if not files.is_folder(one):
                raise CheckpointError(f"{one} must be a folder and no link")

    def _warn(self, line: str) -> None:
        logging.getLogger("lyapsweep").warning("%s", line)
        self._say(line)
