"""How the spectrum's main numbers move during training, for good, middling and bad trials."""

from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis import features as ft
from analysis.figures.base import OKABE_ITO, Figure, Section, new_picture, whole_epochs
from analysis.frame import SweepFrame

_THIRDS = ("best third", "middle third", "worst third")
_LOOKS = {
    "best third": (OKABE_ITO[0], "o"),
    "middle third": ("#6b7280", "s"),
    "worst third": (OKABE_ITO[1], "^"),
    "all trials": (OKABE_ITO[0], "o"),
}


class Evolution(Figure):
    """Medians and middle halves by thirds of the final loss."""

    section: ClassVar[Section] = "evolution"
    title: ClassVar[str] = "Evolution over training"
    caption: ClassVar[str] = (
        "Trials are split into thirds by their final loss. Lines are medians, bands hold the "
        "middle half of each third. Where bands separate early, the number foretells the "
        "outcome; thirds that differ already at epoch 0 differ by their settings. With fewer than "
        "six finished trials they are shown together."
    )

    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """Columns: epoch, feature, label, group, n, median, low, high (quartiles)."""
        target = frame.target
        shown = ft.headline(frame)
        lines = []
        for epoch in frame.measured_epochs if len(target) else []:
            table = ft.features(ft.early_view(frame, epoch)).reindex(target.index)
            for feature in [f for f in shown if f.name in table]:
                for third, trials in _thirds(target).items():
                    values = table.loc[trials, feature.name].dropna()
                    if len(values):
                        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
                        lines.append(
                            {
                                "epoch": epoch,
                                "feature": feature.name,
                                "label": feature.axis_label,
                                "group": third,
                                "n": len(values),
                                "median": median,
                                "low": low,
                                "high": high,
                            }
                        )
        return pd.DataFrame(lines)

    def draw(self, table: pd.DataFrame) -> Picture:
        """A panel a feature, two in a row."""
        names = list(table["feature"].unique())
        columns = min(2, len(names))
        rows = -(-len(names) // columns)
        picture = new_picture(4.6 * columns, 2.7 * rows + 0.5)
        axes = picture.subplots(rows, columns, sharex=True, squeeze=False)
        for ax in axes.ravel()[len(names) :]:
            ax.remove()
        for ax, name in zip(axes.ravel(), names, strict=False):
            part = table[table["feature"] == name]
            for group, line in part.groupby("group", sort=False):
                colour, marker = _LOOKS[str(group)]
                ax.fill_between(line["epoch"], line["low"], line["high"], color=colour, alpha=0.15)
                ax.plot(line["epoch"], line["median"], color=colour, marker=marker, label=group)
            ax.set_ylabel(part["label"].iloc[0].replace(" [", "\n["))
            whole_epochs(ax)
        for ax in axes[-1][: len(names) - columns * (rows - 1)]:
            ax.set_xlabel("epoch")
        handles, labels = axes[0][0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper center", ncols=3)
        return picture


def _thirds(target: pd.Series) -> dict[str, pd.Index]:
    if len(target) < 6:
        return {"all trials": target.index}
    parts = np.array_split(target.sort_values(kind="stable").index.to_numpy(), 3)
    return {name: pd.Index(part) for name, part in zip(_THIRDS, parts, strict=True)}
