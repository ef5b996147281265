"""Motion capture: does a larger mean exponent go with a lower loss, and can one parameter tell?

Vogt et al. (2022), Fig. 4 C, D: LSTMs that foretell the next frame, 30 start scales p with learning
rate and dropout fixed. Along one parameter everything that follows it goes with everything else
that does, in this direction or that. So the published design is run as it is, and beside it one in
which three settings vary together, where they can be held fixed.
"""

from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis import words
from analysis.figures.base import OKABE_ITO, new_picture
from analysis.statistics import correlation
from analysis.studies import early_readings as er
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Lab
from analysis.studies.papers import VOGT
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_SCALE = "start scale p"
_SETTINGS = {
    "network.init_scale": _SCALE,
    "network.dropout": "dropout",
    "trainer.learning_rate": "learning rate",
}
_FOLLOWS = 0.9
_DESIGNS = {"one": "start scale alone", "joint": "three settings together"}


class VogtMocap(Study):
    """The one-parameter design of the paper, and one that can support what it says."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is looked at.

        epoch: after which the spectrum is read.
        """

        epoch: Annotated[int, Bounds(ge=0)] = 4

    config: Config
    paper = VOGT
    item = "Fig. 4 C, D"
    title = "Motion capture: the mean exponent and the final loss"
    claims = (
        Claim(
            "published",
            "Over start scales, a larger mean exponent goes with a lower loss.",
            "rank correlation over networks that differ in the start scale alone: 95 % interval "
            "below 0",
        ),
        Claim(
            "follows",
            "Ours: with one parameter varied, the mean exponent is that parameter in disguise, so "
            "that the design cannot tell whose doing the loss is.",
            "rank correlation of start scale and mean exponent at least 0.9 in size",
        ),
        Claim(
            "joint",
            "It does so, too, where learning rate and dropout vary with the start scale.",
            "rank correlation in the joint design: 95 % interval below 0",
            "ours; the design that can support the claim",
        ),
        Claim(
            "itself",
            "The mean exponent has to do with the loss itself, not only through the settings.",
            "as before, with start scale, dropout and learning rate held fixed: below 0",
            "ours",
        ),
    )
    caption = (
        "Above: mean exponent early in training against the final loss, for networks that differ "
        "in the start scale alone (left) and in three settings (right), coloured by start scale. "
        "Below: rank correlations in the second design with their 95 % intervals, plain and with "
        "what drives both held fixed."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Trains both designs; features and correlations at every measured epoch."""
        parts: dict[str, list[pd.DataFrame]] = {"networks": [], "correlations": []}
        for part, design in _DESIGNS.items():
            frame = lab.sweep(part).frame
            for name, table in (
                ("networks", er.networks(frame, _SETTINGS)),
                ("correlations", er.against_final(frame)),
            ):
                table.insert(0, "design", design)
                parts[name].append(table)
        return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals of the correlations in both designs."""
        epoch = self.config.epoch
        one, joint = (_of(tables["correlations"], part) for part in _DESIGNS)
        return [
            er.finding("published", one, epoch, er.MEAN, er.PLAIN, sign=-1),
            self._follows(tables["networks"]),
            er.finding("joint", joint, epoch, er.MEAN, er.PLAIN, sign=-1),
            er.finding("itself", joint, epoch, er.MEAN, er.GIVEN, sign=-1),
        ]

    def _follows(self, table: pd.DataFrame) -> Finding:
        alone = self._early(table, "one")
        tie, loss = (
            correlation(alone[_SCALE].to_numpy(), alone[name].to_numpy(), "spearman")
            for name in (er.MEAN, er.FINAL)
        )
        return Finding(
            "follows",
            by_rule(abs(tie.value) >= _FOLLOWS),
            "The start scale's rank correlation is "
            f"{words.estimate(tie.value, tie.low, tie.high)} with the mean exponent and "
            f"{words.estimate(loss.value, loss.low, loss.high)} with the final loss",
            tie.value,
            tie.low,
            tie.high,
        )

    def draw(self, tables: Tables) -> Picture:
        """A scatter plot for each design, and the correlations of the joint one."""
        epoch = self.config.epoch
        picture = new_picture(8, 5.8)
        axes = picture.subplot_mosaic("AB;CC", height_ratios=(1.25, 1))
        for place, part in zip("AB", _DESIGNS, strict=True):
            early = self._early(tables["networks"], part)
            points = er.draw_scatter(axes[place], early, er.MEAN, _SCALE, log_colour=False)
            axes[place].set_title(_DESIGNS[part])
        axes["B"].set_ylabel("")
        picture.colorbar(points, ax=axes["B"]).set_label(_SCALE)  # type: ignore[arg-type]
        shown = [
            (epoch, er.MEAN, "mean exponent"),
            (epoch, er.LARGEST, "largest exponent"),
            (epoch, er.SEEN, "loss seen"),
        ]
        er.draw_held(axes["C"], _of(tables["correlations"], "joint"), shown)
        axes["C"].axvspan(-1.05, 0, color=OKABE_ITO[5], alpha=0.1, linewidth=0)
        axes["C"].set_title(
            "three settings together; shaded, the side that is claimed for exponents"
        )
        return picture

    def _early(self, table: pd.DataFrame, part: str) -> pd.DataFrame:
        found = _of(table, part)
        return found[found["epoch"] == self.config.epoch]


def _of(table: pd.DataFrame, part: str) -> pd.DataFrame:
    return table[table["design"] == _DESIGNS[part]]
