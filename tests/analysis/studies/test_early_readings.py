import numpy as np
import pytest

from analysis.frame import SweepFrame
from analysis.studies import early_readings as er
from tests.analysis import synthetic
from tests.analysis.studies.readings import correlations


def test_tables_hold_what_the_analysis_of_a_sweep_finds():
    frame = SweepFrame.from_records(synthetic.info(), synthetic.sweep("confounded", n=24))
    table = er.against_final(frame)
    epoch = int(table["epoch"].min())
    row = er.pick(table, epoch, er.LARGEST, er.PLAIN)
    found = er.networks(frame, {name: name for name in frame.sampled})
    early = found[found["epoch"] == epoch]
    ranks = early[[er.LARGEST, er.FINAL]].rank()
    assert row["rank correlation"] == pytest.approx(ranks.corr().iloc[0, 1])
    assert row["networks"] == early[er.FINAL].notna().sum()
    assert np.allclose(early[er.DISTANCE], early[er.LARGEST].abs())
    with pytest.raises(KeyError, match="no correlation of warmth at epoch"):
        er.pick(table, epoch, "warmth", er.PLAIN)


@pytest.mark.parametrize(
    ("ends", "sign", "verdict"),
    [
        ((0.1, 0.4), 1, "reproduced"),
        ((0.1, 0.4), -1, "reversed"),
        ((-0.4, -0.1), -1, "reproduced"),
        ((-0.1, 0.4), 1, "not reproduced"),
    ],
)
def test_the_side_of_the_interval_decides(ends, sign, verdict):
    table = correlations(2, {(er.MEAN, er.GIVEN): (0.2, *ends)})
    found = er.finding("claim", table, 2, er.MEAN, er.GIVEN, sign=sign)
    assert found.verdict == verdict
    assert "settings held fixed: rank correlation +0.20" in found.found
    assert "over 64 networks" in found.found
    assert (found.effect, found.low, found.high) == (0.2, *ends)


def test_what_cannot_be_computed_is_not_reproduced():
    table = correlations(2, {(er.MEAN, er.GIVEN): (np.nan, np.nan, np.nan)})
    table["problem"] = "not computable: too few"
    found = er.finding("claim", table, 2, er.MEAN, er.GIVEN, sign=1)
    assert found.verdict == "not reproduced"
    assert found.found.endswith("held fixed: not computable: too few")
