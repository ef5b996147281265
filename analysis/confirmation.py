"""What came of a plan: its tests, run as the report runs them, and where the analysis departs.

The tests are lines of the report's own tables (`increments`, `correlations`); what is the plan's
own is Holm's correction, which runs over its primary hypotheses, and over its secondary ones, and
over nothing else.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.correlations import correlations
from analysis.evidence import increments
from analysis.frame import SweepFrame
from analysis.hypotheses import Hypothesis, Plan
from analysis.preregistration import PreregistrationError, Registration
from analysis.statistics import holm
from analysis.verdict import LEVEL

_COLUMN = {
    "marginal": "spearman",
    "partial": "given_settings",
    "partial_with_loss": "given_settings_and_loss",
}


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
    if plan.level != LEVEL:
        yield (
            f"Planned level {plan.level:g} holds for the planned tests; other tables of the report "
            f"are read at {LEVEL:g}."
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
