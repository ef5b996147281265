"""All records in a few files: what they hold, and what they never hide."""

import json
import logging

import pytest

from pipeline import compaction
from pipeline.compaction import FOLDER, MANIFEST, all_records, compact
from pipeline.records import RecordError, content_hash
from pipeline.store import NoSuchSweepError, open_store
from tests.pipeline.stored import NAME, info, spool, start

TRIALS = 12


@pytest.fixture
def store(store_uri, tmp_path, monkeypatch):
    """Twelve trials, one of which failed before its first row, in parts of five."""
    monkeypatch.setattr(compaction, "TRIALS_A_PART", 5)
    found = open_store(store_uri)
    found.prepare()
    found.create_sweep(info(num_trials=20))
    for number in range(TRIALS):
        add(found, tmp_path, number)
    return found


def add(store, tmp_path, number):
    store.begin_trial(NAME, start(number))
    changes = {"state": "failed", "value": None, "rows": []} if number == 3 else {}
    store.publish(NAME, spool(tmp_path, number, **changes))


def read(found):
    return [(r.header, r.table) for r in found]


@pytest.fixture
def opened(store, monkeypatch):
    """Numbers of trials whose own file was read."""
    numbers = []
    own, all_own = type(store).record, type(store).records

    def record(self, name, number):
        numbers.append(number)
        return own(self, name, number)

    def records(self, name):
        for found in all_own(self, name):
            numbers.append(found.header.trial)
            yield found

    monkeypatch.setattr(type(store), "record", record)
    monkeypatch.setattr(type(store), "records", records)
    return numbers


def test_the_parts_hold_what_the_trials_files_hold(store, opened):
    expected = read(store.records(NAME))
    made = compact(store, NAME)
    assert made.num_trials == TRIALS
    assert made.num_files == 4
    assert made.num_bytes > 0
    opened.clear()
    found = read(all_records(open_store(store.uri), NAME))
    assert opened == []
    assert [h for h, _ in found] == [h for h, _ in expected]
    for (_, table), (_, other) in zip(found, expected, strict=True):
        assert table.schema == other.schema
        assert content_hash(table) == content_hash(other)
    assert [h.trial for h, _ in found] == list(range(TRIALS))


def test_without_parts_all_is_read_from_the_trials_files(store, opened):
    assert len(read(all_records(store, NAME))) == TRIALS
    assert opened == list(range(TRIALS))
    with pytest.raises(NoSuchSweepError):
        list(all_records(store, "nope"))


def test_a_trial_that_ended_later_is_read_from_its_own_file(store, tmp_path, opened):
    compact(store, NAME)
    add(store, tmp_path, 12)
    opened.clear()
    assert [h.trial for h, _ in read(all_records(store, NAME))] == list(range(13))
    assert opened == [12]
    before = set(store.attached(NAME, FOLDER))
    compact(store, NAME)
    after = set(store.attached(NAME, FOLDER))
    new = {f for f in after - before if "part-" in f}
    assert len(new) == 1, "parts that did not change keep their names"
    opened.clear()
    assert len(read(all_records(store, NAME))) == 13
    assert opened == []


def test_parts_that_lack_many_trials_are_not_used(store, tmp_path, opened):
    compact(store, NAME)
    for number in (12, 13, 14):
        add(store, tmp_path, number)
    opened.clear()
    assert len(read(all_records(store, NAME))) == 15
    assert opened == list(range(15))


def file_of(tmp_path, pattern):
    (found,) = [p for p in tmp_path.rglob(pattern) if p.parent.name == FOLDER]
    return found


def forge(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FAULTS = {
    "part": lambda root: file_of(root, "part-00001-*").write_bytes(b"PAR1 no more"),
    "part missing": lambda root: file_of(root, "part-00001-*").unlink(),
    "headers": lambda root: file_of(root, "headers-*").write_bytes(b""),
    "manifest": lambda root: file_of(root, MANIFEST).write_text("{"),
    "empty manifest": lambda root: file_of(root, MANIFEST).write_text(""),
    "format": lambda root: forge(file_of(root, MANIFEST), format=2),
    "sweep": lambda root: forge(file_of(root, MANIFEST), sweep_id="another"),
    "place": lambda root: forge(
        file_of(root, MANIFEST), files={"../../x.parquet": {"bytes": 1, "sha256": ""}}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_are_not_as_they_were_written_are_not_used(
    store, tmp_path, opened, fault, caplog
):
    expected = read(store.records(NAME))
    compact(store, NAME)
    FAULTS[fault](tmp_path)
    opened.clear()
    with caplog.at_level(logging.WARNING, "lyapsweep"):
        found = read(all_records(open_store(store.uri), NAME))
    assert [h for h, _ in found] == [h for h, _ in expected]
    assert opened == list(range(TRIALS))
    assert f"{NAME}/{FOLDER}: not used" in caplog.text


def test_a_damaged_trial_is_not_compacted(store, tmp_path):
    (path,) = [p for p in tmp_path.rglob("*00002.parquet") if p.parent.name != "spool"]
    path.write_bytes(b"no record")
    with pytest.raises(RecordError):
        compact(store, NAME)
    assert not store.attached(NAME, FOLDER)
