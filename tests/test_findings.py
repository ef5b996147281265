"""The sweeps kept under docs/findings say what docs/findings.md says they say."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.confirmation import confirmation
from analysis.frame import SweepFrame
from analysis.hypotheses import read_plan
from analysis.preregistration import FILE, preregistration_of
from pipeline import records
from pipeline.folder_store import FolderStore

FOLDER = Path(__file__).parents[1] / "docs" / "findings"
PAGE = FOLDER.parent / "findings.md"
MOST_BYTES = 12e6

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this copy ships without the findings")


def module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def kept():
    return module("kept")


@pytest.fixture(scope="module")
def store(kept, tmp_path_factory):
    """Every kept sweep, in a plain folder."""
    found = FolderStore(tmp_path_factory.mktemp("findings"))
    for name in kept.SWEEPS:
        kept.unpack(FOLDER / name, found)
    return found


def planned_sweeps():
    return sorted(p.parent.name for p in FOLDER.glob("*/plan.yaml"))


def test_unpacking_gives_back_complete_sweeps(kept, store):
    for name in kept.SWEEPS:
        info, found = store.sweep(name), list(store.records(name))
        assert info.state == "complete"
        assert [r.header.trial for r in found] == list(range(info.num_trials))
        assert {r.header.trial_uid for r in found} == {
            f"{info.sweep_id}/{n}" for n in range(info.num_trials)
        }


def test_keeping_what_was_unpacked_changes_no_record(kept, store, tmp_path):
    kept.keep(store, "recall-fresh", tmp_path)
    before, after = (list(kept.records_of(f)) for f in (FOLDER / "recall-fresh", tmp_path))
    assert [r.header for r in before] == [r.header for r in after]
    assert all(a.table.equals(b.table) for a, b in zip(before, after, strict=True))


def test_a_changed_number_is_noticed(kept, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in (FOLDER / "recall-pruned").glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    found = list(kept.records_of(folder))
    rows = kept.pa.concat_tables([r.table for r in found]).drop_columns(["sweep"])
    values = rows["values"].to_pylist()
    values[7] = [v + 1e-9 for v in values[7]]
    changed = kept.pa.array(values, records.SCHEMA.field("values").type)
    at = rows.schema.get_field_index("values")
    kept.pq.write_table(rows.set_column(at, "values", changed), folder / "rows.parquet")
    with pytest.raises(ValueError, match="changed or is damaged"):
        kept.unpack(folder, FolderStore(tmp_path / "store"))


def test_a_sweep_that_is_not_complete_is_not_kept(kept, store, tmp_path):
    other = FolderStore(tmp_path / "store")
    other.prepare()
    info = dataclasses.replace(store.sweep("recall-pruned"), name="half", state="interrupted")
    other.create_sweep(info)
    with pytest.raises(ValueError, match="must be complete"):
        kept.keep(other, "half", tmp_path / "out")


@pytest.mark.parametrize("name", planned_sweeps() or ["none"])
def test_the_plan_is_the_one_that_was_fixed_before_a_trial_had_ended(store, name):
    registration = preregistration_of(store, name)
    assert registration.sha256 == read_plan(FOLDER / name / "plan.yaml").sha256
    assert (registration.num_ended, registration.is_after) == (0, False)
    assert registration.sweep_id == store.sweep(name).sweep_id
    assert registration.config_hash == store.sweep(name).config_hash
    assert json.loads((FOLDER / name / FILE).read_text("utf-8"))["sha256"] == registration.sha256


@pytest.mark.slow
def test_the_planned_tests_of_a_sweep_come_out_as_written(store):
    frame = SweepFrame.from_store(store, "recall-fresh")
    frame = dataclasses.replace(frame, registration=preregistration_of(store, "recall-fresh"))
    found = confirmation(frame, frame.registration).table
    written = pd.read_csv(FOLDER / "recall-fresh" / "planned.csv")
    assert found["claim"].tolist() == written["claim"].tolist()
    assert found["n"].tolist() == written["n"].tolist()
    assert found["holds"].map(str).tolist() == written["holds"].map(str).tolist()
    # Folds and permutations are drawn from fixed seeds; what remains is linear algebra.
    for column in ("value", "low", "high", "p", "p_holm"):
        assert found[column].to_numpy(float) == pytest.approx(
            written[column].to_numpy(float), abs=2e-3
        ), column


def test_the_tables_of_the_page_are_those_of_the_reports(store):
    page = PAGE.read_text("utf-8")
    quoted = module("quoted")
    assert all(page.count(f"<!-- {name} -->") == 1 for name in quoted.TABLES)
    assert quoted.renewed(page, store) == page


def test_the_page_shows_pictures_that_there_are():
    pictures = re.findall(r"!\[[^]]*\]\((findings/[^)]+)\)", PAGE.read_text("utf-8"))
    assert len(pictures) >= 3
    assert [p for p in pictures if not (FOLDER.parent / p).is_file()] == []


def test_what_is_kept_is_small():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < MOST_BYTES
