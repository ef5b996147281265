"""Checkpoints on disk: whole or absent, and refused where they cannot be trusted."""

import dataclasses
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline import catalog, checkpoint_file
from pipeline.checkpoints import Checkpoints
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.rows import Row
from pipeline.snapshot import Snapshot
from pipeline.spending import Spent
from tasks.base import seed_for
from tasks.networks.mlp import MLP
from tasks.planar import Planar

SPECTRUM = catalog.load("diagnostics", "lyapunov_spectrum").Config()
COHORT = Cohort(
    sweep_seed=3,
    trials=tuple(
        TrialSpec(
            n,
            seed_for(3, n),
            Choice("planar", Planar.Config()),
            Choice("mlp", MLP.Config(width=4)),
            Trainer(epochs=50),
        )
        for n in (4, 5, 6)
    ),
    measure=(Choice("lyapunov_spectrum", SPECTRUM),),
    checkpoint=1,
)
DUE = (4, 6)


def rows_to(epoch, first=0):
    return {
        n: [
            Row(
                e,
                e,
                "val_loss",
                np.array(e + n / 7),
                details={"of": n},
                seconds=0.1,
                time_ms=e,
            )
            for e in range(first, epoch + 1)
        ]
        for n in DUE
    }


def snapshot(epoch, **changes):
    arrays = {"network.w": np.full((3, 2), epoch, np.float32), "val_loss": np.zeros(3)}
    spent = Spent(1.5, {"x": 0.1}, fitted={"lyapunov_spectrum": dataclasses.asdict(SPECTRUM)})
    made = Snapshot(epoch, 10 * epoch, (4, 5, 6), {}, arrays, spent)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def said():
    return []


@pytest.fixture
def kept(tmp_path, said):
    return Checkpoints(tmp_path / "checkpoints", "sweep-1", said.append)


def keep(kept, epoch, **changes):
    begun = dict.fromkeys(DUE, 77)
    return kept.keep(COHORT, snapshot(epoch, **changes), rows_to(epoch), begun)


def again(kept):
    """What a driver that starts now would find."""
    return Checkpoints(kept._folder, "sweep-1", kept._say)


def names(kept, cohort=COHORT):
    folder = kept.folder_of(cohort)
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def the_state(kept):
    (path,) = kept.folder_of(COHORT).glob("epoch-*")
    return path


def test_the_newest_comes_back_with_all_rows_and_the_older_is_gone(kept, said):
    assert kept.load(COHORT, DUE) is None
    for epoch in (2, 4, 5):
        assert keep(kept, epoch)
    assert names(kept) == [
        "epoch-00005.safetensors",
        "rows-00002.parquet",
        "rows-00004.parquet",
        "rows-00005.parquet",
    ]
    for attempt in (1, 2):
        found = again(kept).load(COHORT, DUE)
        assert (found.snapshot.epoch, found.snapshot.update) == (5, 50)
        assert found.snapshot.numbers == (4, 5, 6)
        assert found.snapshot.arrays["network.w"].tolist() == [[5, 5]] * 3
        assert found.snapshot.spent.training == 1.5
        assert str(found.rows) == str(rows_to(5)), attempt
        assert found.resumed_at == (5,)
        assert found.start_ms == dict.fromkeys(DUE, 77)
    assert not said


def test_rows_go_on_after_a_resumption_and_so_does_the_count_of_resumptions(kept):
    keep(kept, 2)
    second = again(kept)
    second.load(COHORT, DUE)
    keep(second, 3)
    third = again(second)
    found = third.load(COHORT, (6,))
    assert found.resumed_at == (2, 3)
    assert set(found.rows) == {6}
    assert str(found.rows[6]) == str(rows_to(3)[6])
    assert third.keep(COHORT, snapshot(4), {6: rows_to(4)[6]}, {6: 77})
    assert again(third).load(COHORT, (6,)).resumed_at == (2, 3, 4)
    # Whoever was on record at epoch 4 has no rows there; to be due again it must not be.
    assert again(third).load(COHORT, DUE) is None


def test_only_the_very_cohort_finds_it(kept):
    keep(kept, 2)
    other_seed = dataclasses.replace(COHORT, sweep_seed=4)
    fewer = dataclasses.replace(COHORT, trials=COHORT.trials[:2])
    unmeasured = dataclasses.replace(COHORT, measure=())
    for other in (other_seed, fewer, unmeasured):
        assert kept.load(other, (4,)) is None
    assert Checkpoints(kept._folder, "sweep-2").load(COHORT, DUE) is None
    # Where it is trained is no matter, nor how often checkpoints are taken.
    moved = dataclasses.replace(COHORT, threads=7, device="cuda", checkpoint=None)
    assert again(kept).load(moved, DUE) is not None


def test_dropping_leaves_what_others_have(kept):
    other = dataclasses.replace(COHORT, trials=COHORT.trials[:2])
    keep(kept, 2)
    kept.keep(other, snapshot(2, numbers=(4, 5)), {4: rows_to(2)[4]}, {})
    again(kept).drop_all_but([other])
    assert names(kept) == []
    assert len(names(kept, other)) == 2
    kept.drop(other)
    assert list(kept._folder.iterdir()) == []
    kept.drop(other)


def test_a_disk_that_refuses_stops_nothing_and_leaves_the_one_before(kept, said, monkeypatch):
    keep(kept, 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            assert not keep(kept, 3)
        assert "no checkpoint at epoch 3" in said.pop()
        assert not [n for n in names(kept) if n.endswith(".tmp")]
        assert again(kept).load(COHORT, DUE).snapshot.epoch == 2
    assert keep(kept, 4)
    found = again(kept).load(COHORT, DUE)
    assert str(found.rows) == str(rows_to(4))


_KILLED = """
import os, signal, sys, importlib.util
sys.path[:0] = {path!r}
spec = importlib.util.spec_from_file_location("again", {file!r})
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
from pathlib import Path
for nth in range(1, 100):
    if os.fork() == 0:
        kept = again.Checkpoints(Path({folder!r}) / str(nth), "sweep-1")
        again.keep(kept, 2)
        count = 0
        def before(owner, name):
            genuine = getattr(owner, name)
            def inner(*args, **kwargs):
                global count
                count += 1
                if count == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return genuine(*args, **kwargs)
            setattr(owner, name, inner)
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "open")):
            before(owner, name)
        again.keep(kept, 3)
        os._exit(0)
    _, status = os.wait()
    if status == 0:
        break
print(nth)
"""


def test_a_driver_killed_before_any_operation_leaves_one_checkpoint_or_the_next(tmp_path):
    code = _KILLED.format(path=[p for p in sys.path if p], file=__file__, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count > 8
    epochs = []
    for nth in range(1, count + 1):
        kept = Checkpoints(tmp_path / str(nth), "sweep-1")
        found = kept.load(COHORT, DUE)
        epochs.append(found.snapshot.epoch)
        assert str(found.rows) == str(rows_to(epochs[-1]))
        # And the next one cleans up.
        assert keep(kept, 4)
        assert str(again(kept).load(COHORT, DUE).rows) == str(rows_to(4))
        assert the_state(kept).name == "epoch-00004.safetensors"
    assert epochs == sorted(epochs)
    assert set(epochs) == {2, 3}


# What cannot be trusted.


def forged(path, *, arrays=None, **changes):
    """Rewrites a checkpoint with other content and a sha256 that fits."""
    found, facts = checkpoint_file.unpacked(path.read_bytes())
    facts = dataclasses.replace(facts, **changes)
    path.write_bytes(checkpoint_file.packed(found if arrays is None else arrays, facts))


def with_header(path, length, header):
    path.write_bytes(length.to_bytes(8, "little") + header)


DAMAGE = {
    "empty": lambda p: p.write_bytes(b""),
    "short": lambda p: p.write_bytes(p.read_bytes()[:7]),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "a bit flipped": lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x01"),
    "oversized header": lambda p: with_header(p, 1 << 60, b"{}"),
    "header of 100 MB": lambda p: with_header(p, 10**8, b" " * 10**5),
    "header no JSON": lambda p: with_header(p, 4, b"{{{{"),
    "deep header": lambda p: with_header(p, 200_000, b"[" * 200_000),
    "a pickle": lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."),
    "another format": lambda p: forged(p, format=2),
    "another cohort": lambda p: forged(p, key="0" * 64),
    "another epoch": lambda p: forged(p, epoch=4),
    "an epoch after the last": lambda p: (
        forged(p, epoch=50),
        p.rename(p.with_name("epoch-00050.safetensors")),
    ),
    "a trial missing": lambda p: forged(p, numbers=(4, 5)),
    "a trial too many": lambda p: forged(p, numbers=(4, 5, 6, 7)),
    "a trial twice": lambda p: forged(p, numbers=(4, 5, 6, 6)),
    "one that diverged": lambda p: forged(p, diverged_at={4: 3}),
    "a stranger that diverged": lambda p: forged(p, diverged_at={9: 3}),
    "updates beyond any column": lambda p: forged(p, update=2**64),
    "wrong members": lambda p: forged(p, arrays={"network.w": np.zeros((2, 3))}),
    "no axis": lambda p: forged(p, arrays={"network.w": np.array(1.0)}),
    "settings out of bounds": lambda p: forged(
        p, spent=Spent(fitted={"lyapunov_spectrum": {"k": -1}})
    ),
    "settings of nothing measured": lambda p: forged(p, spent=Spent(fitted={"ftle": {}})),
    "no rows": lambda p: forged(p, segments=()),
    "rows out of order": lambda p: forged(
        p, segments=tuple(reversed(checkpoint_file.unpacked(p.read_bytes())[1].segments))
    ),
    "rows that are gone": lambda p: p.with_name("rows-00002.parquet").unlink(),
    "rows damaged": lambda p: p.with_name("rows-00002.parquet").write_bytes(b"PAR1"),
    "rows from elsewhere": lambda p: (
        p.with_name("rows-00002.parquet").unlink(),
        p.with_name("rows-00002.parquet").symlink_to("/dev/zero"),
    ),
    "a link": lambda p: (p.unlink(), p.symlink_to("/dev/zero")),
    "a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_or_hostile_checkpoints_are_refused_with_a_word(
    kept, said, tmp_path, monkeypatch, kind, caplog
):
    monkeypatch.chdir(tmp_path)
    keep(kept, 2)
    keep(kept, 3)
    DAMAGE[kind](the_state(kept))
    with caplog.at_level(logging.WARNING, logger="lyapsweep"):
        assert again(kept).load(COHORT, DUE) is None
    assert caplog.messages[: len(said)] == said
    assert "refused" in said[0]
    assert "\n" not in said[0]
    assert len(said[0]) < 600
    # The cohort starts from its beginning, and its next checkpoint is as good as any.
    kept = again(kept)
    assert keep(kept, 3)
    assert str(again(kept).load(COHORT, DUE).rows) == str(rows_to(3))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints"}


def forge_rows(kept, rows):
    """Puts other rows into the only file of rows, with a sha256 that fits."""
    path = kept.folder_of(COHORT) / "rows-00002.parquet"
    segment = checkpoint_file.write_rows(path.parent, 2, rows)
    forged(the_state(kept), segments=(segment,))


@pytest.mark.parametrize(
    "rows",
    [
        {n: r[:-1] for n, r in rows_to(2).items()},
        {n: [*r, r[-1]] for n, r in rows_to(2).items()},
        {n: [r[1], r[0], r[2]] for n, r in rows_to(2).items()},
        {4: rows_to(2)[4]},
        rows_to(3),
        {n: [*r, Row(9, 1, "odd", np.array(0.0))] for n, r in rows_to(2).items()},
    ],
    ids=["one missing", "one twice", "order", "a trial", "one too many", "of another epoch"],
)
def test_rows_that_are_not_those_of_every_epoch_once_are_refused(kept, said, rows):
    keep(kept, 2)
    assert again(kept).load(COHORT, DUE) is not None
    forge_rows(kept, rows)
    assert again(kept).load(COHORT, DUE) is None
    assert "are not those of every epoch" in said[0]


def test_where_the_newest_is_damaged_the_one_before_serves_if_it_is_still_there(kept, said):
    keep(kept, 2)
    older = the_state(kept)
    copy = older.read_bytes()
    keep(kept, 3)
    newest = the_state(kept)
    older.write_bytes(copy)
    newest.write_bytes(newest.read_bytes()[:100])
    found = again(kept).load(COHORT, DUE)
    assert found.snapshot.epoch == 2
    assert str(found.rows) == str(rows_to(2))
    assert len(said) == 1


@pytest.mark.parametrize("which", ["folder", "cohort"])
def test_folders_that_lead_elsewhere_are_neither_read_nor_written(kept, said, tmp_path, which):
    keep(kept, 2)
    elsewhere = tmp_path / "elsewhere"
    place = kept._folder if which == "folder" else kept.folder_of(COHORT)
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    before = {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()}
    fresh = again(kept)
    assert fresh.load(COHORT, DUE) is None
    assert not keep(fresh, 3)
    assert "must be a folder and no link" in said[-1]
    fresh.drop_all_but([])
    fresh.drop(COHORT)
    assert {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} == before


CASES = int(os.environ.get("LYAPSWEEP_FUZZ_CASES", "150"))


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Some checkpoints with one to take apart, and its content."""
    kept = Checkpoints(tmp_path_factory.mktemp("fuzz") / "checkpoints", "sweep-1")
    keep(kept, 2)
    return kept, the_state(kept), the_state(kept).read_bytes()


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_bytes_is_taken_for_a_checkpoint(good, data):
    """Any change is refused with a CheckpointError, or leaves the very content."""
    _, _, content = good
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, 20))
    bad = content[:at] + data.draw(st.binary(max_size=20)) + content[at + length :]
    expected, known = checkpoint_file.unpacked(content)
    try:
        arrays, facts = checkpoint_file.unpacked(bad)
    except checkpoint_file.CheckpointError:
        return
    assert facts == known
    assert {n: a.tobytes() for n, a in arrays.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["4", "../../etc/passwd", 4, 5, 6, 2, [4, 5, 6]]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


def paths_in(tree, path=()):
    """Of everything in a tree of JSON."""
    yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from paths_in(value, (*path, key))


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_checkpoint_says_of_itself_is_used_or_refused(good, data):
    """With a sha256 that fits: somebody has made it so."""
    kept, path, content = good
    arrays, _ = checkpoint_file.unpacked(content)
    length = int.from_bytes(content[:8], "little")
    tree = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["lyapsweep.checkpoint"])
    *parents, last = data.draw(st.sampled_from([p for p in paths_in(tree) if p]))
    node = tree
    for key in parents:
        node = node[key]
    node[last] = data.draw(JSON)
    text = json.dumps(tree)
    sha = checkpoint_file._digest(arrays, text)
    path.write_bytes(save(arrays, {"lyapsweep.checkpoint": text, "lyapsweep.sha256": sha}))
    rows = path.with_name("rows-00002.parquet").read_bytes()
    before = {p.name for p in kept._folder.parent.iterdir()}
    found = Checkpoints(kept._folder, "sweep-1").load(COHORT, DUE)
    if found is not None:
        assert set(found.rows) == set(DUE)
        assert found.snapshot.epoch == 2
        assert set(found.snapshot.numbers) == {4, 5, 6}
        json.dumps(found.resumed_at)
    assert {p.name for p in kept._folder.parent.iterdir()} == before
    # A refused one is gone with its folder.
    path.parent.mkdir(exist_ok=True)
    path.with_name("rows-00002.parquet").write_bytes(rows)
    path.write_bytes(content)
