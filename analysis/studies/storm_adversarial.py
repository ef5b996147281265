"""Exponents on the way from a digit to an adversarial image of another class.

Storm et al. (2024), Fig. 4 and S4: projected gradient descent (Madry et al. 2018) carries an image
over the decision boundary, where λ has its maximum, along the direction v₁ of largest stretching.
The paper shows one path; here there are many, of several networks. Steps are of constant length in
the plane of pixels in [0, 1], down the gradient of the loss of the class that came second at first.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor, nn

from analysis.figures.base import INK, OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import mean
from analysis.studies.papers import STORM
from analysis.studies.storm_circle import single
from analysis.studies.storm_inputs import examples
from analysis.studies.storm_statistics import least_case
from pipeline.dynamics.ftle import ftle_field, max_ftle
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.base import Network

_NEAR = 0.25  # of the crossing, on either side
_MOST, _ALIGNED = 0.5, 0.8
_TIMES = np.linspace(0, 2, 41)


class StormAdversarial(Study):
    """λ along adversarial paths, and the directions they take."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        images: rightly read test images of each network.
        steps: of a path; one counts if it crosses the boundary within half of them.
        length: of a step, in units of a pixel's full range.
        """

        images: Annotated[int, Bounds(ge=2)] = 100
        steps: Annotated[int, Bounds(ge=4)] = 120
        length: Annotated[float, Bounds(gt=0)] = 0.05

    config: Config
    paper = STORM
    item = "Fig. 4, S4"
    title = "Adversarial paths cross ridges of the exponent"
    claims = (
        Claim(
            "ridge",
            "λ rises until the path crosses the boundary, and falls behind it.",
            "λ at the crossing minus that at the start, and minus that at twice the steps of the "
            "crossing: 95 % intervals over networks above 0; the lesser counts.",
        ),
        Claim(
            "maximum",
            "The maximum of λ lies at the crossing.",
            "Share of paths whose λ, over twice the steps of the crossing, is largest within "
            "±25 % of it: 95 % interval over networks above one half. By chance it would be 25 %.",
        ),
        Claim(
            "direction",
            "There the direction of largest stretching is that of the gradient.",
            "Mean |cos| of v₁ and the gradient of the loss at the crossing: 95 % interval over "
            "networks above 0.8.",
        ),
    )
    caption = (
        "λ (nats per layer) along the paths, in units of the steps until the class changes. Thin: "
        "networks; thick: their mean with its 95 % interval."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables paths (one row a path that counts), profile (by network) and networks."""
        paths, profiles, networks = [], [], []
        for group in lab.sweep("digits").groups():
            x, y = examples(group.task, ("test",))
            for member, number in enumerate(group.numbers):
                network = single(group.network, member)
                rows, along = self._paths(network, *self._chosen(network, x, y))
                paths.append(rows.assign(network=number))
                profiles.append(along.assign(network=number))
                networks.append(
                    {
                        "network": number,
                        "test_accuracy": float((_classes(network, x) == y).double().mean()),
                        "paths": len(rows),
                        "images": min(self.config.images, len(x)),
                    }
                )
        return {
            "paths": pd.concat(paths, ignore_index=True),
            "profile": pd.concat(profiles, ignore_index=True),
            "networks": pd.DataFrame(networks),
        }

    def _chosen(self, network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The first rightly read images and the class each comes second for."""
        with torch.no_grad():
            order = network(x)[0][0].argsort(-1, descending=True)
        right = torch.nonzero(order[:, 0] == y).flatten()[: self.config.images]
        return x[right], order[right, 1]

    def _paths(
        self, network: Network, start: Tensor, target: Tensor
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What came of each path that counts, and the mean λ by relative time."""
        c = self.config
        depth = network.orbit(start[:1]).num_steps
        x, places = start, [start]
        for _ in range(c.steps):
            gradient = _gradient(network, x, target)
            size = gradient.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
            x = (x - c.length * gradient / size).clamp(0, 1)
            places.append(x)
        path_TBI = torch.stack(places)
        reached_TB = torch.stack([_classes(network, x) for x in places]) == target
        exponent_TB = torch.stack([max_ftle(network, x, depth)[0] for x in places])
        rows: list[dict[str, Any]] = []
        curves = []
        for b in range(len(start)):
            crossing = int(reached_TB[:, b].int().argmax())
            if not reached_TB[crossing, b] or 2 * crossing > c.steps:
                continue
            at = path_TBI[crossing, b : b + 1]
            v = ftle_field(network, at, layer=depth).directions
            assert v is not None
            slope = _gradient(network, at, target[b : b + 1])[0]
            exponents = exponent_TB[: 2 * crossing + 1, b].numpy()
            rows.append(
                {
                    "image": b,
                    "crossing_step": crossing,
                    "maximum_step": int(exponents.argmax()),
                    "exponent_start": exponents[0],
                    "exponent_crossing": exponents[crossing],
                    "exponent_end": exponents[-1],
                    "alignment": float((v[0, 0] @ slope / slope.norm()).abs()),
                }
            )
            curves.append(np.interp(_TIMES, np.arange(2 * crossing + 1) / crossing, exponents))
        mean_curve = np.mean(curves, axis=0) if curves else np.full(len(_TIMES), np.nan)
        profile = pd.DataFrame({"relative_step": _TIMES, "exponent": mean_curve})
        return pd.DataFrame(rows), profile

    def judge(self, tables: Tables) -> list[Finding]:
        """By means over the paths of each network."""
        paths, networks = tables["paths"], tables["networks"].set_index("network")
        away = (paths["maximum_step"] - paths["crossing_step"]).abs()
        table = pd.DataFrame(
            {
                "network": paths["network"],
                "rise": paths["exponent_crossing"] - paths["exponent_start"],
                "fall": paths["exponent_crossing"] - paths["exponent_end"],
                "is_near": (away <= _NEAR * paths["crossing_step"]).astype(float),
                "alignment": paths["alignment"],
            }
        )
        each = table.groupby("network").mean()
        near, along = mean(each["is_near"]), mean(each["alignment"])
        return [
            least_case(
                "ridge",
                {
                    "the start": mean(each["rise"]),
                    "twice the steps": mean(each["fall"]),
                },
                "λ at the crossing exceeds the rest of the path by",
                unit="nats/layer",
            ),
            Finding(
                "maximum",
                by_interval(near.low, near.high, above=_MOST),
                f"{near.value:.0%} of {len(paths)} paths ({near.low:.0%} to {near.high:.0%} over "
                f"{len(each)} networks) have their maximum near the crossing; "
                f"{networks['images'].sum() - len(paths)} did not cross in time.",
                *near,
            ),
            Finding(
                "direction",
                by_interval(along.low, along.high, above=_ALIGNED),
                f"|cos| of v₁ and the gradient at the crossing is {along}.",
                *along,
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """λ against relative time."""
        profile = tables["profile"]
        picture = new_picture(6.4, 4.0)
        ax = picture.subplots()
        for _, part in profile.groupby("network"):
            ax.plot(part["relative_step"], part["exponent"], color=OKABE_ITO[5], linewidth=0.8)
        by_time = profile.dropna().groupby("relative_step")["exponent"]
        centre, low, high = np.array([mean(values) for _, values in by_time]).T
        times = np.sort(profile["relative_step"].dropna().unique())
        ax.fill_between(times, low, high, color=OKABE_ITO[0], alpha=0.2, linewidth=0)
        ax.plot(times, centre, color=OKABE_ITO[0], linewidth=2)
        ax.axvline(1, color=INK, linewidth=0.9, linestyle="--")
        ax.annotate(
            "class changes",
            (1, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
        )
        ax.set(xlabel="steps / steps until the class changes", ylabel="λ (nats per layer)")
        ax.set_xlim(0, 2)
        return picture


def _classes(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(x)[0][0].argmax(-1)
    return found


def _gradient(network: Network, x: Tensor, target: Tensor) -> Tensor:
    """Of the cross-entropy of the target by the pixels, (B, I)."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(network(leaf)[0][0], target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient
