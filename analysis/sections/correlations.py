"""Each feature at each epoch against the final loss."""

from typing import Any

import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.correlations import correlations, most_telling
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.multiplicity import all_tests
from analysis.sections.base import Section, TableView, interval, table_view
from analysis.verdict import early_epochs


def _by_epoch(frame: SweepFrame) -> list[tuple[str, bool, TableView]]:
    """One table an epoch, with its heading and whether it is shown open."""
    table, found = correlations(frame), []
    if table.empty:
        return []
    opened = _epoch_to_open(frame, table)
    columns = (
        "Feature", "n", "Spearman ρ", "p (Holm)", "Pearson r", "ρ, settings fixed", "p (Holm)",
        "ρ, settings and loss seen fixed", "p (Holm)", "ρ within strata",
    )  # fmt: skip
    for epoch, part in table.groupby("epoch"):
        rows = []
        for _, line in part.iterrows():
            strata = interval(line, "within")
            if strata != "–":
                strata += f" of {line['strata_by']}" + (" – turns" if line["reverses"] else "")
            rows.append(
                [
                    line["label"] + (" – the bar" if line["feature"] == ft.LOSS_SEEN else ""),
                    str(line["n"]),
                    interval(line, "spearman"),
                    words.p_value(line["spearman_p_holm"]),
                    interval(line, "pearson"),
                    interval(line, "given_settings"),
                    words.p_value(line["given_settings_p_holm"]),
                    interval(line, "given_settings_and_loss"),
                    words.p_value(line["given_settings_and_loss_p_holm"]),
                    strata,
                ]
            )
        problems = sorted(
            {
                f"{line['label']}: {line['spearman_problem']}"
                for _, line in part.iterrows()
                if line["spearman_problem"]
            }
        )
        heading = when(int(str(epoch))).capitalize()
        view = table_view(
            f"Correlation with the final loss, {when(int(str(epoch)))}",
            columns,
            rows,
            (False, *[True] * 8, False),
            file="correlations",
            note="; ".join(problems),
        )
        if view is not None:
            found.append((heading, epoch == opened, view))
    return found


def _epoch_to_open(frame: SweepFrame, table: pd.DataFrame) -> int:
    """The early epoch whose features go most with the loss."""
    early = table[table["epoch"].isin(early_epochs(frame)) & (table["group"] != "loss")]
    row = most_telling(early, "spearman")
    return int(table["epoch"].iloc[0] if row is None else row["epoch"])


def _all_features(frame: SweepFrame) -> pd.DataFrame:
    parts = [
        ft.features(ft.early_view(frame, epoch)).reset_index().assign(epoch=epoch)
        for epoch in frame.measured_epochs
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _content(frame: SweepFrame) -> dict[str, Any]:
    return {"by_epoch": _by_epoch(frame)}


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    return {
        "correlations": correlations(frame),
        "tests": all_tests(frame),
        "features": _all_features(frame),
    }


_BODY = """\
{{ pictures(figures) }}
<p>Each feature is compared with the final loss over the finished trials. “Settings fixed”
is the partial rank correlation given the sampled settings (ranks, with squares, cubes, products and
higher powers, in this order, while five trials a column remain); “settings and loss seen fixed” \
adds the validation loss at that epoch.
Brackets are 95 % intervals: bias-corrected bootstrap for ρ and r, Fisher’s for the others. p values
are corrected after Holm over all epochs and features of their column; they come from t tests, below
20 trials from permutations. “Within strata” pools the correlation inside strata of the setting the
feature goes with most (of one that turns its sign, where there is one).</p>
{% for heading, is_open, view in by_epoch %}
<details{% if is_open %} open{% endif %}><summary>{{ heading }}</summary>
{{ table(view) }}
</details>
{% else %}
<p class="empty">No trial has a final loss to compare with.</p>
{% endfor %}
"""

SECTION = Section(
    "Correlations with the final loss", _BODY, _content, _tables, short="Correlations"
)
