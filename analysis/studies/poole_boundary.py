"""Decision boundaries of wide random networks, seen from ever farther before the readout.

Poole et al. (2016), fig. 4 F and G: principal curvatures of β·h^D = 0 in the space of every layer,
at points that are found in the first and followed to the last.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.figures.base import new_picture
from analysis.frame import AnalysisError
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.every_case import all_above
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.theory_lines import draw_networks, look_of
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    onwards,
    over_networks,
    preactivations,
    random_network,
)
from pipeline.dynamics.geometry import boundary_points, principal_curvatures
from pipeline.dynamics.meanfield import chi_1, fixed_point
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.mlp import MLP

_RANKS = 4  # curvatures that are followed at either end


class Boundary(Study):
    """The four largest and the four smallest principal curvatures by layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer.
        depth: layers between the first space and the readout.
        points: points of the boundary, a network.
        sigma_w, sigma_b: of the networks.
        """

        width: Annotated[int, Bounds(ge=2 * _RANKS + 1)] = 200
        depth: Annotated[int, Bounds(ge=4)] = 10
        points: Count = 10
        sigma_w: tuple[Scale, ...]
        sigma_b: Bias

    paper = POOLE
    item = "Fig. 4 F, G"
    title = "Decision boundaries bend exponentially with depth"
    claims = (
        Claim(
            "grows",
            "In chaos the largest principal curvatures grow exponentially with the layers between "
            "boundary and readout.",
            "Growth of the log of each of the four largest, mean over points, per layer over the "
            "farther half of the layers: 95 % interval over networks above 0, σ_w with χ_1 > 1.",
        ),
        Claim(
            "both_sides",
            "So do the smallest: the boundary bends to either side.",
            "The same of the four smallest with their sign turned: all negative, and the 95 % "
            "intervals of their growth above 0.",
        ),
        Claim(
            "only_chaos",
            "It is chaos that bends it.",
            "The same growth, mean over all eight, the least among σ_w with χ_1 > 1 minus that at "
            "σ_w with χ_1 < 1: 95 % interval over networks above 0.",
        ),
    )
    caption = (
        "Principal curvatures √N κ of the decision boundary in the space of a layer, by the number "
        "of layers from there to the readout: the four largest (filled) and the size of the four "
        "smallest, which are negative (open). Means over points; bars are 95 % intervals over "
        "networks."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables curvatures, growth, difference."""
        c = self.config
        rows: list[dict[str, Any]] = []
        for sigma_w in c.sigma_w:
            growth = chi_1(sigma_w, c.sigma_b)
            for number in range(lab.seeds):
                generator = lab.generator("network", sigma_w, number)
                which = {"sigma_w": sigma_w, "chi_1": growth, "network": number}
                rows += [which | row for row in self._curvatures(sigma_w, generator)]
        table = pd.DataFrame(rows)
        half = table[table["layers_to_readout"] >= c.depth / 2]
        slopes = _slopes(half)
        by = ("sigma_w", "end", "rank")
        return {
            "curvatures": over_networks(
                table, (*by, "layers_to_readout"), "size", ("chi_1", "points")
            ),
            "growth": over_networks(slopes, by, "growth", ("chi_1",)),
            "difference": _difference(slopes),
        }

    def _curvatures(self, sigma_w: float, generator: torch.Generator) -> list[dict[str, Any]]:
        """A row a layer, end and rank, of one network; means over its points."""
        c = self.config
        network = random_network(
            generator, width=c.width, depth=c.depth, sigma_w=sigma_w, sigma_b=c.sigma_b
        )
        readout = torch.randn(c.width, dtype=torch.float64, generator=generator)
        readout /= math.sqrt(c.width)
        # Some starts lead to a minimum of |G| that is no zero; twice as many leave enough.
        starts = torch.randn(2 * c.points, c.width, dtype=torch.float64, generator=generator)
        starts *= math.sqrt(fixed_point(sigma_w, c.sigma_b))
        found = boundary_points(_score(network, readout, 0), starts)
        points = found.points[found.is_found][: c.points]
        if not len(points):
            raise AnalysisError(
                f"no point of the decision boundary was found from {len(starts)} starts at "
                f"σ_w={sigma_w:g}; more `points` give more starts"
            )
        rows = []
        for layer, h in enumerate(onwards(network, points)[:-1]):
            curvatures = principal_curvatures(_score(network, readout, layer), h)
            scaled = math.sqrt(c.width) * curvatures.mean(0)
            rows += [
                {
                    "layers_to_readout": c.depth - layer,
                    "end": end,
                    "rank": rank + 1,
                    "size": float(sign * scaled[place]),
                    "points": len(points),
                }
                for rank in range(_RANKS)
                for end, place, sign in (("largest", rank, 1), ("smallest", -1 - rank, -1))
            ]
        return rows

    def judge(self, tables: Tables) -> list[Finding]:
        """By growth in chaos."""
        growth = tables["growth"]
        chaotic = growth[growth["chi_1"] > 1]
        told = (
            "at σ_w = {sigma_w:g} number {rank} grows by {mean:.3f} ({low:.3f} to {high:.3f}) a "
            "layer"
        )
        unit = "nats per layer"
        return [
            all_above("grows", chaotic[chaotic["end"] == "largest"], told, unit=unit),
            all_above("both_sides", chaotic[chaotic["end"] == "smallest"], told, unit=unit),
            all_above(
                "only_chaos",
                tables["difference"],
                "at σ_w = {sigma_w:g} growth is {mean:.3f} ({low:.3f} to {high:.3f}) below that of "
                "chaos",
                unit=unit,
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A panel a σ_w."""
        curvatures = tables["curvatures"]
        values = sorted(curvatures["sigma_w"].unique())
        picture = new_picture(8.0, 3.6)
        axes = picture.subplots(1, len(values), squeeze=False, sharey=True)[0]
        for ax, sigma_w in zip(axes, values, strict=True):
            colour, marker = look_of(values, sigma_w)
            here = curvatures[curvatures["sigma_w"] == sigma_w]
            for (end, _), line in here.groupby(["end", "rank"]):
                is_largest = end == "largest"
                shift = -0.12 if is_largest else 0.12
                shifted = line.assign(layers_to_readout=line["layers_to_readout"] + shift)
                face = colour if is_largest else "white"
                draw_networks(ax, shifted, "layers_to_readout", colour, marker, face=face)
                style = "-" if is_largest else ":"
                ax.plot(
                    shifted["layers_to_readout"],
                    line["mean"],
                    color=colour,
                    linewidth=0.8,
                    linestyle=style,
                    zorder=1,
                )
            ax.set(title=rf"$\sigma_w$ = {sigma_w:g}", yscale="log")
            ax.set_xlabel("layers to the readout")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel(r"size of curvature [$1/\sqrt{N}$]")
        return picture


def _score(network: MLP, readout: Tensor, layer: int) -> Callable[[Tensor], Tensor]:
    """G of the pre-activations before hidden layer `layer`, (B, W) → (B,)."""
    return lambda h: preactivations(network, network.activation(h), layer)[-1] @ readout


def _slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Least-squares slope of log size by layers; NaN where a size is not positive."""
    rows = []
    by = ["sigma_w", "chi_1", "network", "end", "rank"]
    for key, line in table.groupby(by, sort=False):
        sizes = line["size"].to_numpy()
        slope = math.nan
        if (sizes > 0).all():
            slope = float(np.polyfit(line["layers_to_readout"], np.log(sizes), 1)[0])
        rows.append({**dict(zip(by, key, strict=True)), "growth": slope})
    return pd.DataFrame(rows)


def _difference(slopes: pd.DataFrame) -> pd.DataFrame:
    """Least growth in chaos minus that in order, a row a σ_w in order."""
    means = slopes.groupby(["sigma_w", "chi_1", "network"])["growth"].mean().reset_index()
    chaotic = means[means["chi_1"] > 1].groupby("network")["growth"].min()
    ordered = means[means["chi_1"] < 1]
    difference = ordered["network"].map(chaotic) - ordered["growth"]
    return over_networks(ordered.assign(difference=difference), ("sigma_w",), "difference")
