"""How wide random networks stretch tangents: measured growth against ½ log χ_1, layer by layer.

Poole et al. (2016), sec. 3: χ_1 is the mean squared singular value of a layer's Jacobian, and
λ = ½ log χ_1 the Lyapunov exponent it makes. Exponents are nats per layer.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture

from analysis.figures.base import new_picture
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.every_case import all_above, within
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.theory_lines import (
    add_scale_legend,
    draw_networks,
    draw_theory,
    looks_of_scales,
)
from analysis.studies.wide_networks import Bias, Count, Scale, over_networks, random_network
from pipeline.dynamics.ftle import ftle_field
from pipeline.dynamics.meanfield import chi_1, fixed_point, largest_exponent
from pipeline.dynamics.propagate import carry, random_frame
from tasks.base import Config as BaseConfig
from tasks.networks.mlp import MLP


class Jacobian(Study):
    """Growth of random tangents, mean squared and largest singular values."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer, and inputs.
        depth: hidden layers.
        inputs: signals a network, with a random tangent each.
        sigma_w, sigma_b: of the networks.
        theory_sigma_w: from, to and number of σ_w of the line of theory.
        largest_at: layers up to which the largest singular value is found.
        largest_networks: networks of each σ_w, at most, in which it is; one input each.
        """

        width: Count = 1000
        depth: Count = 12
        inputs: Count
        sigma_w: tuple[Scale, ...]
        sigma_b: Bias
        theory_sigma_w: tuple[Scale, Scale, Count]
        largest_at: tuple[Count, ...]
        largest_networks: Count

    paper = POOLE
    item = "Sec. 3"
    title = "Growth of tangents is that of theory"
    claims = (
        Claim(
            "growth",
            "Tangents grow by √χ_1 a layer, λ = ½ log χ_1.",
            "Mean over networks of the growth of a random tangent over all layers, as exp(2 λ), "
            "at every σ_w: within 5 % of χ_1.",
        ),
        Claim(
            "singular",
            "χ_1 is the mean squared singular value of a layer's Jacobian.",
            "Mean over networks of ‖D W‖²/N, at every σ_w and layer: within 5 % of χ_1.",
        ),
        Claim(
            "phases",
            "Ordered networks contract, chaotic networks stretch.",
            "95 % interval over networks of the measured λ, its sign turned where χ_1 < 1: above "
            "0 for every σ_w.",
        ),
        Claim(
            "largest",
            "The largest finite-time exponent comes down to ½ log χ_1 from above as layers are "
            "added, slowly.",
            "95 % interval over networks of the largest exponent over the fewest layers minus that "
            "over the most, and of the latter minus ½ log χ_1: above 0 for every σ_w.",
            "a known property of products of random matrices, not a claim of the paper",
        ),
    )
    caption = (
        "Left: growth of random tangents from the first layer up to each, nats; points are means "
        "over networks with 95 % intervals. Middle: exponents by σ_w. Right: the largest "
        "finite-time exponent, of the direction stretched most, lies above the exponent of theory "
        "(lines) by an amount that falls with the number of layers."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables growth, exponents, singular, largest, gaps, theory."""
        c = self.config
        layers, largest = [], []
        for sigma_w in c.sigma_w:
            q = fixed_point(sigma_w, c.sigma_b)
            for number in range(lab.seeds):
                generator = lab.generator("network", sigma_w, number)
                network = random_network(
                    generator, width=c.width, depth=c.depth, sigma_w=sigma_w, sigma_b=c.sigma_b
                )
                shape = (c.inputs, c.width)
                normal = torch.randn(shape, dtype=torch.float64, generator=generator)
                inputs = network.activation(normal * math.sqrt(q))
                which = {"sigma_w": sigma_w, "network": number}
                layers += [which | row for row in _by_layer(network, inputs, generator)]
                if number < c.largest_networks:
                    largest += [which | row for row in _largest(network, inputs[:1], c.largest_at)]
        table = pd.DataFrame(layers)
        table["theory"] = table["layer"] * table["sigma_w"].map(self._exponent)
        table["chi_1"] = table["sigma_w"].map(lambda s: chi_1(s, c.sigma_b))
        last = table[table["layer"] == c.depth]
        last = last.assign(exponent=last["growth"] / c.depth, theory=last["theory"] / c.depth)
        top = pd.DataFrame(largest)
        top["theory"] = top["sigma_w"].map(self._exponent)
        grid = np.linspace(*c.theory_sigma_w)
        by = ("sigma_w", "layer")
        return {
            "growth": over_networks(table, by, "growth", ("theory",)),
            "exponents": over_networks(last, ("sigma_w",), "exponent", ("theory", "chi_1")),
            "singular": over_networks(table, by, "mean_squared_singular_value", ("chi_1",)),
            "largest": over_networks(top, by, "exponent", ("theory",)),
            "gaps": _gaps(top),
            "theory": pd.DataFrame({"sigma_w": grid, "theory": list(map(self._exponent, grid))}),
        }

    def _exponent(self, sigma_w: float) -> float:
        return largest_exponent(sigma_w, self.config.sigma_b)

    def judge(self, tables: Tables) -> list[Finding]:
        """By deviations from χ_1, and by signs."""
        exponents, singular = tables["exponents"], tables["singular"]
        sign = np.where(exponents["chi_1"] < 1, -1.0, 1.0)
        ends = np.stack([sign * exponents["low"], sign * exponents["high"]])
        signed = exponents.assign(
            own_low=exponents["low"],
            own_high=exponents["high"],
            measured=exponents["mean"],
            mean=sign * exponents["mean"],
            low=ends.min(0),
            high=ends.max(0),
        )
        return [
            within(
                "growth", np.exp(2 * exponents["mean"]) / exponents["chi_1"] - 1, 0.05, "Growths"
            ),
            within(
                "singular",
                singular["mean"] / singular["chi_1"] - 1,
                0.05,
                "Mean squared singular values",
            ),
            all_above(
                "phases",
                signed,
                "at σ_w = {sigma_w:g} λ is {measured:.4f} ({own_low:.4f} to {own_high:.4f}), by "
                "theory {theory:.4f}",
                unit="nats per layer",
            ),
            all_above(
                "largest",
                tables["gaps"],
                "at σ_w = {sigma_w:g}, {what}: {mean:.3f} ({low:.3f} to {high:.3f})",
                unit="nats per layer",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Growth by layer, exponents by σ_w, largest exponents by layer."""
        picture = new_picture(8.0, 3.4)
        growth_ax, theory_ax, largest_ax = picture.subplots(1, 3)
        draw_theory(theory_ax, tables["theory"], "sigma_w", "#6b7280")
        for sigma_w, (colour, marker) in looks_of_scales(tables["exponents"]).items():
            growth, largest, exponents = (
                tables[name][tables[name]["sigma_w"] == sigma_w]
                for name in ("growth", "largest", "exponents")
            )
            draw_theory(growth_ax, growth, "layer", colour)
            draw_networks(growth_ax, growth, "layer", colour, marker)
            draw_networks(theory_ax, exponents, "sigma_w", colour, marker)
            largest_ax.axhline(float(largest["theory"].iloc[0]), color=colour, linewidth=1.3)
            draw_networks(largest_ax, largest, "layer", colour, marker)
        growth_ax.set(xlabel="layers", ylabel="log growth of a tangent [nats]")
        theory_ax.set(xlabel=r"$\sigma_w$", ylabel="exponent λ [nats per layer]")
        largest_ax.set(xlabel="layers", ylabel="largest exponent [nats per layer]")
        add_scale_legend(picture, tables["exponents"])
        return picture


def _by_layer(
    network: MLP, inputs: torch.Tensor, generator: torch.Generator
) -> list[dict[str, Any]]:
    """Mean over inputs of a tangent's log growth up to each layer, and of ‖D W‖²/N in it."""
    orbit, squares = network.orbit(inputs), []

    def observe(step: int, J: Any) -> None:
        row_squares = J.W_NED.square().sum(-1).unsqueeze(1)
        squares.append(float((J.slope_NBE.square() * row_squares).mean()))

    frame = random_frame(orbit, 1, generator)
    growth = carry(orbit, frame, warmup=0, steps=network.depth, t_on=1, observe=observe)
    logs = growth.logs_NBKM.mean((0, 1, 2)).cumsum(0).tolist()
    return [
        {"layer": layer + 1, "growth": logs[layer], "mean_squared_singular_value": squares[layer]}
        for layer in range(network.depth)
    ]


def _largest(
    network: MLP, one_input: torch.Tensor, depths: tuple[int, ...]
) -> list[dict[str, Any]]:
    """λ_max up to each depth. By the product, for sweeps do not settle in Gaussian spectra."""
    found = []
    for depth in depths:
        field = ftle_field(network, one_input, layer=depth, directions=False, method="product")
        found.append({"layer": depth, "exponent": float(field.exponents)})
    return found


def _gaps(top: pd.DataFrame) -> pd.DataFrame:
    """Fewest minus most layers, and most layers minus theory: a row a σ_w and gap."""
    few, many = top["layer"].min(), top["layer"].max()
    wide = top.pivot(index=["sigma_w", "network"], columns="layer", values="exponent")
    theory = top.groupby(["sigma_w", "network"])["theory"].first()
    parts = {
        f"λ_max of {few} minus that of {many} layers": wide[few] - wide[many],
        f"λ_max of {many} layers minus theory": wide[many] - theory,
    }
    table = pd.concat([p.rename("gap").reset_index().assign(what=w) for w, p in parts.items()])
    return over_networks(table, ("sigma_w", "what"), "gap")
