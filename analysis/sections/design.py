"""Whether the design lets the spectrum be told from the settings."""

from typing import Any

import pandas as pd

from analysis import correlations, words
from analysis import features as ft
from analysis.correlations import early_epochs, strongest
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.mean_field import LABELS, mean_field
from analysis.sections.base import Section
from analysis.statistics import detectable
from analysis.verdict import refusal


def _notes(frame: SweepFrame) -> list[str]:
    """Pairs of settings that go together, and features that are a setting in other words."""
    table = correlations.design(frame)
    if table.empty:
        return ["No setting was sampled, or too few trials finished to check the design."]
    known = table.dropna(subset=["value"])
    notes = []
    among = known[(known["epoch"] < 0) & (known["row"] != "final loss")]
    tied = among[(among["value"].abs() >= 0.3) & (among["value_p"] < 0.05)]
    tied = tied[tied["row"] < tied["setting"]]
    notes += [
        f"{row['row']} and {row['setting']} were not drawn independently: "
        f"{words.estimate(row['value'], row['value_low'], row['value_high'])}."
        for _, row in tied.iterrows()
    ]
    if tied.empty and len(among):
        most, n = strongest(among, "value"), len(frame.target)
        notes.append(
            f"No two settings go together detectably; most do {most['row']} and "
            f"{most['setting']}, {words.number(most['value'], sign=True)} (over {n} trials, less "
            f"than {words.number(detectable(n))} can go unnoticed)."
        )
    early = known[known["epoch"].isin(early_epochs(frame))]
    early = early[early["row"].isin([f.name for f in ft.FEATURES.values() if f.group != "loss"])]
    strong = early[early["value"].abs() >= 0.7]
    for setting, part in strong.groupby("setting", sort=False):
        top = strongest(part, "value")
        names = list(dict.fromkeys(part["label"]))
        notes.append(
            f"{setting} drives {words.count(len(names), 'feature')} to at least 0.7 "
            f"({', '.join(names)}; most: {top['label']} {when(int(top['epoch']))}, "
            f"{words.number(top['value'], sign=True)}). Their plain correlation with the loss "
            "cannot be told from the setting's."
        )
    return notes


def _theory(frame: SweepFrame) -> str:
    """What of mean-field theory entered the baseline, or why nothing did."""
    known = mean_field(frame.params)
    if not len(known.table.columns):
        return f"Mean-field numbers of the start weights are not in the baseline: {known.omitted}."
    spelled = [
        f"{LABELS[str(name)]} {words.number(column.min())} to {words.number(column.max())}"
        for name, column in known.table.items()
    ]
    left_out = f" Left out are {known.omitted}." if known.omitted else ""
    return (
        f"Mean-field theory says of the start weights alone: {', '.join(spelled)}. These numbers "
        f"belong to the baseline that the spectrum must beat.{left_out}"
    )


def _content(frame: SweepFrame) -> dict[str, Any]:
    refused = refusal(frame)
    if refused is not None:
        return {"notes": [f"{refused.headline} The design is not judged."], "refused": True}
    return {"notes": [*_notes(frame), _theory(frame)], "refused": False}


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    if refusal(frame) is not None:
        return {}
    theory = mean_field(frame.params).table
    shown = theory.reset_index() if len(theory.columns) else pd.DataFrame()
    return {"design": correlations.design(frame), "mean_field": shown}


_BODY = """\
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% if not refused %}
{{ pictures(figures) }}
{% endif %}
"""

SECTION = Section("Design check", _BODY, _content, _tables)
