"""Parameters that are penalised for changing from layer to layer become smooth in time.

Benning et al. (2019); Owren (2020): a ResNet's layers are steps of a differential equation whose
parameters are functions of time. R = λ h Σ_k ‖(θ_{k+1} − θ_k)/h‖² bounds how fast they change.

The published λ goes with half the sum over all m points of (logistic − c)², c = 0, 1; ours with the
mean of (tanh − t)² = 4 (logistic − c)², t = ±1. The trainer's weight is therefore 8 λ/m.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.lab import Lab, Trained
from analysis.studies.papers import OWREN
from analysis.studies.planar_accuracy import ACCURACY, accuracies
from analysis.studies.storm_statistics import difference, least_case
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

WEIGHTS, BIASES = "variation of K over layers", "variation of b over layers"
_ROLES = {0: WEIGHTS, 1: BIASES}
PENALTY = "penalty λ"
_MARGIN = 2.0


class OwrenRegularisation(Study):
    """Variation of the parameters and accuracy, by the size of the penalty."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: new points by which accuracy is judged.
        """

        points: Annotated[int, Bounds(ge=100)] = 5000

    config: Config
    paper = OWREN
    item = "Regularisation over the layers"
    title = "A penalty on change makes a ResNet's parameters smooth over its layers"
    claims = (
        Claim(
            "smooth",
            "Penalised parameters are smooth in time, and the network more autonomous.",
            "Total variation Σ ‖K_{k+1} − K_k‖ of λ = 1 against λ = 0: 95 % interval of the "
            "difference of logarithms over networks below −log 2.",
        ),
        Claim(
            "graded",
            "A smaller penalty smooths less.",
            "Variation of λ = 0.1 against that of λ = 1, difference of logarithms: 95 % interval "
            "above 0.",
        ),
        Claim(
            "accuracy",
            "Smooth networks still separate the spiral.",
            "Accuracy of λ = 1 minus that of λ = 0 on new points: 95 % interval above "
            f"−{_MARGIN:g} percentage points.",
        ),
    )
    caption = (
        "Left: the four entries of K over the layers of one network of each penalty, the one of "
        "median variation. Right: variation of K over all layers (a dot a network, a line their "
        "geometric mean), and their mean accuracy on new points."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables networks (variation and accuracy of each), and parameters of the picture's."""
        trained = lab.sweep("nets")
        points = lab.generator("points")
        networks = accuracies(trained, self.config.points, points, {})
        networks.insert(1, PENALTY, networks["network"].map(published_penalty(trained.params)))
        networks = networks.join(_variations(trained), on="network")
        return {"networks": networks, "parameters": _entries(trained, networks)}

    def judge(self, tables: Tables) -> list[Finding]:
        """Differences between independently trained networks, with Welch's intervals."""
        table = tables["networks"]
        sizes: list[float] = sorted(table[PENALTY].unique().tolist())
        by_size = {size: table[table[PENALTY] == size] for size in sizes}
        none, some, most = by_size.values()
        logs = [np.log(part[WEIGHTS]) for part in (none, some, most)]
        factor = np.exp(logs[0].mean() - logs[2].mean())
        right = [part[ACCURACY].mean() for part in (none, some, most)]
        return [
            least_case(
                "smooth",
                {f"λ = {sizes[-1]:g}": difference(logs[0], logs[2])},
                f"The variation of K falls {factor:.3g}-fold, its logarithm by",
                above=float(np.log(2)),
                unit="nats",
            ),
            least_case(
                "graded",
                {f"λ = {sizes[1]:g}": difference(logs[1], logs[2])},
                "Beside the largest penalty the logarithm of the variation is larger by",
                unit="nats",
            ),
            least_case(
                "accuracy",
                {f"λ = {sizes[-1]:g}": difference(most[ACCURACY], none[ACCURACY])},
                f"Accuracy is {right[0]:.1f}, {right[1]:.1f} and {right[2]:.1f} %, in order of λ; "
                "it changes by",
                above=-_MARGIN,
                unit="percentage points",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Entries over layers for each penalty, and variations."""
        parameters, networks = tables["parameters"], tables["networks"]
        sizes = sorted(networks[PENALTY].unique())
        picture = new_picture(8.4, 3.3)
        panels = picture.subplots(1, len(sizes) + 1, width_ratios=[1] * len(sizes) + [1.3])
        for ax, size in zip(panels[:-1], sizes, strict=True):
            mine = parameters[parameters[PENALTY] == size]
            for colour, (_, entry) in zip(OKABE_ITO, mine.groupby("entry"), strict=False):
                ax.plot(entry["layer"], entry["value"], color=colour, marker=".", linewidth=1.2)
            ax.set(title=f"λ = {size:g}", xlabel="layer")
            if ax is not panels[0]:
                ax.sharey(panels[0])
                ax.tick_params(labelleft=False)
        panels[0].set_ylabel("entries of K")
        last = panels[-1]
        for place, size in enumerate(sizes):
            mine = networks[networks[PENALTY] == size]
            dots = np.linspace(-0.12, 0.12, len(mine)) + place
            last.plot(dots, mine[WEIGHTS], "o", color=OKABE_ITO[0], markersize=4.5, alpha=0.7)
            middle = float(np.exp(np.log(mine[WEIGHTS]).mean()))
            last.plot([place - 0.25, place + 0.25], [middle] * 2, color=OKABE_ITO[1], linewidth=2)
            last.annotate(
                f"{mine[ACCURACY].mean():.1f} %", (place, mine[WEIGHTS].max()), ha="center",
                xytext=(0, 6), textcoords="offset points", fontsize=9,
            )  # fmt: skip
        last.set_yscale("log")
        last.margins(y=0.18)
        last.yaxis.set_minor_formatter(lambda value, _: "")
        last.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
        last.set(xlabel="penalty λ", ylabel="variation of K", xlim=(-0.5, len(sizes) - 0.5))
        return picture


def published_penalty(params: pd.DataFrame) -> pd.Series:
    """λ as the papers count it, for each network by its settings."""
    learned = (params["task.points"].astype(float) * params["task.train"].astype(float)).round()
    weight = params["trainer.regularise.smoothness.weight"].astype(float)
    return (weight * learned / 8).round(9)


def _variations(trained: Trained) -> pd.DataFrame:
    """Σ ‖θ_{k+1} − θ_k‖ of every network at the end, a column a role."""
    frame = trained.frame
    table = frame.spectra("structure.variation", epochs=[frame.final_epoch])
    wide = table.pivot(index="trial", columns="parameter", values="value").rename(columns=_ROLES)
    return wide.rename_axis(columns=None)


def _entries(trained: Trained, networks: pd.DataFrame) -> pd.DataFrame:
    """K over the layers, of the network of median variation of each penalty."""
    chosen = {
        part.sort_values(WEIGHTS)["network"].iloc[(len(part) - 1) // 2]: size
        for size, part in networks.groupby(PENALTY)
    }
    rows = []
    for group in trained.groups("end", only=list(chosen)):
        for member, number in enumerate(group.numbers):
            K_LDD = group.network.get_parameter("weight")[member]
            for layer, matrix in enumerate(K_LDD.tolist(), start=1):
                for i, row in enumerate(matrix, start=1):
                    for j, value in enumerate(row, start=1):
                        case = {PENALTY: chosen[number], "network": number, "layer": layer}
                        rows.append({**case, "entry": f"K_{i}{j}", "value": value})
    return pd.DataFrame(rows).sort_values([PENALTY, "entry", "layer"], ignore_index=True)
