"""Trials without a final loss, and what foretells that a trial diverges."""

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis import words
from analysis.correlations import divergence, early_epochs
from analysis.evaluate import divergence_note, divergence_scores
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.sections.base import MAX_TRIALS_SHOWN, Section, TableView, setting, table_view


def _casualties(frame: SweepFrame) -> TableView | None:
    trials = frame.trials
    lost = trials[(trials["state"] != "complete") | trials["target"].isna()]
    rows = []
    for trial, line in lost.head(MAX_TRIALS_SHOWN).iterrows():
        error = str(line["error"]).strip().splitlines()[-1] if line["error"] else ""
        if line["state"] == "diverged" and np.isfinite(line["diverged_at"] or math.nan):
            error = f"diverged at update {int(line['diverged_at'])}"
        elif line["state"] == "pruned":
            error = "stopped early by the pruner"
        elif line["state"] == "complete":
            error = "complete, but without a finite final loss"
        settings = ", ".join(f"{name} {setting(line[name])}" for name in frame.sampled)
        rows.append([str(trial), line["state"], _epoch(line["last_epoch"]), error, settings])
    return table_view(
        "Trials without a final loss",
        ("Trial", "State", "Last epoch", "Why", "Settings"),
        rows,
        (True, False, True, False, False),
        file="trials",
        note=f"{len(lost) - len(rows):,} more are in tables/trials.csv."
        if len(lost) > len(rows)
        else "",
    )


def _epoch(value: float) -> str:
    return str(int(value)) if math.isfinite(value) else "–"


def _separating(frame: SweepFrame) -> TableView | None:
    return _areas(
        frame,
        divergence(frame),
        "What separates trials that diverge later",
        by=("Feature", "label"),
        file="divergence",
    )


def _foretelling(frame: SweepFrame) -> TableView | None:
    return _areas(
        frame,
        divergence_scores(frame),
        "Later divergence foretold in held-out trials",
        by=("From", "groups"),
        file="divergence_foretold",
        note=divergence_note(frame),
    )


def _areas(
    frame: SweepFrame,
    table: pd.DataFrame,
    caption: str,
    *,
    by: tuple[str, str],
    file: str,
    note: str = "",
) -> TableView | None:
    """The early AUCs of a table, `by` heading and column; with p where they were tested."""
    known = table.dropna(subset=["auc"]) if len(table) else table
    heading, column = by
    is_tested = "auc_p_holm" in table
    rows = [
        [
            when(int(line["epoch"])),
            line[column],
            f"{line['num_diverged']} / {line['num_finite']}",
            f"{words.number(line['auc'])} [{words.number(line['auc_low'])}, "
            f"{words.number(line['auc_high'])}]",
            *([words.p_value(line["auc_p_holm"])] if is_tested else []),
        ]
        for _, line in known.iterrows()
        if int(line["epoch"]) in early_epochs(frame)
    ]
    columns = ("When", heading, "Diverged / finite", "AUC", *(["p (Holm)"] if is_tested else []))
    numeric = (False, False, *[True] * (len(columns) - 2))
    return table_view(caption, columns, rows, numeric, file=file, note=note if rows else "")


def _content(frame: SweepFrame) -> dict[str, Any]:
    return {
        "casualties": _casualties(frame),
        "separating": _separating(frame),
        "foretelling": _foretelling(frame),
    }


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    return {"divergence": divergence(frame), "divergence_foretold": divergence_scores(frame)}


_BODY = """\
{% if casualties %}
<div class="wide">{{ table(casualties) }}</div>
{% if separating %}
<p>AUC is the chance that a trial which diverges later has the larger number; 0.5 separates nothing.</p>
<details><summary>What foretells divergence</summary>
{{ table(separating) }}
{% if foretelling %}
{{ table(foretelling) }}
{% endif %}
</details>
{% else %}
<p>What foretells divergence is not computed: it takes five trials that diverge after a \
measurement, and five that end well.</p>
{% endif %}
{% else %}
<p>Every trial ended with a finite loss.</p>
{% endif %}
"""  # noqa: E501

SECTION = Section("Failures and divergences", _BODY, _content, _tables)
