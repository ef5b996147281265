"""Every example in the docstrings of `pipeline.dynamics` runs, and every measurement has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

from pipeline.dynamics import propagate

DYNAMICS = Path(propagate.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(DYNAMICS).with_suffix("").parts) for path in DYNAMICS.rglob("*.py")
)
WITHOUT_EXAMPLES = {
    *("__init__", "prepared", "selfcheck", "sweeps"),
    *("wide.__init__", "wide.checks", "wide.means"),
}
"""What serves the measurements alone; their examples run through it."""


def module_named(name):
    return importlib.import_module(f"pipeline.dynamics.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name):
    result = doctest.testmod(module_named(name))
    assert result.failed == 0
    assert (result.attempted > 0) is (name not in WITHOUT_EXAMPLES)


def public_functions(name):
    module = module_named(name)
    return [
        function
        for word, function in vars(module).items()
        if inspect.isfunction(function)
        and not word.startswith("_")
        and function.__module__ == module.__name__
    ]


WIDE = ("activations", "correlations", "curves", "exponents", "lengths", "phases")


@pytest.mark.parametrize(
    "name",
    ["spectrum", "ftle", "clv", "local", "geometry", "structure", "derived"]
    + [f"wide.{name}" for name in WIDE],
)
def test_every_measurement_has_an_example(name):
    lacking = [f.__name__ for f in public_functions(name) if ">>>" not in (f.__doc__ or "")]
    assert not lacking
