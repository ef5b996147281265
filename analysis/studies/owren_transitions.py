"""Four Runge–Kutta methods on three planar sets, and the adjoint tableau of each.

Benning et al. (2019), section 5, and Owren (2020), "Transitions in Runge–Kutta methods": networks
whose layers are steps of ẋ = tanh(K_l x + b_l) move the points of two classes apart, so that a line
tells them. Discretising the problem and then optimising is optimising and then discretising if the
adjoint equation is integrated by ã_ij = w_j a_ji / w_i.

Shapes: N members, B points, D state.
"""

import math
from collections.abc import Iterable, Iterator
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
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.runge_kutta import RungeKutta
from tasks.networks.tableau import TABLEAUS
from tasks.planar import draw_points

METHODS = {"euler": "Euler", "heun": "Heun", "kutta3": "Kutta 3", "kutta4": "Kutta 4"}
_MARGIN = 5.0
_EXACT, _WRONG = 1e-10, 1e-3
_ADJOINT, _PLAIN = "adjoint tableau", "weights alone"
_COLUMNS = {"task.shape": "set", "network.method": "method"}


class OwrenTransitions(Study):
    """What each method makes of each set, and gradients by two ways back."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        points: new points of each set by which accuracy is judged.
        drawn: of them, how many the picture shows.
        batch: points over which the loss is taken whose gradients are compared.
        """

        points: Annotated[int, Bounds(ge=100)] = 5000
        drawn: Annotated[int, Bounds(ge=10)] = 160
        batch: Annotated[int, Bounds(ge=1)] = 100

    config: Config
    paper = OWREN
    item = "Transitions in Runge–Kutta methods"
    title = "Four Runge–Kutta methods pull the classes apart, and share one law of the way back"
    claims = (
        Claim(
            "separate",
            "Networks of all four methods separate the classes of spiral, donut and squares.",
            "Accuracy on new points minus that of the best possible rule: 95 % interval over "
            f"networks above −{_MARGIN:g} percentage points for every method and set.",
        ),
        Claim(
            "adjoint",
            "The gradient of the discretised problem comes from integrating the adjoint equation "
            "by the tableau w_j a_ji / w_i, and from no other.",
            "On the trained networks the gradient by the adjoint tableau differs from that of "
            f"automatic differentiation by at most {_EXACT:g} of its norm in every network; an "
            f"adjoint integrated by the weights alone by more than {_WRONG:g} in every network of "
            "the methods of order 2 to 4.",
        ),
    )
    caption = (
        "States after the last layer of new points of both classes (blue circles, orange "
        "triangles), and the line by which the network tells them; one network of each method "
        "(columns) and set (rows). Numbers: accuracy, mean over networks, in per cent."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables accuracy and gradients (a row a network), states and lines (of the picture)."""
        trained = lab.sweep("nets")
        accuracy = accuracies(trained, self.config.points, lab.generator("points"), _COLUMNS)
        gradients, states, lines = [], [], []
        for group in trained.groups("end"):
            case = {name: group.params[path].iloc[0] for path, name in _COLUMNS.items()}
            gradients += [{**case, **row} for row in self._gradients(group)]
            points, line = self._last_states(group, lab)
            states.append(points.assign(**case))
            lines.append({**case, **line})
        return {
            "accuracy": accuracy,
            "gradients": pd.DataFrame(gradients),
            "states": pd.concat(states, ignore_index=True),
            "lines": pd.DataFrame(lines),
        }

    def _gradients(self, group: Group) -> Iterator[dict[str, Any]]:
        """How far the gradients of both ways back are from that of automatic differentiation."""
        network, task = group.network, group.task
        assert isinstance(network, RungeKutta)
        batch = next(task.batches("train"))
        x, targets = batch.inputs[: self.config.batch], batch.targets[: self.config.batch]

        def losses(outputs: Tensor) -> Tensor:
            return task.losses(outputs, targets).mean(1)

        names = ("weight", "bias")
        parameters = [network.get_parameter(name).requires_grad_() for name in names]
        exact = torch.autograd.grad(losses(network(x)[0]).sum(), parameters)
        network.requires_grad_(False)
        count = len(TABLEAUS[group.params["network.method"].iloc[0]].weights)
        ways = {_ADJOINT: None, _PLAIN: [[0.0] * count] * count}
        size_N = _norm(exact)
        for way, tableau in ways.items():
            found = network.adjoint_gradient(losses, x, tableau)
            off_N = _norm([found[n] - e for n, e in zip(names, exact, strict=True)]) / size_N
            for number, off in zip(group.numbers, off_N.tolist(), strict=True):
                yield {"network": number, "adjoint equation by": way, "relative error": off}

    def _last_states(self, group: Group, lab: Lab) -> tuple[pd.DataFrame, dict[str, float]]:
        """Of the first network of the group, with its line w · x + c = 0."""
        network, config = group.network, group.task.config  # type: ignore[attr-defined]
        assert isinstance(network, RungeKutta)
        x, classes = draw_points(config, lab.generator("drawn", config.shape))
        x, classes = x[: self.config.drawn], classes[: self.config.drawn]
        *_, last_NBD = network.orbit(x).states()
        table = pd.DataFrame(last_NBD[0].numpy(), columns=["state 1", "state 2"])
        w, c = network.get_parameter("weight_out")[0, 0], network.get_parameter("bias_out")[0, 0]
        line = {"w 1": float(w[0]), "w 2": float(w[1]), "c": float(c)}
        return table.assign(**{"class": classes.numpy()}), line

    def judge(self, tables: Tables) -> list[Finding]:
        """The worst case of each."""
        cases = by_case(tables["accuracy"], ["set", "method"], ABOVE)
        separate = least_case(
            "separate",
            cases,
            "Accuracy is furthest below the best possible, by",
            above=-_MARGIN,
            unit="percentage points",
        )
        errors = tables["gradients"]
        is_adjoint = errors["adjoint equation by"] == _ADJOINT
        exact = errors.loc[is_adjoint, "relative error"]
        is_staged = errors["method"] != "euler"
        other = errors.loc[~is_adjoint & is_staged, "relative error"]
        worst = math.nan if exact.isna().any() else float(exact.max())
        adjoint = Finding(
            "adjoint",
            by_rule(worst <= _EXACT and float(other.min()) > _WRONG),
            f"By the adjoint tableau the relative error is at most {worst:.2g} in {len(exact)} "
            f"networks; by the weights alone it is {other.min():.2g} to {other.max():.2g}.",
            worst,
            float(exact.min()),
            float(exact.max()),
        )
        return [separate, adjoint]

    def draw(self, tables: Tables) -> Picture:
        """A panel for every set and method."""
        states, lines = tables["states"], tables["lines"]
        accuracy = tables["accuracy"].groupby(["set", "method"])["accuracy [%]"].mean()
        sets = list(dict.fromkeys(lines["set"]))
        picture = new_picture(8, 1.85 * len(sets) + 0.35)
        panels = picture.subplots(len(sets), len(METHODS), squeeze=False)
        for row, shape in zip(panels, sets, strict=True):
            for ax, (method, name) in zip(row, METHODS.items(), strict=True):
                _panel(ax, _case(states, shape, method), _case(lines, shape, method).iloc[0])
                share = f"{accuracy[shape, method]:.1f} %"
                ax.set_title(f"{name}: {share}" if ax in panels[0] else share, fontsize=10)
            row[0].set_ylabel(f"{shape}\nstate 2")
        for ax in panels[-1]:
            ax.set_xlabel("state 1")
        return picture


def _case(table: pd.DataFrame, shape: str, method: str) -> pd.DataFrame:
    return table[(table["set"] == shape) & (table["method"] == method)]


def _panel(ax: Axes, points: pd.DataFrame, line: pd.Series) -> None:
    for label, marker in ((0, "o"), (1, "^")):
        mine = points[points["class"] == label]
        ax.scatter(mine["state 1"], mine["state 2"], s=7, marker=marker, color=OKABE_ITO[label])
    ax.margins(0.08)
    x, y = ax.get_xlim(), ax.get_ylim()
    w1, w2, c = line["w 1"], line["w 2"], line["c"]
    # The point of the line nearest to the middle, and its direction.
    middle = (sum(x) / 2, sum(y) / 2)
    square = w1**2 + w2**2
    off = (w1 * middle[0] + w2 * middle[1] + c) / square
    foot = (middle[0] - off * w1, middle[1] - off * w2)
    ax.axline(foot, (foot[0] - w2, foot[1] + w1), color=INK, linewidth=1)
    ax.set(xlim=x, ylim=y)
    ax.tick_params(labelsize=8)
    ax.locator_params(nbins=4)


def _norm(parts: Iterable[Tensor]) -> Tensor:
    """Of all parts together, (N,)."""
    whole: Tensor = torch.cat([part.flatten(1) for part in parts], 1)
    norm: Tensor = torch.linalg.vector_norm(whole, dim=1)
    return norm
