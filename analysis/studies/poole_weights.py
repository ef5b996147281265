"""What becomes of a small change of one layer's weights: it heals in order and takes over in chaos.

Poole et al. (2016), app. F: W(Δ) = √(1 − Δ²) W + Δ dW in one layer, the same inputs; the
correlation of the two networks' signals drops there and then follows the correlation map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import pandas as pd
import torch
from matplotlib.figure import Figure as Picture

from analysis.figures.base import new_picture
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.every_case import all_above, within
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.theory_lines import add_legend, draw_networks, draw_theory, look_of
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    each_network,
    onwards,
    over_networks,
    random_network,
    weights_of,
)
from pipeline.dynamics.meanfield import (
    changed_weights_correlation,
    chi_1,
    correlation_map,
    fixed_point,
)
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.layers import linear

Change = Annotated[float, Bounds(gt=0, lt=1)]


class Weights(Study):
    """Correlation of a network with itself after one layer's weights have changed."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer.
        depth: layers, of which the first is the changed one.
        inputs: signals a network, of length q*.
        deltas: sizes Δ of the change.
        sigma_w, sigma_b: of the networks.
        """

        width: Count = 1000
        depth: Annotated[int, Bounds(ge=3)]
        inputs: Count
        deltas: tuple[Change, ...]
        sigma_w: tuple[Scale, ...]
        sigma_b: Bias

    paper = POOLE
    item = "App. F"
    title = "Changes of weights heal in order and grow in chaos"
    claims = (
        Claim(
            "drop",
            "In the changed layer the correlation drops to (√(1 − Δ²)(q* − σ_b²) + σ_b²)/q*.",
            "Mean over networks of correlation/theory in that layer, at every σ_w and Δ: within "
            "2 % of 1.",
        ),
        Claim(
            "follows",
            "Behind it the correlation follows the correlation map.",
            "Mean over networks of the correlation minus theory, at every σ_w, Δ and later layer: "
            "at most 0.05 in size.",
        ),
        Claim(
            "heals",
            "Where χ_1 < 1 the networks become alike again.",
            "95 % interval over networks of the correlation in the last layer minus that in the "
            "changed one, σ_w with χ_1 < 1: above 0 for every Δ.",
        ),
        Claim(
            "grows",
            "Where χ_1 > 1 even a small change makes them different.",
            "95 % interval over networks of the correlation in the changed layer minus that in the "
            "last, σ_w with χ_1 > 1: above 0 for every Δ.",
        ),
    )
    caption = (
        "Correlation of the signals of a network and of itself with the weights of one layer "
        "changed by Δ, by layers from there on. Points are means over networks with 95 % "
        "intervals, lines the theory."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables layers and change, from the changed layer to the last."""
        c = self.config
        table = each_network(lab, c.sigma_w, self._layers)
        ends = table[table["layer"].isin([1, c.depth])].pivot(
            index=["sigma_w", "chi_1", "delta", "network"], columns="layer", values="c"
        )
        change = (ends[c.depth] - ends[1]).rename("change").reset_index()
        return {
            "layers": over_networks(table, ("sigma_w", "delta", "layer"), "c", ("theory", "chi_1")),
            "change": over_networks(change, ("sigma_w", "delta"), "change", ("chi_1",)),
        }

    def _layers(self, sigma_w: float, number: int, generator: torch.Generator) -> pd.DataFrame:
        """A row a Δ and layer of one network, mean over inputs; layer 1 is the changed one."""
        c = self.config
        q = fixed_point(sigma_w, c.sigma_b)
        network = random_network(
            generator, width=c.width, depth=c.depth, sigma_w=sigma_w, sigma_b=c.sigma_b
        )
        normal = torch.randn(c.inputs, c.width, dtype=torch.float64, generator=generator)
        size = normal.square().mean(1, keepdim=True).sqrt()
        x = network.activation(math.sqrt(q) * normal / size).unsqueeze(0)
        weight, bias = weights_of(network, 0)
        other = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
        other *= sigma_w / math.sqrt(c.width)
        unchanged = onwards(network, linear(x, weight, bias)[0], first=1)
        rows: list[dict[str, Any]] = []
        for delta in c.deltas:
            mixed = math.sqrt(1 - delta**2) * weight + delta * other
            changed = onwards(network, linear(x, mixed, bias)[0], first=1)
            found = torch.cosine_similarity(unchanged, changed, dim=-1).mean(-1).tolist()
            theory = _theory(delta, sigma_w, c.sigma_b, c.depth)
            rows += [
                {"delta": delta, "layer": layer + 1, "c": found[layer], "theory": theory[layer]}
                for layer in range(c.depth)
            ]
        growth = chi_1(sigma_w, c.sigma_b, q=q)
        return pd.DataFrame(rows).assign(sigma_w=sigma_w, chi_1=growth, network=number)

    def judge(self, tables: Tables) -> list[Finding]:
        """By deviations from theory, and by the direction of the change."""
        layers, change = tables["layers"], tables["change"]
        at, behind = layers[layers["layer"] == 1], layers[layers["layer"] > 1]
        ordered, chaotic = change[change["chi_1"] < 1], change[change["chi_1"] > 1]
        loss = chaotic.assign(mean=-chaotic["mean"], low=-chaotic["high"], high=-chaotic["low"])
        where = "at σ_w = {sigma_w:g}, Δ = {delta:g} it {does} by {mean:.3f} ({low:.3f} to "
        return [
            within("drop", at["mean"] / at["theory"] - 1, 0.02, "Correlations"),
            within(
                "follows",
                behind["mean"] - behind["theory"],
                0.05,
                "Correlations",
                is_relative=False,
            ),
            all_above("heals", ordered.assign(does="rises"), where + "{high:.3f})"),
            all_above("grows", loss.assign(does="falls"), where + "{high:.3f})"),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A panel a σ_w."""
        layers = tables["layers"]
        values, deltas = (sorted(layers[name].unique()) for name in ("sigma_w", "delta"))
        picture = new_picture(8.0, 3.2)
        axes = picture.subplots(1, len(values), sharey=True, squeeze=False)[0]
        for ax, sigma_w in zip(axes, values, strict=True):
            here = layers[layers["sigma_w"] == sigma_w]
            for delta, line in here.groupby("delta"):
                colour, marker = look_of(deltas, delta)
                draw_theory(ax, line, "layer", colour)
                draw_networks(ax, line, "layer", colour, marker)
            ax.set(title=rf"$\sigma_w$ = {sigma_w:g}", xlabel="layer, from the changed one")
        axes[0].set_ylabel("correlation")
        add_legend(picture, {f"Δ = {delta:g}": look_of(deltas, delta) for delta in deltas})
        return picture


@cache
def _theory(delta: float, sigma_w: float, sigma_b: float, depth: int) -> Sequence[float]:
    """Correlation in the changed layer and in those behind it."""
    found = [changed_weights_correlation(delta, sigma_w, sigma_b)]
    for _ in range(depth - 1):
        found.append(float(correlation_map(found[-1], sigma_w, sigma_b)))
    return found
