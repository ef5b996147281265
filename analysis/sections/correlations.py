"""Each feature at each epoch against the final loss."""

import math
from typing import Any

import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.correlations import correlations, early_epochs, has_ended, most_telling
from analysis.curvature import curvature, turning
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.multiplicity import all_tests
from analysis.sections.base import Section, TableView, interval, table_view
from analysis.verdict import LEVEL, refusal

ENDED = (
    "training has ended here: the loss seen is the final loss itself, so it is neither a bar nor "
    "held fixed, and what goes with it is no early sign"
)


def _by_epoch(frame: SweepFrame) -> list[tuple[str, bool, TableView]]:
    """One table an epoch, with its heading and whether it is shown open."""
    table, found = correlations(frame), []
    if table.empty or refusal(frame) is not None:
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
        if has_ended(frame, int(str(epoch))):
            problems = [p for p in problems if "final loss" not in p] + [ENDED]
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


def _bends(frame: SweepFrame) -> TableView | None:
    """Where the final loss turns as a feature rises: squares that pass before correction."""
    table = curvature(frame)
    if table.empty or refusal(frame) is not None:
        return None
    shown = table[(table["square_p"] < LEVEL) | (table["size_p"] < LEVEL)]
    rows = [
        [
            when(int(line["epoch"])),
            line["label"],
            str(line["n"]),
            words.number(line["slope"], sign=True),
            words.number(line["square"], sign=True),
            words.p_value(line["square_p_holm"]),
            words.p_value(line["square_held_p_holm"]),
            f"{'least' if line['is_lowest'] else 'most'} at {turning(line)}"
            if line["turns"]
            else "not among these trials",
            _sizes(line),
        ]
        for _, line in shown.iterrows()
    ]
    num = int(table["square_p"].notna().sum())
    return table_view(
        "Where a square of the feature adds to a line",
        ("When", "Feature", "n", "Slope", "Square", "p of the square (Holm)",
         "p, settings fixed (Holm)", "Final loss turns", "ρ of |λ|, of λ, p (Holm)"),
        rows,
        (False, False, *[True] * 5, False, False),
        file="curvature",
        note="" if rows else f"None of {num} squares adds to its line, even before correction.",
    )  # fmt: skip


def _sizes(line: pd.Series) -> str:
    """|λ| against λ; "–" where all exponents lie on one side of 0."""
    if not math.isfinite(line["size_p"]):
        return "–"
    size, plain = (words.number(line[c], sign=True) for c in ("size", "plain"))
    return f"{size}, {plain}, {words.p_value(line['size_p_holm'])}"


def _content(frame: SweepFrame) -> dict[str, Any]:
    refused = refusal(frame)
    return {
        "refused": "" if refused is None else refused.headline,
        "by_epoch": _by_epoch(frame),
        "bends": _bends(frame),
    }


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    if refusal(frame) is not None:
        return {"features": _all_features(frame)}
    return {
        "correlations": correlations(frame),
        "curvature": curvature(frame),
        "tests": all_tests(frame),
        "features": _all_features(frame),
    }


_BODY = """\
{% if refused %}
<p class="empty">{{ refused }} No correlation is shown.</p>
{% else %}
{{ pictures(figures) }}
<p>Each feature is compared with the final loss over the finished trials. “Settings fixed”
is the partial rank correlation given the sampled settings (ranks, with squares, cubes, products and
higher powers, in this order, while five trials a column remain); “settings and loss seen fixed” \
adds the validation loss at that epoch.
Brackets are 95 % intervals: bias-corrected bootstrap for ρ and r (up to 2,000
trials), Fisher’s else. p values
are corrected after Holm over all epochs and features of their column; they come from t tests, below
20 trials from permutations. “Within strata” pools the correlation inside strata of the setting the
feature goes with most (of one that turns its sign, where there is one).</p>
{% for heading, is_open, view in by_epoch %}
<details{% if is_open %} open{% endif %}><summary>{{ heading }}</summary>
{{ table(view) }}
</details>
{% endfor %}
{% if bends %}
<p>A correlation sees whether more goes with better or worse. Whether the loss turns instead is
told by a square: normal scores of the final loss on those of the feature and on their square, with
robust errors. |λ| is held against λ where exponents lie on both sides of 0.</p>
{{ table(bends) }}
{% endif %}
{% endif %}
"""

SECTION = Section(
    "Correlations with the final loss", _BODY, _content, _tables, short="Correlations"
)
