"""Is more always better? Whether the final loss turns as a feature of the spectrum rises.

A correlation sees a slope only. Here normal scores of the final loss are regressed on normal scores
z of the feature and on z²: a square that adds says that the relation bends. Errors of the
coefficients are robust (HC3, MacKinnon & White 1985; by configuration where trials share one).
Where it turns is read off a cubic in the feature itself, its outer 2 % drawn in, with a bootstrap
interval: the turn of the parabola in z lies elsewhere, as ranks stretch the axis. A bend may be a
setting's doing as a slope may, so it is tested with settings held fixed too. Of exponents on both
sides of 0, |λ| is held against λ (Meng, Rosenthal & Rubin 1992).
"""

import math
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from analysis import configurations, words
from analysis import features as ft
from analysis.correlations import covariates, early_epochs
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.increment import normal_scores
from analysis.statistics import holm

MIN_TRIALS = 20
_LEVEL = 0.05
_INSIDE = (0.05, 0.95)  # quantiles of the feature between which a turn counts as seen
_DRAWN_IN = (0.02, 0.98)
_NUM_RESAMPLES = 399
_LEAST = 0.1  # share of trials on the rarer side of 0 for |λ| to be another feature than λ
_WITH_A_SIGN = ("lyapunov.max", "ftle.mean")


@lru_cache(maxsize=2)
def curvature(frame: SweepFrame) -> pd.DataFrame:
    """One line an (epoch, feature of spectrum or FTLEs), over the trials with a final loss.

    Columns: epoch, feature, label, unit, n; slope, square (per normal score), square_p,
    square_held_p (settings held fixed); turn with turn_low, turn_high (where square_p < .05), in
    the feature's unit; turns (whether it lies among the trials), is_lowest (the loss is least
    there); size, plain (rank correlations of |λ| and λ), size_p (of their difference); each p with
    _holm.
    """
    known, target, lines = ft.described(frame), frame.target, []
    numbers = configurations.numbered(frame.params)
    for epoch in frame.measured_epochs:
        view = ft.early_view(frame, epoch)
        table = ft.features(view)
        table = table.reindex(frame.target_at(epoch).index.intersection(table.index))
        settings = ft.hyperparameters(view).reindex(table.index)
        for name in ft.primary(table):
            if ft.FEATURES[name].group not in ("spectrum", "ftle"):
                continue
            x = table[name].dropna()
            if len(x) < MIN_TRIALS or x.nunique() < 5 or target[x.index].nunique() < 5:
                continue
            about = {"epoch": epoch, "feature": name, "label": known[name].label}
            line = {**about, "unit": known[name].unit, "n": len(x)}
            together = configurations.among(numbers, x.index)
            line |= _bend(x, target[x.index], settings.loc[x.index], together)
            if name in _WITH_A_SIGN:
                line |= _size(x.to_numpy(), target[x.index].to_numpy())
            lines.append(line)
    result = pd.DataFrame(lines)
    for column in ("square_p", "square_held_p", "size_p"):
        if len(result):
            p = result[column] if column in result else pd.Series(math.nan, index=result.index)
            result[column] = p.astype(float)
            result[f"{column}_holm"] = holm(p.to_numpy(float))
    return result


def bends(frame: SweepFrame) -> tuple[str, ...]:
    """A sentence where an early square passes Holm's test and turns among the trials; else ()."""
    table = curvature(frame)
    if table.empty:
        return ()
    early = table[table["epoch"].isin(early_epochs(frame)) & table["turns"].astype(bool)]
    passing = early[early["square_p_holm"] < _LEVEL]
    if passing.empty:
        return ()
    row = passing.iloc[int(passing["square_p"].to_numpy(float).argmin())]
    unit = "" if row["unit"] == "1" else f" {row['unit']}"
    held = row["square_held_p_holm"]
    if not math.isfinite(held):
        stays = ""
    elif held < _LEVEL:
        stays = "; it bends with the settings held fixed too"
    else:
        stays = (
            f"; with the settings held fixed no bend is left that could be told "
            f"({words.p_phrase(held)}), so the settings may make it"
        )
    return (
        f"More is not always better or worse: the final loss is "
        f"{'lowest' if row['is_lowest'] else 'highest'} where the {row['label']} "
        f"{when(int(row['epoch']))} is near {turning(row)}{unit} (a square of its normal scores "
        f"adds to the line, {words.p_phrase(row['square_p_holm'])} after Holm's correction for "
        f"{int(table['square_p'].notna().sum())} tests{stays}).",
    )


def turning(row: pd.Series) -> str:
    """Where it turns, with its interval."""
    low, high = row["turn_low"], row["turn_high"]
    at = words.significant(row["turn"], 3)
    if not math.isfinite(low):
        return at
    return f"{at} [{words.significant(low, 3)}, {words.significant(high, 3)}]"


def _bend(
    x: pd.Series, target: pd.Series, settings: pd.DataFrame, together: np.ndarray | None
) -> dict[str, object]:
    z, y = normal_scores(x).to_numpy(), normal_scores(target).to_numpy()
    X = np.column_stack([z, z**2])
    (b, c), V, df = _robust(X, y, together)
    line: dict[str, object] = {"slope": b, "square": c, "square_p": _p(c, V[1, 1], df)}
    num_units = len(x) if together is None else len(np.unique(together))
    Z = covariates(settings, num_units).Z.to_numpy()
    held = math.nan
    if Z.shape[1] and num_units - Z.shape[1] >= 10:
        (_, c_held), V_held, df_held = _robust(np.hstack([X, Z]), y, together, keep=2)
        held = _p(c_held, V_held[1, 1], df_held)
    line["square_held_p"] = held
    ordinary = line["square_p"]
    is_seen = isinstance(ordinary, float) and ordinary < _LEVEL
    turn, low, high = _turning(x.to_numpy(float), y, c > 0, together, is_seen)
    among = x.quantile(_INSIDE)
    return {
        **line,
        "turn": turn,
        "turn_low": low,
        "turn_high": high,
        "turns": bool(among.iloc[0] <= turn <= among.iloc[1]),
        "is_lowest": bool(c > 0),
    }


def _turning(
    x: np.ndarray, y: np.ndarray, is_lowest: bool, together: np.ndarray | None, is_seen: bool
) -> tuple[float, float, float]:
    """Where a cubic is least, or most, among the trials; bounds where `is_seen` asks for them."""
    drawn_in = np.clip(x, *np.quantile(x, _DRAWN_IN))
    centre, spread = drawn_in.mean(), max(float(drawn_in.std()), 1e-12)
    w = (drawn_in - centre) / spread
    X = np.vander(w, 4)
    rng, n = np.random.default_rng(0), len(x)
    unit = np.arange(n) if together is None else np.unique(together, return_inverse=True)[1]
    G = int(unit.max()) + 1
    counts = np.ones((1 + (_num_resamples(n) if is_seen else 0), n))
    for row in counts[1:]:
        row[:] = np.bincount(rng.integers(0, G, G), minlength=G)[unit]
    A = np.einsum("bn,ni,nj->bij", counts, X, X, optimize=True) + 1e-9 * n * np.eye(4)
    beta = np.linalg.solve(A, ((counts * y) @ X)[..., None])[..., 0]
    grid = np.linspace(w.min(), w.max(), 201)
    values = beta @ np.vander(grid, 4).T
    at = grid[values.argmin(axis=1) if is_lowest else values.argmax(axis=1)] * spread + centre
    if not is_seen:
        return float(at[0]), math.nan, math.nan
    low, high = np.quantile(at[1:], [0.025, 0.975])
    return float(at[0]), float(low), float(high)


def _num_resamples(n: int) -> int:
    return min(_NUM_RESAMPLES, max(99, 400_000 // n))


def _robust(
    X: np.ndarray, y: np.ndarray, together: np.ndarray | None, keep: int | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Least squares with intercept: first coefficients, their covariance, degrees of freedom."""
    X = np.column_stack([X, np.ones(len(X))])
    # Columns that others make up (a square of two values) share their part.
    bread = np.linalg.pinv(X.T @ X)
    beta = bread @ (X.T @ y)
    rank = int(np.linalg.matrix_rank(X))
    rest = y - X @ beta
    if together is None:
        leverage = np.einsum("ij,jk,ik->i", X, bread, X)
        scores, df = X * (rest / np.maximum(1e-6, 1 - leverage))[:, None], len(y) - rank
    else:
        scores = configurations.sums(X * rest[:, None], together)
        scores *= math.sqrt(len(scores) / max(1, len(scores) - rank))
        df = max(1, len(scores) - rank)
    V = bread @ (scores.T @ scores) @ bread
    k = keep or X.shape[1] - 1
    return beta[:k], V[:k, :k], df


def _p(value: float, variance: float, df: int) -> float:
    if not variance > 0:
        return math.nan
    return float(2 * stats.t.sf(abs(value) / math.sqrt(variance), df))


def _size(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """Rank correlations of |x| and of x, and p of their strengths being equal."""
    share = min((x > 0).mean(), (x < 0).mean())
    if share < _LEAST:
        return {"size": math.nan, "plain": math.nan, "size_p": math.nan}
    size, plain = (float(stats.spearmanr(v, y).statistic) for v in (np.abs(x), x))
    tie = float(stats.spearmanr(np.abs(x), x).statistic)
    tie = abs(tie) if size * plain * tie >= 0 else -abs(tie)
    r1, r2 = (min(abs(r), 1 - 1e-9) for r in (size, plain))
    mean = (r1 * r1 + r2 * r2) / 2
    f = min(1.0, (1 - tie) / (2 * (1 - mean)))
    h = (1 - f * mean) / (1 - mean)
    spread = 2 * (1 - tie) * h / (len(x) - 3)
    z = (math.atanh(r1) - math.atanh(r2)) / math.sqrt(spread) if spread > 0 else 0.0
    return {"size": size, "plain": plain, "size_p": float(2 * stats.norm.sf(abs(z)))}
