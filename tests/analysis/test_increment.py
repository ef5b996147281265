import math

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel

from analysis import increment as inc
from analysis import smoothing
from analysis.increment import increment, normal_scores
from analysis.statistics import benjamini_hochberg, error_gain

N = 70


def made(seed: int = 0, effect: float = 0.0) -> tuple[pd.Series, pd.DataFrame, pd.DataFrame]:
    """A target that bends with two settings; a group that follows one of them, and a trait."""
    rng = np.random.default_rng(seed)
    B = rng.uniform(-1.7, 1.7, (N, 2))
    trait = rng.normal(size=N)
    y = np.tanh(2 * B[:, 0]) + B[:, 1] ** 2 + 0.4 * rng.normal(size=N) + effect * trait
    follows = np.sin(2 * B[:, 0])
    G = np.column_stack([follows + trait, trait + 0.3 * rng.normal(size=N), rng.normal(size=N)])
    return pd.Series(y), pd.DataFrame(B, columns=["a", "b"]), pd.DataFrame(G, columns=list("uvw"))


def small(y: pd.Series, B: pd.DataFrame, G: pd.DataFrame) -> inc.Increment:
    return increment(y, B, G, num_permutations=99, num_folds=5, num_repeats=1)


def test_an_effect_is_found_and_its_absence_is_not() -> None:
    found, none = small(*made(effect=0.6)), small(*made())
    assert found.gain.p == 0.01
    assert found.gain.low > 0.1
    assert found.explained > 0.3
    assert found.trials_needed < N
    assert none.gain.p > 0.05
    assert none.gain.value < 0.02
    assert found.group_squares is not None
    assert found.baseline_squares is not None
    ratio = found.group_squares.mean() / found.baseline_squares.mean()
    assert found.gain.value == pytest.approx(1 - math.sqrt(ratio))


def test_more_explained_is_more_often_found() -> None:
    found = small(*made())
    assert list(found.power) == sorted(found.power)
    assert found.power[0] < 0.3
    assert found.power[-1] > 0.9
    assert found.power_at(found.detectable) == pytest.approx(0.8)
    assert found.power_at(0) == 0.05


def test_what_the_baseline_determines_cannot_add() -> None:
    y, B, _ = made()
    G = pd.DataFrame({"u": np.tanh(B["a"]), "v": B["b"] ** 2 + B["a"]})
    found = small(y, B, G)
    assert found.determined > 0.99
    assert math.isnan(found.gain.p)
    assert "the baseline determines the group" in found.gain.problem


def test_units_do_not_matter() -> None:
    y, B, G = made(effect=0.3)
    one, two = small(y, B, G), small(3 * y - 7, 10 * B + 1, G * [1e-3, 50, 2] + 4)
    assert two.gain.value == pytest.approx(one.gain.value, rel=1e-6)
    assert two.gain.p == one.gain.p


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y, B, G: (y[:20], B, G), "20 trials, 30 are needed"),
        (lambda y, B, G: (y * 0, B, G), "the target hardly varies"),
        (lambda y, B, G: (y, B, G * 0), "no feature of the group varies"),
        (lambda y, B, G: (y, B, G.iloc[:20]), "no feature of the group varies"),
    ],
)
def test_what_cannot_be_tested_is_said(change, words: str) -> None:  # type: ignore[no-untyped-def]
    found = small(*change(*made()))
    assert found.gain.problem == f"not computable: {words}"
    assert math.isnan(found.gain.value)


def test_trials_with_gaps_are_left_out_and_no_baseline_is_a_baseline() -> None:
    y, B, G = made(effect=0.6)
    G.loc[3, "u"] = np.nan
    found = small(y, B[[]], G)
    assert found.gain.n == N - 1
    assert found.determined < 0.05
    assert found.gain.p < 0.05


def test_the_closed_forms_are_the_slow_ones() -> None:
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(25, 2)), rng.normal(size=25)
    K, unit = smoothing.parts(Z, 2)
    weights = rng.uniform(0.1, 1, len(K))
    smoother = smoothing.Smoother(smoothing.weighted(K, weights))
    slow = np.empty(25)
    for i in range(25):
        rest = np.arange(25) != i
        part = smoothing.Smoother(np.tensordot(weights, K[:, rest][:, :, rest], 1))
        cross, _ = smoothing.between(Z[rest], Z[[i]], 2, unit)
        slow[i] = y[i] - (part.beyond(np.tensordot(weights, cross, 1), 0.5) @ y[rest])[0]
    np.testing.assert_allclose(smoother.left_out(0.5) @ y, slow, atol=1e-9)


def test_the_smoother_is_a_gaussian_process() -> None:
    rng = np.random.default_rng(0)
    Z, new = rng.normal(size=(30, 1)), rng.normal(size=(4, 1))
    y = np.sin(2 * Z[:, 0]) + 0.1 * rng.normal(size=30)
    K = np.exp(-((Z - Z.T) ** 2) / 2)
    # An intercept that is free is a constant kernel without bound.
    kernel = RBF(1.0, "fixed") + WhiteKernel(0.3, "fixed")
    reference = GaussianProcessRegressor(1e6 * RBF(1e9, "fixed") + kernel, optimizer=None)
    mean = reference.fit(Z, y).predict(new)
    found = smoothing.Smoother(K).beyond(np.exp(-((new - Z.T) ** 2) / 2), 0.3) @ y
    np.testing.assert_allclose(found, mean, atol=1e-5)  # 1e6 is not infinity


def test_ridge_on_many_designs_is_ridge_on_each() -> None:
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(3, 40, 4)), rng.normal(size=(3, 40))
    y += X[..., 0]
    X, y = X - X.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    found = inc._RidgeFit.of(X).coefficients(y)
    for design, target, beta in zip(X, y, found, strict=True):
        slow = []
        for penalty in inc._RIDGE:
            inverse = np.linalg.inv(design.T @ design + penalty * np.eye(4))
            fitted = design @ inverse @ design.T
            score = ((target - fitted @ target) ** 2).sum() / (39 - np.trace(fitted)) ** 2
            slow.append((score, *(inverse @ design.T @ target)))
        np.testing.assert_allclose(beta, min(slow)[1:], atol=1e-9)


def test_gain_of_errors() -> None:
    rng = np.random.default_rng(0)
    base = rng.chisquare(1, 200)
    better = error_gain(base, 0.5 * base)
    assert better.value == pytest.approx(1 - math.sqrt(0.5))
    assert better.low == pytest.approx(better.high)
    same = error_gain(base, rng.permutation(base))
    assert same.low < 0 < same.high
    assert same.p > 0.05
    assert "not computable" in error_gain(base[:3], base[:3]).problem


def test_the_interval_of_the_gain_covers() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(60):
        e = rng.normal(size=(120, 2))
        base, group = e[:, 0] ** 2, (0.6 * e[:, 0] + 0.4 * e[:, 1]) ** 2
        found = error_gain(base, group)
        inside += found.low <= 1 - math.sqrt(0.52) <= found.high
    assert 51 <= inside <= 60  # 95 % of 60 are 57; 51 or fewer happen once in 150 times


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, 0.04, np.nan, 0.04, 0.02])


def test_normal_scores_keep_order_and_gaps() -> None:
    scores = normal_scores(pd.Series([3.0, np.nan, 1.0, 1e9]))
    assert list(np.argsort(scores.dropna().to_numpy())) == [1, 0, 2]
    assert math.isnan(scores.iloc[1])
    assert scores.sum() == pytest.approx(0)
