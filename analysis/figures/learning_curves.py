"""Validation loss of every trial during training, coloured by where it ends."""

from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, Figure, Section, new_picture, whole_epochs, widen_scale
from analysis.figures.colours import add_loss_bar, colour_of, loss_colours, some_trials
from analysis.frame import SweepFrame


class LearningCurves(Figure):
    """One line a trial."""

    section: ClassVar[Section] = "curves"
    title: ClassVar[str] = "Learning curves"
    caption: ClassVar[str] = (
        "Validation loss by epoch, one line a trial; dark lines end low. Orange dashed lines "
        "ending in a cross are trials that diverged, failed or were stopped. Where curves do not "
        "cross, the loss itself foretells the outcome and leaves nothing for a spectrum to add. At "
        "most 150 trials of either kind are drawn, those that ended evenly spread over the loss."
    )

    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """Columns: trial, epoch, value, target, state, unit."""
        rows = frame.scalars[frame.scalars["quantity"] == frame.target_quantity]
        trials = frame.trials
        target = trials["target"]
        chosen = some_trials(target.dropna()).union(some_trials(target[target.isna()]))
        rows = rows[rows["trial"].isin(chosen) & np.isfinite(rows["value"])]
        return pd.DataFrame(
            {
                "trial": rows["trial"],
                "epoch": rows["epoch"],
                "value": rows["value"],
                "target": rows["trial"].map(target),
                "state": rows["trial"].map(trials["state"]),
                "unit": frame.unit(frame.target_quantity),
            }
        ).sort_values(["trial", "epoch"], ignore_index=True)

    def draw(self, table: pd.DataFrame) -> Picture:
        """Logarithmic where the losses span more than a factor of five."""
        picture = new_picture(8.4, 4.2)
        ax = picture.subplots()
        colours = loss_colours(table.groupby("trial")["target"].first())
        opacity = float(np.clip(30 / table["trial"].nunique(), 0.35, 0.9))
        for _, line in table.groupby("trial"):
            target = float(line["target"].iloc[0])
            if np.isfinite(target):
                ax.plot(
                    line["epoch"], line["value"], color=colour_of(target, colours), alpha=opacity
                )
            else:
                ax.plot(line["epoch"], line["value"], color=OKABE_ITO[1], ls=(0, (3, 2)), lw=1.2)
                ax.plot(line["epoch"].iloc[-1:], line["value"].iloc[-1:], "x", color=OKABE_ITO[1])
        widen_scale(ax, "y", table["value"], 3)
        unit = table["unit"].iloc[0]
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"validation loss [{unit}]")
        whole_epochs(ax)
        if table["target"].notna().any():
            add_loss_bar(picture, colours, [ax], unit)
        return picture
