"""Which plain correlations with the final loss are a setting's doing, and which setting's.

A feature that follows the learning rate goes with the final loss whether or not it matters. So each
plain correlation that passes its test is held against the one with the settings held fixed: it
remains, nothing of it is left, or its sign turns (Simpson's paradox).
"""

import pandas as pd

from analysis import words
from analysis.correlations import correlations, design, early_epochs, strongest
from analysis.features import FEATURES
from analysis.figures.base import when
from analysis.frame import SweepFrame

LEVEL = 0.05


def traced(frame: SweepFrame) -> pd.DataFrame:
    """The early plain correlations of spectrum and FTLEs that pass Holm's test.

    Lines of `correlations`, with the setting that the feature follows most (`setting`, `tie` with
    _low and _high, `measure`: "spearman", or "eta" for an unordered one) and `left`, what settings
    held fixed leave of it: "remains", "nothing" or "turns". Empty where no setting was sampled.
    """
    table = correlations(frame)
    if table.empty:
        return table
    is_asked = table["group"].isin(["spectrum", "ftle"]) & table["epoch"].isin(early_epochs(frame))
    known = table[is_asked & (table["spearman_p_holm"].astype(float) < LEVEL)]
    known = known[known["given_settings"].notna()]
    ties = design(frame)
    ties = ties.dropna(subset=["value"]) if len(ties) else ties
    lines = []
    for _, line in known.iterrows():
        part = ties[(ties["epoch"] == line["epoch"]) & (ties["row"] == line["feature"])]
        if part.empty:
            continue
        tie = strongest(part, "value")
        named = {
            "setting": tie["setting"], "measure": tie["measure"], "tie": tie["value"],
            "tie_low": tie["value_low"], "tie_high": tie["value_high"], "tie_p": tie["value_p"],
            "left": _left(line),
        }  # fmt: skip
        found: dict[str, object] = {str(name): value for name, value in line.items()}
        lines.append({**found, **named})
    return pd.DataFrame(lines)


def _left(line: pd.Series) -> str:
    low, high = line["given_settings_low"], line["given_settings_high"]
    is_sure = low > 0 or high < 0
    is_turned = bool(line["reverses"]) or (
        is_sure and line["given_settings"] * line["spearman"] < 0
    )
    if is_turned:
        return "turns"
    return "remains" if is_sure else "nothing"


def named(frame: SweepFrame) -> tuple[str, ...]:
    """At most one sentence: the plain correlation to beware of most, and how many are like it."""
    table = traced(frame)
    if table.empty:
        return ()
    misleading = table[table["left"] != "remains"]
    if misleading.empty:
        return ()
    # The largest exponent is what people look at first, then the few that figures show.
    order = {name: i for i, name in enumerate(sorted(FEATURES, key=_by_fame))}
    first = misleading.loc[misleading["feature"].map(order).sort_values(kind="stable").index]
    row = strongest(first[first["feature"] == first["feature"].iloc[0]], "spearman")
    more = ""
    if len(table) > 1:
        more = (
            f" Of the {len(table)} plain correlations that pass Holm's test early on, "
            f"{len(misleading)} {'is' if len(misleading) == 1 else 'are'} of this kind."
        )
    return (sentence(row) + more,)


def sentence(row: pd.Series) -> str:
    """One line of `traced` in words."""
    measure = "η" if row["measure"] == "eta" else "ρ"
    plain = words.estimate(row["spearman"], row["spearman_low"], row["spearman_high"])
    held = words.estimate(
        row["given_settings"], row["given_settings_low"], row["given_settings_high"]
    )
    follows = (
        f"The plain correlation of the {row['label']} {when(int(row['epoch']))} with the final "
        f"loss (ρ = {plain}) follows {row['setting']} ({measure} = "
        f"{words.number(row['tie'], sign=measure == 'ρ')} with it): "
    )
    if row["left"] == "nothing":
        return f"{follows}with the settings held fixed {held}, no sign of its own."
    if bool(row["reverses"]):
        within = words.estimate(row["within"], row["within_low"], row["within_high"])
        return (
            f"{follows}within strata of {row['strata_by']} its sign turns to {within} (Simpson's "
            f"paradox), and with the settings held fixed it is {held}."
        )
    return f"{follows}with the settings held fixed its sign turns to {held}."


def _by_fame(name: str) -> int:
    return 0 if name == "lyapunov.max" else 1 if FEATURES[name].is_headline else 2
