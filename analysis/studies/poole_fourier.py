"""Which functions on a circle the outputs of random networks can express: depth against width.

Poole et al. (2016), fig. 5: sines and cosines on half a great circle, fitted by least squares from
the outputs of deep networks and of wide ones with a single hidden layer. The outputs of one layer
hold all frequencies, with amplitudes that fall exponentially: how many are found depends on the
digits that outputs are computed with. The authors' are single precision; both are measured.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from torch import Tensor

from analysis.figures.base import new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval
from analysis.studies.lab import Lab
from analysis.studies.over_seeds import mean
from analysis.studies.papers import POOLE
from analysis.studies.wide_networks import (
    Bias,
    Count,
    Scale,
    over_networks,
    plane_of,
    random_network,
)
from pipeline.dynamics.geometry import great_circle
from pipeline.dynamics.meanfield import fixed_point
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

_DTYPES = {"single": torch.float32, "double": torch.float64}
_SHARE = 0.1  # of depth's gain that width may have


class Fourier(Study):
    """Errors by frequency, of deep and of shallow networks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings.

        angles: points on the half circle.
        periods: highest frequency, in periods on the half circle.
        size: inputs, and outputs that functions are fitted from.
        width: units a layer of the deep networks.
        depths: hidden layers of the deep networks.
        widths: units of the networks with a single hidden layer.
        sigma_w, sigma_b: of all.
        """

        angles: Annotated[int, Bounds(ge=8)]
        periods: Annotated[int, Bounds(ge=2)]
        size: Annotated[int, Bounds(ge=2)]
        width: Count = 1000
        depths: tuple[Count, ...]
        widths: tuple[Count, ...]
        sigma_w: Scale
        sigma_b: Bias

    paper = POOLE
    item = "Fig. 5"
    title = "Depth, not width, expresses high frequencies"
    claims = (
        Claim(
            "depth",
            "With depth a random network expresses ever higher frequencies.",
            "Single precision: error, mean over the upper half of frequencies, of the shallowest "
            "of the networks of one width minus that of the deepest: 95 % interval over networks "
            "above 0.",
        ),
        Claim(
            "width",
            "Width alone gains next to nothing.",
            "Single precision: a tenth of depth's gain minus that of the widest over the narrowest "
            "single layer: 95 % interval over networks above 0.",
        ),
        Claim(
            "deep_beats_wide",
            "The deepest network expresses more than the widest shallow one.",
            "Single precision: error of the widest single layer minus that of the deepest network, "
            "same frequencies: 95 % interval over networks above 0.",
        ),
        Claim(
            "in_principle",
            "It is a matter of what the functions span, not of the digits they are computed with.",
            "The same as deep_beats_wide, above 0 too, in double precision.",
            "a test of ours: the paper does not say which precision it speaks of",
        ),
    )
    caption = (
        "1 − cosine of the angle between a sine or cosine on half a great circle and its best fit "
        "from the network's outputs, by frequency; means over networks, bands are 95 % intervals. "
        "Left: networks of one width, by their number of hidden layers. Right: single hidden "
        "layers, by their width. Above in single precision, as the authors'; below in double. The "
        "dotted line is a random subspace of as many functions."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables errors, high, gains."""
        c = self.config
        shapes = [("deep", c.width, depth) for depth in c.depths]
        shapes += [("wide", width, 1) for width in c.widths]
        parts = []
        for digits, (kind, width, depth) in itertools.product(_DTYPES, shapes):
            for number in range(lab.seeds):
                generator = lab.generator("network", kind, width, depth, number)
                errors = self._errors(width, depth, _DTYPES[digits], generator)
                which = {"precision": digits, "kind": kind, "width": width, "depth": depth}
                of_network = {"network": number, "periods": range(len(errors)), "error": errors}
                parts.append(pd.DataFrame(which | of_network))
        table = pd.concat(parts)
        high = table[table["periods"] > c.periods / 2]
        by = ["precision", "kind", "width", "depth"]
        return {
            "errors": over_networks(table, (*by, "periods"), "error").assign(
                of_random_subspace=1 - math.sqrt(c.size / c.angles)
            ),
            "high": over_networks(high, by, "error"),
            "gains": pd.concat(
                [_gains(part).assign(precision=key) for key, part in high.groupby("precision")]
            ),
        }

    def _errors(
        self, width: int, depth: int, dtype: torch.dtype, generator: torch.Generator
    ) -> list[float]:
        """By frequency, 0 … periods; mean of sine and cosine."""
        c = self.config
        network = random_network(
            generator,
            width=width,
            depth=depth,
            sigma_w=c.sigma_w,
            sigma_b=c.sigma_b,
            num_inputs=c.size,
            num_outputs=c.size,
            dtype=dtype,
        )
        # The radius with which the first layer has the length q* that all others keep.
        length = (fixed_point(c.sigma_w, c.sigma_b) - c.sigma_b**2) / c.sigma_w**2
        circle = great_circle(plane_of(generator, c.size), math.sqrt(c.size * length))
        theta = torch.arange(c.angles, dtype=torch.float64) * (math.pi / c.angles)
        outputs = network(circle(theta))[0][0].double()
        return _unexpressed(outputs, 2 * theta, c.periods)

    def judge(self, tables: Tables) -> list[Finding]:
        """By gains."""
        gains = tables["gains"]
        told = {
            "depth": ("single", "depth", "Depth lowers the error at high frequencies by {}."),
            "width": (
                "single",
                "width",
                "A tenth of depth's gain exceeds that of widening by {}.",
            ),
            "deep_beats_wide": (
                "single",
                "deep_beats_wide",
                "The widest network's error exceeds the deepest's by {}.",
            ),
            "in_principle": (
                "double",
                "deep_beats_wide",
                "In double precision the widest network's error exceeds the deepest's by {}.",
            ),
        }
        findings = []
        for key, (digits, gain, words) in told.items():
            row = gains[gains["precision"].eq(digits) & gains["gain"].eq(gain)]
            value, low, high = (float(row[name].iloc[0]) for name in ("mean", "low", "high"))
            found = words.format(f"{value:.3f} ({low:.3f} to {high:.3f})")
            findings.append(Finding(key, by_interval(low, high), found, value, low, high))
        return findings

    def draw(self, tables: Tables) -> Picture:
        """Deep left, wide right; single precision above, double below."""
        picture = new_picture(8.0, 5.0)
        axes = picture.subplots(2, 2, sharex=True, sharey=True)
        errors = tables["errors"]
        for (row, digits), (column, kind) in itertools.product(
            enumerate(_DTYPES), enumerate(("deep", "wide"))
        ):
            ax = axes[row][column]
            here = errors[errors["precision"].eq(digits) & errors["kind"].eq(kind)]
            by = "depth" if kind == "deep" else "width"
            _draw_errors(ax, here, by)
            if row == 0:
                title = "hidden layers" if kind == "deep" else "units of one hidden layer"
                handles, labels = ax.get_legend_handles_labels()
                picture.legend(
                    handles,
                    labels,
                    title=title,
                    ncols=4,
                    loc="outside upper left" if kind == "deep" else "outside upper right",
                )
            else:
                ax.set_xlabel("frequency [periods on the half circle]")
            if column == 0:
                ax.set_ylabel(f"error, {digits} precision")
        return picture


def _draw_errors(ax: Axes, errors: pd.DataFrame, by: str) -> None:
    values = sorted(errors[by].unique())
    shades = colormaps["viridis"](np.linspace(0.05, 0.85, len(values)))
    for colour, (value, line) in zip(shades, errors.groupby(by), strict=True):
        ax.plot(line["periods"], line["mean"], color=colour, label=f"{value:,}")
        ax.fill_between(line["periods"], line["low"], line["high"], color=colour, alpha=0.2)
    ax.plot(errors["periods"], errors["of_random_subspace"], ":", color="#6b7280")
    ax.set_ylim(-0.02, 1.02)


def _unexpressed(outputs: Tensor, phase: Tensor, periods: int) -> list[float]:
    """1 − cos of the angle between each function and the span of the outputs' columns."""
    left, sizes, _ = torch.linalg.svd(outputs, full_matrices=False)
    rounding = sizes[0] * max(outputs.shape) * torch.finfo(outputs.dtype).eps
    basis = left[:, sizes > rounding]

    def error(f: Tensor) -> float:
        return 1 - float((basis.T @ f).norm() / f.norm())

    constant = error(torch.ones_like(phase))
    return [constant] + [
        (error((k * phase).sin()) + error((k * phase).cos())) / 2 for k in range(1, periods + 1)
    ]


def _gains(high: pd.DataFrame) -> pd.DataFrame:
    """What the claims compare, over networks of the same number."""
    by = ["kind", "depth", "width", "network"]
    errors = high.groupby(by)["error"].mean()
    deep, wide = (errors.loc[kind] for kind in ("deep", "wide"))
    depths, widths = (sorted(part.index.unique(name)) for part, name in
                      ((deep, "depth"), (wide, "width")))  # fmt: skip
    at_depth = [deep.xs(d, level="depth").groupby("network").mean() for d in depths]
    at_width = [wide.xs(w, level="width").groupby("network").mean() for w in widths]
    by_depth, by_width = at_depth[0] - at_depth[-1], at_width[0] - at_width[-1]
    gains = {
        "depth": by_depth,
        "width": _SHARE * by_depth - by_width,
        "deep_beats_wide": at_width[-1] - at_depth[-1],
    }
    rows: list[dict[str, Any]] = []
    for gain, values in gains.items():
        found = mean(values)
        rows.append({"gain": gain, "mean": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)
