"""Features against the final loss at several epochs, coloured by the setting they go with most.

The colour is there for Simpson's paradox: one sign across the cloud, another within a colour.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as Picture

from analysis import features as ft
from analysis.correlations import design, strongest
from analysis.figures.base import (
    OKABE_ITO,
    Figure,
    Section,
    new_picture,
    spread_out,
    when,
    widen_scale,
)
from analysis.frame import SweepFrame
from analysis.statistics import MIN_TRIALS

_MAX_EPOCHS, _MAX_FEATURES = 3, 2
MAX_DOTS = 2_000


class FeatureAgainstLoss(Figure):
    """A row a feature, a column an epoch; the loss seen comes last."""

    section: ClassVar[Section] = "correlations"
    order: ClassVar[int] = 1
    title: ClassVar[str] = "Features against the final loss"
    caption: ClassVar[str] = (
        "One dot a trial; the last row is the loss already seen, the thing to beat. Colour shows "
        "the sampled setting that the first feature goes with most. A slope across the whole "
        "cloud that vanishes or turns within dots of one colour is the setting's doing, not the "
        "spectrum's. ρ is Spearman's over all trials; of more than 2,000, only 2,000 drawn "
        "by chance are shown as dots."
    )

    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """Columns: epoch, feature, label, trial, value, target, target_unit, setting, at."""
        target = frame.target
        shown = ft.headline(frame)[:_MAX_FEATURES]
        if not shown or len(target) < 3:
            return pd.DataFrame()
        shown.append(ft.FEATURES[ft.LOSS_SEEN])
        setting = _setting(frame, shown[0].name)
        epochs = [e for e in frame.measured_epochs if e < frame.final_epoch]
        parts = []
        for epoch in spread_out(epochs or frame.measured_epochs, _MAX_EPOCHS):
            table = ft.features(ft.early_view(frame, epoch)).reindex(target.index)
            for feature in [f for f in shown if f.name in table]:
                parts.append(
                    pd.DataFrame(
                        {
                            "epoch": epoch,
                            "feature": feature.name,
                            "label": feature.axis_label,
                            "trial": target.index,
                            "value": table[feature.name].to_numpy(),
                            "target": target.to_numpy(),
                            "target_unit": frame.unit(frame.target_quantity),
                            "setting": setting or "",
                            "at": (
                                frame.params.loc[target.index, setting].to_numpy(float)
                                if setting
                                else np.nan
                            ),
                        }
                    )
                )
        return pd.concat(parts, ignore_index=True).dropna(subset=["value"])

    def draw(self, table: pd.DataFrame) -> Picture:
        """Scatter plots that share the loss axis."""
        names, epochs = list(table["feature"].unique()), sorted(table["epoch"].unique())
        picture = new_picture(1.6 + 2.75 * len(epochs), 0.6 + 2.45 * len(names))
        axes = picture.subplots(len(names), len(epochs), sharey=True, squeeze=False)
        colours = _colours(table["at"])
        shown = _drawn(table["trial"].unique())
        for row, name in zip(axes, names, strict=True):
            for ax, epoch in zip(row, epochs, strict=True):
                part = table[(table["feature"] == name) & (table["epoch"] == epoch)]
                dots = part[part["trial"].isin(shown)]
                ax.scatter(
                    dots["value"],
                    dots["target"],
                    c=OKABE_ITO[0] if colours is None else colours.to_rgba(dots["at"]),
                    s=20,
                    alpha=0.85,
                    edgecolor="white",
                    linewidth=0.3,
                )
                ax.locator_params(axis="x", nbins=5)
                if name == ft.LOSS_SEEN:
                    widen_scale(ax, "x", part["value"], 5)
                ax.set_title(f"{when(int(epoch))}{_rank(part)}", fontsize=9.5)
                label = part["label"].iloc[0] if len(part) else name
                ax.set_xlabel(label.replace(" [", "\n[") if len(label) > 30 else label)
        unit = table["target_unit"].iloc[0]
        picture.supylabel(f"final validation loss [{unit}]", fontsize=10.5)
        widen_scale(axes[0][0], "y", table["target"], 5)
        if colours is not None:
            bar = picture.colorbar(colours, ax=axes, pad=0.015, aspect=40)
            bar.set_label(table["setting"].iloc[0])
            bar.outline.set_visible(False)
        return picture


def _setting(frame: SweepFrame, feature: str) -> str | None:
    """The numeric setting with the largest rank correlation with a feature, at any epoch."""
    table = design(frame)
    if table.empty:
        return None
    table = table[(table["row"] == feature) & (table["measure"] == "spearman")].dropna(
        subset=["value"]
    )
    return None if table.empty else str(strongest(table, "value")["setting"])


def _drawn(trials: np.ndarray) -> np.ndarray:
    """All of them, or `MAX_DOTS` drawn by chance."""
    if len(trials) <= MAX_DOTS:
        return trials
    return np.random.default_rng(0).permutation(trials)[:MAX_DOTS]


def _colours(values: pd.Series) -> ScalarMappable | None:
    low, high = values.min(), values.max()
    if not low < high:
        return None
    norm = LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high)
    return ScalarMappable(norm, "cividis")


def _rank(part: pd.DataFrame) -> str:
    if len(part) < MIN_TRIALS:
        return ""
    value = part["value"].corr(part["target"], method="spearman")
    return f"   ρ = {value:+.2f}".replace("-", "−") if np.isfinite(value) else ""
