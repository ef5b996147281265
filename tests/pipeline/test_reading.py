"""Many records read by processes: the same, in the same order, with the same errors."""

import hashlib
import os
import time

import pytest

from pipeline import interpreter, reading, records
from pipeline.reading import File
from pipeline.records import RecordError
from pipeline.store import open_store
from tests.pipeline.stored import NAME, info, spool, start

NUM = 23


@pytest.fixture(autouse=True)
def _processes(monkeypatch):
    monkeypatch.setattr(reading, "_LEAST", 4)
    monkeypatch.setattr(reading, "_AHEAD", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})


@pytest.fixture
def files(tmp_path):
    paths = [
        spool(tmp_path, n, value=n / 7, error="é\n\x00" if n % 2 else None) for n in range(NUM)
    ]
    return [File(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


@pytest.fixture
def started(monkeypatch):
    """The readers that are started, in their order."""
    found, genuine = [], reading._Reader

    def noted():
        found.append(genuine())
        return found[-1]

    monkeypatch.setattr(reading, "_Reader", noted)
    return found


def all_ended(started, seconds=10):
    until = time.monotonic() + seconds
    while any(reader._process.poll() is None for reader in started):
        assert time.monotonic() < until
        time.sleep(0.05)
    return True


def test_processes_read_what_one_reads(files, started):
    found = list(reading.read_all(files))
    assert len(started) == 3
    assert all_ended(started)
    for number, (record, file) in enumerate(zip(found, files, strict=True)):
        expected = records.read(file.path)
        assert record.header == expected.header
        assert record.header.trial == number
        assert repr(record.table.to_pylist()) == repr(expected.table.to_pylist())  # NaN is no NaN.
        assert record.table.schema.equals(expected.table.schema, check_metadata=True)


def test_few_are_read_here(files, started):
    assert [r.header.trial for r in reading.read_all(files[:7])] == list(range(7))
    assert started == []


def test_all_are_read_here_where_no_process_can_be_started(files, monkeypatch):
    def refuses(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(interpreter.subprocess, "Popen", refuses)
    assert [r.header.trial for r in reading.read_all(files)] == list(range(NUM))


def test_readers_end_with_whoever_asked(files, started):
    answers = reading.read_all(files)
    assert next(answers).header.trial == 0
    answers.close()
    assert all_ended(started)


@pytest.mark.parametrize("wrong", ["corrupt", "missing", "a folder", "of another trial"])
def test_the_file_that_is_wrong_is_named_at_its_place(files, started, wrong):
    path = files[5].path
    if wrong == "corrupt":
        path.write_bytes(path.read_bytes()[:-1])
    elif wrong == "of another trial":
        path.write_bytes(files[6].path.read_bytes())
    else:
        path.unlink()
    if wrong == "a folder":
        path.mkdir()
    answers = reading.read_all(files)
    assert [next(answers).header.trial for _ in range(5)] == list(range(5))
    with pytest.raises(RecordError, match=path.name) as caught:
        next(answers)
    assert str(caught.value) == message_of(files[5])
    assert all_ended(started)


def message_of(file):
    with pytest.raises(RecordError) as caught:
        reading.read(file)
    return str(caught.value)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 11)", "os._exit(3)"])
def test_a_file_that_ends_its_reader_is_named(files, started, monkeypatch, how):
    """A library that reads a file may crash on it; whoever asked goes on with a word."""
    crashes = (
        "import os; from pipeline import records; genuine = records.read; "
        f"records.read = lambda p: {how} if p.name == 'trial-00009.parquet' else genuine(p); "
    )
    boot = interpreter._BOOT.replace("from {module}", f"{crashes}from {{module}}")
    monkeypatch.setattr(interpreter, "_BOOT", boot)
    answers = reading.read_all(files)
    assert [next(answers).header.trial for _ in range(9)] == list(range(9))
    law = "signal 11" if "kill" in how else "exit code 3"
    with pytest.raises(RecordError, match=rf"trial-00009.*the process that read it ended \({law}"):
        next(answers)
    assert all_ended(started)


def test_what_hides_our_packages_in_the_working_folder_does_not(
    files, started, tmp_path, monkeypatch
):
    for name in ("pipeline", "json", "pyarrow"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a stray file was imported')\n")
    monkeypatch.chdir(tmp_path)
    assert len(list(reading.read_all(files))) == NUM
    assert len(started) == 3


def test_stores_read_many_by_processes(store_uri, tmp_path, started):
    store = open_store(store_uri)
    store.prepare()
    store.create_sweep(info())
    for number in range(NUM):
        store.begin_trial(NAME, start(number))
        store.publish(NAME, spool(tmp_path, number))
    found = list(open_store(store_uri).records(NAME))
    assert [r.header.trial for r in found] == list(range(NUM))
    assert len(started) == 3
    if store_uri.startswith("sqlite"):  # In folders the file is all there is of a trial.
        (kept,) = (p for p in tmp_path.rglob("trial-00011.parquet") if p.parent.name != "spool")
        kept.unlink()
        with pytest.raises(RecordError, match=r"trial-00011.*missing"):
            list(open_store(store_uri).records(NAME))
