"""A study's file: two scales, the second over the first, every fault named before anything runs."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

import pytest

from analysis.studies import settings
from pipeline import catalog, conf_file
from pipeline.faults import ConfigError
from tasks.base import Bounds
from tasks.base import Config as BaseConfig

FILE = """
small:
  seeds: 3
  settings: {points: 5}
  sweeps:
    main:
      sampler: {name: grid}
      task: {name: planar, points: 400}
      network: {name: mlp, width: {choice: [4, 8]}, depth: 2}
      trainer: {epochs: 2}
    free:
      trials: 5
      task: {name: planar}
      network: {name: mlp}
paper:
  seeds: 10
  sweeps:
    main:
      network: {width: {choice: [16, 32, 64]}}
      trainer: {epochs: 9}
"""


class Made:
    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        points: Annotated[int, Bounds(ge=2)] = 3


@pytest.fixture
def load(tmp_path, monkeypatch):
    def load(text, *args):
        path = tmp_path / "made.yaml"
        path.write_text(text)
        load_any = catalog.load

        def load_one(kind, name):
            return Made if kind == "studies" else load_any(kind, name)

        monkeypatch.setattr(conf_file, "find", lambda name: path)
        monkeypatch.setattr(settings, "catalog", SimpleNamespace(load=load_one))
        return settings.load("made", *args)

    return load


def test_a_grid_is_repeated_under_seeds(load) -> None:
    small = load(FILE)
    assert (small.seeds, small.config.points) == (3, 5)
    assert {part: sweep.trials for part, sweep in small.sweeps.items()} == {"main": 6, "free": 5}
    assert all(sweep.execution.keep_weights for sweep in small.sweeps.values())
    assert load(FILE, "small", 7).sweeps["main"].trials == 14


def test_the_papers_scale_says_what_differs(load) -> None:
    paper = load(FILE, "paper")
    main = paper.sweeps["main"]
    assert paper.seeds == 10
    assert main.trials == 30
    assert main.tree["network"] | {} == main.tree["network"]
    assert main.tree["network"]["width"] == {"choice": [16, 32, 64]}
    assert (main.tree["network"]["depth"], main.epochs) == (2, 9)
    assert paper.config.points == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("large: {}\n", "large: unknown"),
        ("small: {settings: {points: 1}}\n", "small.settings.points: must be at least 2, got 1"),
        ("small: {settings: {point: 1}}\n", "did you mean 'points'"),
        ("small: {extra: 1}\n", "small.extra: unknown"),
        ("small: {seeds: 0}\n", "seeds: must be from 1"),
        ("small: {sweeps: {main: {trials: 2, task: {name: planar}}}}\n", r"sweeps\.main.*network"),
    ],
)
def test_faults_are_named(load, text, words) -> None:
    with pytest.raises(ConfigError, match=words):
        load(text)
