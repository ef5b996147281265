"""`reproduce --plan`: what studies would cost; one that cannot be rehearsed hides no other."""

import pytest
import typer
from typer.testing import CliRunner

from analysis import study_cli
from pipeline import planning
from pipeline.estimate import Driving
from pipeline.practice import Memory, Pace
from pipeline.rehearsal import Rehearsal, RehearsalError
from tasks.base import MissingDataError


def planned(*words):
    app = typer.Typer()
    app.command()(study_cli.reproduce)
    return CliRunner().invoke(app, [*words, "--plan"])


def rehearsed(asked, settled, cohorts, **limits):
    """As if every network took 9 s to train and 1 s to measure."""
    del asked, settled, limits
    paces = [
        Pace(len(c.trials), 9.0 * len(c.trials), 1.0 * len(c.trials), num_parameters=1234)
        for c in cohorts
    ]
    driver, idle, busy = (Memory(n * 10**8, 10**8) for n in (3, 1, 2))
    return Rehearsal(Driving(start=2.0), paces, driver, idle, busy)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(planning, "rehearse", rehearsed)


@pytest.mark.usefixtures("quick")
def test_settings_and_costs_are_shown(tmp_path):
    file = tmp_path / "costs.md"
    found = planned("lorenz", "--scale", "paper", "--seeds", "3", "--costs", str(file))
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert lines[0] == "lorenz_closed_loop: paper scale, 3 seeds"
    assert [line for line in lines if line.startswith("lorenz")][1:] == [
        "lorenz_closed_loop, sweep gru:",
        "lorenz_closed_loop, sweep lstm:",
    ]
    assert "  trials    3, sampler grid (not steered by results)" in lines
    assert "  cost      about 30 s of worker time here, measuring 11.1% of training time" in lines
    page = file.read_text()
    assert "included: 1 min 0 s for all sweeps" in page
    (row,) = [line for line in page.splitlines() if "| gru |" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["`lorenz_closed_loop`", "gru", "gru on chaotic_series", "3"]
    assert cells[5:7] == ["1,234", "30 s"]
    assert cells[8] == "200 MB"


@pytest.mark.parametrize(
    "error",
    [RehearsalError("Traceback:\n  x | y\nMemoryError: of 3 | 4"), MissingDataError("no mnist")],
)
def test_a_part_without_costs_is_named_and_the_others_are_shown(monkeypatch, tmp_path, error):
    def fails_in_one(asked, *others, **limits):
        if "flossing" in str(asked.tree):
            raise error
        return rehearsed(asked, *others, **limits)

    monkeypatch.setattr(planning, "rehearse", fails_in_one)
    file = tmp_path / "costs.md"
    found = planned("flossing_recall", "--costs", str(file))
    assert found.exit_code == 1
    plain, flossed = found.output.split("flossing_recall, sweep flossed:", 1)
    assert "  cost      about" in plain
    assert str(error) in flossed
    assert "  cost" not in flossed
    assert "not planned whole: flossing_recall" in flossed
    (row,) = [line for line in file.read_text().splitlines() if "| flossed |" in line]
    assert str(error).splitlines()[-1].replace("|", "\\|") in row
    assert row.replace("\\|", "").count("|") == 10


def test_what_trains_nothing_says_so(tmp_path):
    file = tmp_path / "costs.md"
    found = planned("poole_circle", "--costs", str(file))
    assert (found.exit_code, found.output.splitlines()[-2:]) == (
        0,
        ["  trains nothing", str(file)],
    )
    assert file.read_text().endswith("These compute, and train nothing: `poole_circle`.\n")


def test_costs_are_of_a_plan_and_have_a_place(tmp_path):
    app = typer.Typer()
    app.command()(study_cli.reproduce)
    found = CliRunner().invoke(app, ["poole_circle", "--costs", "costs.md"])
    assert found.exit_code == 2
    assert "--plan" in found.output
    found = planned("poole_circle", "--costs", str(tmp_path / "no" / "costs.md"))
    assert found.exit_code == 2
    assert "must lie in a folder that is there" in found.output
