"""A study's outcome goes round through its folder, and the gallery shows what lies there."""

import json
import math
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis import gallery
from analysis.figures.base import new_picture
from analysis.frame import AnalysisError
from analysis.studies import outcome, papers
from analysis.studies.base import Claim, Finding, Study, by_interval, by_rule
from analysis.studies.settings import Settings
from pipeline import catalog
from tasks.base import Config


class Falling(Study):
    Config = Config
    paper, item, title, caption = papers.POOLE, "Fig. 9", "What falls", "Points are <falls>."
    claims = (
        Claim("falls", "It falls | always.", "The mean is below 0 by more than 0.1."),
        Claim("counts", "There are three.", "Exactly 3 rows."),
    )

    def measure(self, lab) -> dict[str, pd.DataFrame]:
        return {"drops": pd.DataFrame({"drop": [-1.0, -2.0, -3.0]})}

    def judge(self, tables) -> list[Finding]:
        drops = tables["drops"]["drop"]
        return [
            Finding(
                "falls", by_interval(1.0, 3.0), f"By {drops.mean():.2f} <m>.", 2.0, 1.0, 3.0, "m"
            ),
            Finding("counts", by_rule(len(drops) == 4), f"There are {len(drops)}."),
        ]

    def draw(self, tables):
        picture = new_picture(4, 3)
        picture.add_subplot().plot(tables["drops"]["drop"])
        return picture


@pytest.fixture
def known(monkeypatch):
    """The catalog knows the made-up study, and no other."""
    entry = SimpleNamespace(name="falling")
    monkeypatch.setattr(catalog, "entries", lambda kind: {"falling": entry})
    monkeypatch.setattr(catalog, "load", lambda kind, name: {"falling": Falling}[name])


SETTINGS = Settings("falling", "small", 3, Config(), {})


def test_an_outcome_goes_round(known, tmp_path) -> None:
    done = outcome.carry_out(SETTINGS, None)
    page = gallery.add(done, tmp_path)
    assert outcome.load(page.parent).findings[0] == done.outcome.findings[0]
    again = outcome.load(page.parent)
    assert math.isnan(again.findings[1].effect)
    assert (again.seeds, again.sweeps, again.seconds) == (3, (), done.outcome.seconds)
    assert pd.read_csv(page.parent / "tables/drops.csv")["drop"].tolist() == [-1, -2, -3]
    text = page.read_text()
    assert "&lt;m&gt;" in text
    assert "<m>" not in text
    assert "2 [1, 3] m" in text
    assert "lyapsweep reproduce falling --scale small --seeds 3" in text


def test_a_study_carried_out_again_takes_its_place(known, tmp_path) -> None:
    for _ in range(2):
        page = gallery.add(outcome.carry_out(SETTINGS, None), tmp_path)
        gallery.write_index(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "claims.csv", "falling", "index.html", "studies.md",
    ]  # fmt: skip
    assert page.is_file()


def test_the_gallery_lists_claims(known, tmp_path) -> None:
    gallery.add(outcome.carry_out(SETTINGS, None), tmp_path)
    text = gallery.write_index(tmp_path).read_text()
    assert "1 claim reproduced, 1 claim not reproduced, 0 claims reversed" in text
    table = pd.read_csv(tmp_path / "claims.csv")
    assert table["verdict"].tolist() == ["reproduced", "not reproduced"]
    assert table["effect"].tolist()[0] == 2.0
    (row,) = [
        line for line in (tmp_path / "studies.md").read_text().splitlines() if "falls" in line
    ]
    assert row.replace("\\|", "").count("|") == 6


def test_other_claims_by_now_are_left_out(known, tmp_path, monkeypatch) -> None:
    gallery.add(outcome.carry_out(SETTINGS, None), tmp_path)
    monkeypatch.setattr(Falling, "claims", Falling.claims[:1])
    with pytest.raises(AnalysisError, match="no study lies here"):
        gallery.write_index(tmp_path)


def test_a_broken_folder_is_named(known, tmp_path) -> None:
    page = gallery.add(outcome.carry_out(SETTINGS, None), tmp_path)
    path = page.parent / outcome.FILE
    for text in ("{", "[]", json.dumps({"findings": [{}]})):
        path.write_text(text)
        with pytest.raises(AnalysisError, match=r"outcome\.json: must be the outcome"):
            gallery.write_index(tmp_path)
    shutil.rmtree(page.parent)
    with pytest.raises(AnalysisError, match="no study lies here"):
        gallery.write_index(tmp_path)


def test_each_claim_is_answered_once(known, monkeypatch) -> None:
    judge = Falling.judge
    monkeypatch.setattr(Falling, "judge", lambda self, tables: judge(self, tables)[::-1])
    with pytest.raises(AnalysisError, match="answered counts, falls"):
        outcome.carry_out(SETTINGS, None)


def test_nothing_measured_is_no_outcome(known, monkeypatch) -> None:
    monkeypatch.setattr(Falling, "measure", lambda self, lab: {"drops": pd.DataFrame()})
    with pytest.raises(AnalysisError, match=r"nothing was measured for .*drops"):
        outcome.carry_out(SETTINGS, None)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "reproduced"),
        (-0.1, 0.3, "not reproduced"),
        (-0.3, -0.1, "reversed"),
        (math.nan, math.nan, "not reproduced"),
    ],
)
def test_verdicts_by_interval(low, high, verdict) -> None:
    assert by_interval(low, high) == verdict
    assert by_interval(low + 5, high + 5, above=5) == verdict
