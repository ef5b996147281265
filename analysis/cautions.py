"""What weakens a verdict: few trials, a steered design, pruners, strata that turn, divergences."""

import pandas as pd

from analysis import configurations, words
from analysis.correlations import divergence, early_epochs, most_telling, strongest
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.statistics import detectable

PLANNED = 150
LEVEL = 0.05
_STEERED = ("tpe", "gp", "cmaes")


def cautions(frame: SweepFrame, table: pd.DataFrame, spectral: pd.DataFrame) -> tuple[str, ...]:
    """Sentences; `table` is of `correlations`, `spectral` those of its lines that decide."""
    n = len(frame.target)
    found = [*_mixture(frame), *_shared(frame)]
    turned = spectral[spectral["reverses"].astype(bool)]
    if len(turned):
        row = strongest(turned, "within")
        found.append(
            f"Simpson's paradox: across all trials the {row['label']} {when(int(row['epoch']))} "
            f"goes with the final loss at {words.number(row['spearman'], sign=True)}, but within "
            f"strata of {row['strata_by']} at {spelled(row, 'within')}: the sign turns. "
            f"{words.count(len(turned), 'feature line')} of {len(spectral)} do so."
        )
    width = int(table["num_covariates_with_loss"].max())
    if n < PLANNED:
        found.append(
            f"{n} trials are fewer than the {PLANNED} planned: a partial correlation below "
            f"{words.number(detectable(n, width))} would be missed more than one time in five, "
            "before any correction for many tests."
        )
    lacks = max((*table["covariates_lack"], *table["covariates_with_loss_lack"]), key=len)
    if lacks:
        *most, last = lacks.split(", ")
        spelled_out = f"{', '.join(most)} and {last}" if most else last
        found.append(
            f"{n} trials leave no room to hold fixed the {spelled_out} of settings and loss seen, "
            "that is, influences that bend or depend on one another: where there are such, some of "
            "them is left in."
        )
    sampler = frame.info.config.get("sampler")
    name = sampler.get("name") if isinstance(sampler, dict) else sampler
    if name in _STEERED:
        found.append(
            f"The sampler {name} steered the design by results: trials are not independent, and "
            "intervals and p values are too optimistic. Use qmc or random for such a study."
        )
    late = set(frame.measured_epochs) - set(early_epochs(frame)) - {frame.final_epoch}
    later = table[table["epoch"].isin(late) & table["group"].isin(["spectrum", "ftle"])]
    later = later[later["given_settings_and_loss_p_holm"] < LEVEL]
    only_late = later[~later["feature"].isin(
        spectral[spectral["given_settings_and_loss_p_holm"] < LEVEL]["feature"]
    )]  # fmt: skip
    if len(only_late):
        row = strongest(only_late, "given_settings_and_loss")
        found.append(
            f"Later than half of training, {when(int(row['epoch']))}, the {row['label']} goes with "
            f"the final loss at {spelled(row, 'given_settings_and_loss')} with settings and loss "
            "seen held fixed; that is no early sign."
        )
    return (*found, *_censoring(frame), *about_divergence(frame))


def _shared(frame: SweepFrame) -> tuple[str, ...]:
    """A word where several trials share one configuration."""
    trials = frame.target.index
    num = configurations.numbered(frame.params.reindex(trials)).nunique()
    if num in (1, len(trials)):
        return ()
    if num < configurations.MIN_CONFIGURATIONS:
        return (
            f"{len(trials)} finished trials share {num} configurations: what is said holds for "
            "these under other seeds, not for settings between or beyond them.",
        )
    return (
        f"{len(trials)} finished trials share {num} configurations (the same settings under "
        "several seeds): they were drawn, held out and permuted by configuration.",
    )


def _censoring(frame: SweepFrame) -> tuple[str, ...]:
    """A warning where a pruner stopped trials for their losses."""
    if frame.num_pruned == 0:
        return ()
    stopped = words.count(frame.num_pruned, "trial")
    return (
        f"{stopped} stopped early by a pruner and left out of all correlations: those that ran to "
        "their end were chosen by their early losses, so what is said here holds among the chosen, "
        "and is weaker or stronger than among all. Use no pruner for such a study.",
    )


def about_divergence(frame: SweepFrame) -> tuple[str, ...]:
    """Of trials that diverged: how many, and what foretells it. () where none did."""
    states = frame.trials["state"]
    num_diverged = int((states == "diverged").sum())
    if num_diverged == 0:
        return ()
    text = f"{words.count(num_diverged, 'diverged trial')} left out of all correlations"
    table = divergence(frame)
    known = table[table["epoch"].isin(early_epochs(frame))] if len(table) else table
    known = known.dropna(subset=["auc"]) if len(known) else known
    if known.empty:
        return (text + "; too few to say what foretells divergence.",)
    row = most_telling(known, "auc", 0.5, level=LEVEL)
    assert row is not None
    if not (row["auc_low"] > 0.5 or row["auc_high"] < 0.5):
        return (
            f"{text}. Nothing seen early on separates them detectably; closest comes the "
            f"{row['label']} {when(int(row['epoch']))} (AUC {words.number(row['auc'])}, "
            f"{words.p_phrase(row['auc_p_holm'])} after Holm's correction).",
        )
    larger = "higher" if row["auc"] > 0.5 else "lower"
    auc = max(row["auc"], 1 - row["auc"])
    return (
        f"{text}. What separates them best early on: a {larger} {row['label']} "
        f"{when(int(row['epoch']))} (AUC {words.number(auc)}, "
        f"{words.p_phrase(row['auc_p_holm'])} after Holm's correction).",
    )


def _mixture(frame: SweepFrame) -> tuple[str, ...]:
    """A warning where the trials' spectra are not of one kind."""
    kinds = frame.spectra_measured
    kinds = kinds[kinds["trial"].isin(frame.target.index)]
    if len(kinds[["k", "state_size", "state"]].drop_duplicates()) < 2:
        return ()
    k, sizes, states = (
        words.either(sorted(kinds[c].unique().tolist())) for c in ("k", "state_size", "state")
    )
    return (
        f"The spectra are not of one kind: k {k} exponents, state_size {sizes}, state {states}. "
        "Mean, spread, number near 0 and Kaplan–Yorke dimension of spectra of different k or "
        "states are not one feature, and may go with the final loss through the size alone.",
    )


def spelled(row: pd.Series, column: str) -> str:
    """The estimate in a column with the bounds beside it."""
    return words.estimate(row[column], row[f"{column}_low"], row[f"{column}_high"])
