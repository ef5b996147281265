import math

import numpy as np
import pandas as pd
import pytest

from analysis.studies.sigmas import effects, finding, pick, verdict


def table(values, group="a"):
    return pd.DataFrame({"group": group, "effect": values})


def test_effects_are_means_over_seeds_in_standard_errors():
    values = [1.0, 2.0, 3.0, 4.0]
    row = effects(table(values), ["group"], "effect").iloc[0]
    error = np.std(values, ddof=1) / 2
    assert row["mean"] == 2.5
    assert row["networks"] == 4
    assert row["sigmas"] == pytest.approx(2.5 / error)
    assert row["high"] - row["mean"] == pytest.approx(3.1824 * error, rel=1e-4)  # t, 3 degrees
    assert row["p"] == pytest.approx(0.0305, abs=1e-4)
    assert row["holm_p"] == row["p"]


def test_p_values_are_corrected_together():
    both = pd.concat([table([1, 2, 3, 4]), table([2, 1, 4, 3.5], "b")])
    rows = effects(both, ["group"], "effect")
    assert rows["holm_p"].min() == pytest.approx(2 * rows["p"].min())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.1, 0.9, 1.0], "reproduced"),
        ([-1.0, -1.1, -0.9, -1.0], "reversed"),
        ([1.0, 2.0, 3.0, 4.0, 0.1, 0.2], "not reproduced"),  # 2.7 standard errors
        ([1.0, 1.01], "reproduced"),
        ([1.0], "not reproduced"),
        ([1.0, math.nan, 1.0], "not reproduced"),
    ],
)
def test_verdicts(values, expected):
    row = effects(table(values), ["group"], "effect").iloc[0]
    assert verdict(row) == expected
    told = finding("key", row, "The loss rises by", "nats")
    assert told.verdict == expected
    assert f"over {len(values)} networks" in told.found


def test_three_standard_errors_of_two_networks_are_not_enough():
    row = effects(table([1.0, 1.5]), ["group"], "effect").iloc[0]
    assert row["sigmas"] > 3
    assert row["low"] < 0
    assert verdict(row) == "not reproduced"


def test_a_row_is_picked_by_its_values():
    rows = pd.DataFrame({"a": [1, 1, 2], "b": ["x", "y", "x"]})
    assert pick(rows, a=1, b="y").name == 1
    with pytest.raises(KeyError, match="2 rows"):
        pick(rows, a=1)
