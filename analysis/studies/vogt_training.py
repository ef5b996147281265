"""How spectra evolve in training, for several scales of the start weights.

Vogt et al. (2022), Fig. 3: LSTMs with start weights uniform in ±p; the spectrum changes most in the
first epochs and approaches its final form, the mean square difference from it falling about as the
inverse of the epoch, and mostly from below. What is compared is each network's spectrum after an
epoch with its own last one, exponent by exponent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, Verdict, by_interval, by_rule
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import VOGT
from tasks.base import Config as BaseConfig

_SCALE, _EPOCH, _NETWORK, _SEED = "start scale p", "epoch", "network", "seed"
_SQUARE = "mean square difference from the last spectrum [nats²/step²]"
_OFF = "mean difference from the last spectrum [nats/step]"
_LARGEST = "largest exponent [nats/step]"
_SHARE = 4 / 15
"""Of training, after which the paper reads spectra early."""
_LEAST, _MOST = -1.5, -0.5


class VogtTraining(Study):
    """Differences of spectra from the last one, over epochs and start scales."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Nothing beside the sweep."""

    config: Config
    paper = VOGT
    item = "Fig. 3"
    title = "Spectra in training, for several start scales"
    claims = (
        Claim(
            "early",
            "Most of the change happens early: after 4 of 15 epochs the spectrum is near its last.",
            "share of the initial mean square difference that is left after the measured epoch "
            "nearest 4/15 of training: 95 % interval over networks below one half",
        ),
        Claim(
            "power",
            "The mean square difference falls about as the inverse of the epoch.",
            "slope of its logarithm against the logarithm of the epoch, epochs 1 to the last but "
            "one measured: 95 % interval over networks within [-1.5, -0.5]",
        ),
        Claim(
            "below",
            "The spectrum comes from below: early ones lie under the last.",
            "mean difference from the last spectrum after the first measured epoch, over networks "
            "of all start scales: 95 % interval below 0",
        ),
        Claim(
            "start",
            "Start scales that begin far apart end closer together.",
            "range of the largest exponent over the networks of one seed, after training over "
            "before: 95 % interval over seeds below 1",
            "read off the figure",
        ),
    )
    caption = (
        "Left: largest exponent over training, mean over networks of a start scale, with 95 % "
        "intervals. Right: mean square difference of each spectrum from the network's last one; "
        "dotted, a fall as the inverse of the epoch."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Trains every start scale and compares spectra."""
        trained = lab.sweep("scales")
        scales = trained.params["network.init_scale"].astype(float)
        seeds = scales.groupby(scales).cumcount()
        lines: list[dict[str, Any]] = []
        for network, part in trained.frame.spectra("lyapunov.spectrum").groupby("trial"):
            wide = part.pivot_table(index="epoch", columns="exponent", values="value")
            ordered = -np.sort(-wide.to_numpy(), axis=1)
            for epoch, spectrum in zip(wide.index, ordered, strict=True):
                off = spectrum - ordered[-1]
                lines.append(
                    {
                        _NETWORK: network,
                        _SEED: seeds[network],
                        _SCALE: scales[network],
                        _EPOCH: epoch,
                        _LARGEST: spectrum[0],
                        _OFF: off.mean(),
                        _SQUARE: (off**2).mean(),
                    }
                )
        return {"spectra": pd.DataFrame(lines)}

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals over networks, or over seeds where start scales are compared."""
        table = tables["spectra"]
        epochs = sorted(table[_EPOCH].unique())
        early = min(epochs[1:-1], key=lambda epoch: abs(epoch - _SHARE * epochs[-1]))
        square = table.pivot(index=_NETWORK, columns=_EPOCH, values=_SQUARE)
        left = mean(square[early] / square[epochs[0]])
        between = [epoch for epoch in epochs[:-1] if epoch > 0]
        slope = mean(
            float(np.polyfit(np.log(between), np.log(row), 1)[0])
            for row in square[between].to_numpy()
        )
        off = mean(table[table[_EPOCH] == between[0]][_OFF])
        spread = table.groupby([_SEED, _EPOCH])[_LARGEST].agg(np.ptp).unstack()
        nearer = mean(spread[epochs[-1]] / spread[epochs[0]])
        return [
            _finding(
                "early",
                f"After epoch {early} of {epochs[-1]} the mean square difference is {left} times "
                "the initial one",
                left,
                by_interval(-left.high, -left.low, above=-0.5),
            ),
            _finding(
                "power",
                f"The mean square difference falls as the epoch to the power {slope}",
                slope,
                by_rule(slope.low >= _LEAST and slope.high <= _MOST),
            ),
            _finding(
                "below",
                f"After epoch {between[0]} the mean difference from the last "
                f"spectrum is {off} nats/step",
                off,
                by_interval(-off.high, -off.low),
                "nats/step",
            ),
            _finding(
                "start",
                f"The range over start scales is {nearer} of what it was before training",
                nearer,
                by_interval(-nearer.high, -nearer.low, above=-1.0),
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Largest exponents on the left, differences on the right."""
        table = tables["spectra"]
        picture = new_picture(8, 3.9)
        left, right = picture.subplots(1, 2)
        last = table[_EPOCH].max()
        for colour, (scale, part) in zip((*OKABE_ITO, INK), table.groupby(_SCALE), strict=False):
            found = {epoch: mean(each[_LARGEST]) for epoch, each in part.groupby(_EPOCH)}
            spread = [m.high - m.value for m in found.values()]
            left.errorbar(
                list(found),
                [m.value for m in found.values()],
                spread,
                color=colour,
                capsize=2.5,
                marker="o",
                markersize=4,
                label=f"p = {scale:g}",
            )
            squares = part[(part[_EPOCH] > 0) & (part[_EPOCH] < last)].groupby(_EPOCH)[_SQUARE]
            right.plot(squares.mean(), color=colour, marker="o", markersize=4)
        left.axhline(0, color=INK, linewidth=0.8)
        middle = table[(table[_EPOCH] > 0) & (table[_EPOCH] < last)].groupby(_EPOCH)[_SQUARE].mean()
        ends = np.array([middle.index[0], middle.index[-1]], dtype=float)
        right.plot(
            ends, 1.5 * middle.max() * ends[0] / ends, color=INK, linestyle=":", label="1/epoch"
        )
        right.set(xscale="log", yscale="log")
        right.set_xticks(middle.index, [f"{epoch}" for epoch in middle.index])
        right.minorticks_off()
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.set(
            xlabel="epoch", ylabel="mean square difference\nfrom the last spectrum [nats²/step²]"
        )
        right.legend()
        left.set(xlabel="epoch", ylabel=_LARGEST)
        handles = left.get_legend_handles_labels()
        picture.legend(*handles, loc="outside lower center", ncols=6, columnspacing=1)
        return picture


def _finding(claim: str, sentence: str, found: Mean, verdict: Verdict, unit: str = "1") -> Finding:
    return Finding(claim, verdict, sentence, *found, unit)
