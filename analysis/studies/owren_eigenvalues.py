"""Eigenvalues of a network's field beside its logarithmic norm, layer by layer.

Owren (2020): eigenvalues of Df at a layer tell of growth only if the field hardly changes along the
network; the one-sided Lipschitz constant, the logarithmic norm of Df, tells always and is never the
smaller one. Parameters that are regular over the layers should bring the two together.

Shapes: N networks, B points, L layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_rule
from analysis.studies.lab import Group, Lab
from analysis.studies.over_seeds import mean
from analysis.studies.owren_regularisation import PENALTY, published_penalty
from analysis.studies.papers import OWREN
from analysis.studies.storm_statistics import difference, least_case
from pipeline.diagnostics.structure import growth, trajectories
from pipeline.dynamics.structure import log_norm, spectral_abscissa
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.flow import Flow
from tasks.planar import Planar, draw_points

NORM, ABSCISSA = "logarithmic norm [nats/time]", "largest eigenvalue, real part [nats/time]"
RIGHT = "test accuracy [%]"
LEAST, FTLE = "least gap at any point [nats/time]", "largest FTLE, mean over points [nats/time]"
_STYLES = {
    NORM: (OKABE_ITO[1], "o", "logarithmic norm"),
    ABSCISSA: (OKABE_ITO[0], "^", "eigenvalue"),
}


class OwrenEigenvalues(Study):
    """Both rates over the layers of trained ResNets, with regular parameters and without."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: new points along whose trajectories the field is taken.
        """

        points: Annotated[int, Bounds(ge=2)] = 500

    config: Config
    paper = OWREN
    item = "Eigenvalues and one-sided Lipschitz constants"
    title = "Eigenvalues stay below logarithmic norms, with regular parameters too"
    claims = (
        Claim(
            "order",
            "The one-sided Lipschitz constant is never below the largest eigenvalue.",
            "Logarithmic norm minus spectral abscissa is at least −1e-12 at every layer, point and "
            "trained network.",
        ),
        Claim(
            "usable",
            "Regular parameters bring the two together, so that eigenvalues can be used.",
            "Gap between them, mean over layers and points, of λ = 0 minus that of λ = 1: 95 % "
            "interval over networks above 0.",
        ),
        Claim(
            "bound",
            "The mean logarithmic norm bounds the growth along the network.",
            "Mean over layers of the logarithmic norm minus largest FTLE, mean over points: 95 % "
            "interval over networks above 0 for every penalty.",
        ),
    )
    caption = (
        "Logarithmic norm of Df (orange circles) and the largest real part of its eigenvalues "
        "(blue triangles) at each layer, along trajectories of new points; means over networks "
        "with 95 % intervals. The dashed line is the largest finite-time exponent over time."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables layers (a row a network and layer) and networks."""
        layers, networks = [], []
        trained = lab.sweep("nets")
        for group in trained.groups("end"):
            for of_layers, of_network in self._of_group(group, lab):
                layers += of_layers
                networks.append(of_network)
        table = pd.DataFrame(networks)
        table[RIGHT] = 100 * table["network"].map(trained.frame.trials["test_score"]).astype(float)
        return {"layers": pd.DataFrame(layers), "networks": table}

    def _of_group(
        self, group: Group, lab: Lab
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        network, task = group.network, group.task
        assert isinstance(network, Flow)
        assert isinstance(task, Planar)
        x, _ = draw_points(task.config, lab.generator("trajectories"))
        along = trajectories(network, x[: self.config.points])
        norms_NBL, abscissas_NBL = log_norm(along.fields), spectral_abscissa(along.fields)
        ftle_NB, _ = growth(along)
        penalty = published_penalty(group.params)
        for n, number in enumerate(group.numbers):
            case = {PENALTY: float(penalty.iloc[n]), "network": number}
            rates = zip(
                norms_NBL[n].mean(0).tolist(), abscissas_NBL[n].mean(0).tolist(), strict=True
            )
            rows = [
                {**case, "layer": layer, NORM: norm, ABSCISSA: abscissa}
                for layer, (norm, abscissa) in enumerate(rates, start=1)
            ]
            gaps_BL = norms_NBL[n] - abscissas_NBL[n]
            whole = {
                **case,
                NORM: float(norms_NBL[n].mean()),
                ABSCISSA: float(abscissas_NBL[n].mean()),
                "gap [nats/time]": float(gaps_BL.mean()),
                LEAST: float(gaps_BL.min()),
                FTLE: float(ftle_NB[n].mean()),
            }
            yield rows, whole

    def judge(self, tables: Tables) -> list[Finding]:
        """The theorem by its worst case, the gap by the difference between penalties."""
        table = tables["networks"]
        least = float(table[LEAST].min(skipna=False))
        sizes: list[float] = sorted(table[PENALTY].unique().tolist())
        by_size = {size: table[table[PENALTY] == size] for size in sizes}
        none, most = by_size[sizes[0]], by_size[sizes[-1]]
        told = "; ".join(
            f"λ = {size:g}: {part[ABSCISSA].mean():.2f} and {part[NORM].mean():.2f}, gap "
            f"{part['gap [nats/time]'].mean():.2f}, test accuracy {part[RIGHT].mean():.0f} %"
            for size, part in by_size.items()
        )
        margins = {f"λ = {size:g}": mean(part[NORM] - part[FTLE]) for size, part in by_size.items()}
        return [
            Finding(
                "order",
                by_rule(least >= -1e-12),
                f"The least gap in {len(table)} networks is {least:.2g} nats per time.",
                least,
                least,
                float(table["gap [nats/time]"].max()),
                "nats/time",
            ),
            least_case(
                "usable",
                {
                    f"λ = {sizes[-1]:g}": difference(
                        none["gap [nats/time]"], most["gap [nats/time]"]
                    )
                },
                f"Eigenvalue and logarithmic norm are, {told}. The gap shrinks by",
                unit="nats/time",
            ),
            least_case(
                "bound",
                margins,
                "The logarithmic norm is above the growth by",
                unit="nats/time",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """A panel for each penalty."""
        layers, networks = tables["layers"], tables["networks"]
        sizes = sorted(layers[PENALTY].unique())
        picture = new_picture(8, 3.5)
        panels = picture.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for ax, size in zip(panels, sizes, strict=True):
            mine = layers[layers[PENALTY] == size]
            for column, (colour, marker, name) in _STYLES.items():
                found = [mean(part[column]) for _, part in mine.groupby("layer")]
                at = sorted(mine["layer"].unique())
                ax.plot(at, [m.value for m in found], color=colour, marker=marker, label=name)
                low, high = [m.low for m in found], [m.high for m in found]
                ax.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            growing = float(networks.loc[networks[PENALTY] == size, FTLE].mean())
            ax.axhline(growing, color=INK, linestyle="--", linewidth=1.2, label="largest FTLE")
            ax.set(title=f"penalty λ = {size:g}", xlabel="layer")
        panels[0].set_ylabel("rate (nats/time)")
        handles = panels[0].get_legend_handles_labels()
        picture.legend(*handles, loc="outside upper center", ncols=3)
        return picture
