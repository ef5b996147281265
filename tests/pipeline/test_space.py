import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import space
from pipeline.space import Range, RangeError, parse_range

_NAMES = st.text("abcdefgh_", min_size=1, max_size=5).filter(lambda n: n not in space.KINDS)
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)
)
_WHOLE = st.tuples(st.integers(1, 50), st.integers(51, 99)).map(list)
_RANGES = st.one_of(
    st.builds(lambda kind, ends: {kind: ends}, st.sampled_from(space.KINDS[:4]), _WHOLE),
    st.builds(lambda ends, num: {"log_uniform": ends, "num": num}, _WHOLE, st.integers(1, 9)),
    st.lists(_VALUES, min_size=1, max_size=4, unique_by=repr).map(lambda c: {"choice": c}),
)
_TREES = st.recursive(
    st.one_of(_VALUES, st.lists(_VALUES, max_size=3), _RANGES),
    lambda inner: st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_NAMES, _TREES, max_size=4))
def test_filling_with_the_leaves_gives_the_tree_back(tree):
    leaves = dict(space.walk(tree))
    assert space.fill(tree, leaves) == tree


@given(st.dictionaries(_NAMES, _TREES, max_size=4), st.data())
def test_a_filled_tree_differs_from_the_tree_at_its_ranges_only(tree, data):
    ranges = {path: r for path, node in space.walk(tree) if (r := parse_range(node))}
    values = {path: data.draw(st.sampled_from(r.ends())) for path, r in ranges.items()}
    filled = space.fill(tree, values)
    assert not [node for _, node in space.walk(filled) if parse_range(node)]
    expected = {p: values.get(p, node) for p, node in space.walk(tree)}
    assert dict(space.walk(filled)) == expected


def test_filling_without_a_value_names_the_range():
    with pytest.raises(KeyError, match=r"network\.units"):
        space.fill({"network": {"units": {"int": [1, 2]}}}, {})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"uniform": [0, 0.5]}, Range("uniform", 0, 0.5)),
        ({"log_uniform": [1e-4, 1e-1]}, Range("log_uniform", 1e-4, 1e-1)),
        ({"int": [1, 4]}, Range("int", 1, 4)),
        ({"log_int": [16, 512]}, Range("log_int", 16, 512)),
        ({"choice": [32, None, "a", True]}, Range("choice", 0, 3, (32, None, "a", True))),
        ({"uniform": [-1, 1], "num": 5}, Range("uniform", -1, 1, num=5)),
        ({"width": 3}, None),
        ({}, None),
        ([1, 2], None),
        ("uniform", None),
    ],
)
def test_every_form_is_read(node, expected):
    assert parse_range(node) == expected


@pytest.mark.parametrize(
    ("node", "law"),
    [
        ({"uniform": [1, 0]}, "low end must not exceed"),
        ({"uniform": [1, 1]}, "write the value itself"),
        ({"uniform": [1]}, r"two ends \[low, high\]"),
        ({"uniform": 3}, r"two ends \[low, high\]"),
        ({"uniform": "ab"}, r"two ends \[low, high\]"),
        ({"uniform": [0, "1"]}, "finite numbers, got '1'"),
        ({"uniform": [0, math.inf]}, "finite numbers, got inf"),
        ({"uniform": [math.nan, 1]}, "finite numbers, got nan"),
        ({"uniform": [False, 1]}, "finite numbers, got False"),
        ({"log_uniform": [0, 1]}, "above 0, got 0"),
        ({"log_int": [-1, 4]}, "above 0, got -1"),
        ({"int": [1, 2.5]}, "whole numbers, got 2.5"),
        ({"choice": []}, "at least one value"),
        ({"choice": 4}, "at least one value"),
        ({"choice": [1, 1]}, "a value twice"),
        ({"choice": [[1], [2]]}, "plain values"),
        ({"choice": [1, 2], "num": 2}, "not with choice"),
        ({"uniform": [0, 1], "num": 0}, "num must be"),
        ({"uniform": [0, 1], "num": True}, "num must be"),
        ({"uniform": [0, 1], "int": [0, 1]}, "a range is one of"),
        ({"uniform": [0, 1], "step": 2}, "got keys uniform, step"),
    ],
)
def test_malformed_ranges_say_the_law_and_what_came(node, law):
    with pytest.raises(RangeError, match=law):
        parse_range(node)


def test_ends_have_the_type_that_samples_will_have():
    assert [type(e) for e in parse_range({"uniform": [1, 3]}).ends()] == [float, float]
    assert [type(e) for e in parse_range({"int": [1.0, 3.0]}).ends()] == [int, int]
    assert parse_range({"choice": [3, 1, 2]}).ends() == (3, 1, 2)


def test_grids_hold_both_ends_and_even_steps():
    assert parse_range({"uniform": [0, 1], "num": 5}).grid() == (0, 0.25, 0.5, 0.75, 1)
    log = parse_range({"log_uniform": [1e-4, 1e-1], "num": 4}).grid()
    assert log == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1), rel=1e-14)
    assert (log[0], log[-1]) == (1e-4, 1e-1)
    assert parse_range({"int": [2, 5]}).grid() == (2, 3, 4, 5)
    assert parse_range({"log_int": [1, 16], "num": 5}).grid() == (1, 2, 4, 8, 16)
    assert parse_range({"int": [1, 3], "num": 9}).grid() == (1, 2, 3)
    assert parse_range({"uniform": [2, 4], "num": 1}).grid() == (2,)
    assert parse_range({"choice": ["b", "a"]}).grid() == ("b", "a")
    with pytest.raises(RangeError, match="`num`"):
        parse_range({"uniform": [0, 1]}).grid()
