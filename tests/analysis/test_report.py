import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from analysis import pages
from analysis import report as rp
from analysis.figures.base import Section as FigureSection
from analysis.frame import AnalysisError, SweepFrame
from analysis.hypotheses import default_plan
from analysis.preregistration import Registration
from analysis.sections import budget, planned, reproduce, run
from analysis.verdict import verdict
from pipeline.records import TrialRecord
from tests.analysis import synthetic


class Page(HTMLParser):
    """What the tests ask of a page: links, ids, images, headings, nesting."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [str(found[k]) for k in ("href", "src") if k in found]
        self.ids += [str(found["id"])] if "id" in found else []
        self.images += [found] if tag == "img" else []
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.fixture(scope="module", autouse=True)
def _few_orders() -> Iterator[None]:
    """Reports here are about other things than replayed pruners, which take seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "ORDERS", 2)
        patch.setattr(budget, "TRIALS", 15)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, frames: dict[str, SweepFrame]) -> Path:
    return rp.write_report(frames["planted"], tmp_path_factory.mktemp("out") / "r" / "made-up")


def test_files(written: Path) -> None:
    folder = written.parent
    assert written.name == "index.html"
    assert {p.name for p in folder.iterdir()} == {
        "index.html", "tables", "figures", "config.yaml", pages.MARKER,
    }  # fmt: skip
    names = {p.stem for p in (folder / "tables").iterdir()}
    assert {"trials", "correlations", "design", "divergence", "predictors", "features"} <= names
    assert {p.stem for p in (folder / "figures").iterdir()} <= names
    for name in names:
        table = pd.read_parquet(folder / "tables" / f"{name}.parquet")
        text = pd.read_csv(folder / "tables" / f"{name}.csv")
        assert list(table.columns) == list(text.columns)
        assert len(table) == len(text) > 0
    assert not list(folder.parent.glob(".*"))


def test_the_page_is_self_contained_and_sound(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", text)
    assert "<script" not in text
    page = Page(text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:image/png;base64,"):
            assert (written.parent / link).is_file(), link
    assert len(page.ids) == len(set(page.ids))
    assert len(page.images) == 6
    assert all(image["alt"] and image["width"] and image["height"] for image in page.images)
    assert page.tags.count("h1") == 1
    assert "prefers-color-scheme: dark" in text
    for words in ("nan", "None", "Undefined"):
        assert not re.search(rf">\s*{words}\s*<", text)


def test_the_verdict_comes_first(written: Path, frames: dict[str, SweepFrame]) -> None:
    text = written.read_text(encoding="utf-8")
    assert verdict(frames["planted"]).headline in text
    assert text.index('id="verdict"') < text.index('id="run"') < text.index("<img")


def test_the_config_beside_it_is_the_sweeps(written: Path) -> None:
    import yaml

    assert yaml.safe_load((written.parent / "config.yaml").read_text()) == json.loads(
        json.dumps({**synthetic.CONFIG, "trials": 60})
    )


@pytest.mark.parametrize("sweep", ["mlp", "few"])
def test_other_sweeps(sweep: str, frames: dict[str, SweepFrame], tmp_path: Path) -> None:
    Page(rp.write_report(frames[sweep], tmp_path / "out").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("n", "diverged"), [(1, 0), (8, 8)])
def test_sweeps_with_little_to_say(n: int, diverged: int, tmp_path: Path) -> None:
    trials = synthetic.sweep("null", n, diverged=diverged)
    frame = SweepFrame.from_records(synthetic.info(num_trials=n), trials)
    text = rp.write_report(frame, tmp_path / "out").read_text(encoding="utf-8")
    Page(text)
    assert verdict(frame).headline in text


@pytest.mark.usefixtures("quick_pictures")
def test_a_former_report_is_replaced_whole(
    frames: dict[str, SweepFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = rp.write_report(frames["few"], out)
    before = first.read_bytes()
    (out / "tables" / "stale.csv").write_text("x")
    assert rp.write_report(frames["few"], out).read_bytes() == before
    assert not (out / "tables" / "stale.csv").exists()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rp, "settings", fails)
        with pytest.raises(OSError, match="No space"):
            rp.write_report(frames["few"], out)
    assert first.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_other_folders_are_left_alone(frames: dict[str, SweepFrame], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(AnalysisError, match="other things in it"):
        rp.write_report(frames["few"], tmp_path)
    with pytest.raises(AnalysisError, match="not a folder"):
        rp.write_report(frames["few"], tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("quick_pictures")
def test_what_users_named_is_escaped(tmp_path: Path) -> None:
    trials = synthetic.sweep("null", 3, failed=1)
    header = trials[2].header
    object.__setattr__(header, "error", "Traceback\n<script>alert(1)</script>")
    frame = SweepFrame.from_records(synthetic.info(num_trials=3), trials)
    text = rp.write_report(frame, tmp_path / "out").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_every_section_has_its_place() -> None:
    files = {path.stem for path in Path(run.__file__).parent.glob("*.py")}
    assert set(rp.ORDER) == files - {"__init__", "base"}
    assert set(get_args(FigureSection)) <= set(rp.ORDER)


def frame_of(trials: list[TrialRecord]) -> SweepFrame:
    return SweepFrame.from_records(synthetic.info(num_trials=len(trials)), trials)


def test_conventions_of_all_trials_are_shown() -> None:
    trials = synthetic.sweep("null", 3)
    trials[1] = synthetic.described_as(trials[1], state_size=128)
    table = run.measurements(frame_of(trials))
    assert table is not None
    (spelled,) = [row[1] for row in table.rows if "lyapunov.spectrum" in row[0]]
    assert "state_size 12 or 128" in spelled
    assert "state full" in spelled


def flagged(row: dict[str, Any]) -> dict[str, Any]:
    if row["epoch"] in (1, 2) and row["quantity"].startswith("ftle."):
        row["flags"] = ["not_a_number"]
    return row


def test_a_flagged_reading_counts_once() -> None:
    trials = synthetic.sweep("null", 4, family="mlp")
    trials[1] = synthetic.rewritten(trials[1], flagged)
    assert run.flags(frame_of(trials)) == {"not_a_number": 2}


def test_skipped_measurements_are_listed() -> None:
    trials = synthetic.sweep("null", 4)
    trials[1] = synthetic.skipping(synthetic.skipping(trials[1], 2), 4)
    trials[2] = synthetic.skipping(trials[2], 4)
    table = run.measurements(frame_of(trials))
    assert table is not None
    assert (
        "lyapunov_spectrum after epoch 2 in 1 trial; lyapunov_spectrum after epoch 4 in 2 trials."
        in table.note
    )
    whole = run.measurements(frame_of(synthetic.sweep("null", 4)))
    assert whole is not None
    assert whole.note == ""


def test_a_plan_and_what_came_of_it_are_shown(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    plan = dataclasses.replace(default_plan(frame.info), trials=50)
    info = frame.info
    made = Registration(
        plan, plan.sha256, 1_700_000_000_000, 0, 60, info.sweep_id, info.config_hash, False
    )
    shown = planned.SECTION.content(dataclasses.replace(frame, registration=made))
    assert shown["found"].is_confirmatory
    named = reproduce.SECTION.content(dataclasses.replace(frame, registration=made))["versions"]
    assert ["sha256 of the plan", plan.sha256] in named.rows
    outcomes = {row[-1] for row in shown["planned"].rows}
    assert "holds" in outcomes
    assert all(row[2] == "confirmatory" for row in shown["planned"].rows)
    # Without one, it says so and shows no table.
    plain = planned.SECTION.content(frame)
    assert plain["planned"] is None
    assert "exploratory" in plain["found"].sentences[0]


def test_what_pruning_would_save_is_of_this_sweep(frames: dict[str, SweepFrame]) -> None:
    shown = budget.SECTION.content(frames["planted"])
    assert not shown["problem"]
    assert {row[0] for row in shown["saved"].rows} >= {"median", "hyperband"}
    pruned = SweepFrame.from_records(synthetic.info(), synthetic.sweep("planted", 6))
    assert "trials" in budget.SECTION.content(pruned)["problem"]


def test_it_can_be_told_from_any_other_sweep(written: Path, frames: dict[str, SweepFrame]) -> None:
    text = written.read_text(encoding="utf-8")
    info = frames["planted"].info
    for value in (info.sweep_id, info.config_hash, *info.provenance.values()):
        assert f">{value}</td>" in text
    seeds = pd.read_csv(written.parent / "tables" / "trials.csv")["seed"]
    assert list(seeds) == [header.seed for header in frames["planted"].headers]


def test_versions_that_changed_within_a_sweep_are_told() -> None:
    trials = synthetic.sweep("null", 5)
    for trial in trials[:2]:
        object.__setattr__(trial.header, "provenance", {"torch": "2.11.0", "dtype": "float32"})
    shown = reproduce.SECTION.content(frame_of(trials))["versions"]
    known = {row[0]: row[1] for row in shown.rows}
    assert known["dtype"] == "float32"
    info = synthetic.info()
    assert info.provenance["torch"] == "2.13.0"
    assert known["trials: torch"] == "2.13.0 (3 trials); 2.11.0 (2 trials)"


def test_costs_are_of_the_seconds_recorded(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    table = run.costs(frame).set_index("diagnostic")
    seconds = frame.seconds
    training = seconds[seconds["activity"] == "training"]["seconds"]
    mine = seconds[seconds["diagnostic"] == "lyapunov"]["seconds"]
    assert table.loc["lyapunov", "times"] == len(mine)
    assert table.loc["lyapunov", "share_of_training"] == pytest.approx(mine.sum() / training.sum())
    assert table.loc["lyapunov", "epochs_each"] == pytest.approx(mine.mean() / training.mean())
