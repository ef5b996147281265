"""The command `lyapsweep`, run in this process in a folder of its own."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import cli

TINY = """\
seed: 3
trials: 4
task: {name: char_text, text: text.txt, batch_size: 4, seq_len: 16}
network:
  name: lstm
  units: 8
  init_scale: {log_uniform: [0.05, 0.5]}
  dropout: {uniform: [0, 0.3]}
trainer: {epochs: 2, learning_rate: {log_uniform: [1e-3, 3e-2]}}
measure: {lyapunov_spectrum: {k: 3, sequences: 2, steps: 12, warmup: 3}, gradient_norm: {}}
execution: {executor: inline, cohort_size: 4}
"""


@dataclass
class Result:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a conf, a text, and no stores of the user's in reach."""
    monkeypatch.chdir(tmp_path)
    for name in ("LYAPSWEEP_STORE", "MLFLOW_TRACKING_URI", "LYAPSWEEP_HOME", "LYAPSWEEP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LYAPSWEEP_DATA", str(tmp_path / "no-data-here"))
    words = "the quick brown fox jumps over the lazy dog and runs home again. "
    (tmp_path / "text.txt").write_text(words * 60)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command as `main` does, to its exit code."""

    def call(*words: str | os.PathLike[str]) -> Result:
        monkeypatch.setattr(sys, "argv", ["lyapsweep", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, printed.out, printed.err)

    return call
