"""Delayed recall: what spectra tell early in training that losses on a plateau do not.

Vogt et al. (2022), discussion: spectra as an early readout of performance. Where the loss falls
from the start there is nothing to gain; here networks sit at the chance loss until they carry a
gradient across the delay. Eight symbols, 29 noisy steps, vanilla tanh networks. The small version
of the sweeps in `docs/findings.md`, with a quarter of their networks.
"""

from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis import words
from analysis.features import early_view, features, hyperparameters, log_if_positive
from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.frame import SweepFrame
from analysis.increment import increment, normal_scores
from analysis.studies import early_readings as er
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab
from analysis.studies.papers import VOGT
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_SETTINGS = {
    "network.init_scale": "gain",
    "network.dropout": "dropout",
    "trainer.learning_rate": "learning rate",
}
_GROUP = ("lyapunov.max", "lyapunov.abs_max", "lyapunov.mean", "lyapunov.std")
_GAIN, _LOW, _HIGH = "smaller error [share]", "low", "high"


class VogtRecall(Study):
    """Correlations and held-out errors with and without the spectrum, epoch by epoch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """What is looked at.

        first: epoch that is a twentieth of training. later: epoch that is a fifth of it.
        permutations: of the test of the increment.
        """

        first: Annotated[int, Bounds(ge=0)] = 1
        later: Annotated[int, Bounds(ge=0)] = 4
        permutations: Annotated[int, Bounds(ge=19)] = 499

    config: Config
    paper = VOGT
    item = "Sec. 5"
    title = "Delayed recall: an early readout on a plateau"
    claims = (
        Claim(
            "early",
            "After a twentieth of training, exponents near 0 foretell a low final loss.",
            "rank correlation of the largest exponent's distance from 0 with the final loss: 95 % "
            "interval above 0",
        ),
        Claim(
            "early_itself",
            "They do so beyond what settings and the loss seen tell.",
            "the same with settings and loss seen held fixed: above 0",
        ),
        Claim(
            "first_increment",
            "After a twentieth of training, spectra make the error of foretelling smaller.",
            "held-out error with the spectrum over settings and all losses seen: 95 % interval of "
            "the gain above 0",
            "the project's exploratory study found 21 %; of its two large sweeps one confirmed 5 %",
        ),
        Claim(
            "later_increment",
            "After a fifth of training they do.",
            "as before, at a fifth of training: above 0",
            "the project's large sweeps: 7 to 8 %",
        ),
    )
    caption = (
        "Above, left: the largest exponent after a twentieth of training and the final loss, "
        "coloured by gain. Right: how much smaller the held-out error gets with the spectrum, over "
        "settings and all losses seen, by epoch. Below: rank correlations with the final loss."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Trains the design; correlations and increments at every measured epoch."""
        frame = lab.sweep("joint").frame
        increments = [
            self._increment(frame, epoch)
            for epoch in frame.measured_epochs
            if 0 < epoch < frame.final_epoch
        ]
        return {
            "networks": er.networks(frame, _SETTINGS),
            "correlations": er.against_final(frame),
            "increments": pd.DataFrame(increments),
        }

    def _increment(self, frame: SweepFrame, epoch: int) -> dict[str, object]:
        """What the spectrum at an epoch adds to settings and losses, on held-out networks."""
        view = early_view(frame, epoch)
        target = normal_scores(frame.target_at(epoch))
        known = features(view).reindex(target.index)
        losses = frame.scalars[
            (frame.scalars["quantity"] == "val_loss") & frame.scalars["epoch"].le(epoch)
        ].pivot_table(index="trial", columns="epoch", values="value")
        seen = losses.apply(log_if_positive).add_prefix("loss at epoch ")
        settings = hyperparameters(view)
        baseline = settings.join(seen).reindex(target.index)
        found = increment(
            target,
            baseline,
            known[list(_GROUP)],
            num_paired=settings.shape[1] + 1,
            num_permutations=self.config.permutations,
        )
        return {
            "epoch": epoch,
            "networks": found.gain.n,
            _GAIN: found.gain.value,
            _LOW: found.gain.low,
            _HIGH: found.gain.high,
            "p": found.gain.p,
            "power against a tenth": found.power_at(0.1),
            "problem": found.gain.problem,
        }

    def judge(self, tables: Tables) -> list[Finding]:
        """By intervals of correlations and gains."""
        first, table = self.config.first, tables["correlations"]
        return [
            er.finding("early", table, first, er.DISTANCE, er.PLAIN, sign=1),
            er.finding("early_itself", table, first, er.DISTANCE, er.GIVEN_LOSS, sign=1),
            _gain("first_increment", tables["increments"], first),
            _gain("later_increment", tables["increments"], self.config.later),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Scatter plot and gains above the correlations."""
        first = self.config.first
        picture = new_picture(8, 6)
        axes = picture.subplot_mosaic("AB;CC", height_ratios=(1.2, 1))
        early = tables["networks"][tables["networks"]["epoch"] == first]
        points = er.draw_scatter(axes["A"], early, er.LARGEST, "gain", log_colour=False)
        picture.colorbar(points, ax=axes["A"]).set_label("gain")  # type: ignore[arg-type]
        table = tables["increments"]
        gains = 100 * table[[_GAIN, _LOW, _HIGH]]
        spread = [gains[_GAIN] - gains[_LOW], gains[_HIGH] - gains[_GAIN]]
        axes["B"].axhline(0, color=INK, linewidth=0.8)
        axes["B"].errorbar(table["epoch"], gains[_GAIN], spread, fmt="o-", color=OKABE_ITO[0],
                           capsize=3)  # fmt: skip
        axes["B"].set_xscale("log", base=2)
        axes["B"].set_xticks(table["epoch"], [f"{epoch}" for epoch in table["epoch"]])
        axes["B"].set(xlabel="epoch", ylabel="error saved by the spectrum [%]")
        shown = [
            (first, er.DISTANCE, "distance of λ₁\nfrom 0"),
            (first, er.MEAN, "mean exponent"),
            (first, er.SEEN, "loss seen"),
        ]
        er.draw_held(axes["C"], tables["correlations"], shown)
        return picture


def _gain(claim: str, table: pd.DataFrame, epoch: int) -> Finding:
    row = table[table["epoch"] == epoch].to_dict("records")[0]
    if isinstance(row["problem"], str) and row["problem"]:
        return Finding(claim, "not reproduced", f"After epoch {epoch}: {row['problem']}")
    value, low, high = (float(row[name]) for name in (_GAIN, _LOW, _HIGH))
    return Finding(
        claim,
        by_interval(low, high),
        f"After epoch {epoch} the held-out error is {100 * value:+.1f} % [{100 * low:+.1f}, "
        f"{100 * high:+.1f}] smaller with the spectrum ({words.p_phrase(row['p'])}, "
        f"{row['networks']} networks; a group that explains a tenth would be found with a "
        f"probability of {words.percent(row['power against a tenth'])})",
        value,
        low,
        high,
    )
