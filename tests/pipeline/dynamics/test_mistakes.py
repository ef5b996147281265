"""Each published mistake, put back into a copy of the source, must fail its tests."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("tasks", "pipeline", "analysis")

_SPEC = importlib.util.spec_from_file_location("mistakes", Path(__file__).parent / "mistakes.py")
mistakes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mistakes)

every_mistake = pytest.mark.parametrize(
    "mistake", mistakes.MISTAKES, ids=[f"{m.number}: {m.name}" for m in mistakes.MISTAKES]
)


def copied(folder):
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment(folder):
    settings = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **settings}


def run(folder, tests):
    """Test id → message of its failure, None where it passed; by the packages in `folder`."""
    where = "import analysis, pipeline, tasks; print(analysis, pipeline, tasks)"
    options = {"cwd": folder, "env": environment(folder), "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, "-c", where], check=True, **options).stdout
    assert found.count(str(folder)) == len(PACKAGES), found
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no"),
        *("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")),
        f"--junitxml={folder / 'found.xml'}",
        *(str(ROOT / test) for test in tests),
    ]
    done = subprocess.run(command, check=False, timeout=300, **options)
    # 0: all passed, 1: some failed. Anything else is no answer, e.g. a test that is gone.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    outcomes = {}
    for case in ElementTree.parse(folder / "found.xml").iter("testcase"):
        assert case.find("error") is None, done.stdout
        assert case.find("skipped") is None, done.stdout
        failure = case.find("failure")
        outcomes[case.get("name")] = None if failure is None else failure.get("message")
    return outcomes


def test_every_edit_applies_to_the_source_and_every_number_has_one():
    """Fast, so that an edit or a test that has gone stale is seen at once."""
    assert {m.number for m in mistakes.MISTAKES} == set(range(1, 14))
    for mistake in mistakes.MISTAKES:
        assert (ROOT / mistake.file).read_text().count(mistake.old) == 1, mistake
        assert mistake.tests
        for test in mistake.tests:
            file, name = test.split("::")
            assert f"def {name}(" in (ROOT / file).read_text(), test


@pytest.mark.slow
def test_without_a_mistake_they_all_pass(tmp_path):
    tests = sorted({test for mistake in mistakes.MISTAKES for test in mistake.tests})
    outcomes = run(copied(tmp_path), tests)
    assert len(outcomes) >= len(tests)
    assert not any(outcomes.values()), outcomes


@pytest.mark.slow
@every_mistake
def test_a_mistake_put_back_is_caught(mistake, tmp_path):
    file = copied(tmp_path) / mistake.file
    source = file.read_text()
    assert source.count(mistake.old) == 1, "the edit no longer applies"
    file.write_text(source.replace(mistake.old, mistake.new))
    outcomes = run(tmp_path, mistake.tests)
    for test in mistake.tests:
        name = test.split("::")[1]
        failures = [m for case, m in outcomes.items() if m and case.split("[")[0] == name]
        # By what is asserted, not by a crash.
        claims = [m for m in failures if m.startswith(("assert ", "AssertionError"))]
        assert claims, (test, outcomes)
