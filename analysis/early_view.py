"""What was known of a sweep at an epoch: all that features and predictors are given.

Later rows and the outcome in the header never enter it.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis import one_table
from pipeline import records


@dataclass(frozen=True, eq=False)
class EarlyView:
    """What was known of a sweep's trials by the end of one epoch.

    Built from the rows up to then and from the settings alone, so that nothing later can be read
    from it: no outcome, no end time, no row of a later epoch.

    Attributes:
        epoch: the last epoch that exists in here.
        params: settings by dotted name, one line a trial.
        sampled: names of the sampled settings.
        table: rows with epoch <= `epoch`.
    """

    epoch: int
    params: pd.DataFrame
    sampled: tuple[str, ...]
    table: pa.Table

    @classmethod
    def of(
        cls, params: pd.DataFrame, sampled: tuple[str, ...], seen: pa.Table, epoch: int
    ) -> "EarlyView":
        """Of the trials that have a row in `seen`. Raises ValueError for a row of later."""
        if seen.num_rows and pc.max(seen["epoch"]).as_py() > epoch:
            raise ValueError(f"a view of epoch {epoch} must hold no later row")
        trials = pc.unique(seen["trial"]).to_numpy()
        return cls(epoch, params.loc[params.index.isin(trials)], sampled, seen)

    def only(self, trials: pd.Index) -> "EarlyView":
        """The same of these trials alone."""
        among = pa.array(trials.to_numpy(), self.table.schema.field("trial").type)
        table = self.table.filter(pc.is_in(self.table["trial"], among))
        return EarlyView(self.epoch, self.params.loc[trials], self.sampled, table)

    @property
    def trials(self) -> pd.Index:
        """Numbers of the trials seen so far."""
        return self.params.index

    @cached_property
    def scalars(self) -> pd.DataFrame:
        """Every scalar up to `epoch`: trial, epoch, quantity, value."""
        return one_table.scalars(self.table)

    @cached_property
    def latest(self) -> pd.DataFrame:
        """The last value of every scalar, trials by quantities; NaN where never recorded."""
        return self._by_trial(self.scalars.sort_values("epoch"))

    @cached_property
    def current(self) -> pd.DataFrame:
        """The scalars recorded at `epoch` itself, trials by quantities; NaN where there is none.

        A measurement that was skipped is not stood in for by an earlier one.
        """
        return self._by_trial(self.scalars[self.scalars["epoch"] == self.epoch])

    def arrays(self, quantity: str) -> dict[int, np.ndarray]:
        """The array of a quantity measured at `epoch` itself, by trial."""
        rows = self._rows(quantity)
        return dict(zip(rows["trial"].to_pylist(), records.arrays(rows), strict=True))

    @cached_property
    def state_sizes(self) -> dict[int, int]:
        """Number of exponents that the spectrum measured at `epoch` is taken from, by trial."""
        kinds = one_table.kinds(self._rows("lyapunov.spectrum"))
        return dict(zip(kinds["trial"], kinds["state_size"], strict=True))

    def _rows(self, quantity: str) -> pa.Table:
        table = self.table
        is_wanted = pc.and_(
            pc.equal(table["quantity"], quantity), pc.equal(table["epoch"], self.epoch)
        )
        return table.filter(is_wanted)

    def _by_trial(self, scalars: pd.DataFrame) -> pd.DataFrame:
        last = scalars.groupby(["trial", "quantity"], observed=True)["value"].last()
        if not len(last):
            return pd.DataFrame(index=self.trials)
        wide = last.unstack().reindex(self.trials)
        return wide.set_axis(pd.Index(wide.columns.astype(str), name="quantity"), axis=1)

    def details(self, quantity: str) -> dict[str, Any]:
        """How a quantity was obtained in the first row that has it; {} where none does."""
        row = pc.index(pc.equal(self.table["quantity"], quantity), True).as_py()
        return json.loads(self.table["details"][row].as_py()) if row >= 0 else {}


_P = ParamSpec("_P")
_R = TypeVar("_R")


def kept(
    ask: Callable[Concatenate[EarlyView, _P], _R],
) -> Callable[Concatenate[EarlyView, _P], _R]:
    """`ask` of a view and what else is asked, once: the answer lives as long as the view."""

    @functools.wraps(ask)
    def answer(view: EarlyView, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        known = vars(view).setdefault("_answers", {})
        key = (ask, args, tuple(kwargs.items()))
        if key not in known:
            known[key] = ask(view, *args, **kwargs)
        found: _R = known[key]
        return found

    return answer
