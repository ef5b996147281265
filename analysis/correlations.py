"""Which feature at which epoch goes with the final loss, and what is left of it.

Three questions of every feature: does it go with the final loss; does it still, once the
sampled hyperparameters are held fixed; and once the loss already seen is held fixed too. The
loss seen answers the same questions: it is the bar. Protocol: rank statistics first, covariates
with powers and products where there are trials enough, Holm over each table's column.
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import configurations
from analysis import features as ft
from analysis.frame import SweepFrame
from analysis.parallel import each
from analysis.statistics import (
    Estimate,
    Strata,
    correlation,
    correlation_ratio,
    holm,
    not_computable,
    partial_correlation,
    separation,
    within_strata,
)

NUM_RESAMPLES = 2_000
MANY = 2_000
"""Beyond so many trials a bootstrap takes a minute, and Fisher's interval is as good."""
_TRIALS_PER_COVARIATE = 5
_EXPECTED = ("squares", "cubes", "products")
_COLUMNS = {
    "value": "", "low": "_low", "high": "_high", "p": "_p", "problem": "_problem",
}  # fmt: skip


@dataclass(frozen=True)
class Covariates:
    """What is held fixed.

    Attributes:
        Z: trials by columns: ranks of the settings, scaled to unit variance, and powers.
        lacks: which of squares, cubes and products there was no room for.
    """

    Z: pd.DataFrame
    lacks: str


@lru_cache(maxsize=2)
def correlations(frame: SweepFrame) -> pd.DataFrame:
    """One line an (epoch, feature), over the trials with a finite final loss.

    Columns: epoch, feature, label, unit, group, n; spearman and pearson (with the final loss),
    given_settings, given_settings_and_loss (partial rank correlations), within (pooled inside
    strata of the setting the feature goes with most), each with _low, _high, _p, _problem and,
    but for within, _p_holm over all epochs and features; strata_by, strata_positive,
    strata_negative, reverses; interval, test, num_covariates… say how. When training has ended, the
    loss seen is the final one: its lines are left out, and it cannot be held fixed.
    """
    target, known = frame.target, ft.described(frame)
    numbers = configurations.numbered(frame.params)
    abouts: list[dict[str, object]] = []
    jobs: list[tuple[Any, ...]] = []
    for epoch in frame.measured_epochs or sorted(set(frame.scalars["epoch"])):
        view = ft.early_view(frame, epoch)
        table = ft.features(view)
        table = table.reindex(frame.target_at(epoch).index.intersection(table.index))
        if table.empty:
            continue
        y = target.reindex(table.index).to_numpy(float)
        settings = ft.hyperparameters(view).reindex(table.index)
        seen = table[[ft.LOSS_SEEN]] if ft.LOSS_SEEN in table else table[[]]
        together = configurations.among(numbers, table.index)
        num_units = len(table) if together is None else len(np.unique(together))
        given = covariates(settings, num_units)
        is_over = has_ended(frame, epoch)
        given_loss = None if is_over else covariates(settings.join(seen), num_units)
        for name in ft.primary(table):
            x = table[name].to_numpy(float)
            is_bar = ft.FEATURES[name].group == "loss"
            if is_bar and is_over:
                continue
            reason = "the loss seen is the final loss" if is_over else "this is the loss itself"
            held = (settings, given, None if is_bar else given_loss, reason)
            abouts.append({"epoch": epoch, **_about(known[name])})
            jobs.append((x, y, *held, together, f"{epoch}/{name}"))
    found = each(lambda job: _line(*job), jobs)
    result = pd.DataFrame([{**about, **line} for about, line in zip(abouts, found, strict=True)])
    if result.empty:
        return result
    is_tested = result["group"] != "loss"
    for column in ("spearman", "pearson", "given_settings", "given_settings_and_loss"):
        p = np.where(is_tested, result[f"{column}_p"].astype(float), np.nan)
        result[f"{column}_p_holm"] = holm(p)
    return result


@lru_cache(maxsize=2)
def design(frame: SweepFrame) -> pd.DataFrame:
    """Settings against one another, against the features and against the final loss.

    One line an (epoch, row, setting): spearman with its interval, or the correlation ratio η
    where the setting is unordered. Settings against one another and the loss have epoch -1.
    """
    target = frame.target
    lines = []
    params = frame.params.reindex(target.index)
    numbers = {n: params[n] for n in frame.sampled if ft.is_number(params[n])}
    rows = {name: column.to_numpy(float) for name, column in numbers.items()}
    rows["final loss"] = target.to_numpy(float)
    for name, x in rows.items():
        lines += [_pair(-1, name, name, x, params[s]) for s in frame.sampled if s != name]
    for epoch in frame.measured_epochs:
        table = ft.features(ft.early_view(frame, epoch)).reindex(frame.target_at(epoch).index)
        for name in ft.primary(table):
            x, label = table[name].to_numpy(float), ft.described(frame)[name].label
            lines += [
                _pair(epoch, name, label, x, params.loc[table.index, s]) for s in frame.sampled
            ]
    return pd.DataFrame(lines)


@lru_cache(maxsize=2)
def divergence(frame: SweepFrame) -> pd.DataFrame:
    """AUC of every feature for trials that diverge later, against those that end well.

    Columns: epoch, feature, label, group, num_diverged, num_finite, auc, with _low, _high, _p,
    _problem, _p_holm. A trial counts at an epoch only while it has not diverged yet.
    """
    trials, known = frame.trials, ft.described(frame)
    lines = []
    for epoch in frame.measured_epochs:
        table = ft.features(ft.early_view(frame, epoch))
        state = trials.reindex(table.index)
        is_case = (state["state"] == "diverged") & (state["last_epoch"] > epoch)
        enters = is_case | state.index.isin(frame.target_at(epoch).index)
        for name in ft.primary(table):
            x, case = table.loc[enters, name].to_numpy(float), is_case[enters].to_numpy(bool)
            estimate = separation(x, case)
            num = {"num_diverged": int(case.sum()), "num_finite": int((~case).sum())}
            lines.append({"epoch": epoch, **_about(known[name]), **num, **_spell("auc", estimate)})
    result = pd.DataFrame(lines)
    if not result.empty:
        result["auc_p_holm"] = holm(result["auc_p"].to_numpy(float))
    return result


def early_epochs(frame: SweepFrame) -> list[int]:
    """Measured epochs in the first half of training; the first one where there are none."""
    early = [e for e in frame.measured_epochs if e <= frame.final_epoch / 2]
    return early or frame.measured_epochs[:1]


def has_ended(frame: SweepFrame, epoch: int) -> bool:
    """Whether nothing lies ahead of any trial, so that the loss seen is the target itself."""
    return epoch >= frame.final_epoch


def strongest(table: pd.DataFrame, column: str, zero: float = 0.0) -> pd.Series:
    """The line of a table, not empty, in which a number is farthest from `zero`."""
    return table.iloc[int(np.nanargmax((table[column].astype(float) - zero).abs().to_numpy()))]


def most_telling(
    table: pd.DataFrame, column: str, zero: float = 0.0, *, level: float = 0.05
) -> pd.Series | None:
    """The strongest line of those that pass Holm's test; where none does, that of least p.

    Features are known of different numbers of trials: the largest of all numbers is as likely
    one of few trials' chance as it is the best founded. None where no line has a number.
    """
    known = table.dropna(subset=[column]) if len(table) else table
    if known.empty:
        return None
    passing = known[known[f"{column}_p_holm"].astype(float) < level]
    if len(passing):
        return strongest(passing, column, zero)
    p = known[f"{column}_p"].astype(float)
    return strongest(known if p.isna().all() else known[p == p.min()], column, zero)


def covariates(settings: pd.DataFrame, num_units: int | None = None) -> Covariates:
    """Ranks of the settings with squares, cubes, products and so on while there is room.

    Ranks alone leave a curved influence (a learning rate with an optimum, a share that
    saturates) in the residuals of both sides, which then correlate through the setting. So
    terms are added, the most needed kind first, while five trials a column remain (or `num_units`,
    where there are fewer configurations than trials); what could not be is said.
    """
    n = len(settings) if num_units is None else num_units
    ranks = {
        str(name): _standard(stats.rankdata(column, nan_policy="omit"))
        for name, column in settings.items()
        if column.nunique() > 1
    }
    curved = [name for name in ranks if settings[name].nunique() > 2]
    names = list(ranks)
    kinds = {
        "squares": {f"{a}^2": ranks[a] ** 2 for a in curved},
        "cubes": {f"{a}^3": ranks[a] ** 3 for a in curved},
        "products": {
            f"{a} × {b}": ranks[a] * ranks[b] for i, a in enumerate(names) for b in names[i + 1 :]
        },
        "fourth powers": {f"{a}^4": ranks[a] ** 4 for a in curved},
        "fifth powers": {f"{a}^5": ranks[a] ** 5 for a in curved},
    }
    columns, lacks = dict(ranks), []
    for kind, terms in kinds.items():
        if len(columns) + len(terms) <= n // _TRIALS_PER_COVARIATE:
            columns |= {name: _standard(term) for name, term in terms.items()}
        elif kind in _EXPECTED:
            lacks.append(kind)
    # The square of two ranks, say, is constant: nothing to hold fixed.
    varying = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    return Covariates(pd.DataFrame(varying, index=settings.index), ", ".join(lacks))


def _line(
    x: np.ndarray,
    y: np.ndarray,
    settings: pd.DataFrame,
    given: Covariates,
    given_loss: Covariates | None,
    why_not: str,
    together: np.ndarray | None,
    name: str,
) -> dict[str, object]:
    B = min(NUM_RESAMPLES, max(500, 1_000_000 // max(1, len(y)))) if len(y) <= MANY else 0
    how: Any = {"num_resamples": B, "seed": zlib.crc32(name.encode()), "together": together}
    rank = correlation(x, y, "spearman", **how)
    linear = correlation(x, y, "pearson", **how)
    n = int((np.isfinite(x) & np.isfinite(y)).sum())
    by, strata = _stratify(x, y, settings, rank, together)
    partial = (
        partial_correlation(x, y, given.Z.to_numpy(), "spearman", together=together)
        if given.Z.shape[1]
        else not_computable("no setting was sampled", n)
    )
    partial_loss = (
        partial_correlation(x, y, given_loss.Z.to_numpy(), "spearman", together=together)
        if given_loss is not None
        else not_computable(why_not, n)
    )
    return {
        "n": n,
        **_spell("spearman", rank),
        **_spell("pearson", linear),
        **_spell("given_settings", partial),
        **_spell("given_settings_and_loss", partial_loss),
        **_spell("within", strata.pooled),
        "strata_by": by,
        "strata_positive": strata.num_positive,
        "strata_negative": strata.num_negative,
        "reverses": strata.reverses,
        "interval": rank.interval,
        "test": rank.test,
        "num_covariates": given.Z.shape[1],
        "covariates_lack": given.lacks,
        "num_covariates_with_loss": 0 if given_loss is None else given_loss.Z.shape[1],
        "covariates_with_loss_lack": "" if given_loss is None else given_loss.lacks,
    }


def _stratify(
    x: np.ndarray,
    y: np.ndarray,
    settings: pd.DataFrame,
    marginal: Estimate,
    together: np.ndarray | None,
) -> tuple[str, Strata]:
    """Strata of each setting; those that turn the sign, else of the one x goes with most."""
    found: list[tuple[bool, float, str, Strata]] = []
    for name, column in settings.items():
        by = column.to_numpy(float)
        strata = within_strata(x, y, by, marginal, together=together)
        tie = _tie(x, by)
        found.append((strata.reverses, tie, str(name), strata))
    if not found:
        return "", Strata(0, 0, 0, not_computable("no setting was sampled", 0), False)
    _, _, name, strata = max(found, key=lambda f: f[:2])
    return name, strata


def _tie(x: np.ndarray, y: np.ndarray) -> float:
    keep = np.isfinite(x) & np.isfinite(y)
    if keep.sum() < 2 or np.ptp(x[keep]) == 0 or np.ptp(y[keep]) == 0:
        return -1.0
    return abs(float(stats.spearmanr(x[keep], y[keep]).statistic))


def _pair(epoch: int, row: str, label: str, x: np.ndarray, setting: pd.Series) -> dict[str, object]:
    if ft.is_number(setting):
        y = setting.to_numpy(float)
        estimate = correlation(x, y, "spearman", num_resamples=0)
        measure = "spearman"
    else:
        estimate = correlation_ratio(x, setting.map(str).to_numpy(dtype=str))
        measure = "eta"
    return {
        "epoch": epoch,
        "row": row,
        "label": label,
        "setting": setting.name,
        "measure": measure,
        "n": estimate.n,
        **_spell("value", estimate),
    }


def _about(feature: ft.Feature) -> dict[str, str]:
    return {
        "feature": feature.name,
        "label": feature.label,
        "unit": feature.unit,
        "group": feature.group,
    }


def _spell(prefix: str, estimate: Estimate) -> dict[str, object]:
    return {f"{prefix}{end}": getattr(estimate, name) for name, end in _COLUMNS.items()}


def _standard(column: np.ndarray) -> np.ndarray:
    spread = float(np.nanstd(column))
    standard: np.ndarray = (column - np.nanmean(column)) / (spread if spread > 1e-9 else math.nan)
    return standard
