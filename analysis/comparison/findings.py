"""What several sweeps say together, in plain words: the first lines of a comparison.

Decided by rule, from one feature fixed beforehand (the first main one that the most sweeps have)
at one moment (see `summary`), so that no search over features and epochs made the sweeps agree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.comparison.agreement import Agreement, Bounded, agreement
from analysis.comparison.summary import Summary

QUESTIONS = {
    "spearman": "plainly",
    "given_settings": "with the settings held fixed",
    "given_settings_and_loss": "with settings and loss seen held fixed",
}
"""Columns of `correlations`, from the weakest to the strictest question."""
STRICTEST = "given_settings_and_loss"
_FEW = 10  # sweeps; fewer leave Q without power and I² without precision


@dataclass(frozen=True)
class Findings:
    """What is claimed of the sweeps together.

    Attributes:
        kind: as of a verdict, for its colour: adds, nothing or hint.
        headline, evidence, cautions: sentences, as of a verdict.
        feature: name of the feature compared; "" where no two sweeps share one.
        label: the feature in words.
    """

    kind: str
    headline: str
    evidence: tuple[str, ...]
    cautions: tuple[str, ...]
    feature: str
    label: str


def findings(sweeps: Sequence[Summary]) -> Findings:
    """Of at least two sweeps."""
    shared = shared_features(sweeps)
    feature = next(iter(shared), "")
    cautions = _cautions(sweeps, feature)
    if not shared:
        headline = (
            f"These {len(sweeps)} sweeps cannot be compared: no feature of a spectrum is known in "
            "two of them of enough finished trials."
        )
        return Findings("no_target", headline, (), cautions, "", "")
    label = shared[feature]
    found = {
        column: agreement(numbers)
        for column in QUESTIONS
        if len(numbers := bounded(sweeps, feature, column)) > 1
    }
    evidence = [_sentence(label, column, one) for column, one in found.items()]
    strict = found.get(STRICTEST)
    if strict is None:
        headline = (
            f"With settings and loss seen held fixed the {label} is known in fewer than two "
            "sweeps: there is nothing to agree on."
        )
        return Findings("too_few", headline, tuple(evidence), cautions, feature, label)
    evidence.append(_heterogeneity(strict))
    kind = {"same": "adds", "none": "nothing"}.get(strict.relation, "hint")
    headline = _headline(label, strict)
    return Findings(kind, headline, tuple(evidence), cautions, feature, label)


def shared_features(sweeps: Sequence[Summary]) -> dict[str, str]:
    """Features that at least two sweeps know, with their words: the most widely known first."""
    labels: dict[str, str] = {}
    count: dict[str, int] = {}
    for sweep in sweeps:
        for _, line in sweep.lines.iterrows():
            if math.isfinite(line["spearman"]):
                labels.setdefault(line["feature"], line["label"])
                count[line["feature"]] = count.get(line["feature"], 0) + 1
    order = list(ft.FEATURES)
    chosen = [name for name in count if count[name] > 1]
    chosen.sort(
        key=lambda name: (not ft.FEATURES[name].is_headline, -count[name], order.index(name))
    )
    return {name: labels[name] for name in chosen}


def line_of(sweep: Summary, feature: str) -> pd.Series | None:
    """The sweep's line of a feature at its moment; None where it has none."""
    lines = sweep.lines[sweep.lines["feature"] == feature] if len(sweep.lines) else sweep.lines
    return lines.iloc[0] if len(lines) else None


def bounded(sweeps: Sequence[Summary], feature: str, column: str) -> dict[str, Bounded]:
    """One kind of correlation of a feature, by sweep, where it has an interval."""
    found = {}
    for sweep in sweeps:
        line = line_of(sweep, feature)
        if (
            line is not None
            and math.isfinite(line[column])
            and math.isfinite(line[f"{column}_low"])
        ):
            ends = (float(line[f"{column}{end}"]) for end in ("", "_low", "_high"))
            found[sweep.name] = Bounded(*ends)
    return found


def _headline(label: str, found: Agreement) -> str:
    beyond = "beyond the settings and the loss seen"
    num = len(found.positive) + len(found.negative) + len(found.open)
    every = "both sweeps" if num == 2 else f"all {num} sweeps"
    if found.relation == "contradict":
        return (
            f"The sweeps contradict one another: {beyond}, the higher the {label}, the higher the "
            f"final loss in {_listed(found.positive)}, but the lower in {_listed(found.negative)}."
        )
    direction = "higher" if found.positive else "lower"
    if found.relation == "same":
        return (
            f"The sweeps agree: {beyond}, the higher the {label}, the {direction} the final loss "
            f"in {every}."
        )
    if found.relation == "some":
        return (
            f"The sweeps neither agree nor contradict one another: {beyond}, the higher the "
            f"{label}, the {direction} the final loss in "
            f"{_listed(found.positive or found.negative)}; in {_listed(found.open)} nothing can be "
            "told."
        )
    return (
        f"The sweeps agree that nothing is seen: in {'neither' if num == 2 else 'none'} of them "
        f"does the {label} go detectably with the final loss {beyond}."
    )


def _sentence(label: str, column: str, found: Agreement) -> str:
    parts = [
        f"the {direction} the final loss in {_listed(names)}"
        for names, direction in ((found.positive, "higher"), (found.negative, "lower"))
        if names
    ]
    said = f"the higher the {label}, {', but '.join(parts)}" if parts else ""
    if found.open:
        which = f"where the final loss goes with the {label}" if not parts else "it"
        said += f"{'; ' if parts else ''}{which} cannot be told in {_listed(found.open)}"
    overlap = "all intervals overlap"
    if found.apart:
        pairs = "; ".join(f"{a} and {b}" for a, b in found.apart)
        overlap = f"the intervals of {pairs} do not overlap"
    question = QUESTIONS[column]
    return f"{question[0].upper()}{question[1:]}, {said} ({overlap})."


def _heterogeneity(found: Agreement) -> str:
    """Q and I² of the strictest question, with what few sweeps can say."""
    num = found.free + 1
    more = (
        "more than chance would make them differ"
        if found.p < 0.05
        else "no more than chance would make them differ, as far as so few can show"
    )
    return (
        f"The strictest of these correlations differ between the sweeps {more}: Cochran's "
        f"Q = {words.number(found.q, 1)} on {words.count(found.free, 'degree')} of freedom, "
        f"{words.p_phrase(found.p)}; I² = {i_squared(found)}."
        + (
            f" {num} sweeps are few: Q misses all but large differences, and I² is rough."
            if num < _FEW
            else ""
        )
    )


def i_squared(found: Agreement) -> str:
    """`64 % [0 %, 89 %]`; without an interval for two sweeps."""
    if not math.isfinite(found.i2):
        return "–"
    text = _whole(found.i2)
    if math.isfinite(found.i2_low):
        text += f" [{_whole(found.i2_low)}, {_whole(found.i2_high)}]"
    return text


def _whole(share: float) -> str:
    return f"{words.number(100 * share, 0)} %"


def _cautions(sweeps: Sequence[Summary], feature: str) -> tuple[str, ...]:
    found = []
    for sweep in sweeps:
        if sweep.num_finished == 0:
            found.append(f"{sweep.name}: no trial has a final loss; nothing of it is compared.")
        elif not len(sweep.lines):
            found.append(
                f"{sweep.name}: no spectrum or FTLE was measured in its first half; nothing of it "
                "is compared."
            )
        elif feature and line_of(sweep, feature) is None:
            known = ft.FEATURES[feature].label
            found.append(
                f"{sweep.name}: it has no {known}, so that only what its own report says stands "
                "beside the others."
            )
    losses: dict[tuple[str, str], list[str]] = {}
    for sweep in sweeps:
        losses.setdefault(sweep.loss, []).append(sweep.name)
    if len(losses) > 1:
        kinds = "; ".join(
            f"{task} in {unit} ({_listed(names)})" for (task, unit), names in losses.items()
        )
        found.append(
            f"The final losses are of different kinds: {kinds}. Every number here ranks the trials "
            "of one sweep among themselves; losses of different sweeps are nowhere compared."
        )
    for a, b in combinations(sweeps, 2):
        if a.origin and a.origin == b.origin:
            found.append(
                f"{a.name} and {b.name} are of one origin (the same source, or the same settings "
                "and seed): they are one witness, not two."
            )
    if len({sweep.moment for sweep in sweeps if len(sweep.lines)}) > 1:
        found.append(
            "The sweeps are looked at after different parts of their training, since they were "
            "not measured at the same ones."
        )
    found.append(
        "Each sweep is judged alone; trials are not pooled, and no mean over sweeps is given. The "
        "intervals are not corrected for the number of sweeps."
    )
    return tuple(found)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def same_everywhere(values: Mapping[str, str]) -> bool:
    """Whether all sweeps have the same value."""
    return len(set(values.values())) == 1
