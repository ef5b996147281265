"""What foretells the final loss of held-out trials, and what the spectrum adds."""

import math
from typing import Any

import pandas as pd

from analysis import evaluate, words
from analysis.evaluate import NUM_FOLDS, NUM_REPEATS, compare
from analysis.evidence import increments, note
from analysis.figures.base import spread_out, when
from analysis.frame import SweepFrame
from analysis.multiplicity import discoveries
from analysis.sections.base import Section, TableView, interval, table_view
from analysis.verdict import refusal

SHOWN = (
    "settings",
    "settings + mean-field numbers",
    "loss seen",
    "spectrum",
    "ensemble without spectrum",
    "ensemble with spectrum",
)
"""The predictors shown at first sight, the same in all sweeps: hyperparameters only, loss seen
only, spectrum only, and a pair that differs in the spectrum alone. All others are folded."""
_MOST_EPOCHS = 6


def _scores(frame: SweepFrame) -> pd.DataFrame:
    """The scores that could be computed, empty where there are none."""
    if refusal(frame) is not None or not len(frame.target):
        return pd.DataFrame()
    scores = compare(frame).scores
    if scores.empty or "rmse" not in scores:
        return pd.DataFrame()
    return scores[scores["problem"] == ""]


def _chosen(frame: SweepFrame) -> TableView | None:
    """Errors of the few in `SHOWN`, a column an epoch."""
    scores = _scores(frame)
    if scores.empty:
        return None
    epochs = spread_out(sorted(scores["epoch"].unique().tolist()), _MOST_EPOCHS)
    known = {
        (str(line["predictor"]), int(line["epoch"])): f"{words.significant(line['rmse'], 3)} "
        f"({words.number(line['spearman'], sign=True)})"
        for _, line in scores.iterrows()
    }
    rows = [
        [name, *(known.get((name, epoch), "–") for epoch in epochs)]
        for name in SHOWN
        if name in set(scores["predictor"])
    ]
    return table_view(
        "Typical error in held-out trials (rank correlation of foretold and true loss)",
        ("Foretold from", *(when(e).capitalize() for e in epochs)),
        rows,
        (False, *[True] * len(epochs)),
        file="predictors",
        note=" ".join(filter(None, [_best(frame, scores), compare(frame).note])),
    )


def _best(frame: SweepFrame, scores: pd.DataFrame) -> str:
    """The smallest errors without and with the spectrum, at the moment fixed beforehand."""
    epoch = compare(frame).region_epoch
    here = scores[scores["epoch"] == epoch]
    sees = {name: predictor.sees_spectrum for name, predictor in evaluate.variants().items()}
    is_with = here["predictor"].map(lambda name: sees.get(name, False)).astype(bool)
    parts = []
    for part, spelled in ((here[~is_with], "without the spectrum"), (here[is_with], "with it")):
        if part.empty:
            return ""
        best = part.sort_values("rmse").iloc[0]
        parts.append(
            f"{words.significant(best['rmse'], 3)} {spelled} ({best['predictor']}; the best of "
            f"{len(part)})"
        )
    return (
        f"Of all predictors the smallest error {when(epoch)}, the last measurement in the first "
        f"half of training, is {' and '.join(parts)}. The best of several looks better than it is."
    )


def _predictors(frame: SweepFrame) -> TableView | None:
    if refusal(frame) is not None:
        return None
    scores = compare(frame).scores if len(frame.target) else pd.DataFrame()
    if scores.empty or "rmse" not in scores:
        return None
    rows = []
    for _, line in _scores(frame).iterrows():
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
        note=_missing(scores),
    )  # fmt: skip


def _missing(table: pd.DataFrame, start: str = "") -> str:
    """Why lines are missing, in one sentence; "" where none is."""
    found = {str(p).removeprefix("not computable: ") for p in table.get("problem", ()) if p}
    start = start or "Lines are missing for this"
    return f"{start}: {'; '.join(sorted(found))}." if found else ""


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
        note=" ".join(filter(None, [note(frame), _missing(tested, "" if rows else "Not tested")])),
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
        "chosen": _chosen(frame),
        "predictors": _predictors(frame),
        "regions": _regions(frame),
        "num_folds": NUM_FOLDS,
        "num_repeats": {1: "once", 2: "twice"}.get(NUM_REPEATS, f"{NUM_REPEATS} times"),
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
<p>First the question that matters: does a group of features (those of the spectrum, or of the
finite-time exponents, FTLEs) foretell anything that settings, loss so far and the norms of gradients
and weights do not? These, the baseline, may act in any smooth way, alone and in pairs; a stiffer one
would flatter the spectrum. The gain is how much smaller the error in trials not fitted on is with the
group (final losses by rank, on a normal scale); its p value says how often a shuffled group, which
keeps whatever the baseline explains of it, does as well. “Determined” says how much of the group the
baseline explains; “share found” how much of what the baseline leaves open the group would have to
explain to be found four times in five.</p>
{{ table(increments) }}
<p>Then what predictors make of it, each fitted on part of the trials to foretell the rest ({{ num_folds }}-fold
cross-validation, {{ num_repeats }}; 5-fold, once, for those that take long to fit). The few
below are the same in every report, chosen before any result was seen; the two ensembles (a spline, a
law of the curve, a ridge regression and a Gaussian process, averaged) differ in the spectrum alone.
Errors are root mean squares{{ " of the logarithm of the loss: 0.1 is about a tenth off, 0.7 a factor of two" if is_log else " of the loss" }}.</p>
{{ table(chosen) }}
<details><summary>All predictors, with intervals</summary>
<p>“Best tenth found” is the share of the truly best among as many foretold best; regret is how much
worse than the best trial the best of those kept ends; NLL is how surprised a forecast is by what
came, on average: lower is better.</p>
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
