"""How long a circle can become behind one hidden layer, and behind many: the shallow bound.

Poole et al. (2016), sec. 4: one layer of N_1 units with monotone φ of range R makes a curve no
longer than N_1 (1 + s) R, whatever its weights, while depth makes it grow exponentially.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator

from analysis.figures.base import INK, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.every_case import all_above
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.theory_lines import draw_networks, look_of
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    angles,
    each_network,
    over_networks,
    plane_of,
    preactivations,
    random_network,
)
from pipeline.dynamics.geometry import curve_geometry, great_circle, shallow_length_bound
from pipeline.dynamics.meanfield import fixed_point
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.mlp import MLP


class Shallow(Study):
    """Lengths of the circle's image, against the bound on one layer of as many units."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        inputs: of the networks with one layer.
        widths: units of the networks with one layer.
        shallow_sigma_w: σ_w of these.
        angles: points on the circle.
        deep_width: units of each layer of the deep networks, and inputs.
        depth: layers of the deep networks.
        deep_sigma_w: σ_w of these.
        sigma_b: of all.
        """

        inputs: Annotated[int, Bounds(ge=2)] = 100
        widths: tuple[Count, ...]
        shallow_sigma_w: tuple[Scale, ...]
        angles: Annotated[int, Bounds(ge=16)]
        deep_width: Count
        depth: Annotated[int, Bounds(ge=2)]
        deep_sigma_w: tuple[Scale, ...]
        sigma_b: Bias

    paper = POOLE
    item = "Sec. 4"
    title = "One layer cannot make a curve as long as many do"
    claims = (
        Claim(
            "bound",
            "Behind one layer of N_1 tanh units the image of a circle is no longer than 4 N_1, "
            "whatever the weights.",
            "Largest length/(4 N_1) of all networks, widths and σ_w: at most 1.",
            "the constant is derived here from the paper's argument",
        ),
        Claim(
            "exceeded",
            "A deep network makes it longer than any shallow one with as many units can.",
            "log of the length behind the last layer over 4 times the units of all layers, σ_w "
            "that is chaotic and largest: 95 % interval over networks above 0.",
        ),
        Claim(
            "only_chaos",
            "It takes chaos: in order depth gains nothing.",
            "Minus the slope of log length by layer over the second half of the layers, σ_w that "
            "is smallest: 95 % interval over networks above 0.",
        ),
    )
    caption = (
        "Length of the image of a circle behind hidden layers, in x = tanh(h). Left: behind one "
        "layer, by its width, for several σ_w (means over networks); the black line is the bound "
        "4 N_1. Right: behind many layers; the black line is the bound on one layer with as many "
        "units as all layers so far have together. Bars are 95 % intervals over networks."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables shallow, deep, deepest, decline."""
        c = self.config
        shallow: list[dict[str, Any]] = []
        for sigma_w, width, number in itertools.product(
            c.shallow_sigma_w, c.widths, range(lab.seeds)
        ):
            generator = lab.generator("shallow", sigma_w, width, number)
            network = random_network(
                generator,
                width=width,
                depth=1,
                sigma_w=sigma_w,
                sigma_b=c.sigma_b,
                num_inputs=c.inputs,
            )
            length = self._lengths(network, sigma_w, generator)[-1]
            bound = shallow_length_bound(width)
            which = {"sigma_w": sigma_w, "width": width, "network": number}
            shallow.append(which | {"length": length, "bound": bound, "share": length / bound})
        deep = each_network(lab, c.deep_sigma_w, self._deep, "deep")
        deep["log_ratio"] = np.log(deep["length"] / deep["bound"])
        last = deep[deep["layer"] == c.depth]
        table = pd.DataFrame(shallow)
        largest = table.groupby(["sigma_w", "width"])["share"].max()
        found = over_networks(table, ("sigma_w", "width"), "length", ("bound",))
        return {
            "shallow": found.merge(largest.rename("largest_share").reset_index()),
            "deep": over_networks(deep, ("sigma_w", "layer"), "length", ("bound",)),
            "deepest": over_networks(last, ("sigma_w",), "log_ratio"),
            "decline": _decline(deep),
        }

    def _deep(self, sigma_w: float, number: int, generator: torch.Generator) -> pd.DataFrame:
        """A row a layer of one network; the bound is that of as many units in one layer."""
        c = self.config
        network = random_network(
            generator, width=c.deep_width, depth=c.depth, sigma_w=sigma_w, sigma_b=c.sigma_b
        )
        layers = np.arange(1, c.depth + 1)
        return pd.DataFrame(
            {
                "sigma_w": sigma_w,
                "network": number,
                "layer": layers,
                "length": self._lengths(network, sigma_w, generator),
                "bound": [shallow_length_bound(int(n) * c.deep_width) for n in layers],
            }
        )

    def _lengths(self, network: MLP, sigma_w: float, generator: torch.Generator) -> list[float]:
        """Of the circle's image in x behind every hidden layer."""
        size = network.input_size
        sigma_b = self.config.sigma_b
        # The radius with which the first layer has the length q* that all others keep. Longer
        # signals would cross from −1 to 1 between two angles, where no sum finds their length.
        length = (fixed_point(sigma_w, sigma_b) - sigma_b**2) / sigma_w**2
        circle = great_circle(plane_of(generator, size), math.sqrt(size * length))

        def activations(x: torch.Tensor) -> torch.Tensor:
            return network.activation(preactivations(network, x))

        found = curve_geometry(circle, angles(self.config.angles), through=activations)
        lengths: list[float] = found.euclidean_length(2 * math.pi).tolist()
        return lengths

    def judge(self, tables: Tables) -> list[Finding]:
        """By the largest share of the bound, and by growth."""
        shares = tables["shallow"]["largest_share"]
        deepest, decline = tables["deepest"], tables["decline"]
        chaotic = deepest[deepest["sigma_w"] == deepest["sigma_w"].max()]
        ordered = decline[decline["sigma_w"] == decline["sigma_w"].min()]
        return [
            Finding(
                "bound",
                by_rule(bool((shares <= 1).all())),
                f"The longest image has {shares.max():.3f} of the length that the bound allows.",
                effect=float(shares.max()),
                low=float(shares.min()),
                high=float(shares.max()),
            ),
            all_above(
                "exceeded",
                chaotic,
                "at σ_w = {sigma_w:g} log of length over bound is {mean:.2f} ({low:.2f} to "
                "{high:.2f})",
                unit="nats",
            ),
            all_above(
                "only_chaos",
                ordered,
                "at σ_w = {sigma_w:g} log length falls by {mean:.3f} ({low:.3f} to {high:.3f}) a "
                "layer",
                unit="nats per layer",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Width left, depth right."""
        picture = new_picture(8.0, 3.6)
        wide_ax, deep_ax = picture.subplots(1, 2)
        shallow, deep = tables["shallow"], tables["deep"]
        for ax, table, x in ((wide_ax, shallow, "width"), (deep_ax, deep, "layer")):
            values = sorted(table["sigma_w"].unique())
            for sigma_w in values:
                line = table[table["sigma_w"] == sigma_w]
                colour, marker = look_of(values, sigma_w)
                draw_networks(ax, line, x, colour, marker)
                ax.plot(
                    line[x],
                    line["mean"],
                    color=colour,
                    linewidth=0.8,
                    marker=marker,
                    markersize=4,
                    label=rf"$\sigma_w$ = {sigma_w:g}",
                )
            bound = table.drop_duplicates(x)
            ax.plot(bound[x], bound["bound"], color=INK, linewidth=1.5, label="bound, one layer")
            ax.set(yscale="log", ylabel="length $L^E$")
            ax.legend(fontsize=8.5)
        wide_ax.set(xscale="log", xlabel="units of one layer")
        deep_ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        deep_ax.set_xlabel(f"layers of {int(deep['bound'].iloc[0] / 4)} units")
        return picture


def _decline(deep: pd.DataFrame) -> pd.DataFrame:
    """Minus the slope of log length by layer over the second half of the layers."""
    half = deep[deep["layer"] >= deep["layer"].max() / 2]
    rows = []
    for (sigma_w, number), line in half.groupby(["sigma_w", "network"], sort=False):
        slope = float(np.polyfit(line["layer"], np.log(line["length"]), 1)[0])
        rows.append({"sigma_w": sigma_w, "network": number, "decline": -slope})
    return over_networks(pd.DataFrame(rows), ("sigma_w",), "decline")
