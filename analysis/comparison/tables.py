"""The tables of a comparison, and how the page shows them."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from analysis import words
from analysis.comparison.agreement import agreement
from analysis.comparison.findings import (
    QUESTIONS,
    bounded,
    i_squared,
    line_of,
    same_everywhere,
    shared_features,
)
from analysis.comparison.summary import Summary
from analysis.features import FEATURES
from analysis.sections.base import TableView, interval, table_view
from analysis.statistics import holm
from analysis.verdict import Kind

LIMIT = 0.01
"""The regret allowed, of those in the table of budgets, that the page shows."""
_ASKED = {
    "spearman": "plain",
    "given_settings": "settings fixed",
    "given_settings_and_loss": "settings and loss fixed",
}
KINDS: dict[Kind, str] = {
    "no_target": "no final loss to foretell",
    "no_spectrum": "no spectrum measured",
    "too_few": "too few trials",
    "adds": "adds to settings and loss",
    "hint": "a hint",
    "redundant": "nothing beyond the loss seen",
    "confounded": "the settings' doing",
    "nothing": "nothing detectable",
}


def main_numbers(sweeps: Sequence[Summary], feature: str) -> pd.DataFrame:
    """One line a sweep: the feature's correlations, the gain of its group, the budget saved."""
    lines = []
    for sweep in sweeps:
        line: dict[str, object] = {
            "sweep": sweep.name,
            "verdict": sweep.verdict.kind,
            "finished": sweep.num_finished,
            "states": sweep.counted,
            "moment": sweep.moment,
            "feature": feature,
        }
        known = line_of(sweep, feature)
        for column in QUESTIONS:
            for end in ("", "_low", "_high", "_p_holm"):
                line[f"{column}{end}"] = math.nan if known is None else known[f"{column}{end}"]
        gains = sweep.gains
        if known is not None and len(gains):
            gains = gains[gains["group"] == known["group"]]
        for column in ("gain", "gain_low", "gain_high", "p", "p_holm"):
            line[f"increment_{column}"] = gains[column].iloc[0] if len(gains) else math.nan
        lines.append({**line, **_best_saving(sweep)})
    return pd.DataFrame(lines)


def main_view(table: pd.DataFrame, label: str, links: Sequence[str]) -> TableView | None:
    """The first table of the page: sweeps across, so that their numbers stand side by side."""
    asked: dict[str, Callable[[pd.Series], str]] = {
        "Its own verdict": lambda line: KINDS[line["verdict"]],
        "Trials with a final loss": lambda line: str(line["finished"]),
        "Seen": lambda line: str(line["moment"]),
        "ρ with the final loss": lambda line: interval(line, "spearman"),
        "ρ, settings fixed": lambda line: interval(line, "given_settings"),
        "ρ, settings and loss seen fixed": lambda line: interval(line, "given_settings_and_loss"),
        "Gain of the spectrum": lambda line: _share(line, "increment_gain", sign=True),
        "p of the gain (Holm)": lambda line: words.p_value(line["increment_p_holm"]),
        f"Epochs saved at {words.percent(LIMIT)} regret": lambda line: _share(line, "saved"),
        "by the pruner": lambda line: line["pruner"] or "–",
    }
    lines = [line for _, line in table.iterrows()]
    return table_view(
        f"Side by side: the {label}" if label else "Side by side",
        ("", *table["sweep"]),
        [[name, *map(spell, lines)] for name, spell in asked.items()],
        [False, *[True] * len(lines)],
        file="side_by_side",
        note="Brackets are 95 % intervals. Gain: how much smaller the error of held-out trials is "
        "with the spectrum than without; p of its permutation test. Saved: share of all epochs, "
        "measuring paid, by the best of the pruners that were played again; its brackets are of "
        "orders of the trials, not of other sweeps.",
        links=["", *links],
    )


def heterogeneity(sweeps: Sequence[Summary]) -> pd.DataFrame:
    """One line a (shared feature, question): signs, Cochran's Q with Holm's p, I²."""
    lines = []
    for feature, label in shared_features(sweeps).items():
        for column in QUESTIONS:
            numbers = bounded(sweeps, feature, column)
            if len(numbers) < 2:
                continue
            found = agreement(numbers)
            lines.append(
                {
                    "feature": feature,
                    "label": label,
                    "question": column,
                    "sweeps": len(numbers),
                    "positive": len(found.positive),
                    "negative": len(found.negative),
                    "open": len(found.open),
                    "pairs_apart": len(found.apart),
                    "q": found.q,
                    "free": found.free,
                    "p": found.p,
                    "i2": found.i2,
                    "i2_low": found.i2_low,
                    "i2_high": found.i2_high,
                    "i2_words": i_squared(found),
                }
            )
    table = pd.DataFrame(lines)
    if len(table):
        table["p_holm"] = holm(table["p"].to_numpy(float))
    return table


def heterogeneity_view(table: pd.DataFrame) -> TableView | None:
    """The main features that two sweeps share; the others are in the file."""
    rows = [
        [
            line["label"],
            _ASKED[line["question"]],
            str(line["sweeps"]),
            f"{line['positive']} / {line['negative']} / {line['open']}",
            str(line["pairs_apart"]),
            f"{words.number(line['q'], 1)} ({line['free']})",
            words.p_value(line["p"]),
            words.p_value(line["p_holm"]),
            line["i2_words"],
        ]
        for _, line in table.iterrows()
        if FEATURES[line["feature"]].is_headline
    ]
    return table_view(
        "How far the sweeps differ",
        (
            "Feature", "Asked", "Sweeps", "+ / − / open", "Pairs apart", "Q (freedom)", "p",
            "p (Holm)", "I² [95 % interval]",
        ),
        rows,
        (False, False, *[True] * 7),
        file="heterogeneity",
        note="+ / − / open: sweeps whose interval lies above 0, below 0, or holds it. Pairs apart: "
        "of sweeps whose intervals do not overlap. Holm’s correction is for all lines of the file, "
        "which has the other features, too.",
    )  # fmt: skip


def budgets(sweeps: Sequence[Summary]) -> pd.DataFrame:
    """The sweeps' tables of what pruning would save, one below the other."""
    parts = [s.budget.assign(sweep=s.name) for s in sweeps if len(s.budget)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def budget_view(table: pd.DataFrame, names: Sequence[str]) -> TableView | None:
    """Pruners down, sweeps across, at one limit."""
    if table.empty:
        return None
    within = table[table["limit"] == LIMIT]
    rows = []
    for pruner in dict.fromkeys(within["pruner"]):
        part = within[within["pruner"] == pruner]
        saved = {line["sweep"]: _share(line, "net") for _, line in part.iterrows()}
        rows.append([str(pruner), *(saved.get(name, "–") for name in names)])
    return table_view(
        f"Epochs saved at {words.percent(LIMIT)} regret, measuring paid",
        ("Pruner", *names),
        rows,
        (False, *[True] * len(names)),
        file="budgets",
    )


def differences(sweeps: Sequence[Summary]) -> pd.DataFrame:
    """Settings, measurements and versions that are not the same in all sweeps."""
    paths = dict.fromkeys(path for sweep in sweeps for path in sweep.settings)
    lines = []
    for path in paths:
        values = {sweep.name: sweep.settings.get(path, "–") for sweep in sweeps}
        if not same_everywhere(values):
            lines.append({"setting": path, **values})
    return pd.DataFrame(lines)


def differences_view(table: pd.DataFrame, names: Sequence[str]) -> TableView | None:
    """All that differs; what is missing here is alike."""
    rows = [[line["setting"], *(line[name] for name in names)] for _, line in table.iterrows()]
    return table_view("What differs", ("Setting", *names), rows, file="differences")


def _best_saving(sweep: Summary) -> dict[str, object]:
    nothing = {"pruner": "", "saved": math.nan, "saved_low": math.nan, "saved_high": math.nan}
    within = sweep.budget[sweep.budget["limit"] == LIMIT] if len(sweep.budget) else sweep.budget
    within = within.dropna(subset=["net"]) if len(within) else within
    if within.empty:
        return nothing
    best = within.iloc[int(within["net"].to_numpy().argmax())]
    ends = {f"saved{end}": best[f"net{end}"] for end in ("", "_low", "_high")}
    return {"pruner": best["pruner"], **ends}


def _share(line: pd.Series, column: str, *, sign: bool = False) -> str:
    if not math.isfinite(line[column]):
        return "–"
    value, low, high = (
        words.percent(line[f"{column}{end}"], sign=sign) for end in ("", "_low", "_high")
    )
    return f"{value} [{low}, {high}]"
