"""What the sweep says, in plain words with numbers: the first lines of the report.

The verdict is decided by rule, from the early epochs (up to half of training) alone:

1. too few finished trials, no spectrum, or a constant target: no claim;
2. a feature still goes with the final loss once settings and loss seen are held fixed (Holm,
   5 %), and the spectrum also makes cross-validated prediction better (permutation test, Holm,
   5 %): the spectrum adds;
3. only one of the two: a hint; or nothing is claimed, where it is the first and trials are too few
   to hold even squares of the settings fixed;
4. it does once settings are held fixed, but the loss seen knows as much: redundant;
5. it does only while settings vary: confounded;
6. it does not at all: nothing.

Where nothing is to be found, each of the two witnesses errs in at most 5 % of sweeps, over all its
epochs and features; so of such sweeps at most one in ten is called a hint and one in twenty more.
A hint is therefore worth as much as a coin that fell on one side three times.
"""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from analysis import confounding, words
from analysis.cautions import LEVEL as LEVEL
from analysis.cautions import PLANNED as PLANNED
from analysis.cautions import about_divergence, cautions, spelled
from analysis.correlations import correlations, has_ended, most_telling
from analysis.correlations import early_epochs as early_epochs
from analysis.curvature import bends
from analysis.evidence import increments
from analysis.features import LOSS_SEEN
from analysis.figures.base import when
from analysis.frame import SweepFrame

Kind = Literal[
    "no_target", "no_spectrum", "too_few", "adds", "hint", "redundant", "confounded", "nothing"
]

MIN_FINISHED = 20
_DECIDES = {
    "adds": ("given_settings_and_loss", "both"),
    "hint": ("given_settings_and_loss", "both"),
    "too_few": ("given_settings_and_loss", "both"),
    "redundant": ("given_settings", "the settings"),
}
"""Which correlation a claim rests on, where it is not the plain one, and what it holds fixed."""
_LACKS = {
    "given_settings": "covariates_lack",
    "given_settings_and_loss": "covariates_with_loss_lack",
}
_GROUP_WORDS = {"spectrum": "the spectrum", "ftle": "the FTLEs"}


@dataclass(frozen=True)
class Verdict:
    """What is claimed.

    Attributes:
        kind: which rule decided.
        headline: one sentence.
        evidence: sentences with the numbers it rests on.
        cautions: what weakens it.
    """

    kind: Kind
    headline: str
    evidence: tuple[str, ...]
    cautions: tuple[str, ...]


def verdict(frame: SweepFrame) -> Verdict:
    """Reads the tables of `correlations` and `increments`; computes nothing of its own."""
    n = len(frame.target)
    refused = refusal(frame)
    if refused is not None:
        return refused
    table = correlations(frame)
    spectral, gains = _early(frame)
    kind, row = decided(frame)
    if row is None:
        return Verdict(
            "nothing",
            "No feature of the spectrum varies enough over the finished trials to say anything.",
            (f"{words.count(n, 'trial')} finished.",),
            cautions(frame, table, spectral),
        )
    return Verdict(
        kind,
        _headline(kind, row, n, confounding.traced(frame)),
        _evidence(frame, kind, row, table, gains),
        cautions(frame, table, spectral),
    )


def decided(frame: SweepFrame) -> tuple[Kind, pd.Series | None]:
    """Which rule holds, and the line of `correlations` it rests on, where none is refused."""
    return _decide(*_early(frame))


def _early(frame: SweepFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lines of `correlations` and of `increments` that may decide."""
    table, tested, early = correlations(frame), increments(frame), early_epochs(frame)
    spectral = table[table["group"].isin(["spectrum", "ftle"]) & table["epoch"].isin(early)]
    gains = tested[tested["epoch"].isin(early)].dropna(subset=["gain"]) if len(tested) else tested
    return spectral, gains


def refusal(frame: SweepFrame) -> Verdict | None:
    """What stands in place of numbers where there can be none; None where there can."""
    n = len(frame.target)
    states = frame.trials["state"].value_counts()
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    about = (f"{words.count(len(frame.trials), 'trial')} published: {counted}.",)
    if n == 0:
        headline = "No trial ended with a finite validation loss, so there is nothing to foretell."
        return Verdict("no_target", headline, about, about_divergence(frame))
    if not frame.measured_epochs:
        headline = (
            "No spectrum or FTLE was measured in this sweep: the report shows the training only."
        )
        return Verdict("no_spectrum", headline, about, ())
    if has_ended(frame, frame.measured_epochs[0]):
        headline = (
            "The spectrum was measured only when training had ended: there is no early sign of "
            "anything to judge."
        )
        return Verdict("no_spectrum", headline, about, ())
    if n < MIN_FINISHED:
        headline = (
            f"{words.count(n, 'finished trial')} {'is' if n == 1 else 'are'} too few to say "
            f"whether the spectrum tells anything: at least {MIN_FINISHED} are needed for a first "
            f"look, {PLANNED} for a conclusion."
        )
        return Verdict("too_few", headline, about, ())
    if frame.target.nunique() == 1:
        headline = f"All {n} finished trials end with the same loss: there is nothing to foretell."
        return Verdict("no_target", headline, about, ())
    return None


def _decide(spectral: pd.DataFrame, gains: pd.DataFrame) -> tuple[Kind, pd.Series | None]:
    """The rule that holds, and the line of the table that it rests on."""
    strictest = most_telling(spectral, "given_settings_and_loss", level=LEVEL)
    # A gain below 0 may still be larger than those of permuted copies, but it helps nobody.
    helps = len(gains) > 0 and bool(
        ((gains["p_holm"].astype(float) < LEVEL) & (gains["gain"].astype(float) > 0)).any()
    )
    passes = strictest is not None and strictest["given_settings_and_loss_p_holm"] < LEVEL
    if strictest is not None and passes and _holds_curves(strictest):
        return ("adds" if helps else "hint"), strictest
    if helps and strictest is not None:
        return "hint", strictest
    if passes:
        return "too_few", strictest
    given = most_telling(spectral, "given_settings", level=LEVEL)
    if given is not None and given["given_settings_p_holm"] < LEVEL:
        return "redundant", given
    plain = most_telling(spectral, "spearman", level=LEVEL)
    if plain is not None and plain["spearman_p_holm"] < LEVEL:
        return "confounded", plain
    return "nothing", plain


def _headline(kind: Kind, row: pd.Series, n: int, traced: pd.DataFrame) -> str:
    name = f"{row['label']} {when(int(row['epoch']))}"
    if kind == "adds":
        text = (
            f"The spectrum tells something about the final loss that the settings and the loss "
            f"so far do not: the {name} still goes with it when both are held fixed."
        )
    elif kind == "hint":
        text = (
            "There is a hint, no more, that the spectrum tells something beyond the settings and "
            "the loss so far: of sweeps whose spectrum tells nothing, up to one in ten looks like "
            "this."
        )
    elif kind == "too_few":
        text = (
            f"{n} trials are too few to say whether the spectrum tells anything: the {name} goes "
            "with the final loss beyond straight effects of settings and loss so far, but so it "
            "often does where settings act in a curve and the spectrum tells nothing."
        )
    elif kind == "redundant":
        text = (
            f"The spectrum goes with the final loss beyond the settings (most: the {name}), but "
            "adds nothing detectable to the loss already seen."
        )
    elif kind == "confounded":
        text = (
            f"The spectrum adds nothing detectable: the {name} goes with the final loss, but only "
            f"as far as the sampled settings drive both{_most(row, traced)}."
        )
    else:
        text = (
            f"The spectrum adds nothing that {n} trials could show: no feature of it goes "
            "detectably with the final loss."
        )
    if n < PLANNED and kind in ("adds", "redundant"):
        text = text[:-1] + f" (exploratory: {n} of the {PLANNED} trials planned for a conclusion)."
    return text


def _most(row: pd.Series, traced: pd.DataFrame) -> str:
    """The setting that the feature follows most."""
    if traced.empty:
        return ""
    mine = traced[(traced["epoch"] == row["epoch"]) & (traced["feature"] == row["feature"])]
    return f", most of all {mine.iloc[0]['setting']}" if len(mine) else ""


def _evidence(
    frame: SweepFrame, kind: Kind, row: pd.Series, table: pd.DataFrame, gains: pd.DataFrame
) -> tuple[str, ...]:
    epoch = int(row["epoch"])
    num_tests = int(table["spearman_p_holm"].notna().sum())
    name = f"{row['label']} {when(epoch)}"
    column, fixed = _DECIDES.get(kind, ("spearman", ""))
    plain, held = _direction(row, "spearman"), _direction(row, column)
    turns = ""
    if held not in ("", plain):
        turns = f"; with {fixed} held fixed, the higher the {name}, the {held} the final loss"
    found = [
        f"Over {words.count(int(row['n']), 'finished trial')}, "
        + (
            f"the higher the {name}, the {plain} the final loss: "
            if plain
            else f"no direction can be told in which the {name} goes with the final loss: "
        )
        + f"rank correlation {spelled(row, 'spearman')}, "
        f"{words.p_phrase(row['spearman_p_holm'])} after Holm's correction for {num_tests} tests.",
        f"With the sampled settings held fixed {_left(row, 'given_settings')}; with the loss seen "
        f"held fixed as well {_left(row, 'given_settings_and_loss')}{turns}.",
        *confounding.named(frame),
        *bends(frame),
    ]
    bar = table[(table["epoch"] == epoch) & (table["feature"] == LOSS_SEEN)]
    if len(bar) and math.isfinite(bar["spearman"].iloc[0]):
        found.append(
            f"The bar: the validation loss seen {when(epoch)} goes with the final one at "
            f"{spelled(bar.iloc[0], 'spearman')}."
        )
    found += _tested(gains) if len(gains) else _untested(frame)
    if kind == "hint":
        found += _of_a_hint(row, is_tested=len(gains) > 0)
    elif kind == "adds":
        found.append("Of sweeps whose spectrum tells nothing, at most one in twenty says this.")
    return tuple(found)


def _of_a_hint(row: pd.Series, *, is_tested: bool) -> list[str]:
    """Why it is no more, and what would make more, or nothing, of it."""
    why = "One of two witnesses speaks for the spectrum: "
    if not row["given_settings_and_loss_p_holm"] < LEVEL:
        why += "prediction gets better, but no single feature passes the corrected test."
    elif not _holds_curves(row):
        why += "prediction gets better; for the other, a partial correlation, trials are too few."
    elif is_tested:
        why += (
            "a partial correlation passes the corrected test, but prediction does not get better."
        )
    else:
        why += "a partial correlation passes the corrected test; the other could not be asked."
    return [
        why,
        f"The same sweep under another seed, with {PLANNED} trials or more, would settle it: where "
        "the spectrum tells nothing, two hints in a row come at most once in a hundred times.",
    ]


def _holds_curves(row: pd.Series, lacks: str = "covariates_with_loss_lack") -> bool:
    """Whether there was room to hold at least squares of the settings fixed.

    In made-up sweeps of 24 and 32 trials in which the largest exponent crosses 0 with a setting and
    the loss has a kink there, the partial correlation of |λ₁| passed in 56 and 80 %.
    """
    return "squares" not in str(row.get(lacks, ""))


def _untested(frame: SweepFrame) -> list[str]:
    """Why nothing is known of prediction."""
    tested = increments(frame)
    if not len(tested):
        return []
    early = tested[tested["epoch"].isin(early_epochs(frame))]
    problems = dict.fromkeys(str(p).removeprefix("not computable: ") for p in early["problem"] if p)
    if not problems:
        return []
    return [
        "Whether held-out trials are foretold better with the spectrum than without was not "
        f"tested: {'; '.join(problems)}."
    ]


def _tested(gains: pd.DataFrame) -> list[str]:
    """What the increment test says: the gain, whether it could be chance, what it could miss."""
    best = gains.iloc[int(gains["gain"].to_numpy().argmax())]
    is_found = best["p_holm"] < LEVEL
    change = "smaller" if best["gain"] >= 0 else "larger"
    unclear = "" if is_found else ", not distinguishable from none"
    found = [
        "Predicting held-out trials from settings, loss so far and norms, in whatever smooth form "
        f"they act, the error with {_GROUP_WORDS[best['group']]} is at best "
        f"{words.percent(abs(best['gain']))} {change} ({when(int(best['epoch']))}; 95 % interval "
        f"of the gain {words.percent(best['gain_low'])} to {words.percent(best['gain_high'])}; "
        f"permutation test {words.p_phrase(best['p_holm'])} after Holm's correction{unclear})."
    ]
    if not is_found and math.isfinite(best["detectable"]):
        found.append(
            f"What this test could find: a group that explains "
            f"{words.percent(best['detectable'])} of what the baseline leaves of the variance, "
            f"with 80 %, before any correction{_more_trials(best)}."
        )
    if math.isfinite(best["against"]) and is_found:
        than = "less" if best["against"] >= 0 else "more"
        sure = best["against_low"] > 0 or best["against_high"] < 0
        found.append(
            f"Measuring cost {words.number(best['cost_epochs'])} epochs of training. Compared with "
            f"training on to epoch {int(best['against_epoch'])} instead, the error is "
            f"{words.percent(abs(best['against']))} {than}"
            + ("." if sure else ", not distinguishable from none.")
        )
    return found


def _more_trials(best: pd.Series) -> str:
    n, needed = int(best["n"]), best["trials_needed"]
    if math.isinf(needed):
        return "; the gain seen is none, and no number of trials would make a conclusion of it"
    if not needed > n:
        return ""
    return (
        f". To conclude on a gain as small as the one seen, {math.ceil(needed):,} trials "
        f"would be needed, {math.ceil(needed) - n:,} more"
    )


def _direction(row: pd.Series, column: str) -> str:
    """Where the final loss goes as the feature rises; "" where the interval holds 0."""
    value, low, high = (float(row[f"{column}{end}"]) for end in ("", "_low", "_high"))
    is_told = low > 0 or high < 0 or (math.isnan(low) and abs(value) == 1)
    return "" if not is_told else "lower" if value < 0 else "higher"


def _left(row: pd.Series, column: str) -> str:
    if not math.isfinite(row[column]):
        return f"it is {row[f'{column}_problem']}"
    p = row[f"{column}_p_holm"]
    held = "" if _holds_curves(row, _LACKS[column]) else "; straight effects held fixed only"
    return f"{spelled(row, column)} remains ({words.p_phrase(p)} after Holm's correction{held})"
