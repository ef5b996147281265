"""A whole sweep as tables: everything that was recorded, and where targets come from.

What features and predictors are given is an `EarlyView` of it.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis import one_table
from analysis.early_view import EarlyView
from pipeline import records, space
from pipeline.compaction import all_records
from pipeline.home import Home
from pipeline.records import TrialHeader, TrialRecord
from pipeline.space import Range
from pipeline.store import Store, SweepInfo
from pipeline.unfinished import unfinished

TARGET = "val_loss"
MEASURED_PREFIXES = ("lyapunov.", "ftle.")
_BATCH = 256  # records in one piece: many small tables take twice the memory


class AnalysisError(ValueError):
    """Records from which no honest number can be made; the message says why."""


@dataclass(frozen=True, eq=False)
class SweepFrame:
    """Everything a sweep has recorded.

    Attributes:
        info: the sweep as the store knows it.
        headers: one a trial, in order of their numbers.
        table: the rows of all trials, `records.SCHEMA`, epoch by epoch: what was known by one of
            them is a slice, not a copy.
        target_quantity: the quantity whose last value in a complete trial is the target;
            smaller is better.
        registration: what `preregistration.preregistration_of` found, or the error it raised.
    """

    info: SweepInfo
    headers: tuple[TrialHeader, ...]
    table: pa.Table
    target_quantity: str = TARGET
    registration: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", one_table.by_epoch(self.table))

    @classmethod
    def from_store(cls, store: Store, name: str, home: Home | None = None) -> "SweepFrame":
        """All published trials; with the driver's folder, also those that a driver there trains.

        Raises NoSuchSweepError, RecordError, AnalysisError.
        """
        info = store.sweep(name)
        waiting = {} if home is None else {r.header.trial: r for r in unfinished(info, home)}

        def each() -> Iterator[TrialRecord]:
            for record in all_records(store, name):
                waiting.pop(record.header.trial, None)
                yield record
            yield from waiting.values()

        return cls.from_records(info, each())

    @classmethod
    def from_records(cls, info: SweepInfo, trials: Iterable[TrialRecord]) -> "SweepFrame":
        """Raises AnalysisError for no trials, the same trial twice, or a unit that changes."""
        headers: list[TrialHeader] = []
        pieces: list[pa.Table] = []
        batch: list[pa.Table] = []
        for record in trials:
            headers.append(record.header)
            batch.append(record.table.replace_schema_metadata(None))
            if len(batch) == _BATCH:
                pieces.append(one_table.packed(batch))
                batch = []
        if not headers:
            raise AnalysisError(
                f"sweep {info.name!r}: no trial has been published yet, so there is nothing to "
                f"analyse; `lyapsweep status {info.name}` shows how far it is"
            )
        headers.sort(key=lambda header: header.trial)
        numbers = [header.trial for header in headers]
        repeated = sorted({n for n in numbers if numbers.count(n) > 1}) if _repeats(numbers) else []
        if repeated:
            raise AnalysisError(
                f"sweep {info.name!r}: each trial must occur once, but there are several records "
                f"of trial {', '.join(map(str, repeated))}"
            )
        if batch:
            pieces.append(one_table.packed(batch))
        del batch
        table = one_table.in_order(pieces)
        _check_rows(info.name, table)
        return cls(info, tuple(headers), table)

    @property
    def imported_from(self) -> str:
        """Where others published what was not measured here; "" for a sweep of ours."""
        return str(self.info.config.get("imported", {}).get("source", ""))

    @cached_property
    def scalars(self) -> pd.DataFrame:
        """Every scalar, epoch by epoch: trial, epoch, quantity, value."""
        return one_table.scalars(self.table)

    def spectra(
        self,
        quantity: str,
        *,
        trials: Iterable[int] | None = None,
        epochs: Iterable[int] | None = None,
    ) -> pd.DataFrame:
        """`records.tidy` of one quantity with axes, of some trials and epochs or of all.

        Raises KeyError where there is none.
        """
        table = self.table
        for column, wanted in (("trial", trials), ("epoch", epochs)):
            if wanted is not None:
                among = pa.array([int(v) for v in wanted], pa.int32())
                table = table.filter(pc.is_in(table[column], among))
        return records.tidy(table, quantity)

    def epochs_of(self, quantity: str) -> list[int]:
        """Epochs at which a quantity was recorded in some trial."""
        rows = self.table.filter(pc.equal(self.table["quantity"], quantity))
        return sorted(pc.unique(rows["epoch"]).to_pylist())

    @cached_property
    def quantities(self) -> frozenset[str]:
        """Names of all that was recorded."""
        return frozenset(pc.unique(self.table["quantity"]).to_pylist())

    @cached_property
    def measured_epochs(self) -> list[int]:
        """Epochs at which some Lyapunov quantity was measured in some trial."""
        names = [q for q in self.quantities if q.startswith(MEASURED_PREFIXES)]
        rows = self.table.filter(pc.is_in(self.table["quantity"], pa.array(names, pa.string())))
        return sorted(pc.unique(rows["epoch"]).to_pylist())

    @cached_property
    def final_epoch(self) -> int:
        """The last epoch any trial reached."""
        return int(pc.max(self.table["epoch"]).as_py() or 0) if self.table.num_rows else 0

    @cached_property
    def params(self) -> pd.DataFrame:
        """Settings by dotted name, one line a trial."""
        return _params(self.headers)

    @cached_property
    def sampled(self) -> tuple[str, ...]:
        """Names of the settings that were sampled in any trial."""
        return _sampled(self.headers)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One line a trial, indexed by number.

        Columns: state, seed, attempt, diverged_at, pruned_at, last_epoch, target, best, score,
        test_loss, test_score, seconds_training, seconds_measuring, error, then the settings.
        `target` and `best` are NaN unless the trial is complete and its final loss finite: a
        trial that a pruner stopped has a last loss, but no final one.
        """
        index = pd.Index([h.trial for h in self.headers], name="trial")
        table = pd.DataFrame(
            {
                "state": [h.state for h in self.headers],
                "seed": [h.seed for h in self.headers],
                "attempt": [h.attempt for h in self.headers],
                "diverged_at": [h.diverged_at for h in self.headers],
                "pruned_at": [h.pruned_at for h in self.headers],
            },
            index=index,
        )
        rows = self.scalars
        table["last_epoch"] = rows.groupby("trial")["epoch"].max().reindex(index)
        losses = rows[rows["quantity"] == self.target_quantity]
        last = _last(losses).reindex(index)
        finished = (table["state"] == "complete") & np.isfinite(last.astype(float))
        table["target"] = last.where(finished)
        table["best"] = losses.groupby("trial")["value"].min().reindex(index).where(finished)
        for column, quantity in (
            ("score", "val_score"),
            ("test_loss", "test_loss"),
            ("test_score", "test_score"),
        ):
            table[column] = _last(rows[rows["quantity"] == quantity]).reindex(index)
        seconds = self.seconds
        for column in ("training", "measuring"):
            table[f"seconds_{column}"] = (
                seconds[seconds["activity"] == column].groupby("trial")["seconds"].sum()
            ).reindex(index)
        table["error"] = [h.error for h in self.headers]
        return table.join(self.params[[c for c in self.params if c not in table.columns]])

    @cached_property
    def num_pruned(self) -> int:
        """Trials a pruner stopped: those with a target are then a selection by their losses."""
        return sum(h.state == "pruned" for h in self.headers)

    @property
    def target(self) -> pd.Series:
        """Final loss of the trials that have one, by trial."""
        return self.trials["target"].dropna()

    def target_at(self, epoch: int) -> pd.Series:
        """`target` of the trials for which it still lay ahead at the end of `epoch`.

        A trial that had ended by then would be foretold by its own outcome. At the sweep's final
        epoch, where nothing lies ahead of anyone, all are kept.
        """
        target = self.target
        if epoch >= self.final_epoch:
            return target
        # By the last loss: a spectrum may have been measured after it.
        losses = self.scalars[self.scalars["quantity"] == self.target_quantity]
        last = losses.groupby("trial")["epoch"].max()
        ahead: pd.Series = target[last.reindex(target.index) > epoch]
        return ahead

    @cached_property
    def seconds(self) -> pd.DataFrame:
        """Time by trial, epoch, activity (training, measuring) and diagnostic."""
        rows = self.table.filter(pc.is_valid(self.table["seconds"]))
        quantity = rows["quantity"].to_pandas()
        table = pd.DataFrame(
            {
                "trial": rows["trial"].to_pandas(),
                "epoch": rows["epoch"].to_pandas(),
                "seconds": rows["seconds"].to_pandas(),
                # Typed also where there is none: imported sweeps recorded no time.
                "diagnostic": pd.Series([q.split(".")[0] for q in quantity], dtype=str),
            }
        )
        is_loss = quantity.str.startswith(("train_", "val_", "test_"))
        table["activity"] = np.where(
            quantity == "train_loss", "training", np.where(is_loss, "evaluating", "measuring")
        )
        return table

    @cached_property
    def score(self) -> tuple[str, bool]:
        """Name of the task's main score, and whether a higher one is better."""
        rows = self.table.filter(pc.equal(self.table["quantity"], "val_score"))
        if rows.num_rows == 0:
            return "score", True
        details = json.loads(rows["details"][0].as_py())
        return str(details.get("name", "score")), bool(details.get("higher_is_better", True))

    def unit(self, quantity: str) -> str:
        """The unit of a quantity. Raises KeyError where it was never recorded."""
        row = pc.index(pc.equal(self.table["quantity"], quantity), True).as_py()
        if row < 0:
            raise KeyError(f"no quantity {quantity!r} in these records")
        return str(self.table["unit"][row].as_py())

    def details(self, quantity: str) -> dict[str, list[Any]]:
        """How a quantity was obtained: each distinct value of each detail, sorted.

        Nested details have dotted names. None stands for rows that lack a detail which others
        have.
        """
        rows = self.table.filter(pc.equal(self.table["quantity"], quantity))
        each = [_flat(json.loads(text)) for text in pc.unique(rows["details"]).to_pylist()]
        names = dict.fromkeys(name for details in each for name in details)
        return {name: _distinct([details.get(name) for details in each]) for name in names}

    @cached_property
    def spectra_measured(self) -> pd.DataFrame:
        """What each recorded spectrum is of: trial, epoch, k, state_size, state.

        A record that names no state size is taken to hold the whole spectrum.
        """
        return one_table.kinds(
            self.table.filter(pc.equal(self.table["quantity"], "lyapunov.spectrum"))
        )

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """The ranges the sampled settings were drawn from, where the config names them."""
        found = ((path, space.parse_range(node)) for path, node in space.walk(self.info.config))
        return {path: parsed for path, parsed in found if parsed is not None}

    def early_view(self, epoch: int) -> EarlyView:
        """What had been seen by the end of `epoch`."""
        count = int(np.searchsorted(self.table["epoch"].to_numpy(), epoch, side="right"))
        view = EarlyView.of(self.params, self.sampled, self.table.slice(0, count), epoch)
        # Its scalars, as it would find them: ours up to there, not a copy for every epoch.
        seen = self.scalars.iloc[: int(self.scalars["epoch"].searchsorted(epoch, side="right"))]
        quantity = seen["quantity"].cat.remove_unused_categories()
        vars(view)["scalars"] = seen.assign(quantity=quantity)
        return view


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _distinct(values: list[Any]) -> list[Any]:
    found = list({json.dumps(v): v for v in values}.values())
    is_number = all(isinstance(v, int | float) for v in found)
    return sorted(found) if is_number else sorted(found, key=lambda v: (v is None, str(v)))


def _repeats(numbers: list[int]) -> bool:
    return len(set(numbers)) < len(numbers)


def _check_rows(name: str, table: pa.Table) -> None:
    units = table.group_by("quantity").aggregate([("unit", "count_distinct")])
    mixed = units.filter(pc.greater(units["unit_count_distinct"], 1))["quantity"].to_pylist()
    if mixed:
        quantity = sorted(mixed)[0]
        found = pc.unique(table.filter(pc.equal(table["quantity"], quantity))["unit"]).to_pylist()
        raise AnalysisError(
            f"sweep {name!r}: each quantity must have one unit, but {quantity} came in "
            f"{' and '.join(sorted(found))}; convert the records to one unit before analysing"
        )
    # By sorting, for Arrow's group_by of three columns takes as much memory as the whole table.
    quantities = table["quantity"].combine_chunks()
    if not pa.types.is_dictionary(quantities.type):
        quantities = quantities.dictionary_encode()
    codes = quantities.indices.to_numpy()
    keys = (codes, table["trial"].to_numpy(), table["epoch"].to_numpy())
    order = np.lexsort(keys)
    is_again = np.ones(len(order) - 1 if len(order) else 0, bool)
    for key in keys:
        is_again &= key[order[1:]] == key[order[:-1]]
    if is_again.any():
        row = table.slice(int(order[int(is_again.argmax())]), 1).to_pylist()[0]
        alike = (pc.equal(table[key], row[key]) for key in ("trial", "epoch", "quantity"))
        count = pc.sum(functools.reduce(pc.and_, alike)).as_py()
        raise AnalysisError(
            f"sweep {name!r}: each quantity must occur once an epoch, but trial {row['trial']} "
            f"has {count} rows of {row['quantity']} at epoch {row['epoch']}"
        )


def _params(headers: Iterable[TrialHeader]) -> pd.DataFrame:
    headers = list(headers)
    index = pd.Index([h.trial for h in headers], name="trial")
    names = sorted({name for h in headers for name in h.params})
    columns = {name: [_plain(h.params.get(name)) for h in headers] for name in names}
    return pd.DataFrame(columns, index=index)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _sampled(headers: Iterable[TrialHeader]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for h in headers for name in h.sampled))


def _last(rows: pd.DataFrame) -> pd.Series:
    return rows.sort_values("epoch").groupby("trial")["value"].last(skipna=False)
