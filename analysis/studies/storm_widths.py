"""Exponents of trained classifiers by width: their mean rises, and they spread less.

Storm et al. (2024), Fig. 4(c, d): mean and standard deviation of λ over inputs by N. The paper does
not say how deep these networks were; the values do not fit those of 16 layers in its Fig. 4(a), so
that only the trends are looked at.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture, widen_scale
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import mean
from analysis.studies.papers import STORM
from analysis.studies.storm_statistics import slopes
from tasks.base import Config as BaseConfig

_COLUMNS = {"mean_exponent": "mean of λ", "std_exponent": "standard deviation of λ"}


class StormWidths(Study):
    """Mean and spread of exponents by width."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Has no settings of its own."""

    paper = STORM
    item = "Fig. 4(c, d)"
    title = "Exponents of wide classifiers are larger and more alike"
    claims = (
        Claim(
            "mean",
            "The mean exponent over inputs rises with the width.",
            "Slope of each network's mean λ against log N: 95 % interval above 0.",
        ),
        Claim(
            "spread",
            "The standard deviation of the exponents over inputs falls with the width.",
            "Slope of each network's standard deviation of λ against log N: 95 % interval below 0.",
        ),
    )
    caption = (
        "Mean (left) and standard deviation (right) over inputs of λ after training, nats per "
        "layer, by width N. Dots are networks, bars means over them with 95 % intervals."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Table networks: network, width, mean_exponent, std_exponent, test_accuracy."""
        frame = lab.sweep("digits").frame
        last = frame.scalars[frame.scalars["epoch"] == frame.final_epoch]
        wide = last.pivot(index="trial", columns="quantity", values="value")
        trials = frame.trials
        table = pd.DataFrame(
            {
                "network": wide.index,
                "width": trials["network.width"].reindex(wide.index).astype(int),
                "mean_exponent": wide["ftle.mean"],
                "std_exponent": wide["ftle.std"],
                "test_accuracy": trials["test_score"].reindex(wide.index).astype(float),
            }
        )
        return {"networks": table.reset_index(drop=True)}

    def judge(self, tables: Tables) -> list[Finding]:
        """By the slopes of least-squares lines through all networks."""
        table = tables["networks"]
        found = {
            name: slopes({"log_width": np.log(table["width"])}, table[name])["log_width"]
            for name in _COLUMNS
        }
        ends = {name: table.groupby("width")[name].mean() for name in _COLUMNS}
        accuracy = table.groupby("width")["test_accuracy"].mean()
        rise, fall = found["mean_exponent"], found["std_exponent"]

        def change(name: str) -> str:
            by_width = ends[name]
            return (
                f"from {by_width.iloc[0]:.3f} at N = {by_width.index[0]} to "
                f"{by_width.iloc[-1]:.3f} at N = {by_width.index[-1]}"
            )

        return [
            Finding(
                "mean",
                by_interval(rise.low, rise.high),
                f"Mean λ changes by {rise} nats per layer and log N, {change('mean_exponent')} "
                f"(test accuracy {accuracy.iloc[0]:.1%} and {accuracy.iloc[-1]:.1%}).",
                *rise,
                "nats/layer",
            ),
            Finding(
                "spread",
                by_interval(-fall.high, -fall.low),
                f"The standard deviation changes by {fall}, {change('std_exponent')}.",
                *fall,
                "nats/layer",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Two panels."""
        table = tables["networks"]
        picture = new_picture(7.6, 3.5)
        for ax, (name, words) in zip(picture.subplots(1, 2), _COLUMNS.items(), strict=True):
            ax.plot(table["width"], table[name], "o", color=OKABE_ITO[5], markersize=4)
            by_width = table.groupby("width")[name]
            centre, low, high = np.array([mean(values) for _, values in by_width]).T
            ax.errorbar(
                list(by_width.groups),
                centre,
                yerr=[centre - low, high - centre],
                color=OKABE_ITO[0],
                marker="D",
                markersize=5,
                capsize=4,
            )
            widen_scale(ax, "x", table["width"], 2)
            ax.set_xticks(list(by_width.groups))
            ax.minorticks_off()
            ax.set(xlabel="width N", ylabel=f"{words} (nats per layer)")
        return picture
