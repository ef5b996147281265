"""How ridges of wide networks drown: exponents on the boundary and at the centre, by width.

Storm et al. (2024), Fig. 3(b): L λ saturates at C_d on the boundary and is log N − C_c L at the
centre, so that the ridge is gone at N_c = exp(C_d + C_c L).
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture, widen_scale
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import STORM
from analysis.studies.storm_circle import heights
from analysis.studies.storm_statistics import difference, least_case, slopes
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_FLAT = 0.25
_GROWING = (0.5, 1.5)
_CONTRACTION = (0.2, 0.4)


class StormCrossover(Study):
    """Saturation on the boundary, growth with log N at the centre."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: of each network's decision boundary.
        """

        points: Annotated[int, Bounds(ge=8)] = 64

    config: Config
    paper = STORM
    item = "Fig. 3(b)"
    title = "Exponents saturate on the boundary and grow with log N elsewhere"
    claims = (
        Claim(
            "saturation",
            "On the boundary L λ does not depend on the width.",
            "Slope of L λ against log N: 95 % interval over networks within −0.25 and 0.25 at "
            "every depth.",
        ),
        Claim(
            "growth",
            "At the centre of deep networks L λ grows as log N.",
            "Slope of L λ at the centre against log N at the largest depth: 95 % interval within "
            "0.5 and 1.5.",
        ),
        Claim(
            "contraction",
            "At the centre L λ falls with depth by C_c of about 0.3 a layer.",
            "C_c of the fit L λ = s log N − C_c L + constant over all networks is between 0.2 and "
            "0.4, and its 95 % interval is above 0.",
            reference="C_c read off the dotted lines of Fig. 3(b): 0.28 to 0.30",
        ),
        Claim(
            "crossover",
            "The width N_c at which the ridge is gone grows with depth.",
            "Boundary minus centre of the widest networks at the largest depth minus that at the "
            "least: 95 % interval above 0.",
        ),
    )
    caption = (
        "L λ in nats on the networks' decision boundaries (filled, full lines) and at the centre "
        "of the circle (open, dashed lines) by width N and depth L. Means over networks with 95 % "
        "intervals."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables heights (networks) and means (by width, depth and place)."""
        table = heights(lab.sweep("circle"), self.config.points)
        return {"heights": table, "means": _means(table)}

    def judge(self, tables: Tables) -> list[Finding]:
        """By slopes of least-squares lines through all networks."""
        table = tables["heights"]
        depths = sorted(table["depth"].unique())
        log_width = np.log(table["width"])
        on_boundary, at_centre = {}, {}
        for depth in depths:
            mine = table[(table["depth"] == depth) & table["boundary_nats"].notna()]
            x = {"log_width": np.log(mine["width"])}
            on_boundary[depth] = slopes(x, mine["boundary_nats"])["log_width"]
            at_centre[depth] = slopes(x, mine["centre_nats"])["log_width"]
        steepest = max(on_boundary, key=lambda L: _reach(on_boundary[L]))
        growth = at_centre[depths[-1]]
        both = slopes({"log_width": log_width, "depth": table["depth"]}, table["centre_nats"])
        fall = Mean(-both["depth"].value, -both["depth"].high, -both["depth"].low)
        return [
            Finding(
                "saturation",
                by_rule(_reach(on_boundary[steepest]) <= _FLAT),
                f"The steepest slope on the boundary, at L = {steepest}, is "
                f"{on_boundary[steepest]} nats per log N.",
                *on_boundary[steepest],
                "nats",
            ),
            Finding(
                "growth",
                by_rule(_GROWING[0] <= growth.low and growth.high <= _GROWING[1]),
                f"The slope at the centre is {growth} nats per log N at L = {depths[-1]}, and "
                f"{at_centre[depths[0]]} at L = {depths[0]}.",
                *growth,
                "nats",
            ),
            Finding(
                "contraction",
                by_rule(_CONTRACTION[0] <= fall.value <= _CONTRACTION[1] and fall.low > 0),
                f"C_c is {fall} nats per layer.",
                *fall,
                "nats/layer",
            ),
            self._crossover(table),
        ]

    def _crossover(self, table: pd.DataFrame) -> Finding:
        wide = table[table["width"] == table["width"].max()]
        contrast = wide["boundary_nats"] - wide["centre_nats"]
        is_deep = wide["depth"] == wide["depth"].max()
        is_shallow = wide["depth"] == wide["depth"].min()
        found = difference(contrast[is_deep], contrast[is_shallow])
        return least_case(
            "crossover",
            {f"N = {wide['width'].iloc[0]}": found},
            f"From L = {wide['depth'].min()} to {wide['depth'].max()} boundary minus centre "
            "grows by",
        )

    def draw(self, tables: Tables) -> Picture:
        """Widths along a logarithmic axis, a colour a depth."""
        means = tables["means"]
        picture = new_picture(6.4, 4.3)
        ax = picture.subplots()
        for colour, (depth, part) in zip(OKABE_ITO, means.groupby("depth"), strict=False):
            for place, fill, line in (("boundary", colour, "-"), ("centre", "white", "--")):
                mine = part[part["place"] == place]
                bars = [mine["mean_nats"] - mine["low_nats"], mine["high_nats"] - mine["mean_nats"]]
                ax.errorbar(
                    mine["width"],
                    mine["mean_nats"],
                    yerr=bars,
                    color=colour,
                    linestyle=line,
                    marker="o",
                    markerfacecolor=fill,
                    markersize=5.5,
                    linewidth=1.4,
                    elinewidth=1,
                    label=f"L = {depth}, {place}",
                )
        widen_scale(ax, "x", means["width"], 2)
        ax.set(xlabel="width N", ylabel="L λ (nats)")
        picture.legend(loc="outside upper center", ncols=min(4, means["depth"].nunique()))
        return picture


def _means(table: pd.DataFrame) -> pd.DataFrame:
    """Columns width, depth, place, networks, mean_nats, low_nats, high_nats."""
    rows = []
    for (width, depth), part in table.groupby(["width", "depth"]):
        for place in ("boundary", "centre"):
            values = part[f"{place}_nats"].dropna()
            found = mean(values) if len(values) else Mean(math.nan, math.nan, math.nan)
            rows.append(
                {
                    "width": width,
                    "depth": depth,
                    "place": place,
                    "networks": len(values),
                    "mean_nats": found.value,
                    "low_nats": found.low,
                    "high_nats": found.high,
                }
            )
    return pd.DataFrame(rows)


def _reach(found: Mean) -> float:
    """How far from 0 its interval reaches; infinitely far if it has none."""
    return math.inf if math.isnan(found.low) else max(abs(found.low), abs(found.high))
