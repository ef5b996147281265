"""Order and chaos in wide random networks: how the correlation of two inputs goes through layers.

Poole et al. (2016), fig. 2. χ_1, the slope of the correlation map at 1, says whether near inputs
converge; the line χ_1 = 1 parts the phases.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture

from analysis.figures.base import new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.every_case import all_above, within
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.phase_diagram import draw_phases, phase_at
from analysis.studies.theory_lines import (
    add_scale_legend,
    draw_map_and_layers,
    looks_of_scales,
)
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    onwards,
    over_networks,
    plane_of,
    random_network,
)
from pipeline.dynamics.meanfield import (
    chi_1,
    correlation_map,
    critical_sigma_w,
    fixed_correlation,
    fixed_point,
    length_map,
)
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

Correlation = Annotated[float, Bounds(ge=-1, lt=1)]

_ARRIVED = 0.01  # from c*, or of q*
_SIDES = (0.8, 1.25)  # σ_w on either side of the line, in units of the critical one
_SIDE_START = 0.95


class Phases(Study):
    """Simulated correlations against C, and networks on either side of the line."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer.
        depth: layers that correlations are followed through, the start being the first.
        sigma_w, sigma_b: of the networks that are simulated.
        starts: correlations of the pairs of inputs at the first layer.
        side_depth: layers of the networks on either side of the line.
        side_sigma_b: where on the line they are.
        grid_sigma_w, grid_sigma_b: from, to and number of values of the phase diagram.
        """

        width: Count = 1000
        depth: Annotated[int, Bounds(ge=2)] = 30
        sigma_w: tuple[Scale, ...]
        sigma_b: Scale
        starts: tuple[Correlation, ...]
        side_depth: Annotated[int, Bounds(ge=2)]
        side_sigma_b: tuple[Scale, ...]
        grid_sigma_w: tuple[Scale, Scale, Count]
        grid_sigma_b: tuple[Bias, Scale, Count]

    paper = POOLE
    item = "Fig. 2"
    title = "Order and chaos: correlations of two inputs"
    claims = (
        Claim(
            "recursion",
            "The correlation map foretells how alike two inputs are, layer by layer.",
            "Mean over networks of the correlation minus theory, at every σ_w, start and layer: "
            "at most 0.05 in size.",
        ),
        Claim(
            "order",
            "Where χ_1 < 1, all inputs become alike.",
            "95 % interval over networks of the correlation in the last layer minus that at the "
            "start, σ_w with χ_1 < 1: above 0 from every start.",
        ),
        Claim(
            "chaos",
            "Where χ_1 > 1, even near inputs part, and come to a correlation c* < 1 of their own.",
            "Mean over networks of the correlation in the last layer minus c*, σ_w with χ_1 > 1: "
            "at most 0.05 in size from every start.",
        ),
        Claim(
            "line",
            "The line χ_1 = 1 in the plane of σ_w and σ_b parts the phases.",
            f"σ_w {_SIDES[0]:g} and {_SIDES[1]:g} times the critical one, from a correlation of "
            f"{_SIDE_START:g}: the 95 % interval over networks of the change is above 0 on the "
            "side of order, below 0 on that of chaos, for every σ_b.",
        ),
        Claim(
            "slow",
            "Correlations take longer to settle than lengths.",
            "By theory, at every σ_w, |c − c*| ≤ 0.01 from c = 0.5 takes more layers than "
            "|q/q* − 1| ≤ 0.01 from q = 4 q*.",
        ),
    )
    caption = (
        "Left: correlation of two inputs in one layer and in the next; where the line meets the "
        "dotted diagonal with a slope below 1 is c*. Middle: correlations layer by layer from "
        "several starts; points are means over networks with 95 % intervals. Right: log χ_1, below "
        "0 in order (blue) and above in chaos (red); the black line is χ_1 = 1."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables map, layers, sides, relaxation, phases, line."""
        c = self.config
        layers = pd.concat([self._layers(lab, s, c.sigma_b, c.starts, c.depth) for s in c.sigma_w])
        keep = ("theory", "chi_1", "fixed_correlation")
        return {
            "map": pd.concat([_map(s, c.sigma_b) for s in c.sigma_w]),
            "layers": over_networks(layers, ("sigma_w", "start", "layer"), "c", keep),
            "sides": self._sides(lab),
            "relaxation": pd.DataFrame([_relaxation(s, c.sigma_b) for s in c.sigma_w]),
            "phases": pd.DataFrame(
                [
                    phase_at(s, b)
                    for b, s in itertools.product(
                        np.linspace(*c.grid_sigma_b), np.linspace(*c.grid_sigma_w)
                    )
                ]
            ),
            "line": pd.DataFrame(
                [
                    {"sigma_b": b, "critical_sigma_w": critical_sigma_w(b)}
                    for b in np.linspace(c.grid_sigma_b[0], c.grid_sigma_b[1], 81)
                ]
            ),
        }

    def _layers(
        self, lab: Lab, sigma_w: float, sigma_b: float, starts: tuple[float, ...], depth: int
    ) -> pd.DataFrame:
        """One row a network, start and layer."""
        q = fixed_point(sigma_w, sigma_b)
        expected = [np.array(starts)]
        for _ in range(depth - 1):
            expected.append(correlation_map(expected[-1], sigma_w, sigma_b, q=q))
        growth = chi_1(sigma_w, sigma_b, q=q)
        target = fixed_correlation(sigma_w, sigma_b, q=q)
        rows: list[dict[str, Any]] = []
        for number in range(lab.seeds):
            generator = lab.generator("network", sigma_w, sigma_b, number)
            network = random_network(
                generator,
                width=self.config.width,
                depth=depth - 1,
                sigma_w=sigma_w,
                sigma_b=sigma_b,
            )
            plane = plane_of(generator, self.config.width)
            c = torch.tensor(starts, dtype=torch.float64)[:, None]
            others = c * plane[0] + (1 - c.square()).sqrt() * plane[1]
            signals = math.sqrt(self.config.width * q) * torch.cat([plane[:1], others])
            h = onwards(network, signals)
            found = torch.cosine_similarity(h[:, :1], h[:, 1:], dim=-1).tolist()
            rows += [
                {
                    "sigma_w": sigma_w,
                    "sigma_b": sigma_b,
                    "start": start,
                    "layer": layer + 1,
                    "network": number,
                    "c": found[layer][place],
                    "theory": float(expected[layer][place]),
                    "chi_1": growth,
                    "fixed_correlation": target,
                }
                for layer in range(depth)
                for place, start in enumerate(starts)
            ]
        return pd.DataFrame(rows)

    def _sides(self, lab: Lab) -> pd.DataFrame:
        """Change of the correlation from first to last layer, a row a σ_b and side."""
        c, parts = self.config, []
        for sigma_b, side in itertools.product(c.side_sigma_b, _SIDES):
            sigma_w = side * critical_sigma_w(sigma_b)
            found = self._layers(lab, sigma_w, sigma_b, (_SIDE_START,), c.side_depth)
            last = found[found["layer"] == c.side_depth]
            side_name = "order" if side < 1 else "chaos"
            parts.append(last.assign(phase=side_name, change=last["c"] - _SIDE_START))
        keep = ("phase", "chi_1", "fixed_correlation")
        return over_networks(pd.concat(parts), ("sigma_b", "sigma_w"), "change", keep)

    def judge(self, tables: Tables) -> list[Finding]:
        """By the largest deviations and by the direction of changes."""
        layers, sides = tables["layers"], tables["sides"]
        followed = layers[layers["layer"] > 1]
        last = layers[layers["layer"] == layers["layer"].max()]
        ordered, chaotic = last[last["chi_1"] < 1], last[last["chi_1"] > 1]
        change = ordered.assign(
            **{name: ordered[name] - ordered["start"] for name in ("mean", "low", "high")}
        )
        sign = np.where(sides["phase"] == "order", 1.0, -1.0)
        ends = np.stack([sign * sides["low"], sign * sides["high"]])
        right_way = sides.assign(
            mean=sign * sides["mean"],
            low=ends.min(0),
            high=ends.max(0),
            does=np.where(sides["phase"] == "order", "rises", "falls"),
        )
        slow = tables["relaxation"]
        return [
            within(
                "recursion",
                followed["mean"] - followed["theory"],
                0.05,
                "Correlations",
                is_relative=False,
            ),
            all_above(
                "order",
                change,
                "from {start:g} it rises by {mean:.3f} ({low:.3f} to {high:.3f})",
            ),
            within(
                "chaos",
                chaotic["mean"] - chaotic["fixed_correlation"],
                0.05,
                "Last correlations",
                is_relative=False,
            ),
            all_above(
                "line",
                right_way,
                "at σ_b = {sigma_b:g}, σ_w = {sigma_w:.2f} it {does} by {mean:.3f} "
                "({low:.3f} to {high:.3f})",
            ),
            Finding(
                "slow",
                by_rule(bool((slow["correlation_layers"] > slow["length_layers"]).all())),
                "By theory "
                + "; ".join(
                    f"at σ_w = {row.sigma_w:g} correlations take {row.correlation_layers} layers, "
                    f"lengths {row.length_layers}"
                    for row in slow.itertuples()
                )
                + ".",
                effect=float((slow["correlation_layers"] - slow["length_layers"]).min()),
                unit="layers",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Map, layers, phase diagram."""
        picture = new_picture(8.0, 3.4)
        map_ax, layer_ax, phase_ax = picture.subplots(1, 3)
        layers, curves = tables["layers"], tables["map"]
        draw_map_and_layers(map_ax, layer_ax, curves, layers, "c_before")
        map_ax.set(xlabel="correlation c in one layer", ylabel="correlation c in the next")
        layer_ax.set(xlabel="layer", ylabel="correlation c")
        draw_phases(picture, phase_ax, tables["phases"], tables["line"])
        sigma_b = curves["sigma_b"].iloc[0]
        for sigma_w, (colour, marker) in looks_of_scales(curves).items():
            phase_ax.plot(
                sigma_w, sigma_b, marker, color=colour, markersize=7, markeredgecolor="white"
            )
        add_scale_legend(picture, curves)
        return picture


def _map(sigma_w: float, sigma_b: float) -> pd.DataFrame:
    c = np.linspace(0, 1, 41)
    after = correlation_map(c, sigma_w, sigma_b)
    return pd.DataFrame({"sigma_w": sigma_w, "sigma_b": sigma_b, "c_before": c, "theory": after})


def _relaxation(sigma_w: float, sigma_b: float) -> dict[str, float]:
    """Layers until a length from 4 q*, and a correlation from 0.5, have arrived."""
    target = fixed_point(sigma_w, sigma_b)
    limit = fixed_correlation(sigma_w, sigma_b, q=target)
    q, c, lengths, correlations = 4 * target, 0.5, 0, 0
    while abs(q / target - 1) > _ARRIVED:
        q, lengths = float(length_map(q, sigma_w, sigma_b)), lengths + 1
    while abs(c - limit) > _ARRIVED:
        c = float(correlation_map(c, sigma_w, sigma_b, q=target))
        correlations += 1
    return {"sigma_w": sigma_w, "correlation_layers": correlations, "length_layers": lengths}
