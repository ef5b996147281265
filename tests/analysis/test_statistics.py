import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis import resampling
from analysis import statistics as st


def pair(n: int, slope: float = 0.5, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = slope * x + rng.normal(size=n)
    return (np.round(x), np.round(y)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_value_and_p_are_scipys(kind: st.Kind, ties: bool) -> None:
    x, y = pair(40, ties=ties)
    reference = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[kind](x, y)
    found = st.correlation(x, y, kind, num_resamples=50)
    assert found.value == pytest.approx(reference.statistic, abs=1e-12)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (found.test, found.n, found.problem) == ("t", 40, "")


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_exact_p_of_few_trials_is_scipys_permutation_test(kind: st.Kind) -> None:
    x, y = pair(6, seed=3, ties=kind == "spearman")
    statistic = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[kind]
    reference = stats.permutation_test(
        (x,),
        lambda a: statistic(a, y).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
        alternative="two-sided",
    )
    found = st.correlation(x, y, kind, num_resamples=50)
    # scipy doubles the smaller tail; ours counts both tails: equal where the null is symmetric,
    # so compare with the count over all 720 orders instead where it is not.
    values = [statistic(x, y[list(o)]).statistic for o in itertools.permutations(range(6))]
    count = np.mean(np.abs(values) >= abs(reference.statistic) - 1e-12)
    assert found.test == "exact permutation"
    assert found.p == pytest.approx(count, abs=1e-12)


def test_sampled_permutations_agree_with_t_for_normal_data() -> None:
    x, y = pair(19, seed=5)
    found = st.correlation(x, y, "pearson", num_resamples=50)
    assert found.test == "permutation"
    assert found.p == pytest.approx(stats.pearsonr(x, y).pvalue, abs=0.01)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_weighted_correlation_is_that_of_the_repeated_data(kind: st.Kind) -> None:
    x, y = pair(25, ties=True, seed=2)
    rng = np.random.default_rng(1)
    counts = rng.multinomial(25, np.full(25, 1 / 25), size=20).astype(float)
    reference = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[kind]
    expected = [
        reference(np.repeat(x, c.astype(int)), np.repeat(y, c.astype(int))).statistic
        for c in counts
    ]
    np.testing.assert_allclose(resampling.weighted(counts, x, y, kind), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_interval_is_scipys_bca(kind: st.Kind) -> None:
    x, y = pair(60, slope=1.0)
    statistic = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[kind]
    reference = stats.bootstrap(
        (x, y),
        lambda a, b: statistic(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2_000,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = st.correlation(x, y, kind, num_resamples=8_000)
    assert found.interval == "BCa"
    # Two independent resamplings: their quantiles differ by about 0.01.
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.03)


def test_percentile_interval_where_bca_is_undefined() -> None:
    x = np.arange(12.0)
    found = st.correlation(x, 3 * x, "spearman")
    assert (found.value, found.interval) == (1.0, "percentile")
    assert found.low == found.high == 1.0


def test_intervals_cover_at_about_their_level() -> None:
    rng = np.random.default_rng(0)
    true, hits = 0.6, 0
    for seed in range(200):
        x = rng.normal(size=60)
        y = true * x + math.sqrt(1 - true**2) * rng.normal(size=60)
        found = st.correlation(x, y, "pearson", num_resamples=500, seed=seed)
        hits += found.low <= true <= found.high
    assert 0.89 <= hits / 200 <= 0.985  # binomial band around .95, and BCa's small-sample bias


def test_partial_correlation_is_the_recursive_formula() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=50)
    x, y = z + rng.normal(size=50), -z + rng.normal(size=50)
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    (rxy, rxz, ryz) = (np.corrcoef(ranks[i], ranks[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2)))
    expected = (rxy - rxz * ryz) / math.sqrt((1 - rxz**2) * (1 - ryz**2))
    found = st.partial_correlation(x, y, ranks[2][:, None], "spearman")
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_partial_correlation_is_the_inverse_covariance_and_its_p_the_regressions() -> None:
    rng = np.random.default_rng(6)
    Z = rng.normal(size=(40, 3))
    x = Z @ [1.0, 0.5, 0.0] + rng.normal(size=40)
    y = Z @ [0.2, -1.0, 0.3] + 0.4 * x + rng.normal(size=40)
    precision = np.linalg.inv(np.cov(np.column_stack([x, y, Z]).T))
    expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
    found = st.partial_correlation(x, y, Z, "pearson")
    assert found.value == pytest.approx(expected, abs=1e-10)
    X = np.column_stack([x, Z, np.ones(40)])
    weights, rest, *_ = np.linalg.lstsq(X, y, rcond=None)
    spread = math.sqrt(rest[0] / 35 * np.linalg.inv(X.T @ X)[0, 0])
    assert found.p == pytest.approx(2 * stats.t.sf(abs(weights[0]) / spread, 35), rel=1e-8)
    duplicated = np.column_stack([Z, Z[:, 0] - Z[:, 1], np.full(40, 7.0)])
    again = st.partial_correlation(x, y, duplicated, "pearson")
    assert (again.value, again.p) == pytest.approx((found.value, found.p), rel=1e-8)


def test_partial_interval_is_fishers_with_fewer_degrees_of_freedom() -> None:
    low, high = st.fisher_interval(0.5, 43, "pearson")
    half = 1.959963984540054 / math.sqrt(40)
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(0.5) - half), math.tanh(math.atanh(0.5) + half)), abs=1e-12
    )
    wide = st.fisher_interval(0.5, 43, "spearman")
    assert wide[0] < low < high < wide[1]


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0, 2, 3, 4], [1.0, 2, 3, 4], "4 trials"),
        ([1.0, 2, math.nan, 4, 5], [1.0, 2, 3, 4, math.inf], "3 trials"),
        ([2.0] * 8, list(range(8)), "the feature is the same in all 8 trials"),
        (list(range(8)), [2.0] * 8, "the target is the same in all 8 trials"),
    ],
)
def test_what_cannot_be_computed_is_said(x: list[float], y: list[float], reason: str) -> None:
    for found in (
        st.correlation(np.array(x), np.array(y, float), "spearman"),
        st.partial_correlation(
            np.array(x), np.array(y, float), np.random.default_rng(0).normal(size=(len(x), 1)),
            "spearman",
        ),
    ):  # fmt: skip
        assert found.problem.startswith("not computable: ")
        assert reason in found.problem
        assert math.isnan(found.value)
        assert math.isnan(found.p)


def test_partial_correlation_refuses_what_the_covariates_determine() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=30), rng.normal(size=30)
    found = st.partial_correlation(3 * z + 1, y, z[:, None], "pearson")
    assert "determine the feature" in found.problem
    assert "leave nothing" in st.partial_correlation(
        z, y, rng.normal(size=(30, 28)), "pearson"
    ).problem  # fmt: skip


def test_holm_by_hand() -> None:
    adjusted = st.holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, np.nan, 0.06, 0.02])
    np.testing.assert_allclose(st.holm(np.array([0.6, 0.9])), [1, 1])
    assert len(st.holm(np.array([]))) == 0


def test_simpsons_paradox_is_seen() -> None:
    rng = np.random.default_rng(0)
    by = np.repeat([0.0, 1, 2, 3], 15)
    x = 5 * by + rng.normal(size=60)
    y = -5 * by + x - 5 * by + 0.3 * rng.normal(size=60)
    marginal = st.correlation(x, y, "spearman")
    found = st.within_strata(x, y, by, marginal)
    assert marginal.high < 0 < found.pooled.low
    assert found.reverses
    assert (found.num_strata, found.num_positive, found.num_negative) == (4, 4, 0)
    assert found.pooled.value == pytest.approx(
        math.tanh(np.mean([
            math.atanh(stats.spearmanr(x[by == b], y[by == b]).statistic) for b in range(4)
        ])), abs=1e-9,
    )  # fmt: skip


def test_one_sign_everywhere_is_no_paradox() -> None:
    x, y = pair(80, slope=2.0)
    marginal = st.correlation(x, y, "spearman")
    by = np.random.default_rng(9).normal(size=80)
    found = st.within_strata(x, y, by, marginal)
    assert not found.reverses
    assert found.num_strata == 5
    assert found.num_positive == 5


def test_separation_is_mann_whitneys() -> None:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=50) + np.repeat([1.0, 0.0], [15, 35]), 1)
    is_case = np.arange(50) < 15
    reference = stats.mannwhitneyu(x[is_case], x[~is_case])
    found = st.separation(x, is_case)
    assert found.value == pytest.approx(reference.statistic / (15 * 35))
    assert found.p == pytest.approx(reference.pvalue)
    assert 0 <= found.low < found.value < found.high <= 1
    assert "4 cases" in st.separation(x, np.arange(50) < 4).problem


def test_correlation_ratio_of_two_groups_is_the_rank_correlation() -> None:
    x, y = pair(40)
    groups = np.where(y > 0, "a", "b")
    found = st.correlation_ratio(x, groups)
    assert found.value == pytest.approx(abs(stats.spearmanr(x, y > 0).statistic), abs=1e-12)


def test_detectable_correlation_is_detected_at_its_power() -> None:
    rng, n = np.random.default_rng(0), 60
    rho = st.detectable(n)
    found = 0
    for _ in range(400):
        x = rng.normal(size=n)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=n)
        found += stats.spearmanr(x, y).pvalue < 0.05
    # Normal pairs have a rank correlation a little below rho, so a little less power.
    assert 0.68 <= found / 400 <= 0.88
    assert st.detectable(60, 10) > rho > st.detectable(600)
