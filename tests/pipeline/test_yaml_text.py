"""Numbers that no machine holds, values that cannot be made, choices of one: all of them refused,
or read, in a line."""

import json

import pytest
import yaml

from analysis.hypotheses import read_plan
from pipeline import conf_file, config, yaml_text
from pipeline.external import mapping
from pipeline.faults import ConfigError

LONG = f"0x{'f' * 6000}"
CONF = {"task": {"name": "planar"}, "network": {"name": "mlp"}, "trials": 1}


@pytest.mark.parametrize(
    "text",
    [
        f"seed: {LONG}", f"seed: !!int '{LONG}'", f"pruner: {LONG}", f"{LONG}: 1", f"a: [{LONG}]",
        f"sampler: !!int {LONG}", f"a: +0b{'1' * 6000}", f"a: {'9' * 5000}",
        f"a: {'1:' * 3000}1", f"a: !!float '{'9' * 5000}'",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
@pytest.mark.parametrize("read", [conf_file.load, mapping.load, read_plan])
def test_the_longest_numbers_are_refused_by_their_length(tmp_path, read, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml line 1: a number has at most 1000 digits"):
        read(path)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400, "0x" + "f" * 900])
@pytest.mark.parametrize("read", [conf_file.load, mapping.load, read_plan])
def test_numbers_beyond_any_column_are_refused_by_where_they_stand(tmp_path, read, number):
    path = tmp_path / "a.yaml"
    for text, where in (
        (f"a:\n  b: [1, {number}]", "a.b.1"),
        (f"a:\n  {{{number}: 1}}", "a"),
        (f"? {number}\n: 2", ""),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"between -2\^63 and 2\^63, got one of") as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} {where}".rstrip() + ":")


@pytest.mark.parametrize("value", [LONG, f"!!int {LONG}", f"!!int '{LONG}'", "1" * 300])
@pytest.mark.parametrize("key", ["pruner", "seed", "trials", "measure", "network.width"])
def test_overrides_with_such_numbers_name_the_command_line(tmp_path, key, value):
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(CONF))
    with pytest.raises(ConfigError, match="command line") as caught:
        conf_file.load(path, [f"{key}={value}"])
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63) + 1])
def test_numbers_that_columns_hold_are_read(tmp_path, number):
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {number}\nb: 1{'0' * 300}.5\nc: 3 words, {'and ' * 400}\nd: '{LONG}'")
    assert yaml_text.load(path)["a"] == number


@pytest.mark.parametrize(
    "value", ["!!timestamp x", "!!int x", "!!bool maybe", "!!binary é", "2020-13-45", "!!float x"]
)
def test_values_that_no_loader_makes_are_no_yaml(tmp_path, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {value}")
    for read in (conf_file.load, mapping.load, read_plan):
        with pytest.raises(ConfigError, match=r"a\.yaml.*not valid YAML|a\.yaml"):
            read(path)


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_both_loaders_refuse_the_same(monkeypatch, loader):
    monkeypatch.setattr(yaml_text, "_LOADER", getattr(yaml, loader, yaml.SafeLoader))
    with pytest.raises(ConfigError, match="at most 1000 digits"):
        yaml_text.check(f"a: {LONG}", "here")
    yaml_text.check(f"a: '{LONG}'\nb: 2 and {LONG}\nc: x{LONG}", "here")


def test_a_choice_of_one_beside_another_range_is_that_one():
    tree = {
        **CONF,
        "network": {"name": "mlp", "width": {"choice": [3]}, "depth": {"int": [1, 4]}},
        "trainer": {"learning_rate": {"choice": [0.1]}},
    }
    checked = config.check(tree)
    assert checked.space["network.width"].choices == (3,)
    with pytest.raises(ConfigError, match=r"network\.width: must be at least 1, got 0"):
        config.check({**tree, "network": {**tree["network"], "width": {"choice": [0]}}})
