"""`reproduce --plan`: what studies would cost; one that cannot be rehearsed hides no other."""

import pytest
import typer
from typer.testing import CliRunner

from analysis import study_cli
from pipeline import planning
from pipeline.rehearsal import RehearsalError
from tasks.base import MissingDataError


def planned(*words):
    app = typer.Typer()
    app.command()(study_cli.reproduce)
    return CliRunner().invoke(app, [*words, "--plan"])


def test_settings_and_costs_are_shown(monkeypatch):
    monkeypatch.setattr(planning, "describe", lambda config: [f"trials    {config.trials}"])
    found = planned("storm_digits", "--scale", "paper", "--seeds", "3")
    assert found.exit_code == 0
    assert found.output.splitlines() == [
        "storm_digits: paper scale, 3 seeds",
        "  inputs: 16000",
        "  bin_width: 0.0125",
        "storm_digits, sweep digits:",
        "  trials    3",
    ]


@pytest.mark.parametrize("error", [RehearsalError("code -9"), MissingDataError("no mnist here")])
def test_a_part_without_costs_is_named_and_the_others_are_shown(monkeypatch, error):
    def describe(config):
        yield "task"
        if "flossing" in str(config.tree):
            raise error
        yield "cost"

    monkeypatch.setattr(planning, "describe", describe)
    found = planned("flossing_recall")
    assert found.exit_code == 1
    plain, flossed = found.output.split("flossing_recall, sweep flossed:", 1)
    assert "sweep plain:\n  task\n  cost\n" in plain
    assert str(error) in flossed
    assert "not planned whole: flossing_recall" in flossed


def test_what_trains_nothing_says_so():
    found = planned("poole_circle")
    assert (found.exit_code, found.output.splitlines()[-1]) == (0, "  trains nothing")
