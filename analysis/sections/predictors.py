"""What foretells the final loss of held-out trials, and what the spectrum adds."""

import math
from typing import Any

import pandas as pd

from analysis import words
from analysis.evaluate import NUM_FOLDS, NUM_REPEATS, compare
from analysis.evidence import increments, note
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.multiplicity import discoveries
from analysis.sections.base import Section, TableView, interval, table_view
from analysis.verdict import refusal


def _predictors(frame: SweepFrame) -> TableView | None:
    if refusal(frame) is not None:
        return None
    scores = compare(frame).scores if len(frame.target) else pd.DataFrame()
    if scores.empty or "rmse" not in scores:
        return None
    rows = []
    for _, line in scores.iterrows():
        if line["problem"]:
            continue
        rows.append(
            [
                when(int(line["epoch"])),
                line["predictor"],
                interval(line, "spearman"),
                words.number(line["kendall"]),
                words.significant(line["rmse"], 3),
                words.number(line["r2"]),
                words.percent(line["recall_10"]),
                words.significant(line["regret_10"], 2),
                words.significant(line["regret_25"], 2),
                words.number(line["nll"]),
                words.percent(line["coverage"]),
            ]
        )
    problems = sorted({str(p) for p in scores["problem"] if p})
    return table_view(
        "Held-out trials foretold",
        (
            "When", "From", "Rank correlation", "Kendall τ", "RMSE", "R² of ranks",
            "Best tenth found", "Regret, a tenth kept", "a quarter kept", "NLL",
            "In the 90 % interval",
        ),
        rows,
        (False, False, *[True] * 9),
        file="predictors",
        note=" ".join(filter(None, [compare(frame).note, "; ".join(problems)])),
    )  # fmt: skip


def _regions(frame: SweepFrame) -> TableView | None:
    """Thirds of each setting foretold from the other two, a column a setting."""
    comparison = compare(frame) if refusal(frame) is None else None
    if comparison is None or comparison.regions.empty or "r2" not in comparison.regions:
        return None
    known = comparison.regions[comparison.regions["problem"] == ""]
    settings = list(dict.fromkeys(known["setting"]))
    rows = []
    for name, part in known.groupby("predictor", sort=False):
        by = part.set_index("setting")
        rows.append(
            [
                str(name),
                *(
                    f"{words.number(by.loc[s, 'r2'])} ({words.percent(by.loc[s, 'coverage'])})"
                    if s in by.index
                    else "–"
                    for s in settings
                ),
            ]
        )
    return table_view(
        f"Foretold beyond the range seen, {when(comparison.region_epoch)}: R² (share in the 90 % "
        "interval) where each third of a setting is foretold from the other two",
        ("From", *settings),
        rows,
        (False, *[True] * len(settings)),
        file="regions",
    )


def _increments(frame: SweepFrame) -> TableView | None:
    tested = increments(frame) if refusal(frame) is None else pd.DataFrame()
    q = discoveries(frame)
    rows = []
    for _, line in tested.iterrows():
        if line["problem"]:
            continue
        later = line["against_epoch"]
        against = (
            f"{_gain(line, 'against')} over epoch {int(later)}"
            if math.isfinite(line["against"])
            else f"– ({line['against_problem']})"
        )
        rows.append(
            [
                when(int(line["epoch"])),
                line["group"],
                str(int(line["n"])),
                _gain(line, "gain"),
                words.p_value(line["p"]),
                words.p_value(line["p_holm"]),
                words.p_value(q.get(("increment", int(line["epoch"]), line["group"]), math.nan)),
                words.percent(line["determined"]),
                words.percent(line["detectable"]) if math.isfinite(line["detectable"]) else "–",
                _trials_needed(line["trials_needed"]),
                words.number(line["cost_epochs"]),
                against,
            ]
        )
    problems = sorted({str(p) for p in tested["problem"] if p}) if len(tested) else []
    return table_view(
        "What the spectrum takes off the error",
        (
            "When", "Group", "n", "Gain [95 % interval]", "p", "p (Holm)", "q (whole report)",
            "Determined by the baseline", "Share found with 80 %", "Trials to conclude",
            "Cost in epochs", "Gain over training on instead",
        ),
        rows,
        (False, False, *[True] * 9, False),
        file="increments",
        note=" ".join(filter(None, [note(frame), "; ".join(problems)])),
    )  # fmt: skip


def _trials_needed(number: float) -> str:
    """Infinite where there is no gain; unknown where no share tried is found with 80 %."""
    if math.isinf(number):
        return "no gain to confirm"
    return f"{math.ceil(number):,}" if math.isfinite(number) else "–"


def _gain(line: pd.Series, column: str) -> str:
    low, high = line[f"{column}_low"], line[f"{column}_high"]
    return (
        f"{words.percent(line[column], sign=True)} [{words.percent(low, sign=True)}, "
        f"{words.percent(high, sign=True)}]"
    )


def _content(frame: SweepFrame) -> dict[str, Any]:
    refused = refusal(frame)
    return {
        "refused": "" if refused is None else refused.headline,
        "increments": _increments(frame),
        "predictors": _predictors(frame),
        "regions": _regions(frame),
        "num_folds": NUM_FOLDS,
        "num_repeats": NUM_REPEATS,
        "is_log": compare(frame).is_log if refused is None else True,
    }


def _tables(frame: SweepFrame) -> dict[str, pd.DataFrame]:
    if refusal(frame) is not None:
        return {}
    comparison = compare(frame)
    return {
        "predictors": comparison.scores,
        "regions": comparison.regions,
        "increments": increments(frame),
    }


_BODY = """\
{% if predictors and predictors.rows %}
<p>First the question that matters: does a group of features foretell anything that settings, loss so
far and norms do not? Those may act in any smooth way, alone and in pairs; a stiffer baseline would
flatter the spectrum. The gain is how much smaller the error of held-out trials is with the group, in
normal scores of the final loss; its p value is of a permutation test that keeps whatever the baseline
explains of the group. “Determined” says how much of the group the baseline explains; “share found”
how much of what the baseline leaves the group would have to explain to be found four times in five.</p>
{{ table(increments) }}
<p>Then all predictors, each fitted on part of the trials to foretell the rest ({{ num_folds }}-fold
cross-validation, {{ num_repeats }} times; 5-fold, once, for those that take long to fit). Errors are of
the {{ "logarithm of the loss" if is_log else "loss" }}. “Best tenth found” is the share of the truly best
among as many foretold best; regret is how much worse than the best trial the best of those kept ends.</p>
<details open><summary>All predictors</summary>
{{ table(predictors) }}
</details>
{% if regions %}
<details><summary>Beyond the range seen</summary>
{{ table(regions) }}
</details>
{% endif %}
{% else %}
<p class="empty">{% if refused %}{{ refused }} No predictor is compared.{% elif predictors %}{{ predictors.note }}{% else %}Too few finished trials, or nothing \
measured before the final epoch, to compare predictors.{% endif %}</p>
{% endif %}
"""  # noqa: E501

SECTION = Section("Predictors compared", _BODY, _content, _tables, short="Predictors")
