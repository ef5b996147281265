"""What is computed from an EarlyView: one number a trial and feature, in one place.

A measured feature at an epoch comes from that epoch's own measurement, never from an earlier one
where that was skipped; the loss seen is the last one there was. Exponents keep their unit (nats
per step, or per layer for FTLEs of feed-forward networks). A feature that a trial lacks is NaN.
The spread of a spectrum that holds -∞ (an exactly singular map) is NaN as well: such exponents
are never averaged silently.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd

from analysis import words
from analysis.frame import EarlyView, SweepFrame
from pipeline.dynamics import derived

Group = Literal["spectrum", "ftle", "norms", "loss"]

LOSS_SEEN = "loss.seen"
_PER_STEP = "nats/step"
_TOP_PART = 10  # one in so many exponents of the state is at the top
_LOG_FROM = 10.0


@dataclass(frozen=True)
class Feature:
    """A number known of each trial at an epoch.

    Attributes:
        name: dotted, as in tables.
        label: words for figures and sentences.
        unit: of the number; "1" for pure numbers.
        group: spectrum and ftle are what the sweep is about; norms and loss are the bar.
        is_headline: shown in figures with room for few.
    """

    name: str
    label: str
    unit: str
    group: Group
    is_headline: bool = False

    @property
    def axis_label(self) -> str:
        """The label with its unit, for an axis."""
        return self.label if self.unit in ("1", "") else f"{self.label} [{self.unit}]"


FEATURES = {
    f.name: f
    for f in (
        Feature("lyapunov.max", "largest exponent λ₁", _PER_STEP, "spectrum", True),
        Feature("lyapunov.abs_max", "distance of λ₁ from 0", _PER_STEP, "spectrum"),
        Feature("lyapunov.mean", "mean exponent", _PER_STEP, "spectrum", True),
        Feature("lyapunov.std", "spread of the spectrum", _PER_STEP, "spectrum", True),
        Feature("lyapunov.top_mean", "mean of the top tenth", _PER_STEP, "spectrum"),
        Feature("lyapunov.gap", "gap λ₁ − λ₂", _PER_STEP, "spectrum"),
        Feature("lyapunov.near_zero", "number of exponents near 0", "1", "spectrum"),
        Feature("lyapunov.kaplan_yorke", "Kaplan–Yorke dimension", "1", "spectrum", True),
        Feature("ftle.mean", "mean FTLE", "nats/layer", "ftle", True),
        Feature("ftle.std", "spread of FTLEs over inputs", "nats/layer", "ftle", True),
        Feature("ftle.positive_share", "share of FTLEs above 0", "1", "ftle", True),
        Feature("ftle.low_margin", "FTLE near the boundary", "nats/layer", "ftle"),
        Feature("ftle.high_margin", "FTLE far from the boundary", "nats/layer", "ftle"),
        Feature("ftle.contrast", "ridge contrast (near − far)", "nats/layer", "ftle", True),
        Feature("ftle.quantile_low", "lowest FTLE quantile", "nats/layer", "ftle"),
        Feature("ftle.quantile_high", "highest FTLE quantile", "nats/layer", "ftle"),
        Feature("gradient_norm", "gradient norm", "1", "norms"),
        Feature("weight_norm", "weight norm", "1", "norms"),
        Feature("loss.train", "training loss", "nats", "loss"),
        Feature(LOSS_SEEN, "validation loss seen", "nats", "loss", True),
    )
}

_FROM_SCALARS = {
    "lyapunov.max": "lyapunov.max",
    "lyapunov.mean": "lyapunov.mean",
    "lyapunov.near_zero": "lyapunov.near_zero",
    "lyapunov.kaplan_yorke": "lyapunov.kaplan_yorke",
    "ftle.mean": "ftle.mean",
    "ftle.std": "ftle.std",
    "ftle.positive_share": "ftle.positive_share",
    "ftle.low_margin": "ftle.low_margin",
    "ftle.high_margin": "ftle.high_margin",
    "gradient_norm": "gradient_norm",
    "weight_norm": "weight_norm",
    "loss.train": "train_loss",
    LOSS_SEEN: "val_loss",
}


@lru_cache(maxsize=32)
def features(view: EarlyView) -> pd.DataFrame:
    """All features, trials by names, without those that no trial has.

    A trial's features depend on that trial alone, so that rows may be taken out freely.
    """
    known = {}
    for name, quantity in _FROM_SCALARS.items():
        scalars = view.latest if FEATURES[name].group == "loss" else view.current
        if quantity in scalars:
            known[name] = scalars[quantity].to_numpy(float)
    table = pd.DataFrame(known, index=view.trials)
    for name, values in {**_of_spectra(view), **_of_quantiles(view)}.items():
        if name not in table:
            table[name] = pd.Series(values, dtype=float).reindex(table.index)
    if {"ftle.low_margin", "ftle.high_margin"} <= set(table):
        table["ftle.contrast"] = table["ftle.low_margin"] - table["ftle.high_margin"]
    if "lyapunov.max" in table:
        table["lyapunov.abs_max"] = table["lyapunov.max"].abs()
    finite = table.where(np.isfinite(table))
    return finite[[name for name in FEATURES if name in finite and finite[name].notna().any()]]


def measured(table: pd.DataFrame) -> list[str]:
    """Those columns of a feature table that are of the spectrum or the FTLEs."""
    return [name for name in map(str, table) if FEATURES[name].group in ("spectrum", "ftle")]


def headline(frame: SweepFrame) -> list[Feature]:
    """The few features of this sweep that figures show, the loss not among them."""
    known = described(frame)
    return [known[name] for name in _measured_anywhere(frame) if known[name].is_headline]


@lru_cache(maxsize=2)
def described(frame: SweepFrame) -> dict[str, Feature]:
    """`FEATURES`, in words that hold for this sweep's spectra.

    Where fewer exponents were measured than the state has, a mean is one of the leading ones.
    """
    kinds = frame.spectra_measured
    if kinds.empty or (kinds["k"] >= kinds["state_size"]).all():
        return FEATURES
    leading = f"the {words.either(sorted(kinds['k'].unique().tolist()))} leading exponents"
    labels = {
        "lyapunov.mean": f"mean of {leading}",
        "lyapunov.std": f"spread of {leading}",
        "lyapunov.near_zero": f"number of {leading} near 0",
    }
    return {n: replace(f, label=labels[n]) if n in labels else f for n, f in FEATURES.items()}


@lru_cache(maxsize=2)
def _measured_anywhere(frame: SweepFrame) -> tuple[str, ...]:
    found = {n for e in frame.measured_epochs for n in measured(features(early_view(frame, e)))}
    return tuple(name for name in FEATURES if name in found)


@lru_cache(maxsize=32)
def early_view(frame: SweepFrame, epoch: int) -> EarlyView:
    """`frame.early_view`, kept, since every table asks for the same few."""
    return frame.early_view(epoch)


@lru_cache(maxsize=32)
def hyperparameters(view: EarlyView) -> pd.DataFrame:
    """The sampled settings as numbers, trials by names.

    Numbers that are positive and span more than a factor of ten are logged. Unordered choices
    become one 0/1 column a value but the first (`name=value`). Settings that take one value
    only are left out.
    """
    columns: dict[str, np.ndarray] = {}
    for name in view.sampled:
        column = view.params[name]
        if column.nunique(dropna=False) < 2:
            continue
        if is_number(column):
            values = column.to_numpy(float)
            is_wide = values.min() > 0 and values.max() > _LOG_FROM * values.min()
            columns[name] = np.log(values) if is_wide else values
        else:
            words = column.map(str)
            for word in sorted(words.unique())[1:]:
                columns[f"{name}={word}"] = (words == word).to_numpy(float)
    return pd.DataFrame(columns, index=view.trials)


def log_if_positive(values: pd.Series) -> pd.Series:
    """The logarithm where all finite values are positive, as losses mostly are; else as is."""
    finite = values[np.isfinite(values)]
    return np.log(values) if len(finite) and (finite > 0).all() else values


def is_number(column: pd.Series) -> bool:
    """True for a setting with an order: all numbers or all booleans."""
    return all(isinstance(v, int | float) and not math.isnan(v) for v in column.tolist())


def _of_spectra(view: EarlyView) -> dict[str, dict[int, float]]:
    """What the records do not hold as scalars, from each trial's ordered exponents."""
    by_size: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    for trial, spectrum in view.arrays("lyapunov.spectrum").items():
        if spectrum.size:
            kind = (spectrum.size, view.state_sizes[trial])
            by_size.setdefault(kind, []).append((trial, -np.sort(-spectrum)))
    found: dict[str, dict[int, float]] = {}
    for (size, state_size), members in by_size.items():
        trials, spectra = [t for t, _ in members], np.stack([s for _, s in members])
        moments = derived.moments(spectra)
        columns = {
            "lyapunov.max": spectra[:, 0],
            "lyapunov.mean": moments["mean"],
            "lyapunov.std": moments["std"],
        }
        num_top = -(-state_size // _TOP_PART)
        if num_top <= size:
            columns["lyapunov.top_mean"] = spectra[:, :num_top].mean(axis=1)
        if size > 1:
            columns["lyapunov.gap"] = derived.gaps(spectra)[:, 0]
        for name, column in columns.items():
            found.setdefault(name, {}).update(zip(trials, column.tolist(), strict=True))
    return found


def _of_quantiles(view: EarlyView) -> dict[str, dict[int, float]]:
    quantiles = {t: q for t, q in view.arrays("ftle.quantiles").items() if q.size}
    return {
        "ftle.quantile_low": {t: float(q.min()) for t, q in quantiles.items()},
        "ftle.quantile_high": {t: float(q.max()) for t, q in quantiles.items()},
    }
