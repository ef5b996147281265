"""Trials as a plain table: all that had been seen of each by the end of one epoch.

One line a trial, a column for each sampled setting, `quantity@epoch` for each scalar
(`val_loss@2`), `quantity@epoch` with lists for spectra, and `state_size` where a spectrum holds
fewer exponents than the state has.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis import features as ft
from analysis.early_view import EarlyView
from pipeline import records

TRIAL = "trial"
_SIZE, _EPOCHS, _SPECTRUM = "state_size", "trainer.epochs", "lyapunov.spectrum"


def seen_of(view: EarlyView) -> pd.DataFrame:
    """An EarlyView as one line a trial (see the module)."""
    table = pd.DataFrame(index=view.trials)
    for name in dict.fromkeys((*view.sampled, _EPOCHS)):
        if name in view.params:
            column = view.params[name]
            table[name] = column.astype(float) if ft.is_number(column) else column.map(str)
    rows = view.scalars
    # Book-keeping of a measurement (`lyapunov.self_check.sum_rule`) foretells nothing.
    rows = rows[rows["quantity"].str.count(r"\.") < 2]
    wide = rows.set_index(["trial", "quantity", "epoch"])["value"].unstack(["quantity", "epoch"])
    quantities, epochs = (wide.columns.get_level_values(level) for level in (0, 1))
    wide.columns = pd.Index([f"{q}@{e}" for q, e in zip(quantities, epochs, strict=True)])
    table = table.join(wide[sorted(wide.columns)])
    for quantity in _curves(view):
        values = view.arrays(quantity)
        table[f"{quantity}@{view.epoch}"] = [_listed(values.get(t)) for t in view.trials]
    sizes = view.state_sizes
    if sizes:
        table[_SIZE] = [float(sizes.get(t, np.nan)) for t in view.trials]
    return table


def view_of(seen: pd.DataFrame, epoch: int, sampled: Iterable[str]) -> EarlyView:
    """The EarlyView of such a table, its trials being numbered by the index."""
    trials = seen.index.to_numpy(np.int32)
    parts = []
    for column in map(str, seen):
        quantity, at, when = column.rpartition("@")
        if not at:
            continue
        values = seen[column].to_numpy()
        if pd.api.types.is_numeric_dtype(seen[column]):
            known = ~np.isnan(values.astype(float))
            lists = pa.ListArray.from_arrays(
                pa.array(np.arange(known.sum() + 1), pa.int32()),
                pa.array(values[known].astype(float)),
            )
            parts.append(_rows(quantity, int(when), trials[known], lists, is_scalar=True))
        else:
            known = np.array([_length(v) > 0 for v in values], dtype=bool)
            if not known.any():
                continue
            lists = pa.array([np.asarray(v, float) for v in values[known]], pa.list_(pa.float64()))
            sizes = seen[_SIZE].to_numpy(float)[known] if _SIZE in seen else None
            parts.append(
                _rows(quantity, int(when), trials[known], lists, is_scalar=False, sizes=sizes)
            )
    table = pa.concat_tables(parts) if parts else records.SCHEMA.empty_table()
    params = seen[[c for c in map(str, seen) if "@" not in c and c != _SIZE]]
    return EarlyView(epoch, params.rename_axis(TRIAL), tuple(sampled), table.combine_chunks())


def known_columns(seen: pd.DataFrame) -> list[str]:
    """The settings of such a table, and whatever is known of any trial in it."""
    return [c for c in map(str, seen) if "@" not in c or _is_any_known(seen[c])]


def _rows(
    quantity: str,
    epoch: int,
    trials: np.ndarray,
    values: pa.ListArray,
    *,
    is_scalar: bool,
    sizes: np.ndarray | None = None,
) -> pa.Table:
    n = len(trials)
    none = pa.array([[]] * n, pa.list_(pa.int32()))
    lengths = pc.list_value_length(values).to_pylist()
    details = ["{}"] * n
    if quantity == _SPECTRUM and sizes is not None:
        details = [
            "{}" if np.isnan(size) else json.dumps({"state_size": int(size)}) for size in sizes
        ]
    content = {
        "sweep": [""] * n, "trial": trials, "epoch": np.full(n, epoch), "update": np.zeros(n, int),
        "quantity": [quantity] * n,
        "axes": [[] if is_scalar else ["place"]] * n,
        "shape": none if is_scalar else [[length] for length in lengths],
        "values": values, "unit": [""] * n, "error": [None] * n, "marks": [None] * n,
        "flags": [[]] * n, "details": details, "seconds": [None] * n, "time_ms": np.zeros(n, int),
    }  # fmt: skip
    return pa.table(content, schema=records.SCHEMA)


def _curves(view: EarlyView) -> list[str]:
    """Quantities with one axis that were measured at the view's epoch."""
    rows = view.table.filter(
        pc.and_(
            pc.equal(view.table["epoch"], view.epoch),
            pc.equal(pc.list_value_length(view.table["shape"]), 1),
        )
    )
    return sorted(pc.unique(rows["quantity"]).to_pylist())


def _listed(values: np.ndarray | None) -> list[float]:
    return [] if values is None else [float(v) for v in values]


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | np.ndarray) else 0


def _is_any_known(column: pd.Series) -> bool:
    if pd.api.types.is_numeric_dtype(column):
        return bool(column.notna().any())
    return any(_length(v) > 0 for v in column)
