"""Do settings go together, and do the features merely repeat a setting? A heat map of ranks.

Protocol E6: in the published grid one feature went with the learning rate at 0.89, and all that
it knew of the loss was the learning rate's.
"""

from typing import ClassVar

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Picture

from analysis.correlations import design
from analysis.figures.base import Figure, Section, new_picture, when
from analysis.frame import SweepFrame
from analysis.words import number


class DesignCheck(Figure):
    """Settings across; settings, loss and features down."""

    section: ClassVar[Section] = "design"
    title: ClassVar[str] = "Settings against settings, loss and features"
    caption: ClassVar[str] = (
        "Spearman's ρ over finished trials (η, without a sign, where a setting has no order). The "
        "upper rows should be near 0: settings were drawn independently. A feature near ±1 is "
        "that setting in other words, and what it says of the loss cannot be told from what the "
        "setting does. Features are shown at the first measurement after training began."
    )

    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """Columns: epoch, row, label, setting, measure, n, value, low, high, p."""
        table = design(frame)
        if table.empty:
            return table
        later = [e for e in frame.measured_epochs if e > 0] or frame.measured_epochs
        table = table[table["epoch"].isin([-1, *later[:1]])].copy()
        table.columns = table.columns.str.removeprefix("value_")
        return table.dropna(subset=["value"]).reset_index(drop=True)

    def draw(self, table: pd.DataFrame) -> Picture:
        """One cell a pair, its number written in it."""
        label = table["label"].where(
            table["epoch"] < 0,
            table["label"] + ", " + table["epoch"].map(lambda e: when(int(e))),
        )
        rows, found = list(dict.fromkeys(label)), list(dict.fromkeys(table["setting"]))
        columns = sorted(found, key=lambda c: rows.index(c) if c in rows else len(rows))
        grid = (
            table.assign(label=label)
            .pivot_table(index="label", columns="setting", values="value", sort=False)
            .reindex(index=rows, columns=columns)
        )
        picture = new_picture(4.4 + 1.25 * len(columns), 1.3 + 0.36 * len(rows))
        ax = picture.subplots()
        sns.heatmap(
            grid,
            ax=ax,
            vmin=-1,
            vmax=1,
            cmap="PuOr_r",
            annot=grid.map(_words).to_numpy(),
            fmt="",
            annot_kws={"size": 9.5},
            linewidths=1,
            linecolor="white",
            cbar_kws={"label": "rank correlation", "shrink": 0.8},
        )
        ax.set(xlabel="", ylabel="")
        ax.set_xticks(np.arange(len(columns)) + 0.5, [c.replace(".", ".\n") for c in columns])
        ax.tick_params(rotation=0, length=0)
        ax.grid(False)
        num_settings = sum(1 for r in rows if r in set(columns))
        ax.axhline(num_settings + (1 if "final loss" in rows else 0), color="#374151", linewidth=1)
        return picture


def _words(value: float) -> str:
    return number(value) if np.isfinite(value) else ""
