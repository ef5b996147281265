import pandas as pd
import pytest

from analysis.studies import settings
from analysis.studies.lab import Lab
from analysis.studies.vogt_grid import VogtGrid
from pipeline.folder_store import FolderStore
from tasks.base import MissingDataError

PLACES = (
    ("spearman with final loss", "max @4", -1),
    ("spearman with final loss", "mean @4", 1),
    ("partial spearman, squares of ranks too", "max @4 | rate, dropout", -1),
    ("partial spearman, squares of ranks too", "mean @4 | rate, dropout", 1),
    ("gain of the epoch-4 spectrum", "over cubic val4 + HP", 1),
    ("one more epoch instead", "gain of cubic val5 over cubic val4+LE4", 1),
)


def judge(scale, low, high):
    lines = [
        {"section": section, "what": what, "n": 54, "value": scale * sign,
         "low": min(low * sign, high * sign), "high": max(low * sign, high * sign)}
        for section, what, sign in PLACES
    ]  # fmt: skip
    study = VogtGrid(VogtGrid.Config())
    return study.judge({"numbers": pd.DataFrame(lines)})


def test_each_claim_has_its_own_side():
    assert {f.verdict for f in judge(0.5, 0.3, 0.7)} == {"reproduced"}
    assert {f.verdict for f in judge(-0.5, -0.7, -0.3)} == {"reversed"}
    assert {f.verdict for f in judge(0.1, -0.2, 0.3)} == {"not reproduced"}
    assert [f.claim for f in judge(0.5, 0.3, 0.7)] == [c.key for c in VogtGrid.claims]


def test_without_the_tables_it_says_where_they_would_have_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("LYAPSWEEP_DATA", str(tmp_path))
    study = VogtGrid(VogtGrid.Config())
    lab = Lab(settings.load("vogt_grid"), FolderStore(tmp_path / "store"))
    with pytest.raises(MissingDataError, match=r"no vogt2022_public_spectra\.parquet and no .* in"):
        study.measure(lab)
