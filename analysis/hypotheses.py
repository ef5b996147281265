"""What is to be tested, as people write it down: hypotheses, and the plan that holds them.

A plan names target, features, rungs, the primary hypotheses with their tests, and thresholds. It
comes from a YAML file, or is what the report asks anyway, and is known by its hash.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from analysis import features as ft
from analysis.frame import TARGET
from analysis.verdict import LEVEL, PLANNED
from pipeline import yaml_text
from pipeline.faults import ConfigError, clipped
from pipeline.store import SweepInfo
from tasks.base import Bounds, Config

Test = Literal["increment", "partial", "partial_with_loss", "marginal"]
_TEST_WORDS = {
    "increment": "smaller error on held-out trials",
    "marginal": "rank correlation with the final loss",
    "partial": "rank correlation, settings held fixed",
    "partial_with_loss": "rank correlation, settings and loss seen held fixed",
}


@dataclass(frozen=True, kw_only=True)
class Hypothesis(Config):
    """One claim, and the test that decides it.

    test: increment (a group of features makes held-out prediction better), or a rank correlation
        of one feature with the final loss: marginal, partial (settings held fixed) or
        partial_with_loss (settings and loss seen held fixed).
    epoch: at which the features are seen.
    group: spectrum or ftle, for the increment test.
    feature: dotted name, for a correlation.
    direction: of a correlation; any takes both.
    at_least: of the gain or of the correlation's size, below which the claim does not hold
        however sure the sign.
    """

    epoch: Annotated[int, Bounds(ge=0)]
    test: Test = "increment"
    group: Literal["spectrum", "ftle"] | None = None
    feature: str | None = None
    direction: Literal["any", "positive", "negative"] = "any"
    at_least: Annotated[float, Bounds(ge=0, lt=1)] = 0.0

    @property
    def words(self) -> str:
        """The claim, as a table names it."""
        if self.test == "increment":
            return f"the {self.group} at epoch {self.epoch}: {_TEST_WORDS[self.test]}"
        known = ft.FEATURES.get(str(self.feature))
        name = known.label if known is not None else str(self.feature)
        signed = "" if self.direction == "any" else f", {self.direction}"
        return f"{name} at epoch {self.epoch}: {_TEST_WORDS[self.test]}{signed}"


@dataclass(frozen=True, kw_only=True)
class Plan(Config):
    """What is fixed. As YAML, on its own in a file.

    hypothesis: in words, for people.
    primary: decide; Holm's correction runs over them and nothing else.
    secondary: reported, corrected among themselves.
    target: the quantity whose last value in a complete trial is foretold.
    rungs: epochs looked at; features: names looked at, none for all that tables show.
    level: of the tests, after correction.
    trials: that must have ended with a finite loss before the primary tests are run.
    exclusions: which trials are left out and why, in words.
    """

    primary: tuple[Hypothesis, ...]
    hypothesis: str = ""
    secondary: tuple[Hypothesis, ...] = ()
    target: str = TARGET
    rungs: tuple[Annotated[int, Bounds(ge=0)], ...] = ()
    features: tuple[str, ...] = ()
    level: Annotated[float, Bounds(gt=0, le=0.2)] = LEVEL
    trials: Annotated[int, Bounds(ge=20)] = PLANNED
    exclusions: str = "diverged, pruned and failed trials have no final loss and are left out"

    @property
    def sha256(self) -> str:
        """Of the canonical JSON, defaults included."""
        return hash_of(asdict(self))


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file. Raises ConfigError: one line a fault."""
    return plan_of(yaml_text.load(path), str(path))


def plan_of(tree: Any, source: str) -> Plan:
    """A checked plan. Raises ConfigError: one line a fault, naming where it came from."""
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{source}: must be a mapping with at least `primary`, a list of hypotheses such as "
            "{epoch: 2, test: increment, group: spectrum}"
        )
    try:
        # Through JSON: strict about types, yet lists may stand for tuples.
        plan = TypeAdapter(Plan).validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        faults = [
            clipped(
                f"{source} {'.'.join(map(str, f['loc']))}: {f['msg'].lower()}, got {f['input']!r}"
            )
            for f in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(faults)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: holds a value that is not a plain one ({error})") from error
    faults = list(_faults(plan, source))
    if faults:
        raise ConfigError("\n".join(map(clipped, faults)))
    return plan


def default_plan(info: SweepInfo) -> Plan:
    """What the report asks anyway: does a group add anything at each early measured rung?

    Raises ConfigError where the sweep's config measures nothing early.
    """
    measure = info.config.get("measure") or {}
    epochs = (info.config.get("trainer") or {}).get("epochs", 0)
    primary, rungs = [], set()
    for group, diagnostics in (("spectrum", ("lyapunov_spectrum",)), ("ftle", ("ftle",))):
        for name in diagnostics:
            at = (measure.get(name) or {}).get("at") or ()
            rungs |= {int(e) for e in at}
            early = [int(e) for e in at if e <= epochs / 2]
            primary += [{"epoch": e, "test": "increment", "group": group} for e in sorted(early)]
    if not primary:
        raise ConfigError(
            f"sweep {info.name!r}: its config names no epoch in the first half of training at "
            "which lyapunov_spectrum or ftle is measured, so there is no default plan; write one "
            "to a YAML file and name it"
        )
    text = "Spectrum or FTLEs seen early foretell the final loss beyond settings, loss and norms."
    tree = {"hypothesis": text, "primary": primary, "rungs": sorted(rungs)}
    return plan_of(tree, f"default plan of {info.name!r}")


def hash_of(plan: Any) -> str:
    """sha256 of a plan's tree as canonical JSON."""
    text = json.dumps(plan, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _faults(plan: Plan, source: str) -> Iterable[str]:
    if not plan.primary:
        yield f"{source} primary: must name at least one hypothesis, got none"
    for role in ("primary", "secondary"):
        for i, one in enumerate(getattr(plan, role)):
            where = f"{source} {role}.{i}"
            if one.test == "increment":
                if one.group is None:
                    yield f"{where}.group: missing; the increment test is of spectrum or ftle"
                if one.feature is not None or one.direction != "any":
                    yield f"{where}: the increment test takes a group, no feature or direction"
            elif one.feature not in ft.FEATURES:
                known = ", ".join(ft.FEATURES)
                yield f"{where}.feature: must be one of {known}, got {one.feature!r}"
            elif one.group is not None:
                yield f"{where}.group: a correlation takes a feature, no group"
            elif ft.FEATURES[one.feature].is_secondary:
                yield f"{where}.feature: {one.feature} enters predictors only and has no test"
            if plan.rungs and one.epoch not in plan.rungs:
                yield f"{where}.epoch: must be one of the rungs {list(plan.rungs)}, got {one.epoch}"
            if one in getattr(plan, role)[:i]:
                yield f"{where}: the same hypothesis twice"
    for i, name in enumerate(plan.features):
        if name not in ft.FEATURES:
            yield f"{source} features.{i}: no feature {name!r}; there are {', '.join(ft.FEATURES)}"
