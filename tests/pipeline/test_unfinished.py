"""What a driver shows of trials in training, while they train."""

import dataclasses
from pathlib import Path

import pytest

from analysis.frame import SweepFrame
from analysis.predict import predict
from pipeline import records, unfinished
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.records import RecordError, TrialRecord
from tests.analysis import driven

NAME = "shown"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "_SHARE", 0)


def test_trials_in_training_are_foretold_and_none_is_counted_twice(tmp_path: Path) -> None:
    store, home = FolderStore(tmp_path / "store"), Home(tmp_path / "home", NAME)
    frames: list[SweepFrame] = []

    def look(progress: object, driver: object) -> None:
        published = len(list((tmp_path / "store" / NAME / "trials").glob("*.parquet")))
        if published >= 22 and not any("running" in f.trials["state"].tolist() for f in frames):
            frames.append(SweepFrame.from_store(store, NAME, home))

    tree = {"cohort_size": 2, "executor": "inline"}
    assert driven.run(tmp_path, NAME, {"name": "none"}, listener=look, execution=tree).state == (
        "complete"
    )
    seen = frames[-1]
    running = seen.trials.index[seen.trials["state"] == "running"]
    assert len(running)
    assert seen.trials.index.is_unique
    assert seen.trials.loc[running, "target"].isna().all()
    # Their rows are those that are published in the end.
    final = {r.header.trial: r for r in store.records(NAME)}
    for number in running:
        shown = seen.table.filter([t == number for t in seen.table["trial"].to_pylist()])
        kept, last = final[number].table, seen.trials.loc[number, "last_epoch"]
        kept = kept.filter([epoch <= last for epoch in kept["epoch"].to_pylist()])
        assert records.content_hash(shown) == records.content_hash(kept)
    epoch = int(seen.trials.loc[running, "last_epoch"].min())
    table = predict(seen, epoch, "last_seen_loss").table.set_index("trial")
    assert set(running) <= set(table.index)
    assert table.loc[running, "final_loss"].notna().all()
    assert table.loc[running, "ended_with"].isna().all()
    # At the end nothing is left to be shown.
    assert not home.unfinished.exists()
    whole = SweepFrame.from_store(store, NAME, home)
    assert whole.trials["state"].isin(["complete", "diverged"]).all()


def test_what_a_stopped_driver_left_is_there_and_called_interrupted(tmp_path: Path) -> None:
    store, home = FolderStore(tmp_path / "store"), Home(tmp_path / "home", NAME)

    def stop(progress: object, driver: object) -> None:
        if any(epoch >= 2 for epoch in progress.running.values()):  # type: ignore[attr-defined]
            driver.request_stop()  # type: ignore[attr-defined]

    assert driven.run(tmp_path, NAME, {"name": "none"}, listener=stop).state == "interrupted"
    left = unfinished.unfinished(store.sweep(NAME), home)
    assert left
    assert {r.header.state for r in left} == {"interrupted"}
    # A sweep of the same name in another store is another sweep.
    other = dataclasses.replace(store.sweep(NAME), sweep_id="another")
    assert unfinished.unfinished(other, home) == []


def test_spooled_trials_count_and_the_store_s_record_before_them(tmp_path: Path) -> None:
    store, home = FolderStore(tmp_path / "store"), Home(tmp_path / "home", NAME)
    driven.run(tmp_path, NAME, {"name": "none"})
    whole = list(store.records(NAME))
    record = whole[3]
    records.write(TrialRecord(record.header, record.table.slice(0, 2)), home.spool_path(3))
    assert len(SweepFrame.from_store(store, NAME, home).table) == sum(len(r.table) for r in whole)
    (tmp_path / "store" / NAME / "trials" / "00003.parquet").unlink()
    frame = SweepFrame.from_store(store, NAME, home)
    assert len(frame.headers) == len(whole)
    assert frame.table["trial"].to_pylist().count(3) == 2


def test_a_file_that_no_driver_wrote_is_named(tmp_path: Path) -> None:
    store, home = FolderStore(tmp_path / "store"), Home(tmp_path / "home", NAME)
    driven.run(tmp_path, NAME, {"name": "none"})
    home.unfinished.write_bytes(b"PAR1 and nothing")
    with pytest.raises(RecordError, match=r"unfinished\.parquet: not what a driver writes"):
        SweepFrame.from_store(store, NAME, home)
