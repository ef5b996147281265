"""Differences, slopes and least cases against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.studies.over_seeds import Mean
from analysis.studies.storm_statistics import difference, least_case, slopes

rng = np.random.default_rng(3)


def test_difference_is_welchs():
    a, b = rng.normal(1, 2, 7), rng.normal(0, 0.5, 5)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found[1:] == pytest.approx((expected.low, expected.high))


def test_difference_without_scatter_and_without_networks():
    assert difference([2.0, 2.0], [1.0, 1.0]) == Mean(1.0, 1.0, 1.0)
    alone = difference([2.0], [1.0, 3.0])
    assert alone.value == 0.0
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_a_slope_is_that_of_a_line():
    x = np.arange(9.0)
    y = 0.3 * x + rng.normal(0, 1, 9)
    line = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 7) * line.stderr
    found = slopes({"x": x}, y)["x"]
    assert found == pytest.approx((line.slope, line.slope - half, line.slope + half))


def test_two_slopes_are_told_apart():
    x, z = rng.normal(size=40), rng.normal(size=40)
    found = slopes({"x": x, "z": z}, 2 * x - 0.5 * z + 7)
    assert found["x"].value == pytest.approx(2)
    assert found["z"].value == pytest.approx(-0.5)
    assert math.isnan(slopes({"x": x[:2]}, x[:2])["x"].low)


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        (Mean(0.5, 0.2, 0.8), "reproduced"),
        (Mean(0.0, -0.2, 0.2), "not reproduced"),
        (Mean(-0.5, -0.8, -0.2), "not reproduced"),
        (Mean(0.5, math.nan, math.nan), "not reproduced"),
    ],
)
def test_the_least_case_decides(second, verdict):
    found = least_case("claim", {"A": Mean(2.0, 1.0, 3.0), "B": second}, "It is")
    assert found.verdict == verdict
    assert found.effect == second.value
    assert " at B; the largest of 2 is 2." in found.found


def test_reversed_means_everywhere():
    cases = {"A": Mean(-2.0, -3.0, -1.0), "B": Mean(-0.5, -0.6, -0.4)}
    assert least_case("claim", cases, "It is").verdict == "reversed"
