"""How training moves the distribution of exponents towards 0, wherever it starts.

Storm et al., arXiv 2306.12548 v1, Fig. 3(b) (Fig. S1 of the published version): histograms of the
largest exponent over inputs before and after training, for several variances of the start weights.
Mean-field theory puts the start at λ ≈ ½ log σ_w².
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab, Moment, Trained
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import STORM
from analysis.studies.storm_statistics import difference, slopes
from pipeline.dynamics.ftle import max_ftle
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

WHEN: dict[Moment, str] = {"start": "before training", "end": "after training"}
_REMAINING = 0.5


class StormSelfOrganisation(Study):
    """Exponents before and after training by σ_w²."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        inputs: drawn from the validation split.
        largest: σ_w² up to which networks are expected to organise themselves.
        bins, extent: of the histograms of L λ, from −extent to extent nats.
        """

        inputs: Annotated[int, Bounds(ge=10)] = 400
        largest: Annotated[float, Bounds(gt=0)] = 2.5
        bins: Annotated[int, Bounds(ge=5)] = 60
        extent: Annotated[float, Bounds(gt=0)] = 6.0

    config: Config
    paper = STORM
    item = "v1, Fig. 3(b)"
    title = "Training centres the exponents whatever the start weights"
    claims = (
        Claim(
            "negative",
            "Before training mean exponents are negative where σ_w² < 1.",
            "Mean of L λ of networks at the least σ_w²: 95 % interval below 0.",
        ),
        Claim(
            "independent",
            "After training the mean exponent hardly depends on σ_w², unless that was too large.",
            "Slope of mean L λ against log σ_w² for σ_w² up to 2.25, after training: upper end of "
            "the 95 % interval below half of the slope before training.",
        ),
        Claim(
            "centred",
            "Training brings the mean exponents closer to 0.",
            "|mean L λ| before training minus that after it, paired by network, at the least "
            "σ_w²: 95 % interval above 0.",
        ),
        Claim(
            "too_large",
            "Networks that start with too large weights keep their large exponents.",
            "Mean L λ after training at the largest σ_w² minus that of all others: 95 % interval "
            "above 0.",
        ),
    )
    caption = (
        "Distribution of L λ over inputs, in nats, pooled over networks, before and after "
        "training, by the variance σ_w² of the start weights (N(0, σ_w²/fan-in))."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables means (networks) and histograms (pooled over networks)."""
        trained = lab.sweep("circle")
        each = {at: self._exponents(trained, at, lab) for at in WHEN}
        accuracy = trained.frame.trials["test_score"].astype(float)
        table = pd.concat([_means(values, WHEN[at]) for at, values in each.items()])
        table["test_accuracy"] = table["network"].map(accuracy)
        return {
            "means": table.reset_index(drop=True),
            "histograms": self._histograms(each),
        }

    def _exponents(self, trained: Trained, at: Moment, lab: Lab) -> pd.DataFrame:
        """L λ of every network and input: network, variance, exponent_nats."""
        parts = []
        for group in trained.groups(at):
            probe = group.task.probe_inputs(self.config.inputs, None, lab.generator("inputs"))
            depth = group.network.orbit(probe.inputs[:1]).num_steps
            found_NB = depth * max_ftle(group.network, probe.inputs, depth)
            variance = group.params["network.init_scale"].astype(float).to_numpy() ** 2
            parts.append(
                pd.DataFrame(
                    {
                        "network": np.repeat(group.numbers, found_NB.shape[1]),
                        "variance": np.repeat(variance.round(6), found_NB.shape[1]),
                        "exponent_nats": found_NB.flatten().numpy(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def _histograms(self, each: dict[Moment, pd.DataFrame]) -> pd.DataFrame:
        """Shares a nat: variance, when, low_nats, high_nats, density."""
        edges = np.linspace(-self.config.extent, self.config.extent, self.config.bins + 1)
        rows = []
        for at, values in each.items():
            for variance, part in values.groupby("variance"):
                counts = np.histogram(part["exponent_nats"], edges)[0]
                rows.append(
                    pd.DataFrame(
                        {
                            "variance": variance,
                            "when": WHEN[at],
                            "low_nats": edges[:-1],
                            "high_nats": edges[1:],
                            "density": counts / (len(part) * np.diff(edges)),
                        }
                    )
                )
        return pd.concat(rows, ignore_index=True)

    def judge(self, tables: Tables) -> list[Finding]:
        """By means over the inputs of each network."""
        table = tables["means"]
        start = table[table["when"] == WHEN["start"]].set_index("network")
        end = table[table["when"] == WHEN["end"]].set_index("network")
        least, most = table["variance"].min(), table["variance"].max()
        negative = mean(start[start["variance"] == least]["mean_nats"])
        before, after = (_slope(part, self.config.largest) for part in (start, end))
        bound = _REMAINING * before.value
        closer = start["mean_nats"].abs() - end["mean_nats"].abs()
        centred = mean(closer[start["variance"] == least])
        stays = end["variance"] == most
        large = difference(end[stays]["mean_nats"], end[~stays]["mean_nats"])
        accuracy = end.groupby("variance")["test_accuracy"].mean()
        return [
            Finding(
                "negative",
                by_interval(-negative.high, -negative.low),
                f"At σ_w² = {least:g} mean L λ starts at {negative} nats.",
                *negative,
                "nats",
            ),
            Finding(
                "independent",
                by_interval(-after.high, -after.low, above=-bound),
                f"Mean L λ changes by {before} nats per log σ_w² before and by {after} after "
                "training.",
                *after,
                "nats",
            ),
            Finding(
                "centred",
                by_interval(centred.low, centred.high),
                f"At σ_w² = {least:g} |mean L λ| falls by {centred} nats in training.",
                *centred,
                "nats",
            ),
            Finding(
                "too_large",
                by_interval(large.low, large.high),
                f"After training mean L λ at σ_w² = {most:g} is {large} nats above that of the "
                f"others; test accuracy there is {accuracy.iloc[-1]:.1%}, elsewhere at least "
                f"{accuracy.iloc[:-1].min():.1%}.",
                *large,
                "nats",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Two panels, before and after, a colour a variance."""
        table = tables["histograms"]
        picture = new_picture(8.0, 3.6)
        axes = picture.subplots(1, 2, sharex=True, sharey=True)
        for ax, when in zip(axes, WHEN.values(), strict=True):
            for colour, (variance, part) in zip(
                OKABE_ITO, table[table["when"] == when].groupby("variance"), strict=False
            ):
                edges = [*part["low_nats"], part["high_nats"].iloc[-1]]
                label = f"σ_w² = {variance:g}" if ax is axes[0] else None
                ax.stairs(part["density"], edges, color=colour, linewidth=1.5, label=label)
            ax.axvline(0, color="#6b7280", linewidth=0.9)
            ax.set(title=when, xlabel="L λ (nats)")
        seen = table[table["density"] > 0]
        axes[0].set_xlim(seen["low_nats"].min() - 0.2, seen["high_nats"].max() + 0.2)
        axes[0].set_ylabel("density (1/nat)")
        picture.legend(loc="outside upper center", ncols=table["variance"].nunique())
        return picture


def _means(values: pd.DataFrame, when: str) -> pd.DataFrame:
    """Over the inputs of each network."""
    found = values.groupby(["network", "variance"])["exponent_nats"].mean()
    return found.rename("mean_nats").reset_index().assign(when=when)


def _slope(part: pd.DataFrame, largest: float) -> Mean:
    """Of the means against log σ_w², up to the largest."""
    kept = part[part["variance"] <= largest]
    return slopes({"log": np.log(kept["variance"])}, kept["mean_nats"])["log"]
