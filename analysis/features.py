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
from analysis.early_view import EarlyView, kept
from analysis.frame import SweepFrame
from pipeline.dynamics import derived

Group = Literal["spectrum", "ftle", "norms", "loss"]

LOSS_SEEN = "loss.seen"
_PER_STEP = "nats/step"
_THRESHOLDS = {"lyapunov.share_near": 0.1, "lyapunov.share_wide": 0.5}
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
        is_signed: may be negative by nature, so that no logarithm is taken.
        is_secondary: for predictors and the increment test only. A table of correlations with all
            of these would be corrected for so many tests that it could find nothing.
    """

    name: str
    label: str
    unit: str
    group: Group
    is_headline: bool = False
    is_signed: bool = False
    is_secondary: bool = False

    @property
    def axis_label(self) -> str:
        """The label with its unit, for an axis."""
        return self.label if self.unit in ("1", "") else f"{self.label} [{self.unit}]"


def _secondary(name: str, label: str, unit: str, group: Group) -> Feature:
    return Feature(name, label, unit, group, is_signed=True, is_secondary=True)


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
        _secondary("lyapunov.skewness", "skewness of the spectrum", "1", "spectrum"),
        _secondary("lyapunov.slope", "slope of the spectrum over i/N", _PER_STEP, "spectrum"),
        _secondary("lyapunov.share_near", "share within 0.1 of 0", "1", "spectrum"),
        _secondary("lyapunov.share_wide", "share within 0.5 of 0", "1", "spectrum"),
        _secondary(
            "lyapunov.max_change", "change of λ₁ since the rung before", _PER_STEP, "spectrum"
        ),
        _secondary("lyapunov.mean_change", "change of the mean exponent", _PER_STEP, "spectrum"),
        Feature("ftle.mean", "mean FTLE", "nats/layer", "ftle", True),
        Feature("ftle.std", "spread of FTLEs over inputs", "nats/layer", "ftle", True),
        Feature("ftle.positive_share", "share of FTLEs above 0", "1", "ftle", True),
        Feature("ftle.low_margin", "FTLE near the boundary", "nats/layer", "ftle"),
        Feature("ftle.high_margin", "FTLE far from the boundary", "nats/layer", "ftle"),
        Feature("ftle.contrast", "ridge contrast (near − far)", "nats/layer", "ftle", True),
        Feature("ftle.quantile_low", "lowest FTLE quantile", "nats/layer", "ftle"),
        Feature("ftle.quantile_high", "highest FTLE quantile", "nats/layer", "ftle"),
        _secondary("ftle.mean_change", "change of the mean FTLE", "nats/layer", "ftle"),
        _secondary("ftle.std_change", "change of the spread of FTLEs", "nats/layer", "ftle"),
        Feature("gradient_norm", "gradient norm", "1", "norms"),
        Feature("weight_norm", "weight norm", "1", "norms"),
        Feature("loss.train", "training loss", "nats", "loss"),
        Feature(LOSS_SEEN, "validation loss seen", "nats", "loss", True),
        _secondary("loss.slope", "relative change of the loss in the last epoch", "1", "loss"),
        _secondary("loss.bend", "change of that slope", "1", "loss"),
        _secondary("loss.drop", "relative change of the loss since the start", "1", "loss"),
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


@kept
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
    changed = {**_changes(view, table), **_of_curves(view)}
    table = table.join(pd.DataFrame(changed, index=table.index)) if changed else table
    finite = table.where(np.isfinite(table))
    return finite[[name for name in FEATURES if name in finite and finite[name].notna().any()]]


def measured(table: pd.DataFrame) -> list[str]:
    """Those columns of a feature table that are of the spectrum or the FTLEs."""
    return [name for name in map(str, table) if FEATURES[name].group in ("spectrum", "ftle")]


def primary(table: pd.DataFrame) -> list[str]:
    """Those columns of a feature table that tables of correlations show."""
    return [name for name in map(str, table) if not FEATURES[name].is_secondary]


def sorted_spectra(view: EarlyView, num_places: int) -> pd.DataFrame:
    """Each spectrum, largest first, read off at the same places i/N: trials by places.

    Straight lines between exponents, so that widths compare. Trials whose spectrum holds an
    infinite exponent, or was taken of a part of the state only, are left out where others' are
    whole: their places are not the same.
    """
    share = {t: s.size / view.state_sizes[t] for t, s in view.arrays("lyapunov.spectrum").items()}
    places, rows = np.linspace(0, 1, num_places), {}
    for trial, spectrum in view.arrays("lyapunov.spectrum").items():
        if (
            spectrum.size > 1
            and np.isfinite(spectrum).all()
            and (share[trial] == 1 or len(set(share.values())) == 1)
        ):
            at = np.linspace(0, 1, spectrum.size)
            rows[trial] = np.interp(places, at, -np.sort(-spectrum))
    return pd.DataFrame.from_dict(rows, orient="index", columns=range(num_places))


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


@kept
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
    if column.dtype.kind in "biuf":
        return not column.isna().any()
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
            "lyapunov.skewness": moments["skewness"],
            **_of_shape(spectra, state_size),
        }
        num_top = -(-state_size // _TOP_PART)
        if num_top <= size:
            columns["lyapunov.top_mean"] = spectra[:, :num_top].mean(axis=1)
        if size > 1:
            columns["lyapunov.gap"] = derived.gaps(spectra)[:, 0]
        for name, column in columns.items():
            found.setdefault(name, {}).update(zip(trials, column.tolist(), strict=True))
    return found


def _of_shape(spectra: np.ndarray, state_size: int) -> dict[str, np.ndarray]:
    """Slope over i/N, and shares near 0 as far as the exponents measured reach."""
    size = spectra.shape[1]
    place = np.arange(size) / state_size
    place = place - place.mean()
    found = {"lyapunov.slope": spectra @ place / (place @ place)} if size > 1 else {}
    for name, threshold in _THRESHOLDS.items():
        near = (np.abs(spectra) <= threshold).mean(axis=1)
        # Exponents that were not measured lie below: they count as far only where the last
        # measured one is far below 0 already.
        is_known = (size == state_size) | (spectra[:, -1] < -threshold)
        is_known &= np.isfinite(spectra[:, 0])
        found[name] = np.where(is_known, near * size / state_size, np.nan)
    return found


def _changes(view: EarlyView, table: pd.DataFrame) -> dict[str, pd.Series]:
    """Differences to the former rung at which the trial was measured."""
    wanted = {name: name.removesuffix("_change") for name in FEATURES if name.endswith("_change")}
    rows = view.scalars[view.scalars["quantity"].isin(wanted.values())]
    before = rows[rows["epoch"] < view.epoch].sort_values("epoch")
    if before.empty:
        return {}
    former = before.groupby(["trial", "quantity"])["value"].last().unstack().reindex(table.index)
    return {
        name: table[of] - former[of]
        for name, of in wanted.items()
        if of in table and of in former and np.isfinite(former[of]).any()
    }


def _of_curves(view: EarlyView) -> dict[str, pd.Series]:
    """Slope, bend and whole drop of the validation loss, as logarithms of ratios."""
    rows = view.scalars[view.scalars["quantity"] == "val_loss"]
    curve = rows.pivot_table(index="trial", columns="epoch", values="value", aggfunc="last")
    curve = curve.reindex(view.trials)
    if curve.shape[1] < 2 or not (curve.to_numpy()[np.isfinite(curve.to_numpy())] > 0).all():
        return {}
    epochs = curve.columns.to_numpy(float)
    logged = np.log(curve.to_numpy(float))
    steps = np.diff(logged, axis=1) / np.diff(epochs)
    found = {"loss.slope": steps[:, -1]}
    if steps.shape[1] > 1:
        found["loss.bend"] = steps[:, -1] - steps[:, -2]
        found["loss.drop"] = logged[:, -1] - logged[:, 0]
    return {name: pd.Series(values, index=curve.index) for name, values in found.items()}


def _of_quantiles(view: EarlyView) -> dict[str, dict[int, float]]:
    quantiles = {t: q for t, q in view.arrays("ftle.quantiles").items() if q.size}
    return {
        "ftle.quantile_low": {t: float(q.min()) for t, q in quantiles.items()},
        "ftle.quantile_high": {t: float(q.max()) for t, q in quantiles.items()},
    }
