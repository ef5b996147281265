"""Contractive networks with and without a limit on their step, at random and after training.

Owren (2020): solutions of ẋ = −Aᵀσ(A x + b), 0 ≤ σ′ ≤ 1, never part, as the logarithmic norm ν of
the field is at most 0 and ‖x₂(t) − x₁(t)‖ ≤ e^{νt} ‖x₂(0) − x₁(0)‖. An explicit Euler step with
h‖A‖² ≤ 1 keeps this rate, one with h‖A‖² ≤ 2 at least never expands. Growth along a trajectory is
its largest finite-time exponent over time, the bound the mean logarithmic norm along it.

Shapes: N networks, B points.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Lab, Trained
from analysis.studies.papers import OWREN
from analysis.studies.planar_accuracy import ACCURACY, accuracies, by_case
from analysis.studies.storm_statistics import least_case
from pipeline.diagnostics.structure import growth, trajectories
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.gradient_flow import LIMITS, GradientFlow, Limit

FTLE, BOUND = "largest FTLE [nats/time]", "bound [nats/time]"
_NAMES: dict[str, str] = {
    "rate": "h‖A‖² ≤ 1",
    "non_expansive": "h‖A‖² ≤ 2",
    "none": "no limit",
}
_SHAPES = ((2, 1), (3, 4), (4, 15), (8, 6))  # width, depth; so many as divide the draws
_ROUNDING = 1e-9
EXCESS = "largest FTLE minus bound [nats/time]"
_QUANTITIES = {
    "structure.ftle_max": FTLE,
    "structure.bound_max": BOUND,
    "structure.excess_max": EXCESS,
}
_COLUMNS = {"network.width": "width", "network.limit": "limit"}


class OwrenStability(Study):
    """The bound on random networks and on trained ones, by the limit that is enforced."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        draws: random networks under each limit, a multiple of four: as many of each shape.
        points: new points by which accuracy is judged.
        """

        draws: Annotated[int, Bounds(ge=4)] = 1000
        points: Annotated[int, Bounds(ge=100)] = 5000

    config: Config
    paper = OWREN
    item = "Stability of gradient flows"
    title = "Contractive networks contract within a limit on their step, and not without"
    claims = (
        Claim(
            "rate",
            "The network keeps the contraction bound of the flow, largest FTLE ≤ mean logarithmic "
            "norm, if h‖A‖² ≤ 1.",
            "0 exceptions in the random draws of A, b, h and x.",
            "the paper states the bound for the flow; the condition on the step is derived",
        ),
        Claim(
            "rate_of_two",
            "It keeps that bound if h‖A‖² ≤ 2.",
            "0 exceptions in the random draws.",
            "the condition under which nothing expands, taken for the bound's",
        ),
        Claim(
            "never_expands",
            "With h‖A‖² ≤ 2 nothing expands.",
            "No FTLE above 0 in any of the random draws.",
            "derived",
        ),
        Claim(
            "kept_in_training",
            "Networks trained within a limit keep what it promises.",
            "At every measured epoch of every network: FTLE ≤ bound with h‖A‖² ≤ 1, and no FTLE "
            "above 0 with h‖A‖² ≤ 2.",
        ),
        Claim(
            "broken_by_training",
            "Without a limit training breaks the bound, and makes the contractive network expand.",
            "Largest FTLE over validation points after training: 95 % interval over networks above "
            "0 for every width.",
        ),
    )
    caption = (
        "Left: growth of random networks against its bound; above the line it is broken. Right: "
        "largest FTLE over validation points while networks learn the spiral (full lines, means "
        "with 95 % intervals), and the bound (dashed), by the limit that is enforced; time is the "
        "sum of all h."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables random (a row a draw), training (a row a network and epoch), accuracy."""
        random = [row for limit in LIMITS for row in self._random(limit, lab)]
        trained = lab.sweep("nets")
        points = lab.generator("points")
        return {
            "random": pd.DataFrame(random),
            "training": _training(trained),
            "accuracy": accuracies(trained, self.config.points, points, _COLUMNS),
        }

    def _random(self, limit: Limit, lab: Lab) -> Iterator[dict[str, Any]]:
        """Networks of four shapes with steps from 0.01 to 10, each along one trajectory."""
        count = self.config.draws // len(_SHAPES)
        for width, depth in _SHAPES:
            configs = [
                GradientFlow.Config(
                    width=width,
                    depth=depth,
                    limit=limit,
                    lift="pad",
                    readout="none",
                    step=float(h),
                    init_scale=3.0,
                    bias_scale=1.0,
                )
                for h in torch.logspace(-2, 1, count, dtype=torch.float64)
            ]
            network = GradientFlow(
                configs,
                input_size=width,
                output_size=width,
                generators=[lab.generator("random", width, n) for n in range(count)],
                dtype=torch.float64,
            )
            x = torch.randn(
                1, width, dtype=torch.float64, generator=lab.generator("random x", width)
            )
            ftle_NB, bound_NB = growth(trajectories(network, 2 * x))
            for ftle, bound in zip(ftle_NB[:, 0].tolist(), bound_NB[:, 0].tolist(), strict=True):
                yield {"limit": limit, "width": width, "depth": depth, FTLE: ftle, BOUND: bound}

    def judge(self, tables: Tables) -> list[Finding]:
        """Exceptions are counted beyond rounding, 1e-9 of the numbers' size."""
        random, training = tables["random"], tables["training"]
        last = training[training["epoch"] == training["epoch"].max()]
        free = last[last["limit"] == "none"]
        right = by_case(tables["accuracy"], ["limit"], ACCURACY)
        told = ", ".join(f"{_NAMES[name]} {value.value:.1f} %" for name, value in right.items())
        broken = least_case(
            "broken_by_training",
            by_case(free.assign(width="width " + free["width"].astype(str)), ["width"], FTLE),
            f"Accuracy on new points is {told}. Without a limit the largest FTLE is",
            unit="nats/time",
        )
        within = training[training["limit"] != "none"]
        excess = within[EXCESS].where(within["limit"] == "rate", within[FTLE])
        of_one = random[random["limit"] == "rate"]
        of_two = random[random["limit"] == "non_expansive"]
        return [
            _no_exception("rate", of_one[FTLE] - of_one[BOUND], of_one, "random draws"),
            _no_exception("rate_of_two", of_two[FTLE] - of_two[BOUND], of_two, "random draws"),
            _no_exception("never_expands", of_two[FTLE], of_two, "random draws"),
            _no_exception("kept_in_training", excess, within, "readings"),
            broken,
        ]

    def draw(self, tables: Tables) -> Picture:
        """Random draws, and training."""
        picture = new_picture(8, 3.9)
        left, right = picture.subplots(1, 2)
        _draw_random(left, tables["random"])
        _draw_training(right, tables["training"])
        picture.legend(
            *left.get_legend_handles_labels(), loc="outside upper center", ncols=3, markerscale=2
        )
        return picture


def _training(trained: Trained) -> pd.DataFrame:
    """FTLE and bound of every network at every measured epoch."""
    scalars = trained.frame.scalars
    mine = scalars[scalars["quantity"].isin(list(_QUANTITIES))]
    table = mine.pivot(index=["trial", "epoch"], columns="quantity", values="value")
    table = table.rename(columns=_QUANTITIES).reset_index().rename(columns={"trial": "network"})
    settings = trained.params[list(_COLUMNS)].rename(columns=_COLUMNS)
    return table.join(settings, on="network").rename_axis(columns=None)


def _no_exception(claim: str, excess: pd.Series, table: pd.DataFrame, what: str) -> Finding:
    """Whether no excess over what is allowed is above 0, beyond rounding; NaN is an exception."""
    size = table[FTLE].abs() + table[BOUND].abs()
    is_within = excess <= _ROUNDING * size + 1e-12
    exceptions = int((~is_within).sum())
    return Finding(
        claim,
        by_rule(exceptions == 0),
        f"{exceptions} of {len(table)} {what} exceed it; FTLE minus what is allowed is "
        f"{excess.min():.2g} to {excess.max():.2g} nats per time.",
        float(excess.max(skipna=False)),
        float(excess.min()),
        float(excess.max()),
        "nats/time",
    )


def _draw_random(ax: Axes, random: pd.DataFrame) -> None:
    for colour, marker, (limit, name) in zip(OKABE_ITO, "o^s", _NAMES.items(), strict=False):
        mine = random[random["limit"] == limit]
        ax.scatter(
            mine[BOUND], mine[FTLE], s=7, marker=marker, color=colour, alpha=0.5, label=name,
            linewidth=0, zorder=3 if limit != "none" else 2,
        )  # fmt: skip
    lowest = float(random[BOUND].min())
    diagonal = np.append(-np.geomspace(-lowest, 1e-4, 100), 0)
    ax.plot(diagonal, diagonal, color=INK, linewidth=1, zorder=4)
    ax.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xscale("symlog", linthresh=0.01)
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set_xlim(1.3 * lowest, 2e-3)
    ax.set(xlabel="mean logarithmic norm (nats/time)", ylabel="largest FTLE (nats/time)")
    ax.set_title("random networks")


def _draw_training(ax: Axes, training: pd.DataFrame) -> None:
    for colour, marker, limit in zip(OKABE_ITO, "o^s", _NAMES, strict=False):
        mine = training[training["limit"] == limit]
        for column, line in ((FTLE, "-"), (BOUND, "--")):
            means = by_case(mine, ["epoch"], column)
            epochs = [float(epoch) for epoch in means]
            ax.plot(
                epochs, [m.value for m in means.values()], line, color=colour,
                marker=marker if line == "-" else None, markersize=4.5, linewidth=1.5,
            )  # fmt: skip
            if line == "-":
                low, high = ([m[k] for m in means.values()] for k in (1, 2))
                ax.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=-0.15)
    ax.set_xticks(sorted(training["epoch"].unique()))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.set(xlabel="epoch", ylabel="largest FTLE (nats/time)")
    ax.set_title("while learning the spiral")
