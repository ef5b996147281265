"""What holds of every study: its file, its claims, and sweeps that could be trained."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from analysis.studies import settings
from analysis.studies.base import SCALES, Claim, Study
from analysis.studies.papers import Paper
from pipeline import catalog, conf_file, pruning
from pipeline.preflight import preflight
from tasks.base import Config, MissingDataError

NAMES = list(catalog.entries("studies"))
every_study = pytest.mark.parametrize("name", NAMES)


def source_of(name):
    return Path(importlib.util.find_spec(catalog.entries("studies")[name].module).origin)


@every_study
def test_the_first_line_says_what_it_is(name):
    text = ast.get_docstring(ast.parse(source_of(name).read_text(encoding="utf-8")))
    first = text.splitlines()[0]
    assert 20 <= len(first) <= 97
    assert first[-1] in ".?"
    assert len(text.splitlines()) > 1, "the reference is missing"


@every_study
def test_a_file_defines_one_study(name):
    """A second one could not be named, and would be loaded by nobody."""
    tree = ast.parse(source_of(name).read_text(encoding="utf-8"))
    bases = [
        {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sum("Study" in names for names in bases) == 1


@every_study
def test_attributes_are_complete(name):
    kind = catalog.load("studies", name)
    assert issubclass(kind, Study)
    assert isinstance(kind.paper, Paper)
    assert issubclass(kind.Config, Config)
    assert dataclasses.is_dataclass(kind.Config)
    assert kind.Config.__dataclass_params__.frozen
    for words in (kind.item, kind.title, kind.caption):
        assert words == words.strip() != ""
    assert not kind.title.endswith(".")
    assert kind.caption.endswith(".")


@every_study
def test_claims_are_told_apart_and_measured_by_numbers(name):
    claims = catalog.load("studies", name).claims
    assert claims
    keys = [claim.key for claim in claims]
    assert len(set(keys)) == len(keys)
    for claim in claims:
        assert isinstance(claim, Claim)
        assert re.fullmatch(r"[a-z][a-z0-9_]*", claim.key)
        assert len(claim.says) > 20
        assert re.search(r"\d", claim.criterion), f"{claim.key}: a criterion needs a number"


@every_study
def test_its_file_loads_and_the_scales_differ(name):
    small, paper = (settings.load(name, scale) for scale in SCALES)
    for scale, found in zip(SCALES, (small, paper), strict=True):
        assert found.scale == scale
        assert found.seeds >= 1
        study = found.study()
        assert type(study).__name__ == catalog.entries("studies")[name].class_name
        assert study.config == found.config
    tree, _ = conf_file.read_tree(conf_file.find(f"studies/{name}.yaml"), holds="scales")
    if not small.sweeps and not tree.get("paper"):
        return  # of data that others published, there is one scale
    trained = [{key: sweep.hash for key, sweep in s.sweeps.items()} for s in (small, paper)]
    assert trained[0] != trained[1] or (small.config, small.seeds) != (paper.config, paper.seeds)


@every_study
@pytest.mark.parametrize("scale", SCALES)
def test_sweeps_are_the_same_on_every_machine(name, scale):
    """What a study trains must not depend on a calibration, nor on what others are doing."""
    for part, sweep in settings.load(name, scale).sweeps.items():
        assert sweep.execution.cohort_size != "auto", f"{part}: cohort_size is auto"
        assert sweep.pruner.name == pruning.NONE, f"{part}: a pruner"
        assert sweep.execution.keep_weights


@every_study
def test_sweeps_pass_preflight(name):
    missing = []
    for sweep in settings.load(name).sweeps.values():
        try:
            preflight(sweep)
        except MissingDataError as error:
            missing.append(str(error))
    if missing:
        pytest.skip(missing[0])


def test_every_file_of_settings_has_its_study():
    shipped = conf_file.find(f"studies/{NAMES[0]}.yaml").parent
    assert {path.stem for path in shipped.glob("*.yaml")} == set(NAMES)
