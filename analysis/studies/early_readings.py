"""What a spectrum read in training has to do with the final loss: tables, and how to judge them.

Three rows of numbers for every feature and epoch: its rank correlation with the final loss; the
same with all sampled settings held fixed; and with the loss seen by then held fixed too
(`analysis.correlations`). The first is what a scatter plot shows. Only the others can tell a
spectrum from the settings that drive it.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import words
from analysis.correlations import correlations
from analysis.features import LOSS_SEEN, early_view, features
from analysis.figures.base import INK, OKABE_ITO
from analysis.frame import SweepFrame
from analysis.studies.base import Finding, Verdict, by_interval

LARGEST, DISTANCE, MEAN = (
    "largest exponent [nats/step]",
    "distance of the largest exponent from 0 [nats/step]",
    "mean exponent [nats/step]",
)
SEEN = "validation loss seen"
FINAL = "final validation loss"
PLAIN, GIVEN, GIVEN_LOSS = "nothing", "settings", "settings and loss seen"

_FEATURES = {
    "lyapunov.max": LARGEST,
    "lyapunov.abs_max": DISTANCE,
    "lyapunov.mean": MEAN,
    LOSS_SEEN: SEEN,
}
_HELD = {"spearman": PLAIN, "given_settings": GIVEN, "given_settings_and_loss": GIVEN_LOSS}


def networks(frame: SweepFrame, settings: Mapping[str, str]) -> pd.DataFrame:
    """One row a network and measured epoch: settings, features and the final loss.

    settings: dotted names of what was sampled → column names.
    """
    parts = []
    for epoch in frame.measured_epochs:
        found = features(early_view(frame, epoch)).reindex(columns=list(_FEATURES))
        table = frame.params[list(settings)].rename(columns=settings).astype(float)
        table = table.join(found.rename(columns=_FEATURES)).join(frame.target.rename(FINAL))
        table.insert(0, "epoch", epoch)
        parts.append(table.rename_axis("network").reset_index())
    return pd.concat(parts, ignore_index=True)


def against_final(frame: SweepFrame) -> pd.DataFrame:
    """One row an epoch, feature and what is held fixed: Spearman's correlation with the final loss.

    Networks that diverge have no final loss and are not in it. `problem` says why there is none.
    """
    lines = []
    for row in correlations(frame).to_dict("records"):
        if row["feature"] not in _FEATURES:
            continue
        for name, held in _HELD.items():
            lines.append(
                {
                    "epoch": row["epoch"],
                    "feature": _FEATURES[row["feature"]],
                    "held fixed": held,
                    "networks": row["n"],
                    "rank correlation": row[name],
                    "low": row[f"{name}_low"],
                    "high": row[f"{name}_high"],
                    "p": row[f"{name}_p"],
                    "problem": row[f"{name}_problem"],
                }
            )
    return pd.DataFrame(lines)


def pick(table: pd.DataFrame, epoch: int, feature: str, held: str) -> pd.Series:
    """A row of `against_final`. Raises KeyError where there is none."""
    rows = table[
        (table["epoch"] == epoch) & (table["feature"] == feature) & (table["held fixed"] == held)
    ]
    if rows.empty:
        raise KeyError(f"no correlation of {feature} at epoch {epoch} with {held} held fixed")
    return rows.iloc[0]


def finding(
    claim: str, table: pd.DataFrame, epoch: int, feature: str, held: str, *, sign: int
) -> Finding:
    """By the correlation's interval: all of it on the side of `sign` is what was claimed."""
    row = pick(table, epoch, feature, held)
    value, low, high = (float(row[c]) for c in ("rank correlation", "low", "high"))
    ends = (low, high) if sign > 0 else (-high, -low)
    verdict: Verdict = by_interval(*ends)
    return Finding(claim, verdict, sentence(row), value, low, high)


def sentence(row: pd.Series) -> str:
    """A row in words."""
    what = str(row["feature"]).split(" [")[0]
    held = "" if row["held fixed"] == PLAIN else f", {row['held fixed']} held fixed"
    if row["problem"]:
        return f"The {what} after epoch {row['epoch']}{held}: {row['problem']}"
    shown = words.estimate(row["rank correlation"], row["low"], row["high"])
    return (
        f"The {what} after epoch {row['epoch']} and the final loss{held}: rank correlation "
        f"{shown} over {row['networks']} networks"
    )


def draw_scatter(ax: Axes, table: pd.DataFrame, x: str, colour: str, *, log_colour: bool) -> object:
    """Networks as points, by a setting's colour; returns what a colour bar is made of."""
    shade = np.log10(table[colour]) if log_colour else table[colour]
    points = ax.scatter(table[x], table[FINAL], c=shade, cmap="viridis", s=22, linewidths=0)
    ax.set(xlabel=x, ylabel=FINAL)
    return points


def draw_held(ax: Axes, table: pd.DataFrame, shown: Iterable[tuple[int, str, str]]) -> None:
    """Correlations with their intervals, a line each; colours say what is held fixed.

    shown: epoch, feature and label of each group of lines.
    """
    groups = list(shown)
    styles = dict(zip(_HELD.values(), zip((INK, *OKABE_ITO), "osD", strict=False), strict=False))
    for place, (epoch, feature, _) in enumerate(groups):
        for step, (held, (colour, marker)) in enumerate(styles.items()):
            row = pick(table, epoch, feature, held)
            if not np.isfinite(row["rank correlation"]):
                continue
            value = float(row["rank correlation"])
            ends = [[value - float(row["low"])], [float(row["high"]) - value]]
            ax.errorbar(
                [value],
                [place + 0.22 * (step - 1)],
                xerr=ends,
                fmt=marker,
                color=colour,
                capsize=2.5,
                markersize=4.5,
                label=f"{held} held fixed" if place == 0 else None,
            )
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(groups)), [label for _, _, label in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlim(-1.05, 1.05)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("rank correlation with the final loss")
    ax.figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.4)
