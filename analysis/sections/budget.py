"""What pruning by each rule would have saved of this sweep, at how much regret."""

from functools import lru_cache
from typing import Any

import pandas as pd

from analysis import words
from analysis.frame import AnalysisError, SweepFrame
from analysis.sections.base import Section, TableView, table_view
from analysis.trade_off import saved_at_regret

ORDERS = 4
TRIALS = 100
"""Orders of the trials, and the most of them, that are replayed: seconds of a report. The command
`replay` takes as many as are asked for."""

_BODY = """\
<p>The sweep played again as if a pruner had watched: the share of its epochs that would have been
saved where the mean regret stays within a limit, and what remains of that once the measurements are
paid for. Regret is a share of the spread of final losses. The strength of each pruner is chosen on
half of the orders of trials and judged on the other; brackets are the range over orders: other
sweeps may differ by more. <code>lyapsweep replay {{ name }}</code> takes more orders
and shows the whole trade-off.</p>
{% if problem %}
<p class="empty">{{ problem }}</p>
{% endif %}
{{ table(saved) }}
"""


@lru_cache(maxsize=8)
def _saved(frame: SweepFrame) -> tuple[pd.DataFrame, str]:
    try:
        return saved_at_regret(frame, num_orders=ORDERS, max_trials=TRIALS), ""
    except AnalysisError as error:
        return pd.DataFrame(), str(error)


def _content(frame: SweepFrame) -> dict[str, Any]:
    found, problem = _saved(frame)
    view = _view(found, len(frame.headers))
    return {"name": frame.info.name, "problem": problem, "saved": view}


def _view(found: pd.DataFrame, num_trials: int) -> TableView | None:
    rows = [
        [
            line["pruner"],
            words.percent(line["limit"]),
            _share(line, "saved"),
            _share(line, "net"),
            words.percent(line["regret"]),
            line["settings"],
        ]
        for _, line in found.iterrows()
    ]
    note = ""
    if len(found):
        num = int(found["trials"].iloc[0])
        played = words.count(num, "trial")
        if num < num_trials:
            played = f"The first {num} of {num_trials:,} trials"
        note = f"{played}, played in {ORDERS} random orders: the brackets span no more than these."
    return table_view(
        "Budget saved",
        ("Pruner", "Regret allowed", "Epochs saved", "Measuring paid", "Regret", "Settings chosen"),
        rows,
        (False, True, True, True, True, False),
        file="budget",
        note=note,
    )


def _share(line: pd.Series, column: str) -> str:
    low, high = words.percent(line[f"{column}_low"]), words.percent(line[f"{column}_high"])
    return f"{words.percent(line[column])} [{low}, {high}]"


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    return {"budget": _saved(frame)[0]}


SECTION = Section("What pruning would save", _BODY, _content, _tables, short="Budget")
