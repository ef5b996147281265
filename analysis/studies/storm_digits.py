"""Deep narrow networks on digits: a map of what they have learned, and what their exponents tell.

Storm et al. (2024), Fig. 4(a, b): networks of L = 16 hidden layers of N = 20 units; a bottleneck of
two units shows digits as clusters, with small exponents in their midst. Error, and the entropy of
the mean prediction of ten networks, grow with the exponent. Simple certainties (margin, largest
probability, gradient of the input) tell errors too, so that their scores stand beside.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.patheffects import withStroke
from scipy import stats
from torch import Tensor

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.statistics import separation
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval, by_rule
from analysis.studies.lab import Group, Lab
from analysis.studies.over_seeds import Mean, mean
from analysis.studies.papers import STORM
from analysis.studies.storm_inputs import certainty, examples
from pipeline.dynamics.ftle import max_ftle
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.bottleneck_mlp import BottleneckMLP

_ACCURACY = {"mnist": 0.97, "digits8x8": 0.9}
_RIGHT_CLUSTER = 0.8
_ERROR_GAIN = 0.05
_RIVALS = {"margin": "margin", "largest": "largest probability", "gradient": "input gradient"}


class StormDigits(Study):
    """The map of a bottleneck, and errors and entropies by exponent."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        inputs: validation and test images, at most; None for all.
        bin_width: of exponents in the picture, nats per layer.
        """

        inputs: Annotated[int | None, Bounds(ge=100)] = None
        bin_width: Annotated[float, Bounds(gt=0)] = 0.025

    config: Config
    paper = STORM
    item = "Fig. 4(a, b)"
    title = "Small exponents where digits are told with certainty"
    claims = (
        Claim(
            "accuracy",
            "Networks of 16 hidden layers of 20 units learn to read digits.",
            "Mean test accuracy is at least 97 % on MNIST, where the paper has 98.88 %, and at "
            "least 90 % on the 8×8 digits, on which it has nothing.",
        ),
        Claim(
            "clusters",
            "The two local fields of a bottleneck show a cluster for each digit.",
            "Share of images nearest to the mean of their own class in the plane of local fields: "
            "95 % interval over networks above 80 %.",
        ),
        Claim(
            "centres",
            "Exponents are small at the clusters' centres.",
            "Mean λ of the quarter of images farthest from their class's mean minus that of the "
            "nearest quarter: 95 % interval over networks above 0.",
        ),
        Claim(
            "errors",
            "Errors are rare where exponents are small.",
            "Error among the quarter of images with the largest λ minus that among the quarter "
            "with the smallest: 95 % interval over networks above 5 points.",
        ),
        Claim(
            "entropy",
            "The entropy of the networks' mean prediction grows with the exponent.",
            "Spearman correlation of λ and the entropy: 95 % interval over networks above 0.",
        ),
        Claim(
            "beyond_outputs",
            "Exponents tell errors better than the outputs' own certainties do.",
            "AUC of λ for errors minus the AUC of the best of margin, largest probability and "
            "input gradient: 95 % interval over networks above 0.",
            reference="not claimed by the paper: what a use of λ as a measure of doubt would need",
        ),
    )
    caption = (
        "Left: local fields of one network's bottleneck for held-out images, coloured by λ; digits "
        "stand above the medians of their classes. Right: share of wrong classes over all networks "
        "and entropy of their mean prediction by λ, nats per layer; points with 20 images or more."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables networks (one row each), map (the first), by_exponent (all pooled)."""
        trained = lab.sweep("digits")
        (group,) = trained.groups()
        x, y = examples(group.task, ("validation", "test"), self.config.inputs)
        images = _images(group, x, y)
        accuracy = _accuracy(group)
        networks = pd.DataFrame(
            [{"network": number, **_summary(part)} for number, part in images.groupby("network")]
        )
        networks["test_accuracy"] = networks["network"].map(accuracy)
        networks["data"] = trained.params["task.data"].iloc[0]
        shown = images[images["network"] == group.numbers[0]]
        return {
            "networks": networks,
            "map": shown[["b_1", "b_2", "digit", "exponent"]].reset_index(drop=True),
            "by_exponent": self._binned(images),
        }

    def _binned(self, images: pd.DataFrame) -> pd.DataFrame:
        """By λ: exponent (middle of the bin), images, error, entropy_nats."""
        width = self.config.bin_width
        middle = (np.floor(images["exponent"] / width) + 0.5) * width
        parts = images.groupby(middle.rename("exponent"))
        table = parts.agg(
            images=("is_wrong", "size"),
            error=("is_wrong", "mean"),
            entropy_nats=("entropy_nats", "mean"),
        )
        return table.reset_index()

    def judge(self, tables: Tables) -> list[Finding]:
        """By means over networks of what each says of all images."""
        table = tables["networks"]
        data = str(table["data"].iloc[0])
        accuracy = mean(table["test_accuracy"])
        right = mean(table["nearest_is_own"])
        centres = mean(table["exponent_far"] - table["exponent_near"])
        errors = mean(table["error_large"] - table["error_small"])
        entropy = mean(table["entropy_correlation"])
        scores = {name: table[f"auc_{name}"] for name in _RIVALS}
        best = max(scores, key=lambda name: float(scores[name].mean()))
        gains = (table["auc_exponent"] - scores[best]).dropna()
        beyond = mean(gains) if len(gains) else Mean(math.nan, math.nan, math.nan)
        aucs = ", ".join(f"{words} {scores[name].mean():.3f}" for name, words in _RIVALS.items())
        return [
            Finding(
                "accuracy",
                by_rule(accuracy.value >= _ACCURACY[data]),
                f"{len(table)} networks read {accuracy.value:.2%} of the test images of {data} "
                f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}).",
                *accuracy,
            ),
            Finding(
                "clusters",
                by_interval(right.low, right.high, above=_RIGHT_CLUSTER),
                f"{right.value:.1%} of the images lie nearest to the mean of their own class "
                f"({right.low:.1%} to {right.high:.1%}).",
                *right,
            ),
            Finding(
                "centres",
                by_interval(centres.low, centres.high),
                f"Far from the clusters' centres λ is larger by {centres} nats per layer.",
                *centres,
                "nats/layer",
            ),
            Finding(
                "errors",
                by_interval(errors.low, errors.high, above=_ERROR_GAIN),
                f"{table['error_large'].mean():.1%} of the images with the largest λ are misread "
                f"and {table['error_small'].mean():.1%} of those with the smallest; the difference "
                f"is {errors}.",
                *errors,
            ),
            Finding(
                "entropy",
                by_interval(entropy.low, entropy.high),
                f"The rank correlation of λ and entropy is {entropy}.",
                *entropy,
            ),
            Finding(
                "beyond_outputs",
                by_interval(beyond.low, beyond.high),
                f"The AUC of λ for errors is {table['auc_exponent'].mean():.3f}, those of the "
                f"outputs: {aucs}; λ minus {_RIVALS[best]} is {beyond}.",
                *beyond,
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """The map, and beside it error above entropy."""
        picture = new_picture(8.0, 4.2)
        axes = picture.subplot_mosaic("me;mh", width_ratios=(1.35, 1))
        error, entropy = axes["e"], axes["h"]
        error.sharex(entropy)
        error.tick_params(labelbottom=False)
        _draw_map(axes["m"], tables["map"])
        kept = tables["by_exponent"][tables["by_exponent"]["images"] >= 20]
        error.plot(kept["exponent"], 100 * kept["error"], "o-", color=OKABE_ITO[1], markersize=4)
        error.set_ylabel("misread (%)")
        entropy.plot(kept["exponent"], kept["entropy_nats"], "s-", color=OKABE_ITO[0], markersize=4)
        entropy.set(xlabel="λ (nats per layer)", ylabel="entropy (nats)")
        return picture


def _draw_map(ax: Axes, table: pd.DataFrame) -> None:
    """Images at their local fields, coloured by λ between its 2 % and 98 % quantiles."""
    low, high = table["exponent"].quantile([0.02, 0.98])
    few = table.iloc[:4000]
    points = ax.scatter(
        few["b_1"], few["b_2"], c=few["exponent"], s=7, cmap="viridis", vmin=low, vmax=high, lw=0
    )
    for digit, part in table.groupby("digit"):
        label = ax.annotate(
            str(digit),
            (part["b_1"].median(), part["b_2"].median()),
            xytext=(0, 11),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            color=INK,
        )
        label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    ax.margins(0.08)
    ax.set(xlabel="local field b₁", ylabel="local field b₂")
    bar = ax.figure.colorbar(points, ax=ax, location="top", shrink=0.7, aspect=30, extend="both")
    bar.set_label("λ (nats per layer)")
    bar.outline.set_visible(False)


def _images(group: Group, x: Tensor, y: Tensor) -> pd.DataFrame:
    """One row a network and image: what it says of it."""
    network = group.network
    assert isinstance(network, BottleneckMLP)
    depth = network.orbit(x[:1]).num_steps
    exponents_NB = max_ftle(network, x, depth)
    sure = certainty(network.own_outputs, x)
    with torch.no_grad():
        probabilities_NBO = network.own_outputs(x).softmax(-1)
    together_BO = probabilities_NBO.mean(0)
    entropy_B = torch.special.entr(together_BO).sum(-1)
    is_wrong_NB = probabilities_NBO.argmax(-1) != y
    fields_NBK = network.local_fields(x)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "network": number,
                    "digit": y.numpy(),
                    "exponent": exponents_NB[n].numpy(),
                    "is_wrong": is_wrong_NB[n].numpy(),
                    "entropy_nats": entropy_B.numpy(),
                    "margin": sure.margin[n].numpy(),
                    "largest": sure.largest[n].numpy(),
                    "gradient": sure.gradient[n].numpy(),
                    "b_1": fields_NBK[n, :, 0].numpy(),
                    "b_2": fields_NBK[n, :, 1].numpy(),
                }
            )
            for n, number in enumerate(group.numbers)
        ],
        ignore_index=True,
    )


def _accuracy(group: Group) -> dict[int, float]:
    """Of the hidden layers' own outputs on the test split, by network."""
    assert isinstance(group.network, BottleneckMLP)
    x, y = examples(group.task, ("test",))
    with torch.no_grad():
        is_right_NB = group.network.own_outputs(x).argmax(-1) == y
    return dict(zip(group.numbers, is_right_NB.double().mean(1).tolist(), strict=True))


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    """Of one network, over all images."""
    exponent, is_wrong = part["exponent"].to_numpy(), part["is_wrong"].to_numpy(bool)
    low, high = np.quantile(exponent, [0.25, 0.75])
    plane = part[["b_1", "b_2"]].to_numpy()
    digits = part["digit"].to_numpy()
    means = np.stack([plane[digits == digit].mean(0) for digit in np.unique(digits)])
    own = means[np.searchsorted(np.unique(digits), digits)]
    nearest = np.unique(digits)[((plane[:, None] - means) ** 2).sum(-1).argmin(1)]
    away = np.linalg.norm(plane - own, axis=1)
    rank = np.empty(len(away))
    for digit in np.unique(digits):
        mine = digits == digit
        rank[mine] = stats.rankdata(away[mine]) / mine.sum()
    signs = {"exponent": 1, "margin": -1, "largest": -1, "gradient": 1}
    return {
        "nearest_is_own": float((nearest == digits).mean()),
        "exponent_near": float(exponent[rank <= 0.25].mean()),
        "exponent_far": float(exponent[rank > 0.75].mean()),
        "error_small": float(is_wrong[exponent <= low].mean()),
        "error_large": float(is_wrong[exponent >= high].mean()),
        "entropy_correlation": float(stats.spearmanr(exponent, part["entropy_nats"]).statistic),
        **{
            f"auc_{name}": separation(sign * part[name].to_numpy(), is_wrong).value
            for name, sign in signs.items()
        },
    }
