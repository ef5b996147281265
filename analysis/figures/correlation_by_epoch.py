"""Correlation with the final loss by epoch: plain, then settings and the loss seen held fixed."""

from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis import features as ft
from analysis.correlations import correlations
from analysis.figures.base import INK, OKABE_ITO, Figure, Section, new_picture, whole_epochs
from analysis.frame import SweepFrame

_PANELS = {
    "spearman": "plain",
    "given_settings": "settings held fixed",
    "given_settings_and_loss": "settings and\nloss seen held fixed",
}
_MARKERS = "osD^v"


class CorrelationByEpoch(Figure):
    """Three panels, from the weakest to the strictest question."""

    section: ClassVar[Section] = "correlations"
    title: ClassVar[str] = "Correlation with the final loss, by epoch"
    caption: ClassVar[str] = (
        "Spearman's ρ with 95 % intervals (bootstrap on the left up to 2,000 trials, Fisher else; "
        "not corrected for the number of tests). The black dashed line is the loss already seen: "
        "what a feature has to beat, whatever its sign. In the middle the sampled settings are "
        "held fixed: a correlation that goes was theirs. On the right the loss seen is held fixed "
        "as well: only what stays clear of 0 there is news."
    )

    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """Columns: panel, epoch, feature, label, n, value, low, high."""
        table = correlations(frame)
        if table.empty:
            return table
        names = [f.name for f in ft.headline(frame)] + [ft.LOSS_SEEN]
        table = table[table["feature"].isin(names)]
        parts = [
            pd.DataFrame(
                {
                    "panel": panel,
                    **{c: table[c] for c in ("epoch", "feature", "label", "n")},
                    "value": table[panel].astype(float),
                    "low": table[f"{panel}_low"].astype(float),
                    "high": table[f"{panel}_high"].astype(float),
                }
            )
            for panel in _PANELS
        ]
        return pd.concat(parts, ignore_index=True).dropna(subset=["value"])

    def draw(self, table: pd.DataFrame) -> Picture:
        """Points a little apart, so that their bars can be told apart."""
        names = [n for n in table["feature"].unique() if n != ft.LOSS_SEEN]
        picture = new_picture(9.6, 4.3)
        axes = picture.subplots(1, len(_PANELS), sharey=True, sharex=True)
        epochs = sorted(table["epoch"].unique())
        gap = min(np.diff(epochs)) if len(epochs) > 1 else 1
        offsets = np.linspace(-0.22, 0.22, max(2, len(names))) * gap
        for ax, (panel, words) in zip(axes, _PANELS.items(), strict=True):
            part = table[table["panel"] == panel]
            bar = part[part["feature"] == ft.LOSS_SEEN]
            ax.fill_between(bar["epoch"], bar["low"], bar["high"], color=INK, alpha=0.10, lw=0)
            ax.plot(bar["epoch"], bar["value"], "--", color=INK, marker="x", label=_label(bar))
            for i, (name, offset) in enumerate(zip(names, offsets, strict=False)):
                line = part[part["feature"] == name]
                ax.errorbar(
                    line["epoch"] + offset,
                    line["value"],
                    yerr=[line["value"] - line["low"], line["high"] - line["value"]],
                    color=OKABE_ITO[i % len(OKABE_ITO)],
                    marker=_MARKERS[i % len(_MARKERS)],
                    markersize=5,
                    elinewidth=1.2,
                    linewidth=1.2,
                    label=_label(line),
                )
            ax.axhline(0, color="#374151", linewidth=1)
            ax.set_title(words)
            ax.set_xlabel("epoch")
            ax.set_ylim(-1.02, 1.02)
            whole_epochs(ax)
        axes[0].set_ylabel("rank correlation with final loss")
        handles, labels = axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=3)
        return picture


def _label(line: pd.DataFrame) -> str:
    return str(line["label"].iloc[0]) if len(line) else "_"
