"""Ranges in a conf tree: found, described, filled with values.

In `task`, `network` and `trainer` a range may stand for a value:

    {uniform: [0, 0.5]}            real, low to high
    {log_uniform: [1e-4, 1e-1]}    real, uniform in the logarithm
    {int: [1, 4]}                  whole numbers, both ends included
    {log_int: [16, 512]}           whole numbers, uniform in the logarithm
    {choice: [32, 64]}             one of these

`num: 5` beside a real range says how many points a grid takes from it. The dotted path of a
range is its name everywhere: in Optuna, in MLflow, in the records.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SAMPLERS = {
    "qmc": "scrambled Sobol points: even coverage, never steered by results (default)",
    "random": "independent random points, never steered by results",
    "grid": "every combination of choices and of `num` points of each range",
    "tpe": "tree-structured Parzen estimator, steered by results",
    "gp": "Gaussian process, steered by results",
    "cmaes": "covariance matrix adaptation, steered by results",
}
WORDS = {
    "uniform": "{uniform: [0, 0.5]}: real, low to high",
    "log_uniform": "{log_uniform: [1e-4, 1e-1]}: real, uniform in the logarithm",
    "int": "{int: [1, 4]}: whole numbers, both ends included",
    "log_int": "{log_int: [16, 512]}: whole numbers, uniform in the logarithm",
    "choice": "{choice: [32, 64]}: one of these",
}
KINDS = tuple(WORDS)

LARGEST = 2**53
"""Of whole numbers: what a float, a column and a database all hold exactly."""
MOST_POINTS = 100_000
"""Of a grid in one dimension, and choices."""


class RangeError(ValueError):
    """A range that cannot be sampled; the message lacks the path, which the caller knows."""


@dataclass(frozen=True)
class Range:
    """One dimension of the search space.

    Attributes:
        kind: one of `KINDS`.
        low, high: the ends, both included; 0 and len(choices) - 1 for a choice.
        choices: the values of a choice, else ().
        num: grid points of a real range, or None.
    """

    kind: str
    low: float
    high: float
    choices: tuple[Any, ...] = ()
    num: int | None = None

    @property
    def is_log(self) -> bool:
        """True where sampling is uniform in the logarithm."""
        return self.kind.startswith("log")

    @property
    def is_whole(self) -> bool:
        """True for ranges of whole numbers."""
        return self.kind in ("int", "log_int")

    def ends(self) -> tuple[Any, ...]:
        """The values whose validity implies that of the whole range (all of a choice)."""
        if self.kind == "choice":
            return self.choices
        if self.is_whole:
            return int(self.low), int(self.high)
        # As floats: ends written without a point must not pass where only whole numbers may.
        return float(self.low), float(self.high)

    def grid(self) -> tuple[Any, ...]:
        """The points a grid takes. Raises RangeError for a real range without `num`."""
        if self.kind == "choice":
            return self.choices
        if self.is_whole and self.num is None:
            if self.high - self.low >= MOST_POINTS:
                raise RangeError(
                    f"a grid takes at most {MOST_POINTS:,} points from one range; say how many "
                    "with `num`"
                )
            return tuple(range(int(self.low), int(self.high) + 1))
        if self.num is None:
            raise RangeError("a grid needs `num`, the number of points, beside a real range")
        steps = [i / (self.num - 1) if self.num > 1 else 0.0 for i in range(self.num)]
        if self.is_log:
            a, b = math.log(self.low), math.log(self.high)
            points = [math.exp(a + s * (b - a)) for s in steps]
            points[0] = self.low
            if self.num > 1:
                points[-1] = self.high
        else:
            points = [self.low + s * (self.high - self.low) for s in steps]
        if self.is_whole:
            return tuple(dict.fromkeys(round(p) for p in points))
        return tuple(float(p) for p in points)

    def __str__(self) -> str:
        if self.kind == "choice":
            return "choice of " + ", ".join(str(c) for c in self.choices)
        return f"{self.kind.replace('_', '-')} {self.low:g} to {self.high:g}"


def parse_range(node: Any) -> Range | None:
    """The range a node of the tree describes; None where it is an ordinary value.

    Raises RangeError for a malformed one.
    """
    if not isinstance(node, Mapping):
        return None
    kinds = [k for k in node if k in KINDS]
    if not kinds:
        return None
    if len(kinds) > 1 or set(node) - {*kinds, "num"}:
        raise RangeError(
            f"a range is one of {', '.join(KINDS)} and perhaps `num`, got keys "
            f"{', '.join(map(str, node))}"
        )
    kind, content, num = kinds[0], node[kinds[0]], node.get("num")
    if num is not None and (
        not isinstance(num, int) or isinstance(num, bool) or not 1 <= num <= MOST_POINTS
    ):
        raise RangeError(f"num must be a whole number from 1 to {MOST_POINTS:,}, got {num!r}")
    if kind == "choice":
        if not isinstance(content, list | tuple) or not content:
            raise RangeError(f"choice needs a list of at least one value, got {content!r}")
        if any(isinstance(c, dict | list | tuple) for c in content):
            raise RangeError("choice takes plain values, not lists or mappings")
        if len({repr(c) for c in content}) < len(content):
            raise RangeError(f"choice lists a value twice: {list(content)!r}")
        if num is not None:
            raise RangeError("num goes with a range of numbers, not with choice")
        return Range(kind, 0, len(content) - 1, tuple(content))
    return _numbers(kind, content, num)


def _numbers(kind: str, content: Any, num: int | None) -> Range:
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise RangeError(f"{kind} needs two ends [low, high], got {content!r}")
    for end in content:
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise RangeError(f"{kind} needs two finite numbers, got {end!r}")
        if isinstance(end, int) and abs(end) > LARGEST:
            raise RangeError(f"{kind} needs numbers of at most {LARGEST}, got {end!r}")
        if not math.isfinite(end):
            raise RangeError(f"{kind} needs two finite numbers, got {end!r}")
        if kind in ("int", "log_int") and int(end) != end:
            raise RangeError(f"{kind} needs whole numbers, got {end!r}")
    low, high = content
    if low > high:
        raise RangeError(f"the low end must not exceed the high end, got [{low}, {high}]")
    if low == high:
        raise RangeError(f"both ends are {low}; write the value itself instead of a range")
    if kind.startswith("log") and low <= 0:
        raise RangeError(f"{kind} needs ends above 0, got {low}")
    return Range(kind, low, high, num=num)


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree with its dotted path; a range counts as a leaf."""
    if isinstance(tree, Mapping) and not any(k in KINDS for k in tree):
        for key, node in tree.items():
            yield from walk(node, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def fill(tree: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """The tree with each range replaced by the value under its path. Raises KeyError."""
    if isinstance(tree, Mapping):
        if any(k in KINDS for k in tree):
            return values[path]
        return {
            key: fill(node, values, f"{path}.{key}" if path else str(key))
            for key, node in tree.items()
        }
    return tree
