"""What was to be tested, fixed before the sweep could tell: a plan, its hash, what came of it.

A plan names target, features, rungs, the primary hypotheses with their tests, and thresholds. It is
hashed and stored with the sweep, beside the time and the number of trials that had ended by then.
A result is *confirmatory* if a plan fixed before the sweep ended names it, and *exploratory*
otherwise. A plan is fixed once: another one for the same sweep is refused, and one written after
the sweep has ended is refused as well, or kept as such where its author says so; nothing is then
confirmatory. This guards against forgetting, not against fraud: whoever can write the store can
write a plan into it, so the hash is printed, to be kept elsewhere.

Nosek, Ebersole, DeHaven & Mellor 2018, "The preregistration revolution" (PNAS 115).
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import TypeAdapter, ValidationError

from analysis import features as ft
from analysis import words
from analysis.correlations import correlations
from analysis.evidence import increments
from analysis.frame import TARGET, AnalysisError, SweepFrame
from analysis.statistics import holm
from analysis.verdict import PLANNED
from pipeline.config import ConfigError
from pipeline.folder_store import FolderStore
from pipeline.rows import now_ms
from pipeline.store import Store, StoreError, SweepInfo
from tasks.base import Bounds, Config

FORMAT = 1
FOLDER, FILE = "preregistration", "preregistration.json"
_ENDED = ("complete", "diverged", "pruned", "failed")
_MOST_BYTES = 1_000_000
_LEVEL = 0.05  # of the report's own tables

Test = Literal["increment", "partial", "partial_with_loss", "marginal"]
_COLUMN = {
    "marginal": "spearman",
    "partial": "given_settings",
    "partial_with_loss": "given_settings_and_loss",
}
_TEST_WORDS = {
    "increment": "smaller error on held-out trials",
    "marginal": "rank correlation with the final loss",
    "partial": "rank correlation, settings held fixed",
    "partial_with_loss": "rank correlation, settings and loss seen held fixed",
}


class PreregistrationError(AnalysisError):
    """A plan that cannot be registered, or a registration that cannot be trusted."""


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
    level: Annotated[float, Bounds(gt=0, le=0.2)] = _LEVEL
    trials: Annotated[int, Bounds(ge=20)] = PLANNED
    exclusions: str = "diverged, pruned and failed trials have no final loss and are left out"

    @property
    def sha256(self) -> str:
        """Of the canonical JSON, defaults included."""
        return _hash(asdict(self))


@dataclass(frozen=True)
class Registration:
    """A plan as it was stored.

    Attributes:
        plan, sha256: what was fixed, and its hash then.
        time_ms: when, in milliseconds since 1970 UTC.
        num_ended, num_trials: how many of how many trials had ended by then.
        sweep_id, config_hash: of the sweep it was fixed for.
        is_after: whether the sweep had ended.
    """

    plan: Plan
    sha256: str
    time_ms: int
    num_ended: int
    num_trials: int
    sweep_id: str
    config_hash: str
    is_after: bool

    @property
    def when(self) -> str:
        """`2026-11-21 12:30 UTC`."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True, eq=False)
class Confirmation:
    """What a report says of a plan.

    Attributes:
        is_confirmatory: whether a plan was fixed before the sweep ended, and is as it was.
        sentences: what was fixed when, and what came of each primary hypothesis.
        table: one line a planned test: role (primary, secondary), claim, status (confirmatory or
            exploratory), n, value with low and high, p, p_holm (over those of the same role),
            at_least, holds (True, False, None where it could not be tested), problem.
        deviations: where what was done is not what was planned, one sentence each.
    """

    is_confirmatory: bool
    sentences: tuple[str, ...]
    table: pd.DataFrame
    deviations: tuple[str, ...]


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file. Raises ConfigError: one line a fault."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    return plan_of(tree, str(path))


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
            f"{source} {'.'.join(map(str, f['loc']))}: {f['msg'].lower()}, got {f['input']!r}"
            for f in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(faults)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: holds a value that is not a plain one ({error})") from error
    faults = list(_faults(plan, source))
    if faults:
        raise ConfigError("\n".join(faults))
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


def register(
    store: Store, name: str, plan: Plan, *, after_the_fact: bool = False
) -> tuple[Registration, bool]:
    """Stores a plan with a sweep. Returns it, and whether it is new: the same plan twice is once.

    Raises PreregistrationError where another plan is registered, or the sweep has ended and
    `after_the_fact` is not given; NoSuchSweepError; StoreError.
    """
    info = store.sweep(name)
    former = preregistration_of(store, name)
    if former is not None:
        if former.sha256 == plan.sha256:
            return former, False
        raise PreregistrationError(
            f"sweep {name!r}: a plan is fixed once, and one was on {former.when} (sha256 "
            f"{former.sha256[:12]}…), another than this one ({plan.sha256[:12]}…); the report "
            "shows deviations from it, or start another sweep"
        )
    num_ended = sum(state in _ENDED for state in store.states(name).values())
    has_ended = info.state == "complete" or num_ended >= info.num_trials
    if has_ended and not after_the_fact:
        raise PreregistrationError(
            f"sweep {name!r}: a plan must be fixed before the sweep ends, and it has ended "
            f"({num_ended} of {info.num_trials} trials); preregister the next sweep while it runs, "
            "or record this plan as written after the fact with --after-the-fact, in which case "
            "the report calls everything exploratory"
        )
    made = Registration(
        plan, plan.sha256, now_ms(), num_ended, info.num_trials, info.sweep_id, info.config_hash,
        has_ended,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
        path = Path(folder) / FILE
        content = {"format": FORMAT, **asdict(made)}
        path.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        store.attach(name, path, FOLDER)
    return made, True


def preregistration_of(store: Store, name: str) -> Registration | None:
    """The plan stored with a sweep, None where there is none.

    Raises PreregistrationError where what is stored was changed or cannot be read.
    """
    store.sweep(name)
    text = _attached(store, name)
    if text is None:
        return None
    where = f"sweep {name!r}: {FOLDER}/{FILE}"
    try:
        content = json.loads(text)
        number = int(content.pop("format"))
        if number > FORMAT:
            raise PreregistrationError(
                f"{where}: format {number} is newer than this program reads ({FORMAT}); "
                "upgrade lyapsweep"
            )
        plan_tree = content.pop("plan")
        found = Registration(plan=plan_of(plan_tree, where), **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PreregistrationError):
            raise
        raise PreregistrationError(f"{where}: not a registration ({error})") from error
    if found.sha256 != _hash(plan_tree):
        raise PreregistrationError(
            f"{where}: its sha256 is {found.sha256[:12]}…, and that of the plan in it "
            f"{_hash(plan_tree)[:12]}…; the plan was changed after it was registered, so nothing "
            "it names is confirmatory"
        )
    return found


def confirmation(
    frame: SweepFrame, registration: Registration | PreregistrationError | None
) -> Confirmation:
    """Tests what was planned, and says where the analysis departs from it.

    A registration that cannot be trusted (the error of `preregistration_of`) counts as none, and
    is named as a deviation.
    """
    if not isinstance(registration, Registration):
        text = "No plan was fixed before the sweep ended: every result here is exploratory."
        problems = () if registration is None else (str(registration),)
        return Confirmation(False, (text,), _planned_tests(frame, None, False), problems)
    is_of_this = registration.sweep_id == frame.info.sweep_id
    is_confirmatory = is_of_this and not registration.is_after
    table = _planned_tests(frame, registration.plan, is_confirmatory)
    return Confirmation(
        is_confirmatory,
        (_fixed(registration, is_confirmatory), *_came(registration.plan, table)),
        table,
        tuple(_deviations(frame, registration, table)),
    )


def status_of(
    registration: Registration | PreregistrationError | None, *, epoch: int, test: Test, what: str
) -> Literal["confirmatory", "exploratory"]:
    """What a line of a table is. what: the group of an increment, the feature of a correlation."""
    if not isinstance(registration, Registration) or registration.is_after:
        return "exploratory"
    plan = registration.plan
    is_named = any(
        h.epoch == epoch and h.test == test and what in (h.group, h.feature)
        for h in (*plan.primary, *plan.secondary)
    )
    return "confirmatory" if is_named else "exploratory"


def _hash(plan: Any) -> str:
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


def _planned_tests(frame: SweepFrame, plan: Plan | None, is_confirmatory: bool) -> pd.DataFrame:
    columns = ["role", "claim", "status", "n", "value", "low", "high", "p", "p_holm", "at_least",
               "holds", "problem"]  # fmt: skip
    parts = []
    for role in ("primary", "secondary"):
        if plan is None:
            break
        lines = [_tested(frame, plan, one) for one in getattr(plan, role)]
        if not lines:
            continue
        part = pd.DataFrame(lines)
        part.insert(0, "role", role)
        part["status"] = "confirmatory" if is_confirmatory else "exploratory"
        # A planned test that could not be run is not taken off the number of tests.
        corrected = holm(part["p"].astype(float).fillna(1.0).to_numpy(float))
        part["p_holm"] = pd.Series(corrected).where(part["p"].notna())
        holds = [
            _holds(one, line, plan.level)
            for one, (_, line) in zip(getattr(plan, role), part.iterrows(), strict=True)
        ]
        # Of objects: None, for a test that was not run, is not False.
        part["holds"] = pd.Series(holds, dtype=object)
        parts.append(part[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _tested(frame: SweepFrame, plan: Plan, one: Hypothesis) -> dict[str, object]:
    empty = {"n": 0, "value": math.nan, "low": math.nan, "high": math.nan, "p": math.nan}
    line = {"claim": one.words, "at_least": one.at_least}
    n = len(frame.target)
    if n < plan.trials:
        return {**line, **empty, "n": n, "problem":
                f"{n} trials ended with a finite loss, {plan.trials} were planned"}  # fmt: skip
    if plan.target != frame.target_quantity:
        reason = f"the target is {frame.target_quantity}, {plan.target} was planned"
        return {**line, **empty, "problem": reason}
    if one.test == "increment":
        table, column, key = increments(frame), "gain", "group"
    else:
        table, column, key = correlations(frame), _COLUMN[one.test], "feature"
    wanted = one.group if one.test == "increment" else one.feature
    rows = table[(table["epoch"] == one.epoch) & (table[key] == wanted)] if len(table) else table
    if not len(rows):
        reason = f"{wanted} was not measured at epoch {one.epoch}, or nothing lay ahead of it"
        return {**line, **empty, "problem": reason}
    row = rows.iloc[0]
    is_gain = one.test == "increment"
    return {
        **line,
        "n": int(row["n"]),
        "value": float(row[column]),
        "low": float(row[f"{column}_low"]),
        "high": float(row[f"{column}_high"]),
        "p": float(row["p" if is_gain else f"{column}_p"]),
        "problem": str(row["problem" if is_gain else f"{column}_problem"] or ""),
    }


def _holds(one: Hypothesis, line: pd.Series, level: float) -> bool | None:
    if not math.isfinite(line["p"]):
        return None
    value = line["value"]
    is_signed = {
        "any": value > 0 if one.test == "increment" else True,
        "positive": value > 0,
        "negative": value < 0,
    }[one.direction]
    return bool(line["p_holm"] < level and is_signed and abs(value) >= one.at_least)


def _fixed(registration: Registration, is_confirmatory: bool) -> str:
    ended, total = registration.num_ended, words.count(registration.num_trials, "trial")
    fixed = f"The plan (sha256 {registration.sha256[:12]}…) was fixed on {registration.when}, when "
    if is_confirmatory:
        seen = "" if ended == 0 else ", whose results could be seen"
        have = "none had ended" if ended == 0 else f"{ended} had ended{seen}"
        return f"{fixed}of {total} {have}: what it names is confirmatory, all else is exploratory."
    if registration.is_after:
        return f"{fixed}all of {total} had ended: after the fact, so every result is exploratory."
    return f"{fixed}{ended} of {total} of another sweep had ended: every result is exploratory."


def _came(plan: Plan, table: pd.DataFrame) -> Iterable[str]:
    if plan.hypothesis:
        yield f"Hypothesis: {plan.hypothesis}"
    for _, line in table[table["role"] == "primary"].iterrows():
        claim = f"Primary – {line['claim']}"
        if line["holds"] is None:
            yield f"{claim}: not tested ({line['problem'] or 'no p value'})."
            continue
        found = words.estimate(line["value"], line["low"], line["high"])
        holds = "holds" if line["holds"] else "does not hold"
        least = f" and at least {line['at_least']:g}" if line["at_least"] else ""
        yield (
            f"{claim}: {holds} ({found} over {words.count(int(line['n']), 'trial')}, "
            f"{words.p_phrase(line['p_holm'])} after Holm's correction for the primary tests; "
            f"planned: p < {plan.level:g}{least})."
        )


def _deviations(
    frame: SweepFrame, registration: Registration, table: pd.DataFrame
) -> Iterable[str]:
    plan, info = registration.plan, frame.info
    if registration.sweep_id != info.sweep_id:
        yield "The plan was registered for another sweep of this name."
    elif registration.config_hash != info.config_hash:
        yield "The sweep's settings were changed after the plan was fixed."
    if plan.target != frame.target_quantity:
        yield f"Planned target {plan.target}; the report's is {frame.target_quantity}."
    if plan.level != _LEVEL:
        yield (
            f"Planned level {plan.level:g} holds for the planned tests; other tables of the report "
            f"are read at {_LEVEL:g}."
        )
    n = len(frame.target)
    if n < plan.trials:
        yield f"{n} trials ended with a finite loss; {plan.trials} were planned."
    planned = set(plan.rungs or (h.epoch for h in (*plan.primary, *plan.secondary)))
    lacking = sorted(planned - set(frame.measured_epochs))
    if lacking:
        yield f"Planned but not measured: epoch {words.either(lacking)}."
    more = sorted(set(frame.measured_epochs) - planned)
    if more:
        yield f"Measured but not planned, hence exploratory: epoch {words.either(more)}."
    if plan.features:
        known = {
            name
            for epoch in frame.measured_epochs
            for name in _looked_at(ft.features(ft.early_view(frame, epoch)))
        }
        lacking_ = [name for name in plan.features if name not in known]
        if lacking_:
            yield f"Planned features of which no trial has a value: {', '.join(lacking_)}."
        more_ = sorted(known - set(plan.features))
        if more_:
            yield f"Features not planned, hence exploratory: {', '.join(more_)}."
    untested = int(table["holds"].isna().sum()) if len(table) else 0
    if untested:
        yield f"{words.count(untested, 'planned test')} could not be run."
    if frame.num_pruned:
        pruned = words.count(frame.num_pruned, "trial")
        yield f"{pruned} stopped by a pruner: those that ended were chosen by their early losses."


def _looked_at(table: pd.DataFrame) -> list[str]:
    """Spectrum and FTLE features that tables show; loss and norms are the bar, not looked at."""
    return [name for name in ft.measured(table) if not ft.FEATURES[name].is_secondary]


def _attached(store: Store, name: str) -> str | None:
    """The text of the file stored with the sweep; the protocol only says how to put it there."""
    if isinstance(store, FolderStore):
        path = store.root / name / FOLDER / FILE
        return _text(path) if path.is_file() else None
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store.uri)
    try:
        experiment = client.get_experiment_by_name(name)
        wanted = f"tags.`lyapsweep.kind` = 'sweep' and tags.`lyapsweep.sweep` = '{name}'"
        assert experiment is not None, "the store has just found the sweep"
        runs = client.search_runs([experiment.experiment_id], wanted, max_results=1)
        run_id = runs[0].info.run_id
        if not any(f.path == f"{FOLDER}/{FILE}" for f in client.list_artifacts(run_id, FOLDER)):
            return None
        with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
            return _text(Path(client.download_artifacts(run_id, f"{FOLDER}/{FILE}", folder)))
    except MlflowException as error:
        brief = (str(error).splitlines() or [""])[0]
        raise StoreError(f"the plan of sweep {name!r} cannot be read: {brief}") from error


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise PreregistrationError(
            f"{path}: must be smaller than {_MOST_BYTES:,} bytes, got {path.stat().st_size:,}; "
            "this is not a registration"
        )
    return path.read_text(encoding="utf-8", errors="replace")
