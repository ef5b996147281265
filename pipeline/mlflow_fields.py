"""A trial as MLflow's pages show it: parameters that plots can read, scalars over epochs, a note.

Plain values; knows no MLflow.
"""

import math
from typing import Any, NamedTuple

from pipeline.records import TrialRecord
from pipeline.store import SweepInfo, TrialStart


class Point(NamedTuple):
    """One value of a metric, in the order in which MLflow takes it."""

    key: str
    value: float
    time_ms: int
    epoch: int


def note(info: SweepInfo) -> str:
    """What stands above the runs of a sweep."""
    return (
        f"lyapsweep sweep `{info.name}`: {info.num_trials} trials. "
        f"One run a trial, nested under the sweep's; expand it to plot them. "
        f"The report: `lyapsweep report {info.name}`."
    )


def params_of(start: TrialStart) -> dict[str, str]:
    """Every setting; those sampled in the logarithm get a log10 twin for plotting."""
    found = {key: _bare(value) for key, value in start.params.items()}
    for key in start.log_scaled:
        value = start.params.get(key)
        if isinstance(value, int | float) and value > 0:
            found[f"log10.{key}"] = _bare(math.log10(value))
    return {k: v[:6000] for k, v in sorted(found.items())}


def _bare(value: Any) -> str:
    """Numbers as MLflow's plots can read them: bare decimals."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def metrics_of(record: TrialRecord) -> list[Point]:
    """Finite scalars at their epochs, and the final loss again as `final.val_loss`.

    Book-keeping of a measurement (`lyapunov.self_check.sum_rule`) stays in the Parquet file.
    """
    found = []
    last: dict[str, Point] = {}
    rows = record.table.to_pylist()
    for row in rows:
        if row["quantity"].count(".") > 1:
            continue
        if row["shape"] or not row["values"] or not math.isfinite(row["values"][0]):
            continue
        point = Point(row["quantity"], row["values"][0], row["time_ms"], row["epoch"])
        found.append(point)
        last[row["quantity"]] = point
    header = record.header
    seconds = {True: 0.0, False: 0.0}
    for row in rows:
        if not row["quantity"].startswith(("val_", "test_")):
            seconds[row["quantity"] == "train_loss"] += row["seconds"] or 0.0
    training, measuring = seconds[True], seconds[False]
    if header.state == "complete" and "val_loss" in last:
        final = last["val_loss"]
        found.append(Point("final.val_loss", final.value, final.time_ms, 0))
    if training > 0:
        share = measuring / training
        found.append(Point("cost.measure_share", share, header.end_ms, 0))
        found.append(Point("cost.train_seconds", training, header.end_ms, 0))
    found.append(Point("diverged", float(header.state == "diverged"), header.end_ms, 0))
    return found
