"""What spectrum and FTLEs add at each rung, over what was known without them.

The baseline is everything a tuner has anyway: the sampled settings, the loss so far (its last
value, its slope and bend, the training loss), gradient and weight norms, and what mean-field theory
says of the start weights. `increment` says how the
gain is tested. Beside it stands the price: what training for as long as the measurement took would
have told instead.

The target enters as normal scores of the final loss: ranks, so that three late divergences cannot
decide, spread like a normal variable.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pandas as pd

from analysis import configurations
from analysis import features as ft
from analysis import increment as inc
from analysis.early_view import EarlyView
from analysis.frame import SweepFrame
from analysis.increment import Increment, baseline_errors, increment, normal_scores
from analysis.mean_field import mean_field
from analysis.parallel import each
from analysis.statistics import error_gain, holm

NUM_PERMUTATIONS = inc.NUM_PERMUTATIONS
NUM_FOLDS = inc.NUM_FOLDS
NUM_REPEATS = inc.NUM_REPEATS
GROUPS: tuple[ft.Group, ...] = ("spectrum", "ftle")
_DIAGNOSTIC = {"spectrum": "lyapunov", "ftle": "ftle"}
_MAX_PAIRED = 8
_PERMUTATIONS_OF_MANY = 499
_MANY, _MOST_OF_MANY = 2_000, 400


@dataclass(frozen=True, eq=False)
class Baseline:
    """What is known without the group: trials by columns, the first `num_paired` act in pairs."""

    table: pd.DataFrame
    num_paired: int


@lru_cache(maxsize=2)
def increments(frame: SweepFrame) -> pd.DataFrame:
    """One line an (epoch, group), for the epochs at which something still lay ahead.

    Columns: epoch, group, n; gain with _low, _high, p, p_holm (over the table), problem;
    determined, detectable, explained, trials_needed (see `Increment`), power_ten (against a
    group that explains a tenth); cost_epochs (of one measurement, median over trials),
    against_epoch, against (gain over the loss at that epoch, which the same compute would have
    bought, rounded up) with _low, _high, _p, against_problem.
    """
    epochs = [e for e in frame.measured_epochs if e < frame.final_epoch]
    lines = [line for found in each(lambda e: _at(frame, e), epochs) for line in found]
    result = pd.DataFrame(lines)
    if len(result):
        result["p_holm"] = holm(result["p"].to_numpy(float))
    return result


def _at(frame: SweepFrame, epoch: int) -> list[dict[str, object]]:
    """The lines of one epoch."""
    ahead = frame.target_at(epoch)
    view = ft.early_view(frame, epoch)
    most = _most_tested(len(frame.target))
    if len(ahead) > most:
        drawn = np.random.default_rng(epoch).permutation(len(ahead))[:most]
        ahead = ahead.iloc[np.sort(drawn)]
        view = view.only(ahead.index)
    num_permutations, num_repeats = _effort(len(frame.target))
    target = normal_scores(ahead)
    table = ft.features(view)
    base = baseline(view, target.index)

    @cache  # Both groups are often held against the same epoch.
    def known_at(later: int, trials: tuple[int, ...]) -> pd.Series:
        """Squared errors of what was known at a later epoch."""
        theirs = target.loc[list(trials)]
        seen = baseline(ft.early_view(frame, later), theirs.index)
        return baseline_errors(
            theirs, seen.table, num_paired=seen.num_paired, num_folds=NUM_FOLDS,
            num_repeats=num_repeats, seed=epoch, together=_together(frame, theirs.index),
        )  # fmt: skip

    lines = []
    for group in GROUPS:
        names = [n for n in map(str, table) if ft.FEATURES[n].group == group]
        if not names:
            continue
        found = increment(
            target, base.table, table[names], num_paired=base.num_paired,
            num_permutations=num_permutations, num_folds=NUM_FOLDS, num_repeats=num_repeats,
            seed=epoch, together=_together(frame, target.index),
        )  # fmt: skip
        against = _against(frame, epoch, group, found, known_at)
        lines.append({"epoch": epoch, "group": group, **_line(found), **against})
    return lines


def _most_tested(num_trials: int) -> int:
    """Trials of a test, where so many ended: its smoothers take time as their cube."""
    return inc.MAX_TRIALS if num_trials <= _MANY else _MOST_OF_MANY


def _effort(num_trials: int) -> tuple[int, int]:
    """Permutations, and repeats of the folds, where so many trials ended.

    Many trials vary less with the folds, and a test takes a second for each repeat of 600 of them.
    """
    if num_trials <= inc.MAX_TRIALS:
        return NUM_PERMUTATIONS, NUM_REPEATS
    return min(_PERMUTATIONS_OF_MANY, NUM_PERMUTATIONS), 1


def note(frame: SweepFrame) -> str:
    """Of which part of the trials `increments` speaks, in words; "" for all of them."""
    count = len(frame.target)
    if count <= inc.MAX_TRIALS:
        return ""
    permutations, _ = _effort(count)
    return (
        f"Tested on {_most_tested(count)} of {count:,} trials, drawn by chance at each epoch, with "
        f"{permutations} permutations and one round of folds."
    )


def baseline(view: EarlyView, trials: pd.Index) -> Baseline:
    """Settings, then loss so far, norms and mean-field numbers as normal scores."""
    settings = ft.hyperparameters(view).reindex(trials)
    table = ft.features(view).reindex(trials)
    names = [n for n in map(str, table) if ft.FEATURES[n].group in ("loss", "norms")]
    names.sort(key=lambda name: name != ft.LOSS_SEEN)
    known = pd.DataFrame({n: normal_scores(table[n]) for n in names}, index=trials)
    num_paired = min(settings.shape[1] + (ft.LOSS_SEEN in names), _MAX_PAIRED)
    theory = mean_field(view.params.reindex(trials)).table.apply(normal_scores)
    return Baseline(settings.join(known).join(theory), num_paired)


def _together(frame: SweepFrame, trials: pd.Index) -> pd.Series | None:
    units = configurations.shared(frame.params, trials)
    return None if units is None else pd.Series(units, index=trials)


def cost_in_epochs(frame: SweepFrame, epoch: int, group: str) -> float:
    """What a group's measurement at an epoch took, in epochs of training: median over trials."""
    seconds = frame.seconds
    measuring = seconds[
        (seconds["epoch"] == epoch) & (seconds["diagnostic"].str.startswith(_DIAGNOSTIC[group]))
    ]
    training = seconds[(seconds["activity"] == "training") & (seconds["seconds"] > 0)]
    if measuring.empty or training.empty:
        return math.nan
    ratio = (
        measuring.groupby("trial")["seconds"].sum() / training.groupby("trial")["seconds"].mean()
    )
    return float(ratio.median())


def _against(
    frame: SweepFrame,
    epoch: int,
    group: str,
    found: Increment,
    known_at: Callable[[int, tuple[int, ...]], pd.Series],
) -> dict[str, object]:
    """The group's errors against those of the loss at the epoch its measuring would have bought."""
    cost = cost_in_epochs(frame, epoch, group)
    line: dict[str, object] = {"cost_epochs": cost, "against_epoch": math.nan}
    empty = dict.fromkeys(("against", "against_low", "against_high", "against_p"), math.nan)
    if found.group_squares is None or not math.isfinite(cost):
        reason = "no time was recorded" if found.group_squares is not None else found.gain.problem
        return {**line, **empty, "against_problem": reason}
    # A measurement cheaper than an epoch still buys one: whoever trains on sees a loss only then.
    later = epoch + max(1, math.ceil(cost))
    if later >= frame.final_epoch:
        return {**line, **empty, "against_problem": "the same compute would have finished training"}
    line["against_epoch"] = later
    ahead = frame.target_at(later).index.intersection(found.group_squares.index)
    squares = known_at(later, tuple(ahead))
    units = configurations.shared(frame.params, squares.index)
    theirs = found.group_squares.reindex(squares.index).to_numpy()
    gain = error_gain(
        configurations.sums(squares.to_numpy(), units), configurations.sums(theirs, units)
    )
    return {
        **line,
        "against": gain.value,
        "against_low": gain.low,
        "against_high": gain.high,
        "against_p": gain.p,
        "against_problem": gain.problem,
    }


def _line(found: Increment) -> dict[str, object]:
    gain = found.gain
    return {
        "n": gain.n,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "p": gain.p,
        "determined": found.determined,
        "power_ten": found.power_at(0.1),
        "detectable": found.detectable,
        "explained": found.explained,
        "trials_needed": found.trials_needed,
        "problem": gain.problem,
    }
