"""Studies with their sweeps made so small that they end in seconds."""

import dataclasses
from pathlib import Path
from typing import Any

from analysis.studies import settings
from analysis.studies.lab import Lab
from pipeline import config
from pipeline.folder_store import FolderStore


def lab_of(name: str, changes: dict[str, Any], folder: Path, seeds: int | None = None) -> Lab:
    """The study's laboratory, `changes` over all its sweeps, section by section."""
    found = settings.load(name, seeds=seeds)
    sweeps = {
        part: config.check(_changed(sweep.tree, changes)) for part, sweep in found.sweeps.items()
    }
    return Lab(dataclasses.replace(found, sweeps=sweeps), FolderStore(folder / "store"))


def digits_and_recall(tree: dict[str, Any]) -> dict[str, config.SweepConfig]:
    """A sweep for each of the studies' two tasks of sequences, tiny."""
    digits = {"name": "sequential_digits", "order": "row", "train_size": 64}
    recall = {"name": "delayed_recall", "steps": 10, "updates": 2, "validation_size": 20}
    return {
        "digits": config.check({**tree, "task": digits}),
        "recall": config.check({**tree, "task": recall}),
    }


def _changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(tree)
    for section, values in changes.items():
        found[section] = {**tree[section], **values} if isinstance(values, dict) else values
    return found
