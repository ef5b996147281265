"""Numbers read off spectra, on spectra small enough to do by hand."""

import math

import numpy as np
import pytest

from pipeline.dynamics import derived

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("exponents", "dimension", "expected"),
    [
        ([0.906, 0.0, -14.57], 3, 2 + 0.906 / 14.57),  # Lorenz-63
        ([0.42, -1.62], 2, 1 + 0.42 / 1.62),  # Hénon
        ([-0.1, -0.2], 2, 0.0),
        ([0.3, 0.1], 2, 2.0),
        ([0.3, 0.1], 5, NAN),
        ([0.3, -INF], 2, 1.0),
        ([0.0, -1.0], 2, 1.0),
        ([-1.62, 0.42], 2, 1 + 0.42 / 1.62),
        ([0.3, NAN], 2, NAN),
    ],
)
def test_kaplan_yorke(exponents, dimension, expected):
    got = derived.kaplan_yorke(exponents, dimension)
    assert float(got) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_entropy_bound_needs_a_negative_exponent_unless_all_are_there():
    assert derived.entropy_bound([0.5, 0.2, -1], 9) == pytest.approx(0.7)
    assert derived.entropy_bound([0.5, 0.2], 2) == pytest.approx(0.7)
    assert np.isnan(derived.entropy_bound([0.5, 0.2], 9))


def test_leading_axes_are_kept():
    rng = np.random.default_rng(0)
    spectra = rng.normal(size=(4, 3, 6))
    features = derived.features(spectra, 6, near_zero_threshold=0.1)
    for name, value in features.items():
        assert value.shape == (4, 3), name
        alone = derived.features(spectra[1, 2], 6, near_zero_threshold=0.1)[name]
        assert value[1, 2] == pytest.approx(float(alone)), name
    assert derived.gaps(spectra).shape == (4, 3, 5)


def test_moments_of_a_symmetric_spectrum():
    found = derived.moments([1.0, 0.0, -1.0])
    assert found["mean"] == 0
    assert found["std"] == pytest.approx(math.sqrt(2 / 3))
    assert found["skewness"] == pytest.approx(0)
    assert found["kurtosis"] == pytest.approx(1.5 - 3)


def test_minus_infinity_is_ordered_and_summed_but_has_no_moments():
    found = derived.features([0.01, -0.02, -INF], 3, near_zero_threshold=0.05)
    assert found["max"] == 0.01
    assert found["min"] == -INF
    assert found["sum"] == found["mean"] == -INF
    assert np.isnan(found["std"])
    assert found["near_zero"] == 2


def test_nan_is_never_averaged_away():
    found = derived.features([[0.1, NAN, -1.0]], 3, near_zero_threshold=0.05)
    assert all(np.isnan(value).all() for value in found.values()), found
