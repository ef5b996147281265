"""Character LSTMs: does a largest exponent near 0, or a low mean exponent, go with a low loss?

Vogt et al. (2022), Figs. 4 A, B and 5. They varied learning rate and dropout and drew exponents
against losses. Both exponents follow the settings, and so does the loss; hence three settings vary
together here, and each correlation stands beside the one with all three held fixed. Exponents are
of the hidden state with cells held fixed, the paper's convention, and theirs were in bits.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, new_picture
from analysis.statistics import correlation
from analysis.studies import early_readings as er
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Lab
from analysis.studies.papers import VOGT
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_RATE = "learning rate"
_SETTINGS = {
    "network.init_scale": "start scale p",
    "network.dropout": "dropout",
    "trainer.learning_rate": _RATE,
}
_BEYOND = -0.5 * math.log(2)
"""Half a bit below 0 in nats per step: where the paper sees gains level off."""


class VogtCharlm(Study):
    """Exponents early in training against final losses, plain and with settings held fixed."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is looked at.

        epoch: after which the spectrum is read that is to foretell the final loss.
        """

        epoch: Annotated[int, Bounds(ge=0)] = 2

    config: Config
    paper = VOGT
    item = "Fig. 4 A, B; Fig. 5"
    title = "Character LSTMs: exponents early on and the final loss"
    claims = (
        Claim(
            "largest",
            "The closer the largest exponent is to 0, the lower the loss.",
            "rank correlation of its distance from 0, early in training, with the final loss: 95 % "
            "interval above 0",
        ),
        Claim(
            "mean",
            "The lower the mean exponent, the lower the loss.",
            "rank correlation of the mean exponent, early in training, with the final loss: 95 % "
            "interval above 0",
        ),
        Claim(
            "saturates",
            "Nothing more is gained beyond -0.5 bits a step of the largest exponent.",
            "rank correlation of the distance from 0 with the final loss: 95 % interval above 0 "
            "among networks below -0.5 bits, and around 0 among those above",
        ),
        Claim(
            "largest_itself",
            "The largest exponent has to do with the loss itself, not only through the settings.",
            "as the first claim, with start scale, dropout and learning rate held fixed: above 0",
            "ours; what the paper's reading of its figure needs",
        ),
        Claim(
            "mean_itself",
            "So has the mean exponent.",
            "as the second claim, with start scale, dropout and learning rate held fixed: above 0",
            "ours",
        ),
        Claim(
            "early",
            "Exponents foretell the final loss early in training.",
            "as the first claim, settings and loss seen at that epoch held fixed: above 0",
            "ours: who has trained so far knows the loss as well",
        ),
    )
    caption = (
        "Above: every network's largest and mean exponent early in training against its final "
        "loss, coloured by learning rate; dashed, -0.5 bits. Below: rank correlations with the "
        "final loss and their 95 % intervals, plain and with what drives both held fixed."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Trains the design; features and correlations at every measured epoch."""
        frame = lab.sweep("joint").frame
        return {
            "networks": er.networks(frame, _SETTINGS),
            "correlations": er.against_final(frame),
        }

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals of the correlations at the early epoch."""
        epoch, table = self.config.epoch, tables["correlations"]
        return [
            er.finding("largest", table, epoch, er.DISTANCE, er.PLAIN, sign=1),
            er.finding("mean", table, epoch, er.MEAN, er.PLAIN, sign=1),
            _saturates(_early(tables["networks"], epoch)),
            er.finding("largest_itself", table, epoch, er.DISTANCE, er.GIVEN, sign=1),
            er.finding("mean_itself", table, epoch, er.MEAN, er.GIVEN, sign=1),
            er.finding("early", table, epoch, er.DISTANCE, er.GIVEN_LOSS, sign=1),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Two scatter plots above the correlations."""
        epoch = self.config.epoch
        picture = new_picture(8, 6)
        axes = picture.subplot_mosaic("AB;CC", height_ratios=(1.25, 1))
        early = _early(tables["networks"], epoch)
        for place, x in (("A", er.LARGEST), ("B", er.MEAN)):
            points = er.draw_scatter(axes[place], early, x, _RATE, log_colour=True)
        axes["A"].axvline(_BEYOND, color=INK, linewidth=0.8, linestyle="--")
        axes["B"].set_ylabel("")
        bar = picture.colorbar(points, ax=axes["B"])  # type: ignore[arg-type]
        bar.set_label("learning rate, log₁₀")
        shown = [
            (epoch, er.DISTANCE, "distance of λ₁\nfrom 0"),
            (epoch, er.MEAN, "mean exponent"),
            (epoch, er.SEEN, "loss seen"),
        ]
        er.draw_held(axes["C"], tables["correlations"], shown)
        return picture


def _early(table: pd.DataFrame, epoch: int) -> pd.DataFrame:
    return table[table["epoch"] == epoch]


def _saturates(early: pd.DataFrame) -> Finding:
    is_above = early[er.LARGEST].to_numpy() > _BEYOND
    below, above = (
        correlation(part[er.DISTANCE].to_numpy(), part[er.FINAL].to_numpy(), "spearman")
        for part in (early[~is_above], early[is_above])
    )
    if below.problem or above.problem:
        return Finding(
            "saturates",
            "not reproduced",
            f"{int(np.sum(~is_above))} networks lie below -0.5 bits and {int(np.sum(is_above))} "
            f"above: {below.problem or above.problem}",
        )
    return Finding(
        "saturates",
        by_rule(below.low > 0 and above.low <= 0 <= above.high),
        f"The correlation is {below.value:+.2f} [{below.low:+.2f}, {below.high:+.2f}] among "
        f"{below.n} networks below -0.5 bits, {above.value:+.2f} [{above.low:+.2f}, "
        f"{above.high:+.2f}] among {above.n} above",
        above.value,
        above.low,
        above.high,
    )
