"""A circle on its way through wide random networks: how it is stretched, bent and curled up.

Poole et al. (2016), figs. 3 and 4 (C–E): extrinsic metric and curvature of h^l(θ) against their
recursions, and the Grassmannian length, the way its tangent turns.
"""

import math
from dataclasses import dataclass
from typing import Annotated

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
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    angles,
    each_network,
    onwards,
    over_networks,
    plane_of,
    random_network,
)
from pipeline.dynamics.geometry import curve_geometry, great_circle
from pipeline.dynamics.meanfield import (
    chi_1,
    chi_2,
    circle_geometry,
    curvature_limit,
    fixed_point,
)
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_QUANTITIES = {
    "metric": r"metric $\bar g^E$",
    "curvature": r"curvature $\bar\kappa$ [$1/\sqrt{N}$]",
    "euclidean_length": r"length $\bar L^E$ [$\sqrt{N}$]",
    "grassmann_length": r"Grassmannian $L^G$ [rad]",
}


class Circle(Study):
    """Metric, curvature and lengths by layer, against the recursions."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer.
        depth: layers, the circle itself being the first.
        angles: points on the circle.
        sigma_w, sigma_b: of the networks.
        """

        width: Count = 1000
        depth: Annotated[int, Bounds(ge=4)] = 13
        angles: Annotated[int, Bounds(ge=3)]
        sigma_w: tuple[Scale, ...]
        sigma_b: Bias

    paper = POOLE
    item = "Figs. 3 and 4 C–E"
    title = "A circle is stretched and curled up exponentially"
    claims = (
        Claim(
            "metric",
            "The metric is multiplied by χ_1 in every layer.",
            "Mean over networks of the metric/theory, at every σ_w and layer: within 5 % of 1.",
        ),
        Claim(
            "curvature",
            "Curvature follows κ̄² ← 3 χ_2/χ_1² + κ̄²/χ_1.",
            "Mean over networks of the curvature/theory, at every σ_w and layer: within 5 % of 1.",
        ),
        Claim(
            "keeps_curvature",
            "In chaos stretching does not straighten the curve: its curvature tends to a value.",
            "Mean over networks of the last layer's curvature over the fixed point of its "
            "recursion, σ_w with χ_1 > 1: within 5 % of 1.",
        ),
        Claim(
            "grows",
            "In chaos the Grassmannian length grows exponentially, as χ_1 to the l/2.",
            "Mean over networks of its growth over the second half of the layers, log per layer, "
            "over ½ log χ_1, σ_w with χ_1 > 1: within 5 % of 1.",
        ),
        Claim(
            "stays",
            "In order it does not.",
            "95 % interval over networks of half the least growth among σ_w with χ_1 > 1, minus "
            "the growth at σ_w with χ_1 < 1: above 0 for every such σ_w.",
        ),
    )
    caption = (
        "Metric g/N, curvature √N κ, length L/√N and Grassmannian length of the image of a circle "
        "of radius √(N q*), by layer; the circle itself is layer 1. Points are means over networks "
        "with 95 % intervals, lines the recursions."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables layers, growth, difference."""
        c = self.config
        layers = each_network(lab, c.sigma_w, self._layers)
        parts = []
        for quantity in _QUANTITIES:
            found = over_networks(
                layers, ("sigma_w", "layer"), quantity, (f"{quantity}_theory", "chi_1")
            )
            found = found.rename(columns={f"{quantity}_theory": "theory"})
            parts.append(found.assign(quantity=quantity))
        growth = _growth(layers)
        rates = over_networks(growth, ("sigma_w",), "growth", ("chi_1",))
        rates["half_log_chi_1"] = 0.5 * np.log(rates["chi_1"])
        sources = [chi_2(s, c.sigma_b) for s in rates["sigma_w"]]
        limits = [curvature_limit(x, y) for x, y in zip(rates["chi_1"], sources, strict=True)]
        return {
            "layers": pd.concat(parts, ignore_index=True),
            "growth": rates.assign(curvature_limit=np.sqrt(limits)),
            "difference": _difference(growth),
        }

    def _layers(self, sigma_w: float, number: int, generator: torch.Generator) -> pd.DataFrame:
        """One row a layer of one network, with its theory."""
        c = self.config
        q = fixed_point(sigma_w, c.sigma_b)
        network = random_network(
            generator, width=c.width, depth=c.depth - 1, sigma_w=sigma_w, sigma_b=c.sigma_b
        )
        circle = great_circle(plane_of(generator, c.width), math.sqrt(c.width * q))
        found = curve_geometry(circle, angles(c.angles), through=lambda h: onwards(network, h))
        # Means of the densities that the lengths integrate; of squares, as in the recursions.
        measured = {
            "metric": found.metric().mean(-1) / c.width,
            "curvature": (c.width * found.curvature().square().mean(-1)).sqrt(),
            "euclidean_length": found.euclidean_length(2 * math.pi) / math.sqrt(c.width),
            "grassmann_length": found.grassmann_length(2 * math.pi),
        }
        theory = circle_geometry(c.depth, sigma_w, c.sigma_b)._asdict()
        return pd.DataFrame(
            {
                "sigma_w": sigma_w,
                "network": number,
                "layer": np.arange(1, c.depth + 1),
                "chi_1": chi_1(sigma_w, c.sigma_b, q=q),
                **{name: values.numpy() for name, values in measured.items()},
                **{f"{name}_theory": values for name, values in theory.items()},
            }
        )

    def judge(self, tables: Tables) -> list[Finding]:
        """By deviations from the recursions, and by growth."""
        layers, growth = tables["layers"], tables["growth"]
        later = layers[layers["layer"] > 1]
        metric, curvature = (later[later["quantity"] == q] for q in ("metric", "curvature"))
        last = curvature[curvature["layer"] == curvature["layer"].max()]
        last = last[last["chi_1"] > 1]
        limit = last["sigma_w"].map(growth.set_index("sigma_w")["curvature_limit"])
        chaotic = growth[growth["chi_1"] > 1]
        return [
            within("metric", metric["mean"] / metric["theory"] - 1, 0.05, "Metrics"),
            within("curvature", curvature["mean"] / curvature["theory"] - 1, 0.05, "Curvatures"),
            within("keeps_curvature", last["mean"] / limit - 1, 0.05, "Last layers' curvatures"),
            within("grows", chaotic["mean"] / chaotic["half_log_chi_1"] - 1, 0.05, "Growth rates"),
            all_above(
                "stays",
                tables["difference"],
                "at σ_w = {sigma_w:g} the length's growth is {mean:.3f} ({low:.3f} to {high:.3f}) "
                "below half the least of chaos",
                unit="nats per layer",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A panel a quantity."""
        picture = new_picture(8.0, 5.0)
        axes = picture.subplots(2, 2, sharex=True)
        layers = tables["layers"]
        for ax, (quantity, label) in zip(axes.ravel(), _QUANTITIES.items(), strict=True):
            here = layers[layers["quantity"] == quantity]
            for sigma_w, (colour, marker) in looks_of_scales(layers).items():
                line = here[here["sigma_w"] == sigma_w]
                draw_theory(ax, line, "layer", colour)
                draw_networks(ax, line, "layer", colour, marker)
            ax.set(ylabel=label, yscale="linear" if quantity == "curvature" else "log")
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        add_scale_legend(picture, layers)
        return picture


def _growth(layers: pd.DataFrame) -> pd.DataFrame:
    """Slope of log L^G over the second half of the layers, a row a network."""
    last = int(layers["layer"].max())
    middle = (last + 1) // 2
    length = layers.pivot(
        index=["sigma_w", "chi_1", "network"], columns="layer", values="grassmann_length"
    )
    growth = (length[last] / length[middle]).map(math.log) / (last - middle)
    return growth.rename("growth").reset_index()


def _difference(growth: pd.DataFrame) -> pd.DataFrame:
    """Half the least growth in chaos minus that in order, a row a σ_w in order."""
    chaotic = growth[growth["chi_1"] > 1].groupby("network")["growth"].min()
    ordered = growth[growth["chi_1"] < 1]
    difference = ordered["network"].map(chaotic) / 2 - ordered["growth"]
    return over_networks(ordered.assign(difference=difference), ("sigma_w",), "difference")
