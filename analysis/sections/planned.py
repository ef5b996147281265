"""What was fixed before the sweep ended, what came of it, and where the analysis departed."""

from typing import Any

import pandas as pd

from analysis import words
from analysis.confirmation import Confirmation, confirmation
from analysis.frame import SweepFrame
from analysis.sections.base import Section, TableView, table_view

_BODY = """\
{% for sentence in found.sentences %}
<p>{{ sentence }}</p>
{% endfor %}
{% if found.deviations %}
<p>Where what was done is not what was planned:</p>
<ul>{% for line in found.deviations %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{{ table(planned) }}
"""


def _content(frame: SweepFrame) -> dict[str, Any]:
    found = confirmation(frame, frame.registration)
    return {"found": found, "planned": _planned(found)}


def _planned(found: Confirmation) -> TableView | None:
    rows = [
        [
            line["role"],
            line["claim"],
            line["status"],
            str(int(line["n"])),
            words.estimate(line["value"], line["low"], line["high"]),
            words.p_value(line["p_holm"]),
            _came(line),
        ]
        for _, line in found.table.iterrows()
    ]
    return table_view(
        "The planned tests",
        ("Role", "Claim", "Status", "Trials", "Estimate", "p (Holm)", "Outcome"),
        rows,
        (False, False, False, True, True, True, False),
        file="planned",
    )


def _came(line: pd.Series) -> str:
    if line["problem"]:
        return str(line["problem"])
    return "not tested" if line["holds"] is None else "holds" if line["holds"] else "does not hold"


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    table = confirmation(frame, frame.registration).table
    # Parquet has no type for a truth that may be missing among objects.
    return {"planned": table.assign(holds=table["holds"].map(str))}


SECTION = Section("What was planned", _BODY, _content, _tables)
