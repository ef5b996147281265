"""Four networks of 20 layers and two channels: plain, residual, and two that learn their steps.

Benning et al. (2019), section 5: Net x ← tanh(K x + b), ResNet x ← x + h tanh(K x + b), h = 1/L,
ODENet, which learns every h, and ODENet + simplex, whose steps stay positive with sum 1.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables
from analysis.studies.lab import Lab, Trained
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import OWREN
from analysis.studies.planar_accuracy import ABOVE, ACCURACY, BEST, accuracies, by_case
from analysis.studies.storm_statistics import difference, least_case
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.ode_net import ODENet

NET, RESNET, FREE, SIMPLEX = "Net", "ResNet", "ODENet", "ODENet + simplex"
KINDS = (NET, RESNET, FREE, SIMPLEX)
LOSS, EFFECTIVE = "final training loss", "effective number of layers"
_COLUMNS = {"task.shape": "set"}


class OwrenNets(Study):
    """Accuracy and loss of the four networks, and the steps that two of them learn."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: new points of each set by which accuracy is judged.
        shown: the set whose steps the picture shows.
        """

        points: Annotated[int, Bounds(ge=100)] = 5000
        shown: str = "spiral"

    config: Config
    paper = OWREN
    item = "Four networks (Benning et al. 2019, Sec. 5)"
    title = "Networks that learn their time steps, beside a ResNet and a plain network"
    claims = (
        Claim(
            "residual",
            "With two channels and many layers residual networks learn what a plain one does not.",
            "Accuracy on new points of ResNet minus that of Net: 95 % interval over networks above "
            "0 on every set.",
            "the papers compare the networks by eye; the criterion is ours",
        ),
        Claim(
            "learned_steps",
            "Learning the time steps is worth while: ODENet reaches a lower loss than ResNet.",
            "Difference of the logarithms of the final training losses, ResNet minus ODENet: 95 % "
            "interval above 0 on every set.",
            "the criterion is ours",
        ),
        Claim(
            "few_steps",
            "Steps on the simplex become uneven, so that fewer layers do the work.",
            "Effective number of layers 1/Σ (h_l/T)², T = Σ h_l: 95 % interval below three "
            "quarters of the layers on every set.",
            "the criterion is ours; the paper's projection can set steps to 0, a softmax cannot",
        ),
    )
    caption = (
        "Left: accuracy on new points (means over networks with 95 % intervals); black lines are "
        "the best that any rule could reach. Right: learned steps times the number of layers, a "
        "line a network; all start at 1."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables networks (accuracy and loss) and steps (a row a network and layer)."""
        networks, steps = [], []
        for part in ("net", "resnet", "ode_net"):
            trained = lab.sweep(part)
            # A generator of its own each time, so that all see the same points.
            points = lab.generator("points")
            table = accuracies(trained, self.config.points, points, _COLUMNS)
            kinds = _kinds(trained, part)
            table.insert(1, "kind", table["network"].map(kinds))
            frame = trained.frame
            losses = frame.scalars.query("quantity == 'train_loss'")
            last = losses[losses["epoch"] == frame.final_epoch].set_index("trial")["value"]
            networks.append(table.assign(**{LOSS: table["network"].map(last)}))
            if part == "ode_net":
                steps.append(_steps(trained, kinds))
        table = pd.concat(steps, ignore_index=True)
        whole = pd.concat(networks, ignore_index=True)
        return {"networks": whole, "steps": table, "effective": _effective(table)}

    def judge(self, tables: Tables) -> list[Finding]:
        """The least case of each, over the sets."""
        table, effective = tables["networks"], tables["effective"]
        simplex = effective[effective["kind"] == SIMPLEX]
        counts = by_case(simplex, ["set"], EFFECTIVE)
        layers = int(tables["steps"]["layer"].max())
        spare = {
            str(shape): mean(layers - part[EFFECTIVE])
            for shape, part in simplex.groupby("set", sort=False)
        }
        told = ", ".join(f"{found.value:.1f} on {shape}" for shape, found in counts.items())
        logs = table.assign(log_loss=np.log(table[LOSS]))
        return [
            least_case(
                "residual",
                _compared(table, ACCURACY, RESNET, NET),
                f"{_told(table, ABOVE)}. ResNet's accuracy minus Net's is",
                unit="percentage points",
            ),
            least_case(
                "learned_steps",
                _compared(logs, "log_loss", RESNET, FREE),
                "The logarithm of ResNet's loss minus ODENet's is",
                unit="nats",
            ),
            least_case(
                "few_steps",
                spare,
                f"Effective layers of {layers} are {told}; the number that is missing is",
                above=layers / 4,
                unit="layers",
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Accuracies by set and kind, and the steps of one set."""
        picture = new_picture(8.4, 4.1)
        left, *right = picture.subplots(1, 3, width_ratios=[1.7, 1, 1])
        _draw_accuracy(left, tables["networks"])
        steps = tables["steps"]
        mine = steps[steps["set"] == self.config.shown]
        layers = int(steps["layer"].max())
        for ax, kind in zip(right, (FREE, SIMPLEX), strict=True):
            colour = OKABE_ITO[KINDS.index(kind)]
            for _, one in mine[mine["kind"] == kind].groupby("network"):
                ax.plot(one["layer"], layers * one["step"], color=colour, linewidth=1.1, alpha=0.7)
            ax.axhline(1, color=INK, linewidth=0.8, linestyle=":")
            ax.set(title=kind, xlabel="layer")
            ax.title.set_fontsize(10)
        right[0].set_ylabel(f"step × layers, {self.config.shown}")
        handles = left.get_legend_handles_labels()
        picture.legend(*handles, loc="outside upper center", ncols=4)
        return picture


def _kinds(trained: Trained, part: str) -> dict[int, str]:
    """What each network of a part is called."""
    if part != "ode_net":
        return dict.fromkeys(trained.params.index, NET if part == "net" else RESNET)
    names = {"free": FREE, "simplex": SIMPLEX}
    return {n: names[trained.params.loc[n, "network.steps"]] for n in trained.params.index.tolist()}


def _steps(trained: Trained, kinds: dict[int, str]) -> pd.DataFrame:
    """h of every layer of the networks that learn them."""
    rows = []
    for group in trained.groups("end"):
        assert isinstance(group.network, ODENet)
        shape = group.params["task.shape"].iloc[0]
        for number, sizes in zip(group.numbers, group.network.step_sizes().tolist(), strict=True):
            case = {"set": shape, "kind": kinds[number], "network": number}
            rows += [{**case, "layer": k, "step": h} for k, h in enumerate(sizes, start=1)]
    return pd.DataFrame(rows)


def _effective(steps: pd.DataFrame) -> pd.DataFrame:
    """(Σ |h|)²/Σ h² of every network: all layers where steps are equal, 1 where one is left."""
    sums = steps.assign(size=steps["step"].abs(), square=steps["step"] ** 2)
    found = sums.groupby(["set", "kind", "network"], sort=False)[["size", "square"]].sum()
    return (found["size"] ** 2 / found["square"]).rename(EFFECTIVE).reset_index()


def _compared(table: pd.DataFrame, column: str, first: str, second: str) -> dict[str, Mean]:
    """The first kind minus the second, by set."""
    return {
        str(shape): difference(
            part.loc[part["kind"] == first, column], part.loc[part["kind"] == second, column]
        )
        for shape, part in table.groupby("set", sort=False)
    }


def _told(table: pd.DataFrame, column: str) -> str:
    """Mean over the sets of every kind, in words."""
    means = table.groupby("kind", sort=False)[column].mean()
    parts = ", ".join(f"{kind} {-value:.1f}" for kind, value in means.items())
    return f"Percentage points below the best possible, mean over sets: {parts}"


def _draw_accuracy(ax: Axes, table: pd.DataFrame) -> None:
    sets = list(dict.fromkeys(table["set"]))
    for place, kind in enumerate(KINDS):
        mine = table[table["kind"] == kind]
        found = [mean(mine.loc[mine["set"] == shape, ACCURACY]) for shape in sets]
        ax.errorbar(
            np.arange(len(sets)) + (place - 1.5) * 0.16,
            [m.value for m in found],
            yerr=[[m.value - m.low for m in found], [m.high - m.value for m in found]],
            linestyle="", marker="os^D"[place], color=OKABE_ITO[place], markersize=6,
            elinewidth=1.3, label=kind,
        )  # fmt: skip
    for place, shape in enumerate(sets):
        best = table.loc[table["set"] == shape, BEST].iloc[0]
        ax.plot([place - 0.38, place + 0.38], [best, best], color=INK, linewidth=1.2)
    ax.set_xticks(range(len(sets)), sets)
    ax.set_ylabel("accuracy on new points (%)")
