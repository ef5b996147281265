"""What mean-field theory says of a network before it is trained, from its settings alone.

χ₁, the mean square growth of a tangent from layer to layer (Poole et al. 2016); q*, the mean square
of pre-activations; depth/ξ = −depth · log χ₁ (Schoenholz et al. 2017), how often signals shrink by
e on the way (negative in chaos). A spectrum at the start that only repeats these tells nothing
new, so they belong to the baseline. For a vanilla RNN: χ₁ of the undriven network, its recurrent
weights taken for a layer's (Sompolinsky et al. 1988).

Uniform weights within ±p have σ_w = p √(fan-in/3); Glorot's and orthogonal ones of gain g have
σ_w = g. Gates (LSTM, GRU) obey other equations, so there is nothing to say of them here.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from pipeline.dynamics import meanfield as mf

LABELS = {
    "meanfield.log_chi": "log χ₁",
    "meanfield.depth_over_xi": "depth/ξ",
    "meanfield.length": "q*",
}
_ACTIVATIONS = {
    "tanh": mf.TANH,
    "relu": mf.RELU,
    "gelu": mf.GELU,
    "silu": mf.SILU,
    "sigmoid": mf.SIGMOID,
    "identity": mf.LINEAR,
}
_DEFAULT_ACTIVATION = "tanh"
_MOST_EXACT = 400  # pairs of σ_w and σ_b computed one by one; more are read off a curve
_ON_CURVE = 33


@dataclass(frozen=True, eq=False)
class MeanField:
    """What could be computed.

    Attributes:
        table: trials by those of `LABELS` that every trial has.
        omitted: why others are not there, in words; "" where none is missing.
    """

    table: pd.DataFrame
    omitted: str


def mean_field(params: pd.DataFrame) -> MeanField:
    """Of trials with these settings, by dotted name."""
    nothing = pd.DataFrame(index=params.index)
    names = set(params["network.name"]) if "network.name" in params else set()
    if not names <= {"mlp", "rnn"} or not names:
        spelled = ", ".join(sorted(map(str, names))) or "networks without a name"
        return MeanField(nothing, f"no formula for {spelled}")
    rows = [_network(dict(line)) for _, line in params.iterrows()]
    unknown = [row for row in rows if isinstance(row, str)]
    if unknown:
        return MeanField(nothing, unknown[0])
    networks = [row for row in rows if isinstance(row, _Network)]
    chi = _along_weights([(x.sigma_w, x.sigma_b, x.activation) for x in networks], _log_chi)
    length = _along_weights([(x.sigma_w, x.sigma_b, x.activation) for x in networks], _length)
    found = {"meanfield.log_chi": chi, "meanfield.length": length}
    if names == {"mlp"}:
        found["meanfield.depth_over_xi"] = -np.array([x.depth for x in networks]) * chi
    kept = {name: values for name, values in found.items() if np.isfinite(values).all()}
    lacking = [LABELS[name] for name in found if name not in kept]
    words = f"{', '.join(lacking)}: not finite for every trial" if lacking else ""
    return MeanField(pd.DataFrame(kept, index=params.index), words)


@dataclass(frozen=True)
class _Network:
    sigma_w: float
    sigma_b: float
    depth: int
    activation: str


def _network(params: dict[Any, Any]) -> _Network | str:
    """The ensemble that the start weights are drawn from, or why the theory does not hold."""

    def of(name: str, default: Any = None) -> Any:
        value = params.get(f"network.{name}", default)
        return default if value is None or value != value else value

    is_recurrent = params["network.name"] == "rnn"
    width = of("units" if is_recurrent else "width")
    if width is None:
        return "the width of the networks is not among the settings"
    init = of("init", "uniform" if is_recurrent else "gaussian")
    scale = float(of("init_scale", 1 / math.sqrt(width) if init == "uniform" else 1.0))
    bias = 0.0 if is_recurrent else float(of("bias_scale", 0.0))
    activation = str(of("activation", _DEFAULT_ACTIVATION))
    if activation not in _ACTIVATIONS:
        return f"no formula for the activation {activation}"
    if init not in ("gaussian", "uniform", "glorot", "orthogonal"):
        return f"no formula for start weights {init}"
    if init == "uniform":
        scale, bias = scale * math.sqrt(width / 3), bias / math.sqrt(3)
    return _Network(scale, bias, int(of("depth", 1)), activation)


def _along_weights(ensembles: list[tuple[float, float, str]], f: Any) -> np.ndarray:
    """f of each (σ_w, σ_b, φ); of very many, from a curve over log σ_w for each other pair."""
    distinct = sorted(set(ensembles))
    if len(distinct) <= _MOST_EXACT:
        known = {one: f(*one) for one in distinct}
        return np.array([known[one] for one in ensembles])
    found = np.empty(len(ensembles))
    weights = np.array([e[0] for e in ensembles])
    # A second sampled scale has its values rounded to a hundred or so, each with its own curve.
    others = [(float(f"{e[1]:.2g}"), e[2]) for e in ensembles]
    for other in set(others):
        these = np.array([o == other for o in others])
        low, high = math.log(weights[these].min()), math.log(weights[these].max())
        at = np.linspace(low, high, _ON_CURVE)
        if these.sum() <= _ON_CURVE:
            found[these] = [f(w, *other) for w in weights[these]]
        else:
            found[these] = np.interp(
                np.log(weights[these]), at, [f(math.exp(w), *other) for w in at]
            )
    return found


@lru_cache(maxsize=20_000)
def _length(sigma_w: float, sigma_b: float, activation: str) -> float:
    """q*; NaN where lengths have no fixed point."""
    try:
        return mf.fixed_point(sigma_w, sigma_b, activation=_ACTIVATIONS[activation])
    except ValueError:
        return math.nan


@lru_cache(maxsize=20_000)
def _log_chi(sigma_w: float, sigma_b: float, activation: str) -> float:
    """log χ₁; where φ is linear on either side of 0 it does not need q*."""
    kind = _ACTIVATIONS[activation]
    q = 1.0 if kind.slopes is not None else _length(sigma_w, sigma_b, activation)
    if not math.isfinite(q):
        return math.nan
    chi = mf.chi_1(sigma_w, sigma_b, q=q, activation=kind)
    return math.log(chi) if chi > 0 else math.nan
