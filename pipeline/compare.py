"""One trial again, alone: does it give what its records say?"""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline import records
from pipeline.config import SweepConfig
from pipeline.plan import plan
from pipeline.records import TrialRecord
from pipeline.rows import Row
from pipeline.train import train

# Alone instead of in company, the same sums may be taken in another order.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@dataclass(frozen=True)
class Difference:
    """Stored and rerun values of one quantity over all epochs.

    Attributes:
        quantity: its name.
        values: how many numbers were compared.
        largest: largest |rerun − stored| / max(1, |stored|); inf where one is missing or where
            only one of the two is a number.
    """

    quantity: str
    values: int
    largest: float


def rerun(config: SweepConfig, record: TrialRecord) -> pa.Table:
    """Trains the recorded trial alone, in this process. Returns its rows as a table."""
    sampled = {name: record.header.params[name] for name in config.space}
    spec = config.spec(record.header.trial, sampled)
    # Without budgets, by which timing cuts measurements; what was cut is not compared.
    measure = tuple(
        dataclasses.replace(m, config=dataclasses.replace(m.config, budget=None))  # type: ignore[call-arg]
        for m in config.measure
    )
    limits = dataclasses.replace(config.limits, keep_weights=False, measure=measure)
    cohort = plan([spec], limits)[0]
    torch.set_num_threads(cohort.threads)
    rows: list[Row] = []
    for rung in train(cohort):
        rows += rung.rows[spec.number]
        if rung.epoch == record.header.pruned_at:
            break
    return records.to_table(record.header.sweep, spec.number, rows)


def differences(stored: pa.Table, again: pa.Table) -> Iterator[Difference]:
    """Quantity by quantity, in the order of the stored table."""
    left, right = _by_quantity(stored), _by_quantity(again)
    for quantity, epoch in _cut_by_budget(stored, left, right):
        left.get(quantity, {}).pop(epoch, None)
        right.get(quantity, {}).pop(epoch, None)
    for quantity in [*left, *(q for q in right if q not in left)]:
        a, b = left.get(quantity, {}), right.get(quantity, {})
        pairs = [(a.get(e), b.get(e)) for e in sorted({*a, *b})]
        yield Difference(
            quantity=quantity,
            values=sum(len(x) for x, _ in pairs if x is not None),
            largest=max((_distance(x, y) for x, y in pairs), default=0.0),
        )


def _cut_by_budget(
    stored: pa.Table, left: dict[str, dict[int, Any]], right: dict[str, dict[int, Any]]
) -> set[tuple[str, int]]:
    """What the trial measured otherwise than asked, or not at all, because of a budget."""
    cut = {
        (row["quantity"], row["epoch"])
        for row in stored.select(["quantity", "epoch", "flags", "details"]).to_pylist()
        if "asked" in json.loads(row["details"]) or "skipped_over_budget" in row["flags"]
    }
    epochs = {epoch for _, epoch in cut}
    one_sided = {
        (quantity, epoch)
        for quantity in {*left, *right}
        for epoch in epochs & (left.get(quantity, {}).keys() ^ right.get(quantity, {}).keys())
    }
    return cut | one_sided


def _by_quantity(table: pa.Table) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = {}
    for row in table.select(["quantity", "epoch", "values"]).to_pylist():
        found.setdefault(row["quantity"], {})[row["epoch"]] = np.asarray(row["values"], float)
    return found


def _distance(a: np.ndarray | None, b: np.ndarray | None) -> float:
    if a is None or b is None or a.shape != b.shape:
        return math.inf
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(b - a) / np.maximum(1.0, np.abs(a))
    return float(np.where(same, 0.0, np.where(np.isnan(gap), math.inf, gap)).max())
