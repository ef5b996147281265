"""What the density of training data does to ridges, and how singular values part along the layers.

Storm et al., arXiv 2306.12548 v1, text to Fig. 2: the largest exponent saturates on the ridge at a
value that is larger for denser data, and the other singular value decays, so that the ratio grows.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture, widen_scale
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab, Trained
from analysis.studies.over_seeds import mean
from analysis.studies.papers import STORM
from analysis.studies.storm_circle import circle, heights, learned_boundary, single
from analysis.studies.storm_statistics import slopes
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

PARTS = ("sparse", "middle", "dense")


class StormDensity(Study):
    """Ridge height by data density, and both singular values by layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: of each network's decision boundary.
        """

        points: Annotated[int, Bounds(ge=8)] = 64

    config: Config
    paper = STORM
    item = "v1, text to Fig. 2"
    title = "Denser data make higher ridges; singular values part along the layers"
    claims = (
        Claim(
            "density",
            "The value at which L λ saturates on the boundary is larger for denser data.",
            "Slope of L λ on the boundary against log n, after equally many updates: 95 % interval "
            "over networks above 0.",
        ),
        Claim(
            "second",
            "On the boundary the second singular value decays exponentially with the layer.",
            "Mean over networks of the slope of log σ₂ against the layer: 95 % interval below 0.",
        ),
        Claim(
            "ratio",
            "The ratio of the singular values grows with the layer.",
            "Mean over networks of the slope of log σ₁/σ₂ against the layer: 95 % interval above "
            "0.",
        ),
        Claim(
            "saturation",
            "The first singular value saturates while the ratio grows.",
            "Gain of log σ₁ over the first half of the layers minus that over the second half: "
            "95 % interval over networks above 0.",
        ),
    )
    caption = (
        "Left: L λ on the decision boundary by the number n of points, after equally many updates; "
        "dots are networks, bars means with 95 % intervals. Right: logarithms of both singular "
        "values of J_l on the boundary, by layer l, for the densest data; means over networks with "
        "95 % intervals."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables heights (networks by density) and layers (networks by layer, densest data)."""
        parts = []
        for part in PARTS:
            trained = lab.sweep(part)
            table = heights(trained, self.config.points)
            points = trained.params["task.points"].iloc[0]
            parts.append(table.assign(data_points=int(points)))
        return {
            "heights": pd.concat(parts, ignore_index=True),
            "layers": _layers(lab.sweep(PARTS[-1]), self.config.points),
        }

    def judge(self, tables: Tables) -> list[Finding]:
        """By one slope over all networks, and by one slope a network."""
        table = tables["heights"].dropna(subset="boundary_nats")
        density = slopes({"log_n": np.log(table["data_points"])}, table["boundary_nats"])["log_n"]
        each = pd.DataFrame(
            [_along(part) for _, part in tables["layers"].groupby("network", sort=False)]
        )
        second, ratio = mean(each["second"]), mean(each["ratio"])
        bend = mean(each["bend"])
        ends = table.groupby("data_points")["boundary_nats"].mean()
        accuracy = table.groupby("data_points")["test_accuracy"].mean()
        return [
            Finding(
                "density",
                by_interval(density.low, density.high),
                f"L λ on the boundary changes by {density} nats per log n: from {ends.iloc[0]:.2f} "
                f"at n = {ends.index[0]} (test accuracy {accuracy.iloc[0]:.1%}) to "
                f"{ends.iloc[-1]:.2f} at n = {ends.index[-1]} ({accuracy.iloc[-1]:.1%}).",
                *density,
                "nats",
            ),
            Finding(
                "second",
                by_interval(-second.high, -second.low),
                f"log σ₂ changes by {second} nats per layer.",
                *second,
                "nats/layer",
            ),
            Finding(
                "ratio",
                by_interval(ratio.low, ratio.high),
                f"log σ₁/σ₂ grows by {ratio} nats per layer.",
                *ratio,
                "nats/layer",
            ),
            Finding(
                "saturation",
                by_interval(bend.low, bend.high),
                f"Over the first half of the layers log σ₁ gains {bend} nats more than over the "
                "second.",
                *bend,
                "nats",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Two panels: density, layers."""
        table, layers = tables["heights"], tables["layers"]
        picture = new_picture(8.0, 3.7)
        left, right = picture.subplots(1, 2)
        for points, part in table.groupby("data_points"):
            values = part["boundary_nats"].dropna()
            found = mean(values)
            left.plot(np.full(len(values), points), values, "o", color=OKABE_ITO[5], markersize=4)
            bar = [[found.value - found.low], [found.high - found.value]]
            left.errorbar(
                [points], [found.value], yerr=bar, color=OKABE_ITO[0], marker="D", capsize=4
            )
        widen_scale(left, "x", table["data_points"], 2)
        left.set_xticks(sorted(table["data_points"].unique()))
        left.minorticks_off()
        left.set(xlabel="points n", ylabel="L λ on the boundary (nats)")
        for colour, marker, which in (
            (OKABE_ITO[0], "o", "first"),
            (OKABE_ITO[1], "s", "second"),
        ):
            by_layer = layers.groupby("layer")[f"log_{which}_nats"]
            means = [mean(values) for _, values in by_layer]
            centre, low, high = np.array(means).T
            right.errorbar(
                list(by_layer.groups),
                centre,
                yerr=[centre - low, high - centre],
                color=colour,
                marker=marker,
                markersize=4.5,
                label=f"log σ{'₁' if which == 'first' else '₂'}",
            )
        right.set(xlabel="layer l", ylabel="logarithm of singular value (nats)")
        right.legend()
        return picture


def _layers(trained: Trained, points: int) -> pd.DataFrame:
    """log σ₁ and log σ₂ of J_l, mean over the boundary: network, layer, log_first_nats, …"""
    rows: list[dict[str, Any]] = []
    for group in trained.groups():
        starts = circle(points, group.task.config.half_width)  # type: ignore[attr-defined]
        for member, number in enumerate(group.numbers):
            where = learned_boundary(group.network, member, starts)
            if not len(where):
                continue
            orbit = single(group.network, member).orbit(where)
            # Of two columns nothing is lost by forming J: σ₂ is far above rounding of σ₁.
            J = torch.eye(2, dtype=torch.float64).expand(1, len(where), 2, 2)
            for layer, step in enumerate(orbit.maps(), start=1):
                J = step(J)
                found = torch.linalg.svdvals(J[0]).log().mean(0)
                rows.append(
                    {
                        "network": number,
                        "layer": layer,
                        "log_first_nats": float(found[0]),
                        "log_second_nats": float(found[1]),
                    }
                )
    return pd.DataFrame(rows)


def _along(part: pd.DataFrame) -> dict[str, float]:
    """Of one network: slopes of log σ₂ and log σ₁/σ₂ against the layer, and how log σ₁ bends."""
    layer, first = part["layer"].to_numpy(float), part["log_first_nats"].to_numpy()
    second = part["log_second_nats"].to_numpy()
    half = len(layer) // 2
    gain_early, gain_late = first[half - 1], first[-1] - first[half - 1]
    return {
        "second": float(np.polyfit(layer, second, 1)[0]),
        "ratio": float(np.polyfit(layer, first - second, 1)[0]),
        "bend": float(gain_early - gain_late),
    }
