"""Exponents of Hamiltonian networks come in pairs if their integrator is symplectic.

Owren (2020): ż = A₁ᵀσ(A₁ p + b₁), ṗ = −A₂ᵀσ(A₂ z + b₂), or z̈ = −Aᵀσ(A z + b). The flow is
symplectic, and so are symplectic Euler and leapfrog: exponents of opposite sign, and a sum of 0.
Explicit Euler of the same field expands volumes, as det(I + h Df) = det(I + h² ∇²T ∇²V).

Shapes: N networks, B points, L blocks, D state, d = D/2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from torch import Tensor

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Group, Lab
from analysis.studies.papers import OWREN
from analysis.studies.planar_accuracy import ABOVE, accuracies, by_case
from analysis.studies.storm_statistics import least_case
from pipeline.diagnostics.structure import Trajectories, trajectories
from pipeline.dynamics.arithmetic import inverse, log_abs_det
from pipeline.dynamics.structure import symplectic_defect
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.flow import Flow
from tasks.planar import Planar, draw_points

PAIR, SUM = "largest sum of a pair [nats/layer]", "sum of all [nats/layer]"
_LARGEST_SUM = "largest size of the sum of all [nats/layer]"
_DEFECT = "largest symplectic defect of a layer"
_EXPLICIT = "explicit_euler"
_NAMES = {
    "symplectic_euler": "symplectic Euler",
    "leapfrog": "leapfrog",
    _EXPLICIT: "explicit Euler",
}
_FIELDS = {"pairwise": "pairwise", "second_order": "second order"}
_MARGIN, _EXACT = 5.0, 1e-10
_COLUMNS = {"network.field": "field", "network.integrator": "integrator"}


class OwrenHamiltonian(Study):
    """All exponents of trained Hamiltonian networks, by field and integrator."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: new points by which accuracy is judged.
        trajectories: of them, along how many exponents are measured.
        """

        points: Annotated[int, Bounds(ge=100)] = 5000
        trajectories: Annotated[int, Bounds(ge=2)] = 200

    config: Config
    paper = OWREN
    item = "Hamiltonian networks"
    title = "Hamiltonian networks: exponents pair under symplectic steps only"
    claims = (
        Claim(
            "pairs",
            "Symplectic Euler and leapfrog give exponents in pairs ±λ.",
            f"|λ_i + λ_(D+1−i)| is at most {_EXACT:g} nats per layer for every pair, point and "
            "trained network of both fields.",
        ),
        Claim(
            "sum",
            "Their sum is 0: volumes are kept.",
            "|Σ λ_i|, by the determinants of all layers, is at most 1e-12 nats per layer for every "
            "point and trained network of both fields.",
        ),
        Claim(
            "explicit",
            "Explicit Euler of the same fields is not symplectic: it expands volumes.",
            "Σ λ_i, mean over points: 95 % interval over networks above 0 for both fields.",
        ),
        Claim(
            "accuracy",
            "Networks that keep the structure separate the classes of the spiral.",
            "Accuracy on new points minus that of the best possible rule: 95 % interval over "
            f"networks above −{_MARGIN:g} percentage points for both fields and symplectic "
            "integrators.",
        ),
    )
    caption = (
        "All four exponents of trained networks, means over new points with each network as a dot "
        "and the mean over networks as a line. Under symplectic steps they mirror at 0."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables accuracy, structure (a row a network), exponents (a row a network and index)."""
        trained = lab.sweep("nets")
        structure, exponents = [], []
        for group in trained.groups("end"):
            case = {name: group.params[path].iloc[0] for path, name in _COLUMNS.items()}
            for row, values in self._of_group(group, lab):
                structure.append({**case, **row})
                for index, value in enumerate(values, start=1):
                    exponents.append(
                        {**case, "network": row["network"], "i": index, "exponent": value}
                    )
        generator = lab.generator("points")
        return {
            "accuracy": accuracies(trained, self.config.points, generator, _COLUMNS),
            "structure": pd.DataFrame(structure),
            "exponents": pd.DataFrame(exponents).rename(
                columns={"exponent": "exponent [nats/layer]"}
            ),
        }

    def _of_group(self, group: Group, lab: Lab) -> Iterator[tuple[dict[str, Any], list[float]]]:
        """What is judged of every network, and the means of its exponents."""
        network, task = group.network, group.task
        assert isinstance(network, Flow)
        assert isinstance(task, Planar)
        x, _ = draw_points(task.config, lab.generator("trajectories"))
        along = trajectories(network, x[: self.config.trajectories])
        values_NBD = exponents(along)
        sums_NB = log_abs_det(along.maps).mean(2)
        pairs_NB = (values_NBD + values_NBD.flip(-1)).abs().amax(-1)
        defect_N = symplectic_defect(along.maps).amax((1, 2))
        for n, number in enumerate(group.numbers):
            row = {
                "network": number,
                PAIR: float(pairs_NB[n].max()),
                SUM: float(sums_NB[n].mean()),
                _LARGEST_SUM: float(sums_NB[n].abs().max()),
                _DEFECT: float(defect_N[n]),
            }
            yield row, values_NBD[n].mean(0).tolist()

    def judge(self, tables: Tables) -> list[Finding]:
        """Identities by their worst case, the others by their least interval."""
        structure, accuracy = tables["structure"], tables["accuracy"]
        is_explicit = structure["integrator"] == _EXPLICIT
        kept = accuracy[accuracy["integrator"] != _EXPLICIT]
        return [
            _at_most("pairs", structure[~is_explicit], PAIR, _EXACT, "The largest sum of a pair"),
            _at_most("sum", structure[~is_explicit], _LARGEST_SUM, 1e-12, "The largest total"),
            least_case(
                "explicit",
                by_case(structure[is_explicit], ["field"], SUM),
                "With explicit Euler the exponents sum to",
                unit="nats/layer",
            ),
            least_case(
                "accuracy",
                by_case(kept, ["field", "integrator"], ABOVE),
                "Accuracy is furthest below the best possible, by",
                above=-_MARGIN,
                unit="percentage points",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A panel for each field, a colour for each integrator."""
        picture = new_picture(8, 3.7)
        panels = picture.subplots(1, len(_FIELDS), sharey=True)
        for ax, (field, name) in zip(panels, _FIELDS.items(), strict=True):
            mine = tables["exponents"]
            _panel(ax, mine[mine["field"] == field])
            ax.set(xlabel="index i of the exponent", title=f"{name} field")
        panels[0].set_ylabel("λᵢ (nats/layer)")
        handles = panels[0].get_legend_handles_labels()
        picture.legend(*handles, loc="outside upper center", ncols=3)
        return picture


def exponents(along: Trajectories) -> Tensor:
    """All (1/L) log σ_i of the product of the maps, (N, B, D), largest first.

    The upper half from the product and the lower half from that of the inverse maps: of singular
    values far below the largest, the product alone keeps no digits.
    """
    num_layers, D = along.maps.shape[2], along.maps.shape[-1]
    forth = back = torch.eye(D, dtype=along.maps.dtype)
    for J in along.maps.unbind(2):
        forth, back = J @ forth, back @ inverse(J)
    upper, lower = (torch.linalg.svdvals(J).log() / num_layers for J in (forth, back))
    half = D - D // 2
    return torch.cat([upper[..., :half], -lower[..., : D // 2].flip(-1)], -1)


def _at_most(claim: str, table: pd.DataFrame, column: str, largest: float, what: str) -> Finding:
    worst = float(table[column].max(skipna=False))
    return Finding(
        claim,
        by_rule(worst <= largest),
        f"{what} in {len(table)} networks is {worst:.2g} nats per layer; {largest:g} was allowed.",
        worst,
        float(table[column].min()),
        worst,
        "nats/layer",
    )


def _panel(ax: Axes, table: pd.DataFrame) -> None:
    styles = zip(OKABE_ITO, "o^s", ("-", "--", "-"), (-0.12, 0.0, 0.12), strict=False)
    value = "exponent [nats/layer]"
    for (integrator, name), (colour, marker, line, shift) in zip(
        _NAMES.items(), styles, strict=True
    ):
        mine = table[table["integrator"] == integrator]
        ax.plot(
            mine["i"] + shift, mine[value], linestyle="", marker=marker, color=colour,
            markersize=4, alpha=0.5,
        )  # fmt: skip
        means = mine.groupby("i")[value].mean()
        ax.plot(
            means.index + shift, means, line, color=colour, marker=marker, markersize=6,
            linewidth=1.5, label=name,
        )  # fmt: skip
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set_xticks(sorted(table["i"].unique()))
