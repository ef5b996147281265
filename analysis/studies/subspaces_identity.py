"""The gradient of a recurrent network from Q and R, against back-propagation through time.

∇_V L = Σ_t D_t Q_t [ Σ_{s≥t} R_{t+1:s}ᵀ Q_sᵀ ∇_{h_s} L_s ] h_{t−1}ᵀ, exact for a square Q; see
`dynamics.gradients`. With the first m columns only, it says how much of the gradient the leading
directions hold. Beside it stands what reviewers asked of the R: whether the spread of local
exponents over time vanishes in wide networks (Q8).

Networks are drawn, none is trained; they start from h = 0 and are driven by Gaussian inputs.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from analysis.figures.base import OKABE_ITO, new_picture
from analysis.studies.base import Claim, Finding, Study, Tables, by_interval, by_rule
from analysis.studies.lab import Lab
from analysis.studies.papers import SUBSPACES
from analysis.studies.storm_statistics import slopes
from pipeline.dynamics.gradients import back_propagated_in_frame, recurrent_gradient
from pipeline.dynamics.local import local_exponents
from tasks.base import Bounds
from tasks.base import Config as BaseConfig
from tasks.networks.rnn import RNN

_TOLERANCE = 1e-12
_INPUTS = 4
_AT_END, _AT_ALL = "at the last step", "at every step"


class SubspacesIdentity(Study):
    """Errors of the identity, shares by number of vectors, spread of local exponents."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Which networks.

        units, gains, steps: all combinations; gain σ of N(0, σ²/units).
        sequences: of each network.
        shares_units, shares_gain: of the networks whose gradient is cut to few vectors.
        spread_units, spread_gain, spread_steps: of those whose local exponents are followed.
        """

        units: tuple[Annotated[int, Bounds(ge=2)], ...] = (16, 64)
        gains: tuple[Annotated[float, Bounds(gt=0)], ...] = (0.5, 1.0, 1.5)
        steps: tuple[Annotated[int, Bounds(ge=2)], ...] = (28, 64)
        sequences: Annotated[int, Bounds(ge=1)] = 4
        shares_units: Annotated[int, Bounds(ge=2)] = 64
        shares_gain: Annotated[float, Bounds(gt=0)] = 1.0
        spread_units: tuple[Annotated[int, Bounds(ge=2)], ...] = (16, 64, 256)
        spread_gain: Annotated[float, Bounds(gt=0)] = 1.5
        spread_steps: Annotated[int, Bounds(ge=20)] = 200

    config: Config
    paper = SUBSPACES
    item = "Gradient in terms of Q and R"
    title = "Q and R hold the whole gradient"
    claims = (
        Claim(
            "identity",
            "The gradient of the recurrent weights can be written with the Q and R of the tangent "
            "dynamics.",
            "Frobenius distance from back-propagation, relative to its norm, below 1e-12 in every "
            "network; the largest counts.",
        ),
        Claim(
            "spread",
            "The spread of the leading local exponent over time vanishes in wide networks.",
            "Slope of log standard deviation of log R₁₁ over time against log N: 95 % interval "
            "over networks below 0.",
            "reviewers of the submission",
        ),
    )
    caption = (
        "Left: relative distance of the gradient in Q and R from that of back-propagation, every "
        "network; line: what is allowed. Middle: what is missing of the gradient when only the "
        "first m columns of Q enter, by where the loss is told. Right: standard deviation over "
        "time of the leading local exponent against the number of units."
    )

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Tables identity, shares, spread; a row a network and case."""
        config = self.config
        cases = itertools.product(config.units, config.gains, config.steps, (_AT_END, _AT_ALL))
        return {
            "identity": pd.DataFrame(
                row
                for units, gain, steps, told in cases
                for row in self._errors(lab, units, gain, steps, told)
            ),
            "shares": pd.DataFrame(
                row for told in (_AT_END, _AT_ALL) for row in self._shares(lab, told)
            ),
            "spread": pd.DataFrame(
                row for units in config.spread_units for row in self._spread(lab, units)
            ),
        }

    def _errors(
        self, lab: Lab, units: int, gain: float, steps: int, told: str
    ) -> Iterator[dict[str, Any]]:
        case = _Case(lab, units, gain, steps, self.config.sequences, told)
        error_N = case.distance(case.from_frame(units))
        for seed, error in enumerate(error_N.tolist()):
            yield {
                "units": units,
                "gain": gain,
                "steps": steps,
                "loss": told,
                "network": seed,
                "relative_error": error,
            }

    def _shares(self, lab: Lab, told: str) -> Iterator[dict[str, Any]]:
        units = self.config.shares_units
        steps = max(self.config.steps)
        case = _Case(lab, units, self.config.shares_gain, steps, self.config.sequences, told)
        counts = sorted({round(m) for m in np.geomspace(1, units, 9)})
        for m in counts:
            for seed, error in enumerate(case.distance(case.from_frame(m)).tolist()):
                yield {"loss": told, "vectors": m, "network": seed, "missing_share": error}

    def _spread(self, lab: Lab, units: int) -> Iterator[dict[str, Any]]:
        network = _networks(lab, units, self.config.spread_gain)
        steps = self.config.spread_steps
        inputs = _normal((1, steps, _INPUTS), lab.generator("spread inputs"))
        generator = lab.generator("spread frame", units)
        local_NT = local_exponents(
            network, inputs, k=1, warmup=steps // 4, generator=generator
        ).exponents[:, 0, :, 0]
        for seed, deviation in enumerate(local_NT.std(1).tolist()):
            yield {"units": units, "network": seed, "deviation_nats": deviation}

    def judge(self, tables: Tables) -> list[Finding]:
        """The largest error, and the slope of the spread."""
        errors = tables["identity"]["relative_error"]
        largest = float(errors.max(skipna=False))
        spread = tables["spread"]
        x = {"units": np.log(spread["units"])}
        slope = slopes(x, np.log(spread["deviation_nats"]))["units"]
        levels = spread.groupby("units")["deviation_nats"].mean()
        told = ", ".join(f"{value:.3f} nats at N = {units}" for units, value in levels.items())
        return [
            Finding(
                "identity",
                by_rule(largest < _TOLERANCE),
                f"In {len(errors)} networks and cases the two gradients differ by at most "
                f"{largest:.1e} of their size, in the median by {errors.median():.1e}.",
                largest,
                float(errors.min()),
                largest,
            ),
            Finding(
                "spread",
                by_interval(-slope.high, -slope.low),
                f"The standard deviation over time of log R₁₁ is {told}: it goes like N to the "
                f"power {slope}.",
                *slope,
            ),
        ]

    def draw(self, tables: Tables) -> Picture:
        """Errors by gain, missing shares by m, spread by N."""
        picture = new_picture(8.0, 3.0)
        left, middle, right = picture.subplots(1, 3)
        identity = tables["identity"]
        gains = sorted(identity["gain"].unique())
        for place, gain in enumerate(gains):
            rows = identity[identity["gain"] == gain]
            x = place + np.linspace(-0.25, 0.25, len(rows))
            left.plot(x, rows["relative_error"], ".", color=OKABE_ITO[0], markersize=4)
        left.axhline(_TOLERANCE, color=OKABE_ITO[1], linewidth=1.2)
        left.set_yscale("log")
        left.set_ylim(1e-16, 1e-11)
        left.set_xticks(range(len(gains)), [f"{g:g}" for g in gains])
        left.set(xlabel="gain", ylabel="relative error")
        for (told, rows), colour in zip(tables["shares"].groupby("loss"), OKABE_ITO, strict=False):
            levels = rows.groupby("vectors")["missing_share"]
            middle.plot(levels.mean(), "o-", color=colour, markersize=4, label=str(told))
            ends = levels.min(), levels.max()
            middle.fill_between(ends[0].index, *ends, color=colour, alpha=0.18, linewidth=0)
        middle.set_xscale("log", base=2)
        middle.set(xlabel="vectors m", ylabel="missing of the gradient", ylim=(0, 1.05))
        middle.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        middle.legend(title="loss", loc="lower left")
        spread = tables["spread"]
        right.loglog(
            spread["units"], spread["deviation_nats"], "o", color=OKABE_ITO[2], markersize=4
        )
        units = sorted(spread["units"].unique())
        right.set_xticks(units, [str(n) for n in units])
        marks = [v for v in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5) if v < spread["deviation_nats"].max()]
        right.set_yticks(marks, [f"{v:g}" for v in marks])
        right.minorticks_off()
        right.set(xlabel="units N", ylabel="deviation of log R₁₁ [nats]")
        return picture


class _Case:
    """Networks with a loss: their gradient by back-propagation, and what Q and R make of it."""

    def __init__(
        self, lab: Lab, units: int, gain: float, steps: int, sequences: int, told: str
    ) -> None:
        network = _networks(lab, units, gain)
        N = network.num_members
        inputs = _normal((sequences, steps, _INPUTS), lab.generator("inputs", steps))
        wanted = _normal((N, sequences, steps, _INPUTS), lab.generator("targets", units, steps))
        if told == _AT_END:
            wanted[:, :, :-1] = 0
        total, _, gradient = network.gradient(
            lambda outputs: (outputs * wanted).sum((1, 2, 3)), inputs
        )
        del total
        self._by_time_N = _part(network, gradient, "weight_rec_0")
        self._maps = list(network.orbit(inputs).maps())
        readout = network.get_parameter("weight_out").detach()
        self._pushes = torch.einsum("nbto,nod->nbtd", wanted, readout)
        frame = _normal((N, sequences, units, units), lab.generator("frame", units))
        self._frame = torch.linalg.qr(frame).Q

    def from_frame(self, num_vectors: int) -> Tensor:
        """∇_V L (N, D, D) of `num_vectors` columns of Q."""
        deltas = back_propagated_in_frame(
            self._maps, self._pushes, self._frame, num_vectors=num_vectors
        )
        slopes_NBTD = torch.stack([step.gains[0] for step in self._maps], dim=2)
        before_NBTD = torch.stack([step.before[0] for step in self._maps], dim=2)
        return recurrent_gradient(slopes_NBTD, deltas, before_NBTD).sum(1)

    def distance(self, found_N: Tensor) -> Tensor:
        """From back-propagation, relative, (N,)."""
        size = torch.linalg.matrix_norm(self._by_time_N)
        distance: Tensor = torch.linalg.matrix_norm(found_N - self._by_time_N)
        return distance.div(size)


def _networks(lab: Lab, units: int, gain: float) -> RNN:
    """One a seed."""
    config = RNN.Config(units=units, init="gaussian", init_scale=gain)
    return RNN(
        [config] * lab.seeds,
        input_size=_INPUTS,
        output_size=_INPUTS,
        generators=[lab.generator("weights", units, seed) for seed in range(lab.seeds)],
        dtype=torch.float64,
    )


def _part(network: RNN, gradient_NP: Tensor, name: str) -> Tensor:
    """Of a packed gradient, that of one parameter."""
    sizes = [p[0].numel() for p in network.parameters()]
    names = [n for n, _ in network.named_parameters()]
    shape = network.get_parameter(name).shape
    parts: tuple[Tensor, ...] = torch.split(gradient_NP, sizes, dim=1)
    return parts[names.index(name)].reshape(shape).clone()


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)
