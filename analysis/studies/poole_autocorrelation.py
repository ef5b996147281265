"""A circle seen through wide random networks: its autocorrelation and its principal components.

Poole et al. (2016), fig. 3 A and B. The autocorrelation c^l(Δθ) is the correlation map applied
l − 1 times to cos Δθ; the principal components say in how many directions the curve has spread.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.every_case import all_above, within
from analysis.studies.lab import Lab
from analysis.studies.papers import POOLE
from analysis.studies.theory_lines import draw_theory
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    angles,
    onwards,
    over_networks,
    plane_of,
    random_network,
)
from pipeline.dynamics.geometry import great_circle
from pipeline.dynamics.meanfield import chi_1, correlation_map, fixed_point
from tasks.base import Bounds
from tasks.base import Config as BaseConfig


class Autocorrelation(Study):
    """Autocorrelations against theory, and the number of directions by layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        width: units a layer.
        angles: points on the circle, even.
        layers: that are looked at, the circle itself being layer 1.
        sigma_w, sigma_b: of the networks.
        """

        width: Count = 1000
        angles: Annotated[int, Bounds(ge=4)]
        layers: tuple[Count, ...]
        sigma_w: tuple[Scale, ...]
        sigma_b: Bias

    paper = POOLE
    item = "Fig. 3 A, B"
    title = "A circle seen through the layers"
    claims = (
        Claim(
            "autocorrelation",
            "The autocorrelation of the curve follows the correlation map.",
            "Mean over networks of the autocorrelation minus theory, at every σ_w, layer and Δθ: "
            "at most 0.05 in size.",
        ),
        Claim(
            "spreads",
            "In chaos the curve spreads into ever more directions.",
            "95 % interval over networks of log(D_last/D_first), D the participation ratio of the "
            "principal components' variances, σ_w with χ_1 > 1: above 0 for every σ_w.",
        ),
        Claim(
            "stays",
            "In order it does not unfold like that.",
            "95 % interval over networks of log(D/2) of the last layer, the least among σ_w with "
            "χ_1 > 1, minus log D at σ_w with χ_1 < 1: above 0 for every such σ_w.",
        ),
    )
    caption = (
        "One network of each kind: the circle's image on its first two principal components, "
        "each panel scaled to its own size; colour is the angle, D the participation ratio, the "
        "number of directions the curve fills (mean over networks). Right: correlation of two "
        "points by the angle between them, means over networks with 95 % intervals, and theory."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables autocorrelation, directions, spread, difference, projections."""
        c = self.config
        lags, dimensions, projections = [], [], []
        for sigma_w in c.sigma_w:
            theory = _theory(sigma_w, c.sigma_b, c.angles, c.layers)
            growth = chi_1(sigma_w, c.sigma_b)
            for number in range(lab.seeds):
                curves = self._curves(sigma_w, lab.generator("network", sigma_w, number))
                for layer, h in curves.items():
                    which = {"sigma_w": sigma_w, "layer": layer, "network": number}
                    variances, projected = _components(h)
                    ratio = float(variances.sum() ** 2 / variances.square().sum())
                    found = {"participation_ratio": ratio, "chi_1": growth}
                    dimensions.append(which | found)
                    lags.append(
                        pd.DataFrame(
                            which
                            | {"delta_theta": theory.index, "c": _autocorrelation(h)}
                            | {"theory": theory[layer].to_numpy()}
                        )
                    )
                    if number == 0:
                        projections.append(pd.DataFrame(which | projected))
        table = pd.DataFrame(dimensions)
        return {
            "autocorrelation": over_networks(
                pd.concat(lags), ("sigma_w", "layer", "delta_theta"), "c", ("theory",)
            ),
            "directions": over_networks(
                table, ("sigma_w", "layer"), "participation_ratio", ("chi_1",)
            ),
            **_compared(table),
            "projections": pd.concat(projections),
        }

    def _curves(self, sigma_w: float, generator: torch.Generator) -> dict[int, torch.Tensor]:
        """h^l(θ), (angles, width), of the layers that are looked at."""
        c = self.config
        q = fixed_point(sigma_w, c.sigma_b)
        network = random_network(
            generator, width=c.width, depth=max(c.layers), sigma_w=sigma_w, sigma_b=c.sigma_b
        )
        circle = great_circle(plane_of(generator, c.width), math.sqrt(c.width * q))
        h = onwards(network, circle(angles(c.angles)))
        return {layer: h[layer - 1] for layer in c.layers}

    def judge(self, tables: Tables) -> list[Finding]:
        """By deviations from theory, and by participation ratios."""
        lags = tables["autocorrelation"]
        return [
            within(
                "autocorrelation",
                lags["mean"] - lags["theory"],
                0.05,
                "Autocorrelations",
                is_relative=False,
            ),
            all_above(
                "spreads",
                tables["spread"],
                "at σ_w = {sigma_w:g} log D grows by {mean:.2f} ({low:.2f} to {high:.2f}) nats",
                unit="nats",
            ),
            all_above(
                "stays",
                tables["difference"],
                "at σ_w = {sigma_w:g} log D is {mean:.2f} ({low:.2f} to {high:.2f}) nats below "
                "log(D/2) of chaos",
                unit="nats",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A row a σ_w: projections by layer, then autocorrelations."""
        directions = tables["directions"].set_index(["sigma_w", "layer"])["mean"]
        projections, lags = tables["projections"], tables["autocorrelation"]
        values, layers = (sorted(projections[name].unique()) for name in ("sigma_w", "layer"))
        picture = new_picture(8.0, 5.0)
        axes = picture.subplots(
            len(values),
            len(layers) + 1,
            squeeze=False,
            gridspec_kw={"width_ratios": [1.0] * len(layers) + [1.5]},
        )
        looks = dict(zip(layers, OKABE_ITO, strict=False))
        for row, sigma_w in zip(axes, values, strict=True):
            for ax, layer in zip(row, layers, strict=False):
                here = projections["sigma_w"].eq(sigma_w) & projections["layer"].eq(layer)
                _draw_projection(ax, projections[here])
                ax.set_title(f"layer {layer}, D = {directions[sigma_w, layer]:.3g}", fontsize=9.5)
            row[0].set_ylabel(rf"$\sigma_w$ = {sigma_w:g}")
            for layer, colour in looks.items():
                line = lags[lags["sigma_w"].eq(sigma_w) & lags["layer"].eq(layer)]
                draw_theory(row[-1], line, "delta_theta", colour)
                row[-1].fill_between(
                    line["delta_theta"], line["low"], line["high"], color=colour, alpha=0.25
                )
            row[-1].set(ylim=(-1.05, 1.05), xticks=[0, math.pi / 2, math.pi], ylabel="correlation")
            row[-1].set_xticklabels(["0", "π/2", "π"])
        axes[-1][-1].set_xlabel("Δθ [rad]")
        handles: list[Any] = [
            Line2D([], [], color=colour, linewidth=5, alpha=0.4, label=f"layer {layer}")
            for layer, colour in looks.items()
        ]
        handles.append(Line2D([], [], color=INK, linewidth=1.3, label="theory"))
        picture.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        return picture


def _draw_projection(ax: Axes, curve: pd.DataFrame) -> None:
    closed = pd.concat([curve, curve.iloc[:1]])
    ax.plot(closed["first"], closed["second"], color="#d1d5db", linewidth=0.7, zorder=1)
    ax.scatter(curve["first"], curve["second"], c=curve["theta"], cmap="twilight_shifted", s=5)
    size = 1.08 * float(curve[["first", "second"]].abs().to_numpy().max())
    ax.set(xticks=[], yticks=[], xlim=(-size, size), ylim=(-size, size), aspect="equal")
    ax.spines[["left", "bottom"]].set_visible(False)


def _theory(
    sigma_w: float, sigma_b: float, num_angles: int, layers: tuple[int, ...]
) -> pd.DataFrame:
    """c^l(Δθ) by Δθ in 0 … π (index) and layer (columns)."""
    theta = np.arange(num_angles // 2 + 1) * (2 * math.pi / num_angles)
    c, found = np.cos(theta), {}
    for layer in range(1, max(layers) + 1):
        if layer > 1:
            c = correlation_map(np.clip(c, -1, 1), sigma_w, sigma_b)
        found[layer] = c
    return pd.DataFrame(found, index=pd.Index(theta, name="delta_theta"))[list(layers)]


def _autocorrelation(h: torch.Tensor) -> np.ndarray:
    """Mean correlation of points Δθ apart, of 0 … half the angles."""
    unit = torch.nn.functional.normalize(h, dim=1)
    means = [(unit * unit.roll(lag, 0)).sum(1).mean() for lag in range(len(h) // 2 + 1)]
    return torch.stack(means).numpy()


def _components(h: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Variances along the principal components, and the curve on the first two."""
    centred = h - h.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T / len(h))
    first, second = (vectors[:, i] * (values[i] * len(h)).clamp(min=0).sqrt() for i in (-1, -2))
    shown = {"theta": angles(len(h)).numpy(), "first": first.numpy(), "second": second.numpy()}
    return values.clamp(min=0), shown


def _compared(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables spread, by layer in chaos, and difference, of order to chaos in the last layer."""
    first, last = table["layer"].min(), table["layer"].max()
    logs = table.assign(log=np.log(table["participation_ratio"])).pivot(
        index=["sigma_w", "chi_1", "network"], columns="layer", values="log"
    )
    spread = (logs[last] - logs[first]).rename("spread").reset_index()
    ends = logs[last].rename("log").reset_index()
    ordered, chaotic = ends[ends["chi_1"] < 1], ends[ends["chi_1"] > 1]
    least = chaotic.groupby("network")["log"].min() - math.log(2)
    ordered = ordered.assign(difference=ordered["network"].map(least) - ordered["log"])
    return {
        "spread": over_networks(spread[spread["chi_1"] > 1], ("sigma_w",), "spread"),
        "difference": over_networks(ordered, ("sigma_w",), "difference"),
    }
