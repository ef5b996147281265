import gzip
import hashlib
import sys
from pathlib import Path

import pytest

from tasks import datasets
from tasks.base import MissingDataError
from tasks.datasets import CorruptDataError, DataFile, DataSet

TEXT = "wörter und Worte\n".encode() * 50


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder, and a registered set `words` of one file that may be gzipped."""
    file = DataFile(
        "sub/words.txt",
        len(TEXT),
        hashlib.sha256(TEXT).hexdigest(),
        ("https://nowhere.invalid/words.txt",),
        may_be_gzipped=True,
    )
    words = DataSet("words", "words", ("https://nowhere.invalid",), "none", "none", (file,))
    monkeypatch.setitem(datasets.DATA_SETS, "words", words)
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_every_set_says_where_it_comes_from_and_on_what_terms():
    assert {"pydoc", "war_and_peace", "mnist", "cmu_mocap", "digits8x8"} <= set(datasets.DATA_SETS)
    for name, data_set in datasets.DATA_SETS.items():
        assert data_set.name == name
        assert data_set.summary
        assert data_set.origin
        assert data_set.terms
        assert data_set.citation
        for file in data_set.files:
            assert file.size > 0
            assert len(bytes.fromhex(file.sha256)) == 32
            assert all(url.startswith("https://") for url in file.urls)


def test_the_folder_is_the_variable_else_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(tmp_path / "chosen"))
    assert datasets.data_folder() == tmp_path / "chosen"
    monkeypatch.delenv(datasets.FOLDER_VARIABLE)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.data_folder() == tmp_path / "lyapsweep"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert datasets.data_folder() == Path.home() / ".cache" / "lyapsweep"


def test_a_missing_set_names_the_command_and_the_folder(folder):
    with pytest.raises(MissingDataError) as caught:
        datasets.locate("words")
    message = str(caught.value)
    assert "`lyapsweep data fetch words`" in message
    assert str(folder) in message
    assert datasets.FOLDER_VARIABLE in message
    assert "\n" not in message


def test_an_unknown_set_lists_the_names():
    with pytest.raises(MissingDataError, match=r"no data set 'wap'.*war_and_peace"):
        datasets.locate("wap")


@pytest.mark.parametrize("is_packed", [False, True])
def test_plain_and_packed_give_the_same_bytes(folder, is_packed):
    path = folder / "sub" / ("words.txt.gz" if is_packed else "words.txt")
    path.write_bytes(gzip.compress(TEXT) if is_packed else TEXT)
    assert datasets.locate("words") == (path,)
    assert datasets.read("words") == (TEXT,)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("words.txt", TEXT[:-1], "must hold 900 bytes, holds 899"),
        ("words.txt", b"W" + TEXT[1:], "must have sha256"),
        ("words.txt.gz", gzip.compress(TEXT, mtime=0)[:-9], "is damaged"),
        ("words.txt.gz", TEXT, "is damaged"),
        ("words.txt.gz", gzip.compress(b"W" + TEXT[1:], mtime=0), "must have sha256"),
    ],
)
def test_a_damaged_file_is_named_with_its_remedy(folder, name, content, complaint):
    (folder / "sub" / name).write_bytes(content)
    with pytest.raises(CorruptDataError, match=complaint) as caught:
        datasets.read("words")
    assert str(folder / "sub" / name) in str(caught.value)
    assert "`lyapsweep data fetch words`" in str(caught.value)


def test_sets_without_files_need_no_download_and_say_what_they_hold():
    for name in ("pydoc", "digits8x8"):
        assert not datasets.data_set(name).needs_download
        assert datasets.locate(name) == ()
        assert "sha256" in datasets.data_set(name).inspect()
    assert datasets.data_set("mnist").needs_download


def test_pydoc_is_the_interpreters_topics_in_order():
    from pydoc_data.topics import topics

    text = datasets.pydoc_text()
    first, *_, last = sorted(topics)
    assert text.startswith(topics[first])
    assert text.endswith(topics[last])
    assert len(text) == sum(map(len, topics.values())) + 2 * (len(topics) - 1)


def test_a_python_without_pydoc_data_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(MissingDataError, match="has no pydoc_data"):
        datasets.pydoc_text()


def test_digits8x8_are_scikit_learns():
    images, labels = datasets.digits8x8()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 16)
    assert sorted(set(labels.tolist())) == list(range(10))


@pytest.mark.parametrize("name", ["war_and_peace", "mnist", "cmu_mocap"])
def test_the_real_files_are_what_the_registry_says(real_data, name):
    real_data(name)
    contents = datasets.read(name)
    assert [len(c) for c in contents] == [f.size for f in datasets.data_set(name).files]
