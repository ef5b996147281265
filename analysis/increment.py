"""Does a group of features foretell anything that the baseline does not? Gain, test and power.

The law tested: given the baseline (settings, loss so far, norms), the final loss does not depend on
the group. The baseline may act through any smooth main effect and any smooth pair of its leading
covariates (`smoothing`), and so may it drive the group. In each fold of repeated cross-validation

1. the target is regressed on the baseline, and so is each column of the group;
2. what the baseline leaves of the target is regressed on what it leaves of the group (ridge, its
   penalty by generalised cross-validation), with leave-one-out errors of the training trials;
3. the held-out trials are foretold without and with step 2.

The statistic is the gain: how much smaller the held-out root-mean-square error is with the group.
Its null distribution is made after Freedman & Lane (1983), applied to the group: the rows of what
the baseline leaves of the group are permuted together, put back on what the baseline explains, and
steps 1 to 3 run again. Under the law such a group is as good as the one observed, provided that (a)
what the baseline leaves of the group is exchangeable among trials (its spread may not follow the
baseline), and (b) target and group depend on the baseline smoothly enough to be learned from n
trials. No test is free of (b) (Shah & Peters 2020). Error in one of the two regressions is harmless
as far as the other is good, since both residuals must share it to look like an effect; the group is
smoothed less than leave-one-out would have it, because what smoothing wrongly takes off costs
little power while what it wrongly leaves in fakes an effect.

Everything that sees a target is done inside the folds. What sees none (scales, ranks, the kernel of
the group) is done once on all trials.

Shapes: n trials, m columns of the group, d covariates, P permutations; the observed group first.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis import configurations, smoothing
from analysis.parallel import products_on_one_core
from analysis.smoothing import Smoother
from analysis.statistics import Estimate, error_gain, not_computable

NUM_PERMUTATIONS = 999
NUM_FOLDS = 10
NUM_REPEATS = 3
MIN_TRIALS = 30
MAX_TRIALS = 600  # kernels grow as n²; beyond, a drawn part of the trials is tested
_MAX_COLUMNS = 8
_UNDERSMOOTHING = 0.3
_NOTHING_LEFT = 0.05  # of a column's standard deviation
_CLIP = 4.0
_RIDGE = np.concatenate([np.logspace(-1, 5, 13), [1e9]])
SHARES = np.array([0.01, 0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5])
_NUM_IMPLANTED = 199  # permuted copies that an effect is implanted in, for the power
_WANTED_POWER = 0.8
_LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Increment:
    """What a group of features adds to a baseline.

    Attributes:
        gain: how much smaller the held-out error is with the group, as a share, with its BCa
            interval over trials (the fitted predictors held fixed); p is the permutation test's,
            one-sided. NaN where `gain.problem` says why.
        determined: share of the group's variance that the baseline explains.
        power: the probability that the test finds (at 5 %), in this very sweep, a group that
            explains so much (`SHARES`) of what the baseline leaves of the target's variance.
        detectable: the smallest such share found with 80 %; NaN beyond the shares tried.
        explained: the share that the gain speaks of, 0 where there is none.
        trials_needed: so many trials would find that share with 80 %; inf where there is none.
        baseline_squares, group_squares: squared held-out errors by trial, mean over repeats.
    """

    gain: Estimate
    determined: float = math.nan
    power: tuple[float, ...] = (math.nan,) * len(SHARES)
    detectable: float = math.nan
    explained: float = math.nan
    trials_needed: float = math.nan
    baseline_squares: pd.Series | None = None
    group_squares: pd.Series | None = None

    def power_at(self, share: float) -> float:
        """The power against a group that explains this share."""
        return float(np.interp(share, [0, *SHARES], [_LEVEL, *self.power]))


@products_on_one_core
def increment(
    target: pd.Series,
    baseline: pd.DataFrame,
    group: pd.DataFrame,
    *,
    num_paired: int | None = None,
    num_permutations: int = NUM_PERMUTATIONS,
    num_folds: int = NUM_FOLDS,
    num_repeats: int = NUM_REPEATS,
    seed: int = 0,
    together: pd.Series | None = None,
) -> Increment:
    """Tests `group` over `baseline` for the trials in `target`'s index.

    Trials that lack a number are left out, columns that a fifth of the trials lack as well. Of the
    baseline's columns the first `num_paired` (all by default) may act in pairs. Trials with one
    number in `together` share a fold, change places together in permutations and are drawn together
    for the interval. Never raises for data: `gain.problem` says what is wrong.
    """
    rng = np.random.default_rng(seed)
    B, G, y = _complete(baseline, group, target, rng)
    n = len(y)
    if n < MIN_TRIALS:
        return Increment(not_computable(f"{n} trials, {MIN_TRIALS} are needed", n))
    if y.nunique() < 3:
        return Increment(not_computable("the target hardly varies", n))
    if G.shape[1] == 0:
        return Increment(not_computable("no feature of the group varies", n))
    K = _kernel(B, baseline, num_paired)
    values = standard(G.to_numpy(float))
    units = None if together is None else together.reindex(y.index).to_numpy()
    drawn = _Drawn.of(K, values, configurations.shuffles(n, num_permutations, rng, units), rng)
    if drawn.num_left == 0:
        return Increment(not_computable("the baseline determines the group", n), drawn.determined)
    total = _Errors.zero(n, num_permutations)
    for _ in range(num_repeats):
        for train, test in configurations.folds(n, num_folds, rng, units):
            _fold(K, drawn, y.to_numpy(float), train, test, total)
    return _conclude(total, drawn, y.index, num_repeats, units)


def baseline_errors(
    target: pd.Series,
    baseline: pd.DataFrame,
    *,
    num_paired: int | None = None,
    num_folds: int = NUM_FOLDS,
    num_repeats: int = NUM_REPEATS,
    seed: int = 0,
    together: pd.Series | None = None,
) -> pd.Series:
    """Squared held-out errors of the baseline alone, by trial; empty for too few trials."""
    rng = np.random.default_rng(seed)
    B, _, y = _complete(baseline, baseline, target, rng)
    n, values = len(y), y.to_numpy(float)
    squares = np.zeros(n)
    if n < MIN_TRIALS:
        return pd.Series(dtype=float)
    K = _kernel(B, baseline, num_paired)
    units = None if together is None else together.reindex(y.index).to_numpy()
    for _ in range(num_repeats):
        for train, test in configurations.folds(n, num_folds, rng, units):
            _, outside = _foretelling(K, values, train, test)
            squares[test] += (values[test] - outside @ values[train]) ** 2 / num_repeats
    return pd.Series(squares, index=y.index)


def standard(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1, (n, m)."""
    centred = values - values.mean(axis=0)
    return np.asarray(centred / values.std(axis=0))


def normal_scores(values: pd.Series) -> pd.Series:
    """Normal quantiles of the ranks: what no outlier can dominate; NaN stays."""
    ranks = values.rank()
    scores = stats.norm.ppf((ranks - 0.5) / ranks.notna().sum())
    return pd.Series(scores, index=values.index, name=values.name)


@dataclass(frozen=True)
class _Drawn:
    """The group and its permuted copies.

    copies: (m, n, P + 1), the observed group first. kernel: its own, (n, n). turn: (m, r), to the
    leading components of what is left. directions: (implanted, n), random effects of unit variance
    along the first copies' rests.
    """

    copies: np.ndarray
    kernel: np.ndarray
    turn: np.ndarray
    directions: np.ndarray
    determined: float
    num_left: int

    @classmethod
    def of(
        cls, K: np.ndarray, values: np.ndarray, orders: np.ndarray, rng: np.random.Generator
    ) -> "_Drawn":
        n, m = values.shape
        kernel = smoothing.weighted(K, smoothing.learn(K, values))
        smoother = Smoother(kernel)
        penalties = smoother.choose(values)
        explained, rest, left_out = np.empty((3, n, m))
        for penalty, these in _by_penalty(penalties):
            H = smoother.hat(penalty)
            explained[:, these] = H @ values[:, these]
            kept = (1 - np.diag(H))[:, None]
            # In-sample residuals are too small by the root of the trial's own leverage.
            rest[:, these] = (values - explained)[:, these] / np.sqrt(kept)
            left_out[:, these] = (values - explained)[:, these] / kept
        rest -= rest.mean(axis=0)
        spread = rest.std(axis=0)
        determined = float(np.clip(1 - (left_out**2).mean(), 0, 1))
        scaled = rest / np.maximum(spread, _NOTHING_LEFT)
        _, s, Vt = np.linalg.svd(scaled, full_matrices=False)
        r = int(min(_MAX_COLUMNS, (s > 1e-3 * s[0]).sum()))
        shuffled = rest[orders]
        implanted = shuffled[:_NUM_IMPLANTED]
        towards = rng.normal(size=(len(implanted), 1, m)) / np.maximum(spread, _NOTHING_LEFT)
        directions = (implanted * towards).sum(axis=2)
        directions /= np.maximum(directions.std(axis=1, keepdims=True), 1e-12)
        copies = np.concatenate([values[None], explained + shuffled]).transpose(2, 1, 0)
        return cls(
            np.ascontiguousarray(copies), kernel, Vt[:r].T, directions, determined,
            int((spread > _NOTHING_LEFT).sum()),
        )  # fmt: skip


@dataclass
class _Errors:
    """Squared held-out errors, summed over repeats.

    baseline: (n,). group: (P + 1,) and, of the observed one, by trial. implanted: with and
    without the group, for each share tried and each permuted copy, (shares, P).
    """

    baseline: np.ndarray
    observed: np.ndarray
    group: np.ndarray
    implanted: np.ndarray
    implanted_baseline: np.ndarray

    @classmethod
    def zero(cls, n: int, P: int) -> "_Errors":
        shape = (len(SHARES), min(P, _NUM_IMPLANTED))
        return cls(np.zeros(n), np.zeros(n), np.zeros(P + 1), np.zeros(shape), np.zeros(shape))


def _fold(
    K: np.ndarray, drawn: _Drawn, y: np.ndarray, train: np.ndarray, test: np.ndarray, to: _Errors
) -> None:
    """Steps 1 to 3 of one fold, for the observed group and all its permuted copies."""
    inside, outside = _foretelling(K, y, train, test)
    rest, held_out = inside @ y[train], y[test] - outside @ y[train]
    centre = rest.mean()
    X, X_test = _left_of_group(drawn, train, test)
    fit = _RidgeFit.of(X)
    beta = fit.coefficients(np.broadcast_to(rest - centre, X.shape[:2]))
    errors = (held_out - np.matmul(X_test, beta[..., None])[..., 0]) ** 2
    to.baseline[test] += held_out**2
    to.observed[test] += errors[0]
    to.group += errors.sum(axis=1)

    # The same with an effect implanted: linear in the target, so only the residuals change.
    size = math.sqrt(float(rest @ rest) / len(rest))
    along, along_test = drawn.directions[:, train], drawn.directions[:, test]
    along, along_test = along @ inside.T, along_test - along @ outside.T
    copies = slice(1, 1 + len(drawn.directions))
    null, X_test = fit.part(copies), X_test[copies]
    for i, share in enumerate(SHARES):
        strength = size * math.sqrt(share / (1 - share))
        y_rest = rest + strength * along
        y_out = held_out + strength * along_test
        beta = null.coefficients(y_rest - y_rest.mean(axis=1, keepdims=True))
        foretold = np.matmul(X_test, beta[..., None])[..., 0]
        to.implanted[i] += ((y_out - foretold) ** 2).sum(axis=1)
        to.implanted_baseline[i] += (y_out**2).sum(axis=1)


def _foretelling(
    K: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices from training targets to their leave-one-out errors and to the others' forecast."""
    # Weighted once and cut then: to cut the parts would take as long as all the rest.
    whole = smoothing.weighted(K, smoothing.learn(K, y[train, None], train))
    smoother = Smoother(whole[np.ix_(train, train)])
    penalty = float(smoother.choose(y[train, None])[0])
    outside = smoother.beyond(whole[np.ix_(test, train)], penalty)
    return smoother.left_out(penalty), outside


def _left_of_group(
    drawn: _Drawn, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the baseline leaves of the group and its copies: (P + 1, n, r) of train and of test."""
    smoother = Smoother(drawn.kernel[np.ix_(train, train)])
    K_test = drawn.kernel[np.ix_(test, train)]
    copies = drawn.copies
    m, _, size = copies.shape
    X, X_test = np.empty((m, len(train), size)), np.empty((m, len(test), size))
    for penalty, these in _by_penalty(smoother.choose(copies[:, train, 0].T)):
        inside, outside = smoother.left_out(penalty), smoother.beyond(K_test, penalty)
        for column in these:
            left = inside @ copies[column][train]
            centre, spread = left.mean(axis=0), max(float(left[:, 0].std()), _NOTHING_LEFT)
            beyond = copies[column][test] - outside @ copies[column][train]
            X[column] = ((left - centre) / spread).clip(-_CLIP, _CLIP)
            X_test[column] = ((beyond - centre) / spread).clip(-_CLIP, _CLIP)
    return X.transpose(2, 1, 0) @ drawn.turn, X_test.transpose(2, 1, 0) @ drawn.turn


@dataclass(frozen=True)
class _RidgeFit:
    """Ridge regressions on many designs at once, X: (P, n, r), each with its own penalty."""

    X: np.ndarray
    s: np.ndarray
    V: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> "_RidgeFit":
        s, V = np.linalg.eigh(np.matmul(X.transpose(0, 2, 1), X))
        return cls(X, np.maximum(s, 0), V)

    def part(self, these: slice) -> "_RidgeFit":
        """Of some of the designs."""
        return _RidgeFit(self.X[these], self.s[these], self.V[these])

    def coefficients(self, rests: np.ndarray) -> np.ndarray:
        """(P, r), for centred targets (P, n), the penalty by generalised cross-validation."""
        n = self.X.shape[1]
        u = np.matmul(self.V.transpose(0, 2, 1), np.matmul(rests[:, None], self.X)[:, 0, :, None])
        u = u[..., 0]
        inverse = 1 / (self.s[:, None] + _RIDGE[:, None])
        shrink = self.s[:, None] * inverse
        fitted = ((u * u)[:, None] * inverse * (2 - shrink)).sum(axis=2)
        left = (rests**2).sum(axis=1)[:, None] - fitted
        free = n - 1 - shrink.sum(axis=2)
        best = (left / free**2).argmin(axis=1)
        chosen = inverse[np.arange(len(best)), best]
        return np.asarray(np.matmul(self.V, (u * chosen)[..., None])[..., 0])


def _conclude(
    total: _Errors, drawn: _Drawn, trials: pd.Index, num_repeats: int, units: np.ndarray | None
) -> Increment:
    n = len(trials)
    base = total.baseline / num_repeats
    observed = total.observed / num_repeats
    gains = 1 - np.sqrt(total.group / total.baseline.sum())
    null = gains[1:]
    P = len(null)
    p = (1 + int((null >= gains[0] - 1e-12).sum())) / (1 + P)
    gain = error_gain(configurations.sums(base, units), configurations.sums(observed, units))
    implanted = 1 - np.sqrt(total.implanted / total.implanted_baseline)
    critical = np.sort(null)[::-1][max(0, int(_LEVEL * (P + 1)) - 1)]
    power = np.maximum.accumulate((implanted > critical).mean(axis=1))
    detectable = _crossing(power)
    explained = max(0.0, 1 - float(observed.sum() / base.sum()))
    needed = n * detectable * (1 - explained) / (1 - detectable) / explained if explained else (
        math.inf)  # fmt: skip
    return Increment(
        Estimate(gain.value, gain.low, gain.high, p, n, gain.interval, "Freedman–Lane permutation"),
        drawn.determined,
        tuple(power.tolist()),
        detectable,
        explained,
        needed,
        pd.Series(base, index=trials),
        pd.Series(observed, index=trials),
    )


def _crossing(power: np.ndarray) -> float:
    """The share at which the power reaches what is wanted; NaN where it does not."""
    if power[-1] < _WANTED_POWER:
        return math.nan
    shares, powers = np.array([0, *SHARES]), np.array([_LEVEL, *power])
    i = int(np.argmax(powers >= _WANTED_POWER))
    step = (_WANTED_POWER - powers[i - 1]) / (powers[i] - powers[i - 1])
    return float(shares[i - 1] + step * (shares[i] - shares[i - 1]))


def _by_penalty(penalties: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    for penalty in np.unique(penalties):
        yield float(penalty) * _UNDERSMOOTHING, np.flatnonzero(penalties == penalty)


def _kernel(B: pd.DataFrame, baseline: pd.DataFrame, num_paired: int | None) -> np.ndarray:
    """The kernel's parts; where nothing of the baseline varies, one that explains nothing."""
    if B.shape[1] == 0:
        return np.eye(len(B))[None] * 1e-9
    paired = baseline.columns[: baseline.shape[1] if num_paired is None else num_paired]
    K, _ = smoothing.parts(standard(B.to_numpy(float)), int(B.columns.isin(paired).sum()))
    return K


def _complete(
    baseline: pd.DataFrame, group: pd.DataFrame, target: pd.Series, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Columns that vary and most trials have, trials that have them all."""
    B, G = baseline.reindex(target.index), group.reindex(target.index)
    B, G = (t.loc[:, t.notna().mean() >= 0.8] for t in (B, G))
    keep = B.notna().all(axis=1) & G.notna().all(axis=1) & target.notna()
    B, G, y = B[keep], G[keep], target[keep]
    if len(y) > MAX_TRIALS:
        rows = np.sort(rng.permutation(len(y))[:MAX_TRIALS])
        B, G, y = B.iloc[rows], G.iloc[rows], y.iloc[rows]
    if len(y) == 0:
        return B, G.iloc[:, :0], y
    B, G = (t.loc[:, t.std(ddof=0) > 1e-9 * (1 + t.abs().max())] for t in (B, G))
    return B, G, y
