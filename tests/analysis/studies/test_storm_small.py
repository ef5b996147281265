"""Every study of Storm et al. from training to picture, with networks that take a second."""

import dataclasses
import math

import pytest

from analysis.studies import settings
from analysis.studies.outcome import carry_out
from pipeline import config
from pipeline.store import open_store

TASKS = {
    "planar": {"points": 800, "batch_size": 16},
    "digits": {"train_size": 600, "batch_size": 32},
}
WIDTHS = {"mlp": (4, 6), "bottleneck_mlp": (8,)}
EPOCHS = 6


def small(name, **own):
    """A study with two networks of each of few shapes, trained for six epochs at a high rate."""
    found = settings.load(name, seeds=2)
    sweeps = {part: _small(sweep.tree) for part, sweep in found.sweeps.items()}
    return dataclasses.replace(
        found, seeds=2, sweeps=sweeps, config=dataclasses.replace(found.config, **own)
    )


def _small(tree):
    task, network = dict(tree["task"]), dict(tree["network"])
    task.update(TASKS[task["name"]])
    points = 1
    for key, values in (("width", WIDTHS[network["name"]]), ("depth", (2, 3))):
        if isinstance(network[key], dict):
            kept = list(values)[: len(network[key]["choice"])]
            network[key] = {"choice": kept}
            points *= len(kept)
    if isinstance(network["init_scale"], dict):
        network["init_scale"] = {"choice": [0.5, 1.0, 1.5, 2.0]}
        points *= 4
    rate = 0.2 if tree["trainer"]["optimiser"] == "sgd" else 0.01
    trainer = {**tree["trainer"], "epochs": EPOCHS, "learning_rate": rate, "decay": 1.0}
    measure = {kind: {**each, "at": [EPOCHS]} for kind, each in tree["measure"].items()}
    if "ftle_field" in measure:
        measure["ftle_field"]["points"] = 13
    execution = {"executor": "inline", "cohort_size": 16, "keep_weights": True}
    changed = {
        "task": task,
        "network": network,
        "trainer": trainer,
        "measure": measure,
        "execution": execution,
        "trials": 2 * points,
    }
    return config.check({**tree, **changed})


@pytest.mark.parametrize(
    ("name", "own", "tables"),
    [
        ("storm_fields", {"points": 8, "arrows": 4}, {"heights", "fields", "directions"}),
        ("storm_crossover", {"points": 8}, {"heights", "means"}),
        ("storm_density", {"points": 8}, {"heights", "layers"}),
        ("storm_random_weights", {}, {"errors"}),
        ("storm_self_organisation", {"inputs": 20}, {"means", "histograms"}),
        ("storm_digits", {"inputs": 300}, {"networks", "map", "by_exponent"}),
        ("storm_adversarial", {"images": 3, "steps": 60}, {"paths", "profile", "networks"}),
        ("storm_widths", {}, {"networks"}),
    ],
)
def test_from_training_to_picture(name, own, tables, tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    done = carry_out(small(name, **own), open_store(f"folder:{tmp_path}/store"))
    assert done.tables.keys() == tables
    assert done.picture.startswith(b"\x89PNG")
    for finding in done.outcome.findings:
        assert "nan" not in finding.found.lower(), finding.found
        assert math.isfinite(finding.effect), finding
