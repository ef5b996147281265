import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner

from analysis.cli import report
from analysis.comparison import tables
from analysis.comparison.agreement import Bounded, agreement
from analysis.comparison.findings import bounded, findings, shared_features
from analysis.comparison.page import write_comparison
from analysis.comparison.summary import Summary, summary
from analysis.frame import AnalysisError, SweepFrame
from analysis.sections import budget
from analysis.statistics import fisher_interval
from analysis.verdict import Kind
from pipeline.folder_store import FolderStore
from pipeline.store import NoSuchSweepError, SweepInfo
from tests.analysis import synthetic
from tests.analysis.test_report import Page


def correlation_of(value: float, n: int) -> Bounded:
    return Bounded(value, *fisher_interval(value, n, "pearson"))


def test_q_and_i2_agree_with_their_definitions() -> None:
    known = {"a": (0.1, 50), "b": (0.5, 80), "c": (0.62, 40), "d": (-0.05, 120)}
    found = agreement({name: correlation_of(*both) for name, both in known.items()})
    z = np.arctanh([value for value, _ in known.values()])
    weights = np.array([n - 3 for _, n in known.values()])  # 1 / variance of Fisher's z
    q = float((weights * (z - np.average(z, weights=weights)) ** 2).sum())
    assert found.q == pytest.approx(q, rel=1e-9)
    assert found.free == 3
    assert found.p == pytest.approx(stats.chi2.sf(q, 3), rel=1e-9)
    assert found.i2 == pytest.approx((q - 3) / q, rel=1e-9)
    assert 0 <= found.i2_low < found.i2 < found.i2_high < 1


def test_q_has_its_nominal_rate_where_sweeps_are_alike() -> None:
    rng = np.random.default_rng(0)
    sizes, rejected, rounds = (30, 60, 90), 0, 600
    for _ in range(rounds):
        numbers = {}
        for n in sizes:
            x = rng.normal(size=n)
            y = 0.5 * x + rng.normal(size=n)
            numbers[str(n)] = correlation_of(float(np.corrcoef(x, y)[0, 1]), n)
        rejected += agreement(numbers).p < 0.05
    low, high = stats.binom.ppf([0.005, 0.995], rounds, 0.05) / rounds
    assert low <= rejected / rounds <= high


def test_interval_of_i2_by_hand() -> None:
    # Q = 8 on 2 degrees of freedom: ln H = ln(4)/2, and its spread by Higgins and Thompson.
    wanted, names = 8.0, ("a", "b", "c")
    gap = math.sqrt(wanted / 2 / 27)  # z = -gap, 0, gap with weights of 27 each
    known = zip(names, (-gap, 0, gap), strict=True)
    found = agreement({name: correlation_of(math.tanh(z), 30) for name, z in known})
    assert found.q == pytest.approx(wanted)
    spread = 0.5 * (math.log(8) - math.log(2)) / (math.sqrt(16) - math.sqrt(3))
    ends = [1 - math.exp(-2 * (math.log(4) / 2 + s * 1.959964 * spread)) for s in (-1, 1)]
    assert found.i2_low == pytest.approx(max(0, ends[0]), abs=1e-6)
    assert found.i2_high == pytest.approx(ends[1], abs=1e-6)
    two = agreement({"a": correlation_of(0.1, 30), "b": correlation_of(0.7, 30)})
    assert math.isnan(two.i2_low)


@pytest.mark.parametrize(
    ("values", "relation"),
    [
        ((0.7, 0.6), "same"),
        ((-0.7, -0.6), "same"),
        ((0.7, 0.01), "some"),
        ((0.02, -0.03), "none"),
        ((0.7, -0.6), "contradict"),
        ((0.7, -0.6, 0.0), "contradict"),
    ],
)
def test_relations(values: tuple[float, ...], relation: str) -> None:
    found = agreement({str(i): correlation_of(v, 60) for i, v in enumerate(values)})
    assert found.relation == relation
    assert bool(found.apart) == (max(values) - min(values) > 0.5)


@pytest.fixture(scope="module", autouse=True)
def _few_orders() -> Iterator[None]:
    """Replaying pruners takes seconds and is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "ORDERS", 1)
        patch.setattr(budget, "TRIALS", 10)
        yield


def made(name: str, effect: synthetic.Effect, n: int = 20, **settings: object) -> SweepFrame:
    trials = synthetic.sweep(effect, n, name=name, **settings)  # type: ignore[arg-type]
    return SweepFrame.from_records(info(name, n), trials)


def info(name: str, n: int, **changes: object) -> SweepInfo:
    found = synthetic.info(name, n)
    config = {**found.config, "seed": len(name), **changes}
    return dataclasses.replace(found, config=config, config_hash=name.ljust(64, "0"))


@pytest.fixture(scope="module")
def three() -> list[Summary]:
    frames = [
        made("found", "planted", 60, seed=1),
        made("nil", "null", 60, seed=2),
        made("lost", "planted", 8, diverged=8, seed=3),
    ]
    return [summary(frame) for frame in frames]


def test_one_feature_and_one_moment_are_fixed_beforehand(three: list[Summary]) -> None:
    assert [sweep.epoch for sweep in three] == [2, 2, 1]
    shared = shared_features(three)
    assert next(iter(shared)) == "lyapunov.max"
    table = tables.main_numbers(three, "lyapunov.max")
    line = table.set_index("sweep").loc["found"]
    own = three[0].lines.set_index("feature").loc["lyapunov.max"]
    for column in ("spearman", "given_settings", "given_settings_and_loss"):
        assert line[column] == own[column]
        assert line[f"{column}_low"] < line[column] < line[f"{column}_high"]
    gains = three[0].gains.set_index("group").loc["spectrum"]
    assert line["increment_gain"] == gains["gain"]
    assert line["increment_p_holm"] == gains["p_holm"]
    lost = table.set_index("sweep").loc["lost"]
    assert lost["finished"] == 0
    assert math.isnan(lost["spearman"])
    view = tables.main_view(table, "x", ["a", "b", "c"])
    assert view is not None
    assert [row[3] for row in view.rows[3:]] == ["–"] * 7
    assert [row[1] for row in view.rows[3:6]].count("–") == 0


def test_what_is_said_of_three(three: list[Summary]) -> None:
    found = findings(three)
    assert found.kind == "hint"
    assert "the lower the final loss in found; in nil nothing can be told" in found.headline
    assert "lost: no trial has a final loss" in " ".join(found.cautions)
    said = " ".join(found.evidence)
    assert "Cochran's Q" in said
    assert "2 sweeps are few" in said
    table = tables.heterogeneity(three)
    line = table[(table["feature"] == "lyapunov.max") & (table["question"] == "spearman")].iloc[0]
    own = agreement(bounded(three, "lyapunov.max", "spearman"))
    assert (line["q"], line["p"], line["sweeps"]) == (own.q, own.p, 2)
    assert (table["p_holm"] >= table["p"] - 1e-12).all()


def test_sweeps_that_agree_and_that_contradict(three: list[Summary]) -> None:
    other = three[0]
    agree = findings([other, summary(made("again", "planted", 60, seed=7))])
    assert agree.kind == "adds"
    assert agree.headline.startswith("The sweeps agree: ")
    flipped = other.lines.copy()
    for column in ("spearman", "given_settings", "given_settings_and_loss"):
        flipped[column] *= -1
        low, high = -flipped[f"{column}_high"], -flipped[f"{column}_low"]
        flipped[f"{column}_low"], flipped[f"{column}_high"] = low, high
    against = dataclasses.replace(other, name="against", lines=flipped, origin="x")
    found = findings([other, against])
    assert found.headline.startswith("The sweeps contradict one another")
    assert "the higher the final loss in against, but the lower in found." in found.headline
    assert "do not overlap" in found.evidence[0]
    assert "more than chance" in found.evidence[-1]


def test_networks_without_a_common_feature_are_not_compared() -> None:
    found = findings([summary(made("r", "null")), summary(made("m", "null", family="mlp"))])
    assert "cannot be compared" in found.headline
    assert found.feature == ""


def test_losses_of_different_kinds_and_one_origin_are_said() -> None:
    one = summary(made("one", "null"))
    other = SweepFrame.from_records(
        info("other", 20, task={"name": "adding"}), synthetic.sweep("null", 20, name="other")
    )
    said = " ".join(findings([one, summary(other)]).cautions)
    assert "different kinds: char_text in nats (one); adding in nats (other)" in said
    assert "one origin" not in said
    twin = dataclasses.replace(one, name="twin")
    assert "one and twin are of one origin" in " ".join(findings([one, twin]).cautions)


def test_every_verdict_has_its_words() -> None:
    assert set(tables.KINDS) == set(get_args(Kind))
    assert all(words and "_" not in words for words in tables.KINDS.values())


def test_only_what_differs_is_listed(three: list[Summary]) -> None:
    table = tables.differences(three).set_index("setting")
    assert dict(table.loc["seed"]) == {"found": "5", "nil": "3", "lost": "4"}
    assert "trials" in table.index
    assert "network.units" not in table.index
    assert not any(str(path).startswith("execution") for path in table.index)


@pytest.mark.usefixtures("quick_pictures")
def test_the_page_and_the_sweeps_own(tmp_path: Path) -> None:
    frames = [made("a", "planted", 20), made("bb", "null", 20, seed=4)]
    page, headline = write_comparison(frames, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    for link in read.links:
        if not link.startswith(("#", "data:")):
            assert (page.parent / link).is_file(), link
    assert "sweeps/a/index.html" in read.links
    own = (page.parent / "sweeps" / "bb" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../index.html"' in own
    assert headline in text
    assert text.index(headline) < text.index("tables/side_by_side.csv") < text.index('id="each"')
    assert {p.stem for p in (page.parent / "tables").iterdir()} >= {
        "side_by_side", "heterogeneity", "differences", "forest",
    }  # fmt: skip
    forest = pd.read_parquet(page.parent / "tables" / "forest.parquet")
    assert set(forest["sweep"]) == {"a", "bb"}
    assert not re.search(r">\s*(nan|None)\s*<", text)
    # Parquet and CSV of every table, of the comparison and of both sweeps.
    stems = [{p.stem for p in tmp_path.rglob(f"*.{kind}")} for kind in ("csv", "parquet")]
    assert stems[0] == stems[1]
    with pytest.raises(AnalysisError, match="compared with itself"):
        write_comparison([frames[0], frames[0]], tmp_path / "out")
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(AnalysisError, match="takes two sweeps"):
        write_comparison(frames[:1], tmp_path / "out")


@pytest.mark.usefixtures("quick_pictures")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(report)
    store = FolderStore(tmp_path / "store")
    for name in ("one", "two"):
        synthetic.stored(tmp_path, synthetic.sweep("null", 6, name=name), name)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["one", "two", "--store", store.uri, "--format", "md"])
    assert result.exit_code == 0, result.output
    page = tmp_path / "reports" / "one-and-two" / "README.md"
    assert result.output.splitlines()[-1] == str(page)
    assert "[one](sweeps/one/README.md)" in page.read_text(encoding="utf-8")
    assert not (store.root / "one" / "report").exists()
    twice = CliRunner().invoke(app, ["one", "two", "one", "--store", store.uri])
    assert twice.exit_code == 2
    assert "one is named more often" in " ".join(re.sub(r"[│╭╮╰╯─]", " ", twice.stderr).split())
    with pytest.raises(NoSuchSweepError, match="no sweep 'three'"):
        report(["one", "three"], store=store.uri)
