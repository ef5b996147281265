"""Where trained networks stretch their inputs: fields of the largest finite-time exponent.

Storm et al. (2024), Fig. 2: fields L λ(x) of tanh networks of N units and L hidden layers that tell
the inside of a circle from its outside, with the directions of largest stretching.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Circle

from analysis.figures.base import INK, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval, by_rule
from analysis.studies.lab import Lab, Trained
from analysis.studies.over_seeds import mean
from analysis.studies.papers import STORM
from analysis.studies.storm_circle import RADIUS, by_shape, heights
from analysis.studies.storm_statistics import difference, least_case
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_RANGE = 4.0  # nats, of the paper's colours
_LEAST_ACCURACY = 0.98
_LEAST_ALIGNMENT = 0.95


class StormFields(Study):
    """Fields of exponents on the plane."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: of each network's decision boundary.
        arrows: every how many grid points a direction is drawn.
        """

        points: Annotated[int, Bounds(ge=8)] = 64
        arrows: Annotated[int, Bounds(ge=1)] = 6

    config: Config
    paper = STORM
    item = "Fig. 2"
    title = "Ridges of large exponents lie on decision boundaries"
    claims = (
        Claim(
            "accuracy",
            "The networks learn to tell inside from outside.",
            "Mean test accuracy of every width and depth is at least 98 %.",
        ),
        Claim(
            "ridge",
            "Exponents are largest where the classes meet.",
            "L λ on the boundary minus that at the centre: 95 % interval over networks above 0 for "
            "every width and depth; the least counts.",
        ),
        Claim(
            "depth",
            "Ridges stand out more, the deeper the networks are.",
            "Boundary minus centre of the deepest minus that of the shallowest networks: 95 % "
            "interval above 0 at every width; the least counts.",
        ),
        Claim(
            "width",
            "Ridges of shallow networks fade as these become wider.",
            "Boundary minus centre of the narrowest minus that of the widest networks of the least "
            "depth: 95 % interval above 0.",
        ),
        Claim(
            "background",
            "Away from the boundary, narrow deep networks contract.",
            "L λ at the centre of the narrowest and deepest networks: 95 % interval below 0.",
        ),
        Claim(
            "direction",
            "On the ridge, inputs are stretched across the boundary.",
            "Mean |v₁ · n| on the boundary of the deepest networks, n the circle's normal: 95 % "
            "interval above 0.95 at every width; the least counts.",
        ),
    )
    caption = (
        "L λ over the plane of inputs, in nats, of one trained network of each width N and depth "
        "L. Dashed: the circle between the classes. Lines: directions v₁ of largest stretching."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables heights (all networks), fields and directions (one network of each shape)."""
        trained = lab.sweep("circle")
        table = heights(trained, self.config.points)
        first = table.groupby(["width", "depth"], as_index=False).first()
        return {
            "heights": table,
            "fields": _fields(trained, first),
            "directions": _directions(trained, first, self.config.arrows),
        }

    def judge(self, tables: Tables) -> list[Finding]:
        """By the least favourable shape of each claim."""
        table = tables["heights"].copy()
        table["contrast"] = table["boundary_nats"] - table["centre_nats"]
        shapes = by_shape(table)
        widths, depths = sorted({N for N, _ in shapes}), sorted({L for _, L in shapes})
        thin, wide, shallow, deep = widths[0], widths[-1], depths[0], depths[-1]

        accuracy = {key: float(part["test_accuracy"].mean()) for key, part in shapes.items()}
        worst = min(accuracy, key=lambda key: accuracy[key])
        fading = difference(shapes[thin, shallow]["contrast"], shapes[wide, shallow]["contrast"])
        centre = mean(shapes[thin, deep]["centre_nats"])
        return [
            Finding(
                "accuracy",
                by_rule(accuracy[worst] >= _LEAST_ACCURACY),
                f"The least accurate shape, N = {worst[0]} and L = {worst[1]}, classifies "
                f"{accuracy[worst]:.1%} of the test points.",
                accuracy[worst],
                accuracy[worst],
                max(accuracy.values()),
            ),
            least_case(
                "ridge",
                {f"N = {N}, L = {L}": mean(p["contrast"]) for (N, L), p in shapes.items()},
                "L λ on the boundary exceeds that at the centre by",
            ),
            least_case(
                "depth",
                {
                    f"N = {N}": difference(
                        shapes[N, deep]["contrast"], shapes[N, shallow]["contrast"]
                    )
                    for N in widths
                },
                f"From L = {shallow} to {deep} boundary minus centre grows by",
            ),
            Finding(
                "width",
                by_interval(fading.low, fading.high),
                f"At L = {shallow} boundary minus centre falls by {fading} nats from N = {thin} "
                f"to {wide}.",
                *fading,
                "nats",
            ),
            Finding(
                "background",
                by_interval(-centre.high, -centre.low),
                f"At N = {thin}, L = {deep}, L λ at the centre is {centre} nats.",
                *centre,
                "nats",
            ),
            least_case(
                "direction",
                {f"N = {N}": mean(shapes[N, deep]["alignment"]) for N in widths},
                f"At L = {deep} mean |v₁ · n| is",
                above=_LEAST_ALIGNMENT,
                unit="1",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """One panel a shape, depths from left to right, widths from top to bottom."""
        fields, directions = tables["fields"], tables["directions"]
        widths, depths = sorted(fields["width"].unique()), sorted(fields["depth"].unique())
        picture = new_picture(2.1 * len(depths) + 1.1, 2.1 * len(widths) + 0.3)
        axes = picture.subplots(len(widths), len(depths), sharex=True, sharey=True, squeeze=False)
        for (row, width), (column, depth) in (
            (r, c) for r in enumerate(widths) for c in enumerate(depths)
        ):
            ax = axes[row, column]
            ax.grid(False)
            mine = fields[(fields["width"] == width) & (fields["depth"] == depth)]
            field = mine.pivot(index="y", columns="x", values="exponent_nats")
            image = ax.pcolormesh(
                field.columns,
                field.index,
                field.to_numpy(),
                cmap="PuOr_r",
                vmin=-_RANGE,
                vmax=_RANGE,
                shading="nearest",
                rasterized=True,
            )
            ax.add_patch(Circle((0, 0), RADIUS, fill=False, color=INK, linewidth=0.9, ls="--"))
            lines = directions[(directions["width"] == width) & (directions["depth"] == depth)]
            ax.quiver(
                lines["x"],
                lines["y"],
                lines["v_x"],
                lines["v_y"],
                pivot="mid",
                headwidth=0,
                headlength=0,
                headaxislength=0,
                scale=14,
                width=0.006,
                color=INK,
                alpha=0.75,
            )
            ax.set(aspect="equal", title=f"N = {width}, L = {depth}")
            ax.set_xticks([-1, 0, 1])
            ax.set_yticks([-1, 0, 1])
        for ax in axes[-1]:
            ax.set_xlabel("x₁ (a)")
        for ax in axes[:, 0]:
            ax.set_ylabel("x₂ (a)")
        bar = picture.colorbar(image, ax=axes, shrink=0.7, aspect=25, extend="both")
        bar.set_label("L λ (nats)")
        bar.outline.set_visible(False)
        return picture


def _fields(trained: Trained, first: pd.DataFrame) -> pd.DataFrame:
    """L λ over the grid: width, depth, network, x, y, exponent_nats."""
    table = _on_grid(trained, first, "ftle_field.exponents")
    table["exponent_nats"] = table["depth"] * table["value"]
    return table[["width", "depth", "network", "x", "y", "exponent_nats"]]


def _directions(trained: Trained, first: pd.DataFrame, every: int) -> pd.DataFrame:
    """v₁ on every so many points: width, depth, network, x, y, v_x, v_y."""
    table = _on_grid(trained, first, "ftle_field.directions")
    start = every // 2
    kept = (table["row"] % every == start) & (table["column"] % every == start)
    wide = table[kept].pivot(
        index=["width", "depth", "network", "x", "y"], columns="component", values="value"
    )
    return wide.rename(columns={0: "v_x", 1: "v_y"}).rename_axis(columns=None).reset_index()


def _on_grid(trained: Trained, first: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """A quantity of `ftle_field` after the last epoch, with places and shapes."""
    last = trained.frame.epochs_of(quantity)[-1]
    table = trained.frame.spectra(quantity, trials=first["network"], epochs=[last])
    half_width = float(trained.frame.details(quantity)["half_width"][0])
    axis = np.linspace(-half_width, half_width, int(table["row"].max()) + 1)
    table = table.assign(x=axis[table["column"]], y=axis[table["row"]])
    return table.merge(first[["network", "width", "depth"]], left_on="trial", right_on="network")
