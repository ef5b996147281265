"""What was run: the settings' ranges, how exponents were measured, what it cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from analysis import features as ft
from analysis import words
from analysis.figures.base import when
from analysis.frame import MEASURED_PREFIXES, SweepFrame
from analysis.sections.base import Section, TableView, in_words, table_view

SKIPPED = "skipped_over_budget"


def _facts(frame: SweepFrame) -> list[tuple[str, str]]:
    config, trials = frame.info.config, frame.trials
    states = trials["state"].value_counts()
    seconds = frame.seconds.groupby("activity")["seconds"].sum()
    training, measuring = seconds.get("training", 0.0), seconds.get("measuring", 0.0)
    score, higher = frame.score
    has_score = bool((frame.scalars["quantity"] == "val_score").any())
    return [
        *([("Measured by others", frame.imported_from)] if frame.imported_from else []),
        ("Task", _named(config.get("task"))),
        ("Network", _named(config.get("network"))),
        ("Sampler", _named(config.get("sampler"))),
        ("Seed of the sweep", str(config.get("seed", "–"))),
        (
            "Trials",
            f"{len(trials)} of {frame.info.num_trials} published: "
            + ", ".join(f"{n} {state}" for state, n in states.items()),
        ),
        ("Epochs", str(frame.final_epoch)),
        ("Measured at epochs", ", ".join(map(str, frame.measured_epochs)) or "none"),
        ("Target", f"{frame.target_quantity} when training ends, smaller is better"),
        *(
            [("Score", f"{score}, {'higher' if higher else 'lower'} is better")]
            if has_score
            else []
        ),
        ("Training time", words.duration(training) if training else "–"),
        (
            "Time spent measuring",
            f"{words.duration(measuring)}, {words.percent(measuring / training)} of training"
            if training > 0
            else "–",
        ),
        ("State of the sweep", frame.info.state),
        (
            "Imported" if frame.imported_from else "Started",
            datetime.fromtimestamp(frame.info.created_ms / 1000, UTC).strftime(
                "%Y-%m-%d %H:%M UTC"
            ),
        ),
    ]


def _named(section: Any) -> str:
    if not isinstance(section, Mapping):
        return str(section) if section else "–"
    fixed = [
        f"{key} {value}"
        for key, value in section.items()
        if key != "name" and isinstance(value, (int, float, str, bool))
    ]
    return str(section.get("name", "–")) + (f" ({', '.join(fixed)})" if fixed else "")


def _ranges(frame: SweepFrame) -> TableView | None:
    rows = []
    for name in frame.sampled:
        values = frame.params[name]
        if ft.is_number(values):
            seen = f"{words.significant(values.min(), 3)} to {words.significant(values.max(), 3)}"
        else:
            seen = ", ".join(sorted(values.map(str).unique()))
        rows.append([name, str(frame.ranges.get(name, "–")), seen, str(values.nunique())])
    columns = ("Setting", "Drawn from", "Seen", "Values")
    return table_view("What was sampled", columns, rows, (False, False, False, True), file="trials")


def measurements(frame: SweepFrame) -> TableView | None:
    """Quantities measured under the same conventions share a line."""
    shared: dict[str, list[str]] = {}
    for quantity in sorted(q for q in frame.quantities if q.startswith(MEASURED_PREFIXES)):
        details = frame.details(quantity)
        spelled = ", ".join(f"{name} {_either(values)}" for name, values in details.items())
        shared.setdefault(spelled or "–", []).append(f"{quantity} [{frame.unit(quantity)}]")
    rows = [[", ".join(quantities), spelled] for spelled, quantities in shared.items()]
    flagged = "; ".join(f"{flag}: {words.count(n, 'reading')}" for flag, n in flags(frame).items())
    notes = [f"Flagged: {flagged}." if flagged else "", _skipped(frame)]
    return table_view(
        "How exponents were measured",
        ("Quantities", "Conventions"),
        rows,
        note=" ".join(filter(None, notes)),
    )


def _either(values: Sequence[Any]) -> str:
    """The values of one detail among trials; None, for those without it, comes last."""
    return words.either([v if isinstance(v, int | float) else in_words(v) for v in values])


def _flagged(frame: SweepFrame) -> list[dict[str, Any]]:
    rows = frame.table.filter(pc.greater(pc.list_value_length(frame.table["flags"]), 0))
    return rows.select(["trial", "epoch", "quantity", "flags"]).to_pylist()  # type: ignore[no-any-return]


def flags(frame: SweepFrame) -> dict[str, int]:
    """At how many readings of a spectrum or FTLEs each flag stands.

    One measurement of a trial at an epoch is one reading, however many quantities carry the flag.
    """
    readings = {
        (flag, row["trial"], row["epoch"], row["quantity"].split(".")[0])
        for row in _flagged(frame)
        if row["quantity"].startswith(MEASURED_PREFIXES)
        for flag in row["flags"]
    }
    return dict(Counter(flag for flag, *_ in sorted(readings)).most_common())


def _skipped(frame: SweepFrame) -> str:
    """The measurements that were due and not taken, which stand under the diagnostic's name."""
    skipped = Counter(
        (row["quantity"], row["epoch"]) for row in _flagged(frame) if SKIPPED in row["flags"]
    )
    spelled = [
        f"{diagnostic} {when(epoch)} in {words.count(n, 'trial')}"
        for (diagnostic, epoch), n in sorted(skipped.items())
    ]
    return f"Skipped, as they would have cost too much: {'; '.join(spelled)}." if spelled else ""


def costs(frame: SweepFrame) -> pd.DataFrame:
    """One line a diagnostic: times, seconds, share_of_training, epochs_each."""
    seconds = frame.seconds
    is_training = seconds["activity"] == "training"
    training, num_epochs = seconds.loc[is_training, "seconds"].sum(), int(is_training.sum())
    lines = []
    for diagnostic, part in seconds[seconds["activity"] == "measuring"].groupby("diagnostic"):
        total = float(part["seconds"].sum())
        lines.append(
            {
                "diagnostic": str(diagnostic),
                "times": len(part),
                "seconds": total,
                "share_of_training": total / training if training > 0 else math.nan,
                "epochs_each": (
                    total / len(part) * num_epochs / training if training > 0 else math.nan
                ),
            }
        )
    return pd.DataFrame(lines)


def _cost(frame: SweepFrame) -> TableView | None:
    rows = [
        [
            line["diagnostic"],
            f"{line['times']:,}",
            words.duration(line["seconds"]),
            words.percent(line["share_of_training"])
            if math.isfinite(line["share_of_training"])
            else "–",
            words.number(line["epochs_each"], 3),
        ]
        for _, line in costs(frame).iterrows()
    ]
    columns = ("Measurement", "Times", "Total", "Share of training", "Epochs' worth each")
    numeric = (False, True, True, True, True)
    return table_view("What measuring cost", columns, rows, numeric, file="cost")


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    return {"cost": costs(frame)}


def _content(frame: SweepFrame) -> dict[str, Any]:
    return {
        "facts": _facts(frame),
        "ranges": _ranges(frame),
        "cost": _cost(frame),
        "measurements": measurements(frame),
    }


_BODY = """\
<dl class="facts">
{% for term, fact in facts %}
<dt>{{ term }}</dt><dd>{{ fact }}</dd>
{% endfor %}
</dl>
{{ table(ranges) }}
{{ table(cost) }}
<div class="wide">{{ table(measurements) }}</div>
"""

SECTION = Section("What was run", _BODY, _content, _tables)
