"""`lyapsweep doctor`, `export` and `import` as they are typed."""

import shutil


def empty(path):
    path.write_bytes(b"")


def test_a_sweep_is_examined_moved_and_examined_again(run, folder):
    assert run("sweep", "tiny.yaml", "--name", "s").code == 0
    examined = run("doctor", "s")
    assert examined.code == 0
    assert "s: 4 of 4 trials on record (4 complete)" in examined.out
    assert "nothing lost, nothing twice, nothing half done" in examined.out

    assert run("export", "s", "out/s").code == 0
    assert "must not exist" in run("export", "s", "out/s").err
    imported = run("import", "out/s", "--store", "folder:there")
    assert (imported.code, "s: 4 trials imported" in imported.out) == (0, True)
    again = run("import", "out/s", "--store", "folder:there")
    assert "s: 0 trials imported, 4 were there already" in again.out
    assert run("doctor", "s", "--store", "folder:there").code == 0
    report = run("report", "s", "--store", "folder:there")
    assert report.code == 0, report.err
    assert (folder / "reports" / "s" / "index.html").exists()


def test_what_can_be_mended_is_mended_and_the_rest_is_said(run, folder):
    assert run("sweep", "tiny.yaml", "--name", "s", "--store", "folder:st").code == 0
    records = folder / "st" / "s" / "trials"
    spool = folder / ".lyapsweep" / "sweeps" / "s" / "spool"
    shutil.copy(records / "00001.parquet", spool / "trial-00001.parquet")
    found = run("doctor", "s", "--store", "folder:st")
    assert found.code == 1
    assert "untidy: trial 1: finished, and not yet published [publish it]" in found.out
    assert "mend with: lyapsweep doctor s --repair" in found.out
    mended = run("doctor", "s", "--repair", "--store", "folder:st")
    assert mended.code == 0
    assert "1 of 1 mended" in mended.out
    assert list(spool.iterdir()) == []

    empty(records / "00002.parquet")
    found = run("doctor", "s", "--repair", "--store", "folder:st")
    assert found.code == 1
    assert "lost: trial 2: " in found.out
    assert "looking again" not in found.out


def test_bad_usage_is_said_before_anything_is_written(run, folder):
    unknown = run("doctor", "nope")
    assert unknown.code == 2
    assert "no sweep 'nope'" in unknown.err
    none = run("import", "nowhere", "--store", "folder:there")
    assert none.code == 2
    assert "not an export of a sweep" in none.err
    assert not (folder / "there").exists()
