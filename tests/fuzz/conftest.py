"""A folder to read from, a count at the end."""

import gc
import os
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import guard

SEED = int(os.environ.get("FUZZ_SEED", "0"))
SHARE = float(os.environ.get("FUZZ_SHARE", "1"))


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty folder; temporary files go below it, and the working folder is another."""
    folder = tmp_path / "inside"
    (folder / "tmp").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield folder


@pytest.fixture
def try_many():
    """Calls a check with `count` drawn cases; the same ones every time."""

    def run(strategy, count, check):
        @seed(SEED)
        @settings(
            max_examples=max(1, round(count * SHARE)), database=None, deadline=None,
            derandomize=False, suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
        )  # fmt: skip
        @given(strategy)
        def one(case):
            check(case)

        one()

    return run


def pytest_terminal_summary(terminalreporter):
    total = sum(guard.CASES.values())
    if total:
        terminalreporter.section("fuzzing")
        for name, count in sorted(guard.CASES.items()):
            refused = guard.REFUSED[name]
            terminalreporter.write_line(f"{count:8,d} cases, {refused:8,d} refused  {name}")
        terminalreporter.write_line(f"{total:8,d} cases in all, seed {SEED}")
