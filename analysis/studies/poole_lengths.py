"""Lengths of signals in wide random networks: the map V(q), its fixed point q*, and the way there.

Poole et al. (2016), fig. 1. Networks draw new weights in every layer, as the theory has it.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture

from analysis.figures.base import new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.every_case import all_above, within
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.theory_lines import add_scale_legend, draw_map_and_layers
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    onwards,
    over_networks,
    random_network,
)
from pipeline.dynamics.meanfield import fixed_point, length_map
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_CONVERGED = 0.01  # the deviation from q* that the paper waits for
_MOST_LAYERS = 6


class Lengths(Study):
    """Simulated lengths against V, and the layers it takes to reach q*."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer.
        depth: layers that lengths are followed through, the start being the first.
        sigma_w, sigma_b: of the networks that are simulated.
        starts: mean squares q of the signals at the first layer.
        inputs: signals of each length.
        vanishing: σ_w of networks without bias, whose signals start short.
        grid_sigma_w, grid_sigma_b: where q* is computed.
        """

        width: Count = 1000
        depth: Annotated[int, Bounds(ge=2)] = 10
        sigma_w: tuple[Scale, ...]
        sigma_b: Scale
        starts: tuple[Scale, ...]
        inputs: Count
        vanishing: tuple[Scale, ...]
        grid_sigma_w: tuple[Scale, ...]
        grid_sigma_b: tuple[Bias, ...]

    paper = POOLE
    item = "Fig. 1"
    title = "Lengths of signals converge to one length"
    claims = (
        Claim(
            "recursion",
            "The theory of infinitely wide networks foretells lengths layer by layer.",
            "Mean over networks of q/theory, at every σ_w, start and layer: within 5 % of 1.",
        ),
        Claim(
            "fixed_point",
            "Whatever the length at the start, it converges to one fixed point q*.",
            "Mean over networks of q/q* in the last layer, at every σ_w and start: within 5 % "
            "of 1.",
        ),
        Claim(
            "few_layers",
            "A few layers are enough.",
            "From every start, |q/q* − 1| ≤ 1 % after at most 6 applications of V, at every σ_w.",
        ),
        Claim(
            "vanishing",
            "Without biases short signals die out if σ_w < 1 and grow to a length of their own if "
            "σ_w > 1.",
            "95 % interval over networks of log(q_last/q_first), its sign turned for σ_w < 1: "
            "above 0 for every σ_w.",
        ),
    )
    caption = (
        "Left: the length map V and its diagonal; points are networks, one layer after the start. "
        "Middle: lengths layer by layer from several starts. Points are means over networks with "
        "95 % intervals. Right: q* by σ_w for several σ_b; without biases it leaves 0 at σ_w = 1."
    )
    short: ClassVar[float] = 1e-4  # q at which V is linear

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables map, layers, applications, vanishing, fixed_points."""
        c = self.config
        layers = pd.concat([self._layers(lab, s, c.sigma_b, c.starts) for s in c.sigma_w])
        short = pd.concat([self._layers(lab, s, 0.0, (self.short,)) for s in c.vanishing])
        first = short[short["layer"] == 1].set_index(["sigma_w", "network"])["q"]
        last = short[short["layer"] == c.depth].set_index(["sigma_w", "network"])["q"]
        growth = np.log(last / first).rename("growth").reset_index()
        return {
            "map": pd.concat([_map(s, c.sigma_b, max(c.starts)) for s in c.sigma_w]),
            "layers": over_networks(
                layers, ("sigma_w", "start", "layer"), "q", ("theory", "fixed_point")
            ),
            "applications": pd.DataFrame(
                [
                    {"sigma_w": s, "start": q, "applications": _applications(q, s, c.sigma_b)}
                    for s, q in itertools.product(c.sigma_w, c.starts)
                ]
            ),
            "vanishing": over_networks(growth, ("sigma_w",), "growth"),
            "fixed_points": pd.DataFrame(
                [
                    {"sigma_b": b, "sigma_w": s, "fixed_point": fixed_point(s, b)}
                    for b, s in itertools.product(c.grid_sigma_b, c.grid_sigma_w)
                ]
            ),
        }

    def _layers(
        self, lab: Lab, sigma_w: float, sigma_b: float, starts: tuple[float, ...]
    ) -> pd.DataFrame:
        """One row a network, start and layer: the mean of q over inputs, and its theory."""
        c = self.config
        expected = [np.array(starts)]
        for _ in range(c.depth - 1):
            expected.append(np.asarray(length_map(expected[-1], sigma_w, sigma_b)))
        target = fixed_point(sigma_w, sigma_b)
        rows: list[dict[str, Any]] = []
        for number in range(lab.seeds):
            generator = lab.generator("network", sigma_w, sigma_b, number)
            network = random_network(
                generator, width=c.width, depth=c.depth - 1, sigma_w=sigma_w, sigma_b=sigma_b
            )
            h = onwards(network, _signals(generator, starts, c.inputs, c.width))
            q = h.square().mean(-1).reshape(c.depth, len(starts), c.inputs).mean(-1).tolist()
            rows += [
                {
                    "sigma_w": sigma_w,
                    "start": start,
                    "layer": layer + 1,
                    "network": number,
                    "q": q[layer][place],
                    "theory": float(expected[layer][place]),
                    "fixed_point": target,
                }
                for layer in range(c.depth)
                for place, start in enumerate(starts)
            ]
        return pd.DataFrame(rows)

    def judge(self, tables: Tables) -> list[Finding]:
        """By the largest deviations, the slowest start, and the sign of growth."""
        layers = tables["layers"]
        followed = layers[layers["layer"] > 1]
        last = layers[layers["layer"] == layers["layer"].max()]
        slowest = tables["applications"].groupby("sigma_w")["applications"].max()
        vanishing = tables["vanishing"]
        sign = np.where(vanishing["sigma_w"] < 1, -1.0, 1.0)
        ends = np.stack([sign * vanishing["low"], sign * vanishing["high"]])
        signed = vanishing.assign(
            mean=sign * vanishing["mean"],
            low=ends.min(0),
            high=ends.max(0),
            does=np.where(vanishing["sigma_w"] < 1, "falls", "grows"),
        )
        return [
            within("recursion", followed["mean"] / followed["theory"] - 1, 0.05, "Lengths"),
            within("fixed_point", last["mean"] / last["fixed_point"] - 1, 0.05, "Last lengths"),
            Finding(
                "few_layers",
                by_rule(bool((slowest <= _MOST_LAYERS).all())),
                "From the slowest start it takes "
                + ", ".join(f"{n} layers at σ_w = {s:g}" for s, n in slowest.items())
                + f" to come within 1 % of q*; {_MOST_LAYERS} were allowed.",
                effect=float(slowest.max()),
                low=float(slowest.min()),
                high=float(slowest.max()),
                unit="layers",
            ),
            all_above(
                "vanishing",
                signed,
                "at σ_w = {sigma_w:g} log q {does} by {mean:.2f} ({low:.2f} to {high:.2f}) nats",
                unit="nats",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Map, layers, fixed points."""
        picture = new_picture(8.0, 3.4)
        map_ax, layer_ax, fixed_ax = picture.subplots(1, 3)
        layers, curves = tables["layers"], tables["map"]
        draw_map_and_layers(map_ax, layer_ax, curves, layers, "q_before")
        map_ax.set(xlabel="length q in one layer", ylabel="length q in the next")
        layer_ax.set(xlabel="layer", ylabel="length q", yscale="log")
        fixed = tables["fixed_points"]
        biases = sorted(fixed["sigma_b"].unique())
        for sigma_b, line in fixed.groupby("sigma_b"):
            shade = 0.25 + 0.6 * biases.index(sigma_b) / max(1, len(biases) - 1)
            name = rf"$\sigma_b$ = {sigma_b:g}"
            grey = str(0.95 - shade)
            fixed_ax.plot(line["sigma_w"], line["fixed_point"], color=grey, label=name)
        fixed_ax.set(xlabel=r"$\sigma_w$", ylabel="fixed point q*")
        fixed_ax.legend(handlelength=1.2)
        add_scale_legend(picture, curves)
        return picture


def _signals(
    generator: torch.Generator, starts: tuple[float, ...], num_inputs: int, width: int
) -> torch.Tensor:
    """Random directions with these mean squares exactly, (starts · inputs, width)."""
    shape = (len(starts), num_inputs, width)
    direction = torch.randn(shape, dtype=torch.float64, generator=generator)
    size = direction.square().mean(-1, keepdim=True).sqrt()
    scale = torch.tensor(starts, dtype=torch.float64).sqrt()[:, None, None]
    return (scale * direction / size).flatten(0, 1)


def _map(sigma_w: float, sigma_b: float, longest: float) -> pd.DataFrame:
    q = np.linspace(0, longest, 61)
    return pd.DataFrame(
        {"sigma_w": sigma_w, "q_before": q, "theory": length_map(q, sigma_w, sigma_b)}
    )


def _applications(q: float, sigma_w: float, sigma_b: float) -> int:
    """How often V must be applied before |q/q* − 1| ≤ 1 %, q* > 0 being stable."""
    target = fixed_point(sigma_w, sigma_b)
    count = 0
    while abs(q / target - 1) > _CONVERGED:
        q = float(length_map(q, sigma_w, sigma_b))
        count += 1
    return count
