"""Correlations with their uncertainty: rank and linear, marginal, partial and within strata.

Intervals of marginal correlations are BCa bootstrap intervals over trials (Efron 1987), with
the percentile interval where BCa is undefined. Partial correlations carry Fisher intervals and
t tests whose degrees of freedom count the covariates. Trials that share a configuration
(`together`) are drawn together, and their test allows for what they have in common. Every function
answers an input it cannot treat (constant, too short) with `problem` set and NaN numbers; none
raises for data.

Shapes: n trials, B resamples, k covariate columns.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis import configurations
from analysis.resampling import CHUNK, bca, bootstrap_interval, weighted
from analysis.resampling import Kind as Kind

MIN_TRIALS = 5
_PERMUTATION_BELOW = 20  # Spearman's t approximation is off by more than its use below this
_NUM_PERMUTATIONS = 9_999
_NUM_GAINS = 5_000
_NUM_FLIPS = 1_999
_FIELLER = 1.06  # variance of Fisher's z of a rank correlation, times n - 3 (Fieller 1957)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and test.

    Attributes:
        value: the estimate; NaN where `problem` says why.
        low, high: 95 % interval.
        p: two-sided.
        n: trials that entered.
        interval: how low and high were obtained: "BCa", "percentile", "Fisher z".
        test: how p was obtained: "t", "permutation", "exact permutation".
        problem: "" or "not computable: <reason>".
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    interval: str = ""
    test: str = ""
    problem: str = ""


def not_computable(reason: str, n: int) -> Estimate:
    """The estimate that says why there is none."""
    return Estimate(math.nan, math.nan, math.nan, math.nan, n, problem=f"not computable: {reason}")


def correlation(
    x: np.ndarray,
    y: np.ndarray,
    kind: Kind,
    *,
    num_resamples: int = 2_000,
    seed: int = 0,
    together: np.ndarray | None = None,
) -> Estimate:
    """Correlation of x and y, (n,) each, over the trials where both are finite.

    The interval is a bootstrap's, BCa up to 500 trials, or Fisher's for `num_resamples=0`. p is
    from t with n - 2 degrees of freedom; below 20 trials from permutations of y (all of them up
    to n = 7). With `together`, (n,), trials of one number are drawn as one and p is
    `_shared_test`'s.
    """
    keep = np.isfinite(x) & np.isfinite(y)
    x, y, n = np.asarray(x, float)[keep], np.asarray(y, float)[keep], int(keep.sum())
    units = None if together is None else together[keep]
    reason = _obstacle(x, y, n)
    if reason:
        return not_computable(reason, n)
    rng = np.random.default_rng(seed)
    value = float(weighted(np.ones((1, n)), x, y, kind)[0])
    if num_resamples:
        low, high, interval = bootstrap_interval(value, x, y, kind, num_resamples, rng, units)
    else:
        low, high = fisher_interval(value, _worth(value, x, y, kind, units), kind)
        interval = "Fisher z"
    if units is None:
        p, test = _p_value(value, x, y, kind, rng)
    else:
        p, test = _shared_test(*_centred(x, y, kind), units, 0), "t over configurations"
    return Estimate(value, low, high, p, n, interval, test)


def partial_correlation(
    x: np.ndarray,
    y: np.ndarray,
    Z: np.ndarray,
    kind: Kind,
    *,
    together: np.ndarray | None = None,
) -> Estimate:
    """Correlation of x and y, (n,), after a linear regression of both on Z, (n, k).

    "spearman" ranks x and y first and takes Z as it is: give it ranks, and powers or products
    of ranks where the influence may be curved. Degrees of freedom are n - 2 - rank(Z).
    """
    keep = np.isfinite(x) & np.isfinite(y) & np.isfinite(Z).all(axis=1)
    x, y, Z = np.asarray(x, float)[keep], np.asarray(y, float)[keep], np.asarray(Z, float)[keep]
    n = int(keep.sum())
    reason = _obstacle(x, y, n)
    if reason:
        return not_computable(reason, n)
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    basis = _orthonormal(Z)
    k = basis.shape[1]
    if n - k < 6:
        return not_computable(f"{n} trials leave nothing over {k} covariates", n)
    x_rest, y_rest = _residual(x, basis), _residual(y, basis)
    for name, rest, whole in (("feature", x_rest, x), ("target", y_rest, y)):
        if rest @ rest < 1e-10 * ((whole - whole.mean()) @ (whole - whole.mean())):
            return not_computable(f"the covariates determine the {name}", n)
    value = float(
        np.clip(x_rest @ y_rest / math.sqrt((x_rest @ x_rest) * (y_rest @ y_rest)), -1, 1)
    )
    if together is None:
        low, high = fisher_interval(value, n - k, kind)
        return Estimate(value, low, high, _t_test(value, n - 2 - k), n, "Fisher z", "t")
    units = together[keep]
    if len(np.unique(units)) - k < 6:
        reason = f"{len(np.unique(units))} configurations leave nothing over {k} covariates"
        return not_computable(reason, n)
    worth = _worth(value, x_rest, y_rest, "pearson", units) - k
    low, high = fisher_interval(value, max(worth, 4.0), kind)
    p = _shared_test(*_centred(x_rest, y_rest, "pearson"), units, k)
    return Estimate(value, low, high, p, n, "Fisher z", "t over configurations")


def fisher_interval(value: float, n: float, kind: Kind) -> tuple[float, float]:
    """95 % interval of a correlation over n (effective) trials, n >= 4."""
    spread = math.sqrt((_FIELLER if kind == "spearman" else 1.0) / (n - 3))
    z = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
    half = stats.norm.ppf(0.975) * spread
    return math.tanh(z - half), math.tanh(z + half)


@dataclass(frozen=True)
class Strata:
    """A rank correlation inside strata of a third quantity, against the one across them.

    Attributes:
        num_strata: strata with at least 5 trials and no constant side.
        num_positive, num_negative: signs among them.
        pooled: mean of Fisher's z over strata, weighted by n - 3, with its interval.
        reverses: the pooled correlation and the marginal one have opposite signs and neither
            interval contains 0 (Simpson's paradox).
    """

    num_strata: int
    num_positive: int
    num_negative: int
    pooled: Estimate
    reverses: bool


def within_strata(
    x: np.ndarray,
    y: np.ndarray,
    by: np.ndarray,
    marginal: Estimate,
    *,
    together: np.ndarray | None = None,
) -> Strata:
    """Spearman's correlation of x and y, (n,), within strata of `by`, (n,).

    Strata are the values of `by` where at most ten of them occur; else two to five quantile
    bins of at least ten trials.
    """
    keep = np.isfinite(x) & np.isfinite(y) & np.isfinite(by)
    x, y, by = x[keep], y[keep], by[keep]
    units = np.arange(len(x)) if together is None else together[keep]
    zs, weights = [], []
    for stratum in _strata(by):
        xs, ys, n = x[stratum], y[stratum], int(stratum.sum())
        if _obstacle(xs, ys, n):
            continue
        num_units = len(np.unique(units[stratum]))
        if num_units < MIN_TRIALS:
            continue
        value = float(weighted(np.ones((1, n)), xs, ys, "spearman")[0])
        zs.append(math.atanh(min(max(value, -0.9999), 0.9999)))
        weights.append(num_units - 3)
    pooled = _pool(np.array(zs), np.array(weights))
    signs = np.sign(zs)
    reverses = (
        _excludes_zero(pooled) and _excludes_zero(marginal) and pooled.value * marginal.value < 0
    )
    return Strata(len(zs), int((signs > 0).sum()), int((signs < 0).sum()), pooled, reverses)


def correlation_ratio(x: np.ndarray, groups: np.ndarray) -> Estimate:
    """η, how much of the ranks of x the unordered groups explain, in [0, 1]; p: Kruskal–Wallis."""
    keep = np.isfinite(x)
    x, groups, n = x[keep], groups[keep], int(keep.sum())
    names = np.unique(groups)
    if n < MIN_TRIALS or len(names) < 2 or np.ptp(x) == 0:
        return not_computable("too few trials, one group or a constant feature", n)
    ranks = stats.rankdata(x)
    parts = [ranks[groups == name] for name in names]
    between = sum(len(part) * (part.mean() - ranks.mean()) ** 2 for part in parts)
    value = math.sqrt(between / ((ranks - ranks.mean()) ** 2).sum())
    p = float(stats.kruskal(*parts).pvalue)
    return Estimate(value, math.nan, math.nan, p, n, "none", "Kruskal–Wallis")


def separation(x: np.ndarray, is_case: np.ndarray) -> Estimate:
    """AUC: the probability that a case has the larger x; 0.5 is no separation.

    Interval after DeLong, DeLong & Clarke-Pearson (1988); p of the Mann–Whitney test.
    """
    keep = np.isfinite(x)
    x, is_case, n = x[keep], is_case[keep], int(keep.sum())
    cases, controls = x[is_case], x[~is_case]
    if min(len(cases), len(controls)) < MIN_TRIALS:
        return not_computable(f"{len(cases)} cases and {len(controls)} others, 5 of each needed", n)
    # Midranks among all against midranks among one's own: how many of the others lie below.
    ranks = stats.rankdata(np.concatenate([cases, controls]))
    above = (ranks[: len(cases)] - stats.rankdata(cases)) / len(controls)
    below = 1 - (ranks[len(cases) :] - stats.rankdata(controls)) / len(cases)
    value = float(above.mean())
    variance = above.var(ddof=1) / len(cases) + below.var(ddof=1) / len(controls)
    half = stats.norm.ppf(0.975) * math.sqrt(variance)
    p = float(stats.mannwhitneyu(cases, controls).pvalue)
    return Estimate(
        value, max(0.0, value - half), min(1.0, value + half), p, n, "DeLong", "Mann–Whitney"
    )


def error_gain(baseline: np.ndarray, challenger: np.ndarray, level: float = 0.05) -> Estimate:
    """1 - RMSE ratio of squared errors (n,) on the same trials, with its BCa interval over them.

    p: of exchanging the two errors of a trial at random, two-sided. The predictors that made the
    errors are held fixed: what another training set would have made of them is not in the interval.
    """
    n = len(baseline)
    if n < MIN_TRIALS or baseline.sum() <= 0:
        return not_computable(f"{n} trials with errors, at least {MIN_TRIALS} are needed", n)
    rng = np.random.default_rng(0)
    pair = np.stack([baseline, challenger], axis=1)
    sums = pair.sum(axis=0)
    value = _gain(sums)
    rows, parts = max(1, CHUNK // n), []
    for start in range(0, _NUM_GAINS, rows):
        size = min(rows, _NUM_GAINS - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(_gain(counts @ pair))
    resampled = np.sort(np.concatenate(parts))
    ends, name = bca(float(value), resampled, _gain(sums - pair), level)
    low, high = np.quantile(resampled, ends)
    rest = baseline - challenger
    flips = rng.integers(0, 2, (_NUM_FLIPS, n)) * 2 - 1
    p = (1 + int((np.abs(flips @ rest) >= abs(rest.sum()) - 1e-12).sum())) / (1 + _NUM_FLIPS)
    return Estimate(float(value), float(low), float(high), p, n, name, "sign flips")


def _gain(sums: np.ndarray) -> np.ndarray:
    """1 - RMSE ratio from sums of squared errors, (..., 2)."""
    ratio = sums[..., 1] / np.maximum(sums[..., 0], 1e-300)
    return np.asarray(1 - np.sqrt(np.maximum(ratio, 0)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p values (Benjamini & Hochberg 1995), NaN staying NaN and not counting as a test."""
    adjusted = np.full(len(p), math.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")][::-1]
    ranks = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.minimum.accumulate(p[order] * len(order) / ranks))
    return adjusted


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p values, NaN staying NaN and not counting as a test."""
    adjusted = np.full(len(p), math.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


def detectable(n: int, num_covariates: int = 0, power: float = 0.8) -> float:
    """The smallest partial rank correlation that one test at 5 % finds with this power."""
    free = n - num_covariates - 3
    if free < 1:
        return 1.0
    return math.tanh((stats.norm.ppf(0.975) + stats.norm.ppf(power)) * math.sqrt(_FIELLER / free))


def _obstacle(x: np.ndarray, y: np.ndarray, n: int) -> str:
    if n < MIN_TRIALS:
        return f"{n} trials have both numbers, at least {MIN_TRIALS} are needed"
    if np.ptp(x) == 0:
        return f"the feature is the same in all {n} trials"
    if np.ptp(y) == 0:
        return f"the target is the same in all {n} trials"
    return ""


def _p_value(
    value: float, x: np.ndarray, y: np.ndarray, kind: Kind, rng: np.random.Generator
) -> tuple[float, str]:
    n = len(x)
    if n >= _PERMUTATION_BELOW:
        return _t_test(value, n - 2), "t"
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    if n <= 7:
        orders = np.array(list(itertools.permutations(range(n))))
        return float((np.abs(y[orders] @ x / n) >= abs(value) - 1e-12).mean()), "exact permutation"
    orders = rng.permuted(np.tile(np.arange(n), (_NUM_PERMUTATIONS, 1)), axis=1)
    as_extreme = int((np.abs(y[orders] @ x / n) >= abs(value) - 1e-12).sum())
    return (as_extreme + 1) / (_NUM_PERMUTATIONS + 1), "permutation"


def _centred(x: np.ndarray, y: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Both of mean 0 and variance 1, ranked first for "spearman"."""
    if kind == "spearman":
        x, y = stats.rankdata(x), stats.rankdata(y)
    return (x - x.mean()) / x.std(), (y - y.mean()) / y.std()


def _shared_test(a: np.ndarray, b: np.ndarray, units: np.ndarray, num_covariates: int) -> float:
    """p of no correlation between standard a and b, (n,), whose trials share configurations.

    The sum of their products against the spread of its parts, a configuration each: t with as many
    degrees of freedom as there are configurations, less covariates and one.
    """
    parts = configurations.sums(a * b, units)
    spread = math.sqrt(float(parts @ parts))
    df = len(parts) - 1 - num_covariates
    if spread == 0:
        return 1.0
    return float(2 * stats.t.sf(abs(float(parts.sum())) / spread, df))


def _worth(
    value: float, x: np.ndarray, y: np.ndarray, kind: Kind, units: np.ndarray | None
) -> float:
    """How many independent trials tell the correlation as surely, n where all are independent."""
    n = len(x)
    if units is None:
        return n
    a, b = _centred(x, y, kind)
    pull = a * b - value * (a * a + b * b) / 2
    parts, alone = configurations.sums(pull, units), float(pull @ pull)
    shared = float(parts @ parts)
    return max(4.0, n * min(1.0, alone / shared)) if shared > 0 else float(n)


def _t_test(value: float, df: int) -> float:
    if abs(value) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(value) * math.sqrt(df / (1 - value**2)), df))


def _orthonormal(Z: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the centred columns of Z, dependent ones dropped."""
    centred = Z - Z.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0))
    centred = centred[:, scale > 0] / scale[scale > 0]
    if centred.shape[1] == 0:
        return np.zeros((len(Z), 0))
    U, s, _ = np.linalg.svd(centred, full_matrices=False)
    basis: np.ndarray = U[:, s > 1e-9 * s[0]]
    return basis


def _residual(x: np.ndarray, basis: np.ndarray) -> np.ndarray:
    centred = x - x.mean()
    rest: np.ndarray = centred - basis @ (basis.T @ centred)
    return rest


def _strata(by: np.ndarray) -> list[np.ndarray]:
    values = np.unique(by)
    if len(values) <= 10:
        return [by == value for value in values]
    num_bins = int(np.clip(len(by) // 10, 2, 5))
    edges = np.quantile(by, np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, by, side="right")
    return [bins == i for i in range(num_bins)]


def _pool(z: np.ndarray, weights: np.ndarray) -> Estimate:
    if len(z) == 0:
        return not_computable("no stratum has 5 trials that differ", 0)
    mean = float((weights * z).sum() / weights.sum())
    spread = math.sqrt(_FIELLER / weights.sum())
    half = stats.norm.ppf(0.975) * spread
    p = float(2 * stats.norm.sf(abs(mean) / spread))
    n = int((weights + 3).sum())
    return Estimate(
        math.tanh(mean), math.tanh(mean - half), math.tanh(mean + half), p, n, "Fisher z", "normal"
    )


def _excludes_zero(estimate: Estimate) -> bool:
    return estimate.low > 0 or estimate.high < 0
