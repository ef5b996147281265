"""All trials, the best first."""

import math
from typing import Any

import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.sections.base import MAX_TRIALS_SHOWN, Section, TableView, setting, table_view


def _trials(frame: SweepFrame) -> TableView | None:
    trials = frame.trials.sort_values("target", kind="stable")
    first_last = sorted({*frame.measured_epochs[:1], *frame.measured_epochs[-1:]})
    shown = ft.headline(frame)[:1]
    extra = {
        f"{f.label}, {when(e)}": ft.features(ft.early_view(frame, e)).get(f.name)
        for f in shown
        for e in first_last
    }
    score, _ = frame.score
    columns = ["Trial", "State", "Final loss", "Lowest loss", score, *frame.sampled, *extra]
    rows = []
    for trial, line in trials.head(MAX_TRIALS_SHOWN).iterrows():
        known = [math.nan if c is None else c.get(trial, math.nan) for c in extra.values()]
        rows.append(
            [
                str(trial),
                line["state"],
                words.significant(line["target"]),
                words.significant(line["best"]),
                words.significant(line["score"]),
                *(setting(line[name]) for name in frame.sampled),
                *(words.number(v, 3) for v in known),
            ]
        )
    hidden = len(trials) - len(rows)
    note = f"{hidden} more are in tables/trials.csv." if hidden > 0 else ""
    numeric = [True, False, True, True, True, *[True] * (len(columns) - 5)]
    return table_view(
        "All trials, the best first", columns, rows, numeric, file="trials", note=note
    )


def _content(frame: SweepFrame) -> dict[str, Any]:
    return {"trials": _trials(frame)}


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    return {"trials": frame.trials.reset_index()}


_BODY = """\
{% if trials and trials.rows | length > 40 %}
<details><summary>All trials, the best first</summary>
{{ table(trials) }}
</details>
{% else %}
{{ table(trials) }}
{% endif %}
"""

SECTION = Section("Trials", _BODY, _content, _tables)
