"""The published grid of LSTMs once more: what its spectra tell, and what the learning rate does.

Vogt et al. (2022) trained dropout × learning rate and found that a largest exponent closer to 0
goes with a lower loss. Beside that correlation stand here the questions that decide what it means:
partial and within-stratum correlations, the losses of the same epochs, baselines that may be
curved, learning rates left out. Thresholds are in bits per step, as published.

Ridge regressions (penalty by exact leave-one-out) and Gaussian processes are plain ones, for
comparison with others' analyses; the report's own increment test is `evidence`'s.

Shapes: n networks, m columns.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from analysis import features as ft
from analysis.frame import AnalysisError, SweepFrame
from analysis.statistics import (
    Estimate,
    correlation,
    error_gain,
    holm,
    partial_correlation,
    within_strata,
)
from pipeline.dynamics import derived

RATE, DROPOUT = "trainer.learning_rate", "network.dropout"
EARLY = 4
SEVEN = ("max", "mean", "std", "above -3", "top-10 mean", "gap", "skewness")
"""Features of an epoch-4 spectrum that regressions are given."""

NUM_PERMUTATIONS = 199
NUM_FOLDS = 10
_LOSS_EPOCHS = (1, 2, 3, 4, 5, 8, 10)
NUM_REPEATS = 5
_PENALTIES = np.logspace(-4, 4, 17)
_CLIP = 6.0


@dataclass(frozen=True)
class Grid:
    """The networks with a final loss.

    Attributes:
        final: last loss, by trial.
        losses: trials by epochs.
        settings: learning rate and dropout.
        spectra: epoch → features of each trial's spectrum, in bits per step.
    """

    final: pd.Series
    losses: pd.DataFrame
    settings: pd.DataFrame
    spectra: Mapping[int, pd.DataFrame]

    @classmethod
    def of(cls, frame: SweepFrame) -> "Grid":
        """Raises AnalysisError where the sweep is no such grid."""
        final = frame.target
        lacking: set[object] = {RATE, DROPOUT}
        lacking -= set(frame.sampled)
        epochs = frame.measured_epochs
        rows = frame.scalars[frame.scalars["quantity"] == "val_loss"]
        losses = rows.pivot_table(index="trial", columns="epoch", values="value")
        lacking |= set(range(1, max(_LOSS_EPOCHS) + 1)) - set(losses)
        if lacking or EARLY not in epochs or len(final) < 2 * NUM_FOLDS:
            raise AnalysisError(
                f"sweep {frame.info.name!r}: must be a grid over {RATE} and {DROPOUT} with spectra "
                f"at epoch {EARLY}, losses of epochs 1 to {max(_LOSS_EPOCHS)} and "
                f"{2 * NUM_FOLDS} finished trials; this one varies "
                f"{', '.join(frame.sampled) or 'nothing'}, measures at epochs "
                f"{', '.join(map(str, epochs)) or 'none'}, ends at epoch {frame.final_epoch} and "
                f"has {len(final)}"
            )
        settings = frame.params.loc[final.index, [RATE, DROPOUT]].astype(float)
        spectra = {e: _features(frame, e).reindex(final.index) for e in epochs}
        return cls(final, losses.reindex(final.index), settings, spectra)

    @property
    def rate(self) -> np.ndarray:
        """Learning rates, (n,)."""
        return self.settings[RATE].to_numpy()


def _features(frame: SweepFrame, epoch: int) -> pd.DataFrame:
    found = {}
    for trial, exponents in ft.early_view(frame, epoch).arrays("lyapunov.spectrum").items():
        bits = -np.sort(-exponents) / math.log(2)
        found[trial] = {
            "max": bits[0],
            "mean": bits.mean(),
            "std": bits.std(),
            "above -3": (bits > -3).sum(),
            "above -1": (bits > -1).sum(),
            "top-10 mean": bits[:10].mean(),
            "top-100 mean": bits[:100].mean(),
            "gap": bits[0] - bits[1],
            "skewness": float(derived.moments(bits)["skewness"]),
        }
    return pd.DataFrame.from_dict(found, orient="index").astype(float)


def numbers(frame: SweepFrame, *, regressions: bool = True) -> pd.DataFrame:
    """Every number, one line each: section, what, n, value, low, high, p, p_holm, note.

    p_holm is over the features of one epoch. Without `regressions`, a matter of seconds. Raises
    AnalysisError.
    """
    grid = Grid.of(frame)
    lines = [
        *_marginal(grid),
        *_last_seen(grid),
        *_top_decile(grid),
        *_confounding(grid),
        *_partial(grid),
        *_strata(grid),
        *_shape(grid),
        *_thresholds(grid),
    ]
    if regressions:
        lines += [*_cross_validated(grid), *_increments(grid)]
    table = pd.DataFrame(lines)
    table["note"] = table["note"].fillna("")
    for _, part in table[table["section"] == "spearman with final loss"].groupby("epoch"):
        table.loc[part.index, "p_holm"] = holm(part["p"].to_numpy(float))
    return table.drop(columns="epoch")


Line = dict[str, object]


def _line(section: str, what: str, found: Estimate | float, n: int = 0, **more: object) -> Line:
    if isinstance(found, Estimate):
        rest: Line = {"value": found.value, "low": found.low, "high": found.high, "p": found.p}
        return {"section": section, "what": what, "n": found.n, **rest, **more}
    return {"section": section, "what": what, "n": n, "value": float(found), **more}


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(stats.spearmanr(x, y).statistic)


def _marginal(grid: Grid) -> Iterator[Line]:
    y = grid.final.to_numpy()
    for epoch, table in grid.spectra.items():
        for name, column in table.items():
            for kind in ("spearman", "pearson"):
                found = correlation(column.to_numpy(), y, kind)
                yield _line(f"{kind} with final loss", f"{name} @{epoch}", found, epoch=epoch)


def _last_seen(grid: Grid) -> Iterator[Line]:
    y = grid.final.to_numpy()
    for epoch in _LOSS_EPOCHS:
        found = correlation(grid.losses[epoch].to_numpy(), y, "spearman")
        yield _line("last-seen loss", f"spearman val{epoch}", found)
    found = correlation(grid.losses[EARLY].to_numpy(), y, "pearson")
    yield _line("last-seen loss", f"pearson val{EARLY}", found)


def _top_decile(grid: Grid) -> Iterator[Line]:
    """Of the tenth that seems best: how much of the best tenth is in it, and its best's regret."""
    n, y = len(grid.final), grid.final.to_numpy()
    k = round(n / 10)
    best = set(np.argsort(y, kind="stable")[:k].tolist())
    early = grid.spectra[EARLY]
    ways = {
        "val4": grid.losses[4],
        "val5": grid.losses[5],
        # Small is taken for good, as the marginal correlations would have it.
        f"max @{EARLY}": -early["max"],
        f"mean @{EARLY}": early["mean"],
    }
    for name, column in ways.items():
        kept = np.argsort(column.to_numpy(), kind="stable")[:k]
        yield _line("top decile", f"recall {name}", len(best & set(kept.tolist())) / k, n)
        yield _line("top decile", f"regret {name}", y[kept].min() - y.min(), n)


def _confounding(grid: Grid) -> Iterator[Line]:
    n, y, dropout = len(grid.final), grid.final.to_numpy(), grid.settings[DROPOUT].to_numpy()
    for epoch, table in grid.spectra.items():
        for name in ("max", "mean"):
            found = correlation(grid.rate, table[name].to_numpy(), "spearman")
            yield _line("confounding", f"spearman learning rate, {name} @{epoch}", found)
    yield _line(
        "confounding", "spearman learning rate, final loss", correlation(grid.rate, y, "spearman")
    )
    at = [_spearman(dropout[s], y[s]) for s in _levels(grid.rate)]
    for word, value in (("lowest", min(at)), ("highest", max(at))):
        what = f"{word} spearman dropout, final loss at a fixed rate"
        yield _line("confounding", what, value, n)


def _partial(grid: Grid) -> Iterator[Line]:
    y = grid.final.to_numpy()
    known = {
        "rate": grid.rate,
        "dropout": grid.settings[DROPOUT].to_numpy(),
        "val4": grid.losses[EARLY].to_numpy(),
    }
    given = (("rate",), ("rate", "dropout"), ("val4",), ("val4", "rate", "dropout"))
    for epoch, table in grid.spectra.items():
        for name in ("max", "mean"):
            for names in given:
                Z = np.column_stack([stats.rankdata(known[g]) for g in names])
                x, what = table[name].to_numpy(), f"{name} @{epoch} | {', '.join(names)}"
                yield _line("partial spearman", what, partial_correlation(x, y, Z, "spearman"))
                Z = np.hstack([Z, (Z - Z.mean(axis=0)) ** 2])
                found = partial_correlation(x, y, Z, "spearman")
                yield _line("partial spearman, squares of ranks too", what, found)


def _strata(grid: Grid) -> Iterator[Line]:
    """Plain means of the strata's correlations, and how many of them are positive."""
    n, y = len(grid.final), grid.final.to_numpy()
    for by, column in (("rate", grid.rate), ("dropout", grid.settings[DROPOUT].to_numpy())):
        for epoch, table in grid.spectra.items():
            x = table["max"].to_numpy()
            each = np.array([_spearman(x[s], y[s]) for s in _levels(column)])
            what = f"max @{epoch} at a fixed {by}"
            yield _line("within strata", f"mean spearman {what}", each.mean(), n)
            yield _line("within strata", f"positive strata, {what}", (each > 0).sum(), n)
            if by == "rate":
                marginal = correlation(x, y, "spearman")
                turns = within_strata(x, y, column, marginal).reverses
                yield _line("within strata", f"the sign turns, {what}", float(turns), n)


def _shape(grid: Grid) -> Iterator[Line]:
    n, y = len(grid.final), grid.final.to_numpy()
    x = grid.spectra[EARLY]["max"].to_numpy()
    for threshold in (-0.4, -0.3):
        part = x > threshold
        found = correlation(x[part], y[part], "spearman")
        yield _line("not monotone", f"spearman max @{EARLY} above {threshold} bits", found)
    for epoch, table in grid.spectra.items():
        x = table["max"].to_numpy()
        a, b, _ = np.polyfit(x, y, 2)
        note = "" if a > 0 else "a maximum, not an optimum"
        yield _line(
            "not monotone", f"quadratic optimum of max @{epoch}", -b / (2 * a), n, note=note
        )
        yield _line("not monotone", f"max @{epoch} of the best network", x[y.argmin()], n)


def _thresholds(grid: Grid) -> Iterator[Line]:
    y, early = grid.final.to_numpy(), grid.spectra[EARLY]
    for name, threshold in (("max", -0.5), ("mean", -4.0)):
        x = early[name].to_numpy()
        for word, part in (("above", x > threshold), ("below", x <= threshold)):
            if part.any():
                what = f"mean final loss, {name} @{EARLY} {word} {threshold} bits"
                yield _line("thresholds", what, y[part].mean(), int(part.sum()))
    for epoch, table in grid.spectra.items():
        share = (table["max"] > 0).sum()
        yield _line("thresholds", f"networks with max @{epoch} above 0", share, len(y))
        share = (table["max"] < -0.5).sum()
        yield _line("thresholds", f"networks with max @{epoch} below -0.5 bits", share, len(y))


def _levels(values: np.ndarray) -> list[np.ndarray]:
    return [values == value for value in np.unique(values)]


def _designs(grid: Grid) -> dict[str, np.ndarray]:
    """Columns that regressions are given, by words, (n, m) each."""
    losses = {e: grid.losses[e].to_numpy() for e in range(1, 8)}
    rate, dropout = np.log(grid.rate), grid.settings[DROPOUT].to_numpy()
    rate, dropout = (v - v.mean() for v in (rate, dropout))
    settings = np.column_stack([rate, dropout, rate**2, dropout**2, rate * dropout])
    spectrum = grid.spectra[EARLY][list(SEVEN)].to_numpy()
    largest = grid.spectra[EARLY][["max"]].to_numpy()

    def val(*epochs: int) -> np.ndarray:
        return np.column_stack([losses[e] for e in epochs])

    def cubic(epoch: int) -> np.ndarray:
        z = (losses[epoch] - losses[epoch].mean()) / losses[epoch].std()
        return np.column_stack([z, z**2, z**3])

    return {
        "val4": val(4),
        "val1-4": val(1, 2, 3, 4),
        "val5": val(5),
        "HP": settings,
        "max4": largest,
        "LE4": spectrum,
        "val4+max4": np.hstack([val(4), largest]),
        "val4+LE4": np.hstack([val(4), spectrum]),
        "HP, uncurved": settings[:, :2],
        "HP+LE4": np.hstack([settings, spectrum]),
        "val1-4+HP": np.hstack([val(1, 2, 3, 4), settings]),
        "val1-4+HP+LE4": np.hstack([val(1, 2, 3, 4), settings, spectrum]),
        "val1-7": val(*range(1, 8)),
        "cubic val4": cubic(4),
        "cubic val5": cubic(5),
        "cubic val4+LE4": np.hstack([cubic(4), spectrum]),
        "cubic val4+HP": np.hstack([cubic(4), settings]),
        "cubic val4+HP+LE4": np.hstack([cubic(4), settings, spectrum]),
    }


_RIDGES = (
    "val4", "val1-4", "val5", "HP", "max4", "LE4", "val4+max4", "val4+LE4", "val1-4+HP",
    "val1-4+HP+LE4", "val1-7", "cubic val4", "cubic val5",
)  # fmt: skip
_PROCESSES = ("val4", "val1-4", "val5", "HP, uncurved", "LE4", "val4+LE4")
_REGIONS = ("val4", "HP", "LE4", "val4+LE4", "cubic val4", "cubic val4+LE4")
_TESTED = {
    "linear val4": ("val4", "val4+LE4"),
    "cubic val4": ("cubic val4", "cubic val4+LE4"),
    "cubic val4 + HP": ("cubic val4+HP", "cubic val4+HP+LE4"),
    "HP": ("HP", "HP+LE4"),
}


def _cross_validated(grid: Grid) -> Iterator[Line]:
    """RMSE, R² and rank correlation of held-out log final losses."""
    y, designs = np.log(grid.final.to_numpy()), _designs(grid)
    folds = _folds(len(y))
    for name in _RIDGES:
        foretold = [_held_out(designs[name], y, each) for each in folds]
        yield from _scores("ridge, 10-fold", name, y, np.array(foretold))
    for name in _PROCESSES:
        foretold = [_held_out(designs[name], y, folds[0], foretell=_process)]
        yield from _scores("Gaussian process, 10-fold", name, y, np.array(foretold))
    regions = _levels(grid.rate)
    for name in _REGIONS:
        foretold = [_held_out(designs[name], y, regions)]
        yield from _scores("ridge, a learning rate left out", name, y, np.array(foretold))


def _increments(grid: Grid) -> Iterator[Line]:
    """How much smaller the error gets with the spectrum; p by permuting what a baseline leaves."""
    y, designs = np.log(grid.final.to_numpy()), _designs(grid)
    n, rng = len(y), np.random.default_rng(0)
    folds, spectrum = _folds(n), designs["LE4"]

    def squares(X: np.ndarray) -> np.ndarray:
        each = [(y - _held_out(X, y, fold)) ** 2 for fold in folds]
        return np.asarray(np.mean(each, axis=0))

    found = {name: squares(X) for name, X in designs.items()}
    for name, (without, with_it) in _TESTED.items():
        B, base = designs[without], found[without]
        gain = error_gain(base, found[with_it])
        line = np.column_stack([np.ones(n), B])
        explained = line @ np.linalg.lstsq(line, spectrum, rcond=None)[0]
        left = spectrum - explained
        null = [
            squares(np.hstack([B, explained + left[rng.permutation(n)]])).sum()
            for _ in range(NUM_PERMUTATIONS)
        ]
        p = (1 + sum(v <= found[with_it].sum() for v in null)) / (1 + NUM_PERMUTATIONS)
        tested = Estimate(gain.value, gain.low, gain.high, p, n)
        yield _line("gain of the epoch-4 spectrum", f"over {name}", tested)
    for later, now in (("val5", "val4+LE4"), ("cubic val5", "cubic val4+LE4")):
        gain = error_gain(found[now], found[later])
        yield _line("one more epoch instead", f"gain of {later} over {now}", gain)


def _scores(section: str, name: str, y: np.ndarray, foretold: np.ndarray) -> Iterator[Line]:
    """`foretold`: (repeats, n); ranks are of the mean over repeats."""
    square, n = ((y - foretold) ** 2).mean(), len(y)
    yield _line(section, f"{name}: RMSE × 10⁴", 1e4 * math.sqrt(square), n)
    yield _line(section, f"{name}: R²", 1 - square / y.var(), n)
    yield _line(section, f"{name}: spearman", _spearman(foretold.mean(axis=0), y), n)


def _folds(n: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(NUM_REPEATS):
        fold = rng.permutation(np.arange(n) % NUM_FOLDS)
        found.append([fold == i for i in range(NUM_FOLDS)])
    return found


Foretell = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def ridge(Z: np.ndarray, y: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Foretells others from Z, (n, m), both of columns scaled alike; penalty by leave-one-out."""
    centre, mean = Z.mean(axis=0), y.mean()
    U, s, Vt = np.linalg.svd(Z - centre, full_matrices=False)
    along = U.T @ (y - mean)
    shrink = s**2 / (s**2 + _PENALTIES[:, None])
    rest = (y - mean) - (shrink * along) @ U.T
    kept = 1 - 1 / len(y) - shrink @ (U**2).T
    best = int(((rest / kept) ** 2).sum(axis=1).argmin())
    slope = Vt.T @ (s / (s**2 + _PENALTIES[best]) * along)
    return np.asarray(mean + (others - centre) @ slope)


def _process(Z: np.ndarray, y: np.ndarray, others: np.ndarray) -> np.ndarray:
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(3.0, (0.3, 1e3))
    with warnings.catch_warnings():
        # A parameter at its bound is an answer as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-4, 1e1)), normalize_y=True)
        return np.asarray(process.fit(Z, y).predict(others))


def _held_out(
    X: np.ndarray, y: np.ndarray, folds: Sequence[np.ndarray], *, foretell: Foretell = ridge
) -> np.ndarray:
    """Each fold foretold from the others; columns scaled as those fitted on were."""
    foretold = np.empty(len(y))
    for out in folds:
        train = X[~out]
        spread = train.std(axis=0)
        Z = ((X - train.mean(axis=0)) / np.where(spread > 0, spread, 1)).clip(-_CLIP, _CLIP)
        foretold[out] = foretell(Z[~out], y[~out], Z[out])
    return foretold
