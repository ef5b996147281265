import math

import numpy as np
import pandas as pd
import pytest

from analysis import curvature as cv
from analysis.frame import SweepFrame


def bend(x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    trials = pd.Index(range(len(x)))
    nothing = pd.DataFrame(index=trials)
    return cv._bend(pd.Series(x, trials), pd.Series(y, trials), nothing, None)


def test_an_optimum_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 300)
    y = (x - 0.2) ** 2 + 0.1 * rng.normal(size=300)
    found = bend(x, y)
    assert found["square_p"] < 1e-6
    assert found["turns"]
    assert found["is_lowest"]
    assert found["turn_low"] < found["turn"] < found["turn_high"]
    # A cubic of what ranks make of the loss is off by a few hundredths.
    assert found["turn"] == pytest.approx(0.2, abs=0.08)
    assert not bend(x, -y)["is_lowest"]


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_line_is_not_taken_for_a_bend(slope: float) -> None:
    rng = np.random.default_rng(1)
    num = 150
    p = []
    for _ in range(num):
        x = rng.standard_t(3, 60)
        p.append(bend(x, slope * x + rng.normal(size=60) * (1 + 0.3 * (x > 0)))["square_p"])
    # Normal scores of a sum of heavy and light tails bend a little; four errors of 5 % above it.
    assert np.mean(np.array(p) < 0.05) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / num)


def test_size_against_sign() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=200)
    by_size = cv._size(x, np.abs(x) + 0.3 * rng.normal(size=200))
    assert by_size["size"] > 0.8
    assert by_size["size_p"] < 1e-6
    neither = cv._size(x, rng.normal(size=200))
    assert neither["size_p"] > 0.01
    assert math.isnan(cv._size(-np.abs(x), x)["size_p"])


def test_the_verdict_speaks_of_what_passes_only(
    frames: dict[str, SweepFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cv.bends(frames["null"]) == ()
    table = cv.curvature(frames["null"]).copy()
    assert set(table["epoch"]) == set(frames["null"].measured_epochs)
    table.loc[0, ["square_p", "square_p_holm", "turns", "turn"]] = [1e-5, 1e-3, True, -0.26]
    table.loc[0, ["turn_low", "turn_high", "is_lowest", "square_held_p_holm"]] = [
        -0.3,
        -0.2,
        True,
        1,
    ]
    monkeypatch.setattr(cv, "curvature", lambda _: table)
    (sentence,) = cv.bends(frames["null"])
    assert (
        "lowest where the largest exponent λ₁ before training is near −0.26 [−0.3, −0.2]"
        in sentence
    )
    assert "the settings may make it" in sentence
