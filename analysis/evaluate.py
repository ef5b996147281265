"""How well predictors foretell the final loss of trials they have not seen.

Repeated K-fold cross-validation by trial; within each fold a predictor sees the targets of the
other folds only, and whatever it tunes it tunes on those (nested). Beside that, for each sampled
number, the trials of its lowest, middle and highest third are foretold from the other two: within
and beyond the range are different questions. Errors are of the logarithm of the loss where all
losses are positive. Of more than `MANY` trials some are drawn: predictors are fitted on one half of
them and judged on the other, once, which then is precise enough. Whether the spectrum adds anything
is `evidence`'s question: a table of scores cannot answer it.

Diverged trials have no final loss and are a class of their own: `divergence_scores` asks how well
they are told from the others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from analysis import configurations
from analysis import divergence as dv
from analysis import features as ft
from analysis.early_view import EarlyView
from analysis.frame import SweepFrame
from analysis.inputs import Group
from analysis.parallel import each
from analysis.predictors.base import CannotPredictError, Prediction, Predictor
from analysis.statistics import correlation, separation
from pipeline import catalog

NUM_FOLDS = 10
NUM_REPEATS = 2
MIN_TRIALS = 20
MANY = 1_000
"""Up to so many trials all enter, in cross-validation. Of more, so many are drawn."""
_MOST_RESAMPLED = 400
_NUM_RESAMPLES = 1_000
_COSTLY_FOLDS = 5
_MIN_REGION = 5
_KEPT = (0.1, 0.25)


@dataclass(frozen=True)
class Comparison:
    """How predictors fared.

    Attributes:
        scores: one line an (epoch, predictor): n, spearman with _low and _high, kendall, rmse, r2
            (on normal scores of the ranks), recall_10 and recall_25 (share of the best tenth and
            quarter among the tenth and quarter foretold best), regret_10 and regret_25 (how much
            worse than the best trial the best of those kept ends), nll (mean negative log
            likelihood), coverage (share inside the central 90 %), problem.
        regions: one line a (predictor that is not costly, setting) at `region_epoch`: n, rmse, r2
            (against the mean of the trials fitted on; negative where extrapolation is worse than
            that), coverage, problem.
        region_epoch: the last measured epoch in the first half of training.
        is_log: whether the target was the logarithm of the loss.
        note: in words, what was drawn or simplified because there are many; "" for nothing.
    """

    scores: pd.DataFrame
    regions: pd.DataFrame
    region_epoch: int
    is_log: bool
    note: str = ""


@lru_cache(maxsize=2)
def compare(frame: SweepFrame) -> Comparison:
    """All predictors and their variants at each epoch measured before the last."""
    target = frame.target
    transformed = ft.log_if_positive(target)
    is_log = bool((target > 0).all())
    epochs = [e for e in frame.measured_epochs if e < frame.final_epoch]
    early = [e for e in epochs if e <= frame.final_epoch / 2] or epochs[:1]
    region_epoch = early[-1] if early else -1

    def at(epoch: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        ahead = _drawn(transformed.reindex(frame.target_at(epoch).index))
        view = _of(ft.early_view(frame, epoch), ahead.index)
        scores, regions = [], []
        # Made for each epoch: a predictor remembers what it was fitted on.
        for name, predictor in variants().items():
            scores.append({"epoch": epoch, "predictor": name, **_score(view, ahead, predictor)})
            if epoch == region_epoch and not predictor.is_costly:
                regions += _regions(view, ahead, name, predictor)
        return scores, regions

    found = each(at, epochs)
    scores = pd.DataFrame([line for part, _ in found for line in part])
    regions = pd.DataFrame([line for _, part in found for line in part])
    note = _note(max((len(frame.target_at(epoch)) for epoch in epochs), default=0))
    return Comparison(scores, regions, region_epoch, is_log, note)


def _note(num: int) -> str:
    """What is drawn or simplified where so many trials are there to foretell; "" for nothing."""
    found = []
    if num > MANY:
        found.append(
            f"Of {num:,} trials that ended, {MANY:,} were drawn by chance: predictors were fitted "
            "on one half of them and judged on the other, once."
        )
    elif num == MANY:
        found.append(
            f"Predictors were fitted on one half of the {MANY:,} trials, drawn by chance, and "
            "judged on the other, once."
        )
    halved = num >= MANY
    limits: dict[int, set[str]] = {}
    for predictor in variants().values():
        folds = 2 if halved else _folds_of(predictor)[0]
        most = predictor.most_fitted
        if most is not None and most < min(num, MANY) * (folds - 1) // folds:
            kind = type(predictor).__module__.rpartition(".")[2]
            limits.setdefault(most, set()).add(kind.replace("_", " "))
    for most, kinds in limits.items():
        found.append(
            f"{' and '.join(sorted(kinds)).capitalize()}: fitted on {most} of the trials there "
            "are to fit on, drawn by chance."
        )
    if (MANY // 2 if halved else num) > _MOST_RESAMPLED:
        found.append(
            f"Intervals of rank correlations are Fisher’s; up to {_MOST_RESAMPLED} trials they "
            "are bootstrapped."
        )
    return " ".join(found)


def _folds_of(predictor: Predictor) -> tuple[int, int]:
    """Folds, and how often they are drawn anew."""
    return (min(_COSTLY_FOLDS, NUM_FOLDS), 1) if predictor.is_costly else (NUM_FOLDS, NUM_REPEATS)


@lru_cache(maxsize=2)
def divergence_scores(frame: SweepFrame) -> pd.DataFrame:
    """Held-out AUC of the probability to diverge later, by epoch and by what it is read from.

    Columns: epoch, groups, num_diverged, num_finite, auc with _low, _high, _p, auc_problem.
    """
    lines = []
    state = frame.trials[["state", "last_epoch"]]
    for epoch in [e for e in frame.measured_epochs if e < frame.final_epoch]:
        view = ft.early_view(frame, epoch)
        is_case = (state["state"] == "diverged") & (state["last_epoch"] > epoch)
        enters = is_case | state.index.isin(frame.target_at(epoch).index)
        case = _drawn(is_case[enters & state.index.isin(view.trials)])
        view = _of(view, case.index)
        for words, groups in _DIVERGENCE_GROUPS.items():
            try:
                probability = dv.held_out(view, case, groups, NUM_FOLDS)
            except CannotPredictError as error:
                found = {"auc": math.nan, "auc_problem": f"not computable: {error}"}
            else:
                auc = separation(probability.to_numpy(float), case.to_numpy(bool))
                found = {
                    "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high, "auc_p": auc.p,
                    "auc_problem": auc.problem,
                }  # fmt: skip
            counts = {"num_diverged": int(case.sum()), "num_finite": int((~case).sum())}
            lines.append({"epoch": epoch, "groups": words, **counts, **found})
    return pd.DataFrame(lines)


def divergence_note(frame: SweepFrame) -> str:
    """Of which part of the trials `divergence_scores` speaks, in words; "" for all of them."""
    table = divergence_scores(frame)
    if table.empty or len(frame.trials) <= MANY:
        return ""
    if (table["num_diverged"] + table["num_finite"]).max() < MANY:
        return ""
    return f"Of more than {MANY:,} trials {MANY:,} were drawn by chance, anew at each epoch."


_DIVERGENCE_GROUPS: dict[str, tuple[Group, ...]] = {
    "settings": ("settings",),
    "settings + loss seen + norms": ("settings", "loss", "norms"),
    "settings + loss seen + norms + spectrum": ("settings", "loss", "norms", "spectrum"),
}


def variants() -> dict[str, Predictor]:
    """Every predictor there is, by the words the report uses."""
    found: dict[str, Predictor] = {}
    for name in catalog.entries("predictors"):
        kind: type[Predictor] = catalog.load("predictors", name)
        found |= {words: kind(config) for words, config in kind.variants.items()}
    return found


def cross_validate(
    view: EarlyView,
    target: pd.Series,
    predictor: Predictor,
    *,
    num_folds: int,
    num_repeats: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out predictions in target's order, each (repeats, n).

    Returns means, standard deviations, and the mean target of the trials each was fitted on: a
    fold's training mean leans away from the fold, which makes the pooled ranks of a predictor
    without skill look negative unless it is taken off. Trials of one configuration share a fold.

    Raises CannotPredictError.
    """
    n = len(target)
    means, sds, centres = np.full((3, num_repeats, n), math.nan)
    rng = np.random.default_rng(seed)
    together = configurations.shared(view.params, target.index)
    for repeat in range(num_repeats):
        for train, held_out in configurations.folds(n, num_folds, rng, together):
            fitted = predictor.fit(view, target.iloc[train])
            prediction = fitted.predict(view, target.index[held_out])
            means[repeat, held_out] = prediction.mean
            sds[repeat, held_out] = prediction.sd
            centres[repeat, held_out] = target.iloc[train].mean()
    return means, sds, centres


def _other_half(
    view: EarlyView, target: pd.Series, predictor: Predictor
) -> tuple[pd.Series, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One half's targets, and what `cross_validate` returns, foretold from the other half."""
    together = configurations.shared(view.params, target.index)
    train, held_out = next(configurations.folds(len(target), 2, np.random.default_rng(0), together))
    fitted, rest = target.iloc[train], target.iloc[held_out]
    found = predictor.fit(view, fitted).predict(view, rest.index)
    centres = np.full((1, len(rest)), fitted.mean())
    return rest, (found.mean.to_numpy(float)[None], found.sd.to_numpy(float)[None], centres)


def thirds(values: pd.Series) -> Iterator[pd.Series]:
    """Which trials are held out, third by third; value by value where there are two or three."""
    if values.nunique() <= 3:
        yield from (values == value for value in sorted(values.unique()))
        return
    low, high = values.quantile([1 / 3, 2 / 3])
    yield values <= low
    yield (values > low) & (values <= high)
    yield values > high


def _drawn(values: pd.Series) -> pd.Series:
    """All of them, or `MANY` drawn by chance."""
    if len(values) <= MANY:
        return values
    return values.iloc[np.sort(np.random.default_rng(0).permutation(len(values))[:MANY])]


def _of(view: EarlyView, trials: pd.Index) -> EarlyView:
    """The view, of these trials alone where they are drawn from many."""
    return view.only(trials) if len(trials) == MANY else view


def _score(view: EarlyView, target: pd.Series, predictor: Predictor) -> dict[str, object]:
    n = len(target)
    if n < MIN_TRIALS or target.nunique() < 2:
        reason = f"{n} trials, {MIN_TRIALS} are needed" if n < MIN_TRIALS else "one final loss"
        return {"n": n, "problem": f"not computable: {reason}"}
    folds, repeats = _folds_of(predictor)
    try:
        if n < MANY:
            means, sds, centres = cross_validate(
                view, target, predictor, num_folds=folds, num_repeats=repeats
            )
        else:
            target, (means, sds, centres) = _other_half(view, target, predictor)
            n = len(target)
    except CannotPredictError as error:
        return {"n": n, "problem": f"not computable: {error}"}
    known = np.isfinite(means).all(axis=0)
    if not known.all():
        missing = int((~known).sum())
        return {"n": n, "problem": f"not computable: no prediction for {missing} trials"}
    y = target.to_numpy(float)
    foretold = (means - centres).mean(axis=0)
    rank = correlation(
        foretold, y, "spearman", num_resamples=_NUM_RESAMPLES if n <= _MOST_RESAMPLED else 0,
        together=configurations.shared(view.params, target.index),
    )  # fmt: skip
    return {
        "n": n,
        "spearman": rank.value,
        "spearman_low": rank.low,
        "spearman_high": rank.high,
        "kendall": float(stats.kendalltau(foretold, y).statistic),
        "rmse": math.sqrt(((means - y) ** 2).mean()),
        "r2": _r2_of_ranks(foretold, y),
        **_kept(means - centres, y),
        "nll": float(-stats.norm.logpdf(y, means, sds).mean()),
        "coverage": _coverage(means, sds, y),
        "problem": "",
    }


def _r2_of_ranks(foretold: np.ndarray, y: np.ndarray) -> float:
    """R² of normal scores, foretold scores taken as they are: order and spread of ranks count."""
    a, b = (stats.norm.ppf((stats.rankdata(v) - 0.5) / len(v)) for v in (foretold, y))
    return 1 - float(((a - b) ** 2).sum() / (b**2).sum())


def _kept(foretold: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Recall and regret of keeping the trials foretold best, mean over repeats, (repeats, n)."""
    found = {}
    for share in _KEPT:
        k = max(1, round(share * len(y)))
        truly = set(np.argsort(y, kind="stable")[:k].tolist())
        kept = [np.argsort(row, kind="stable")[:k] for row in foretold]
        percent = round(100 * share)
        found[f"recall_{percent}"] = float(
            np.mean([len(truly & set(s.tolist())) / k for s in kept])
        )
        found[f"regret_{percent}"] = float(np.mean([y[s].min() for s in kept]) - y.min())
    return found


def _coverage(means: np.ndarray, sds: np.ndarray, y: np.ndarray) -> float:
    return float((np.abs(means - y) <= stats.norm.ppf(0.95) * sds).mean())


def _regions(
    view: EarlyView, target: pd.Series, name: str, predictor: Predictor
) -> list[dict[str, object]]:
    """Each sampled number's thirds foretold from the other two."""
    lines: list[dict[str, object]] = []
    if len(target) < MIN_TRIALS or target.nunique() < 2:
        return lines
    for setting in view.sampled:
        values = view.params[setting].reindex(target.index)
        if not ft.is_number(values) or values.nunique() < 2:
            continue
        line: dict[str, object] = {"predictor": name, "setting": setting}
        lines.append({**line, **_region(view, target, values, predictor)})
    return lines


def _region(
    view: EarlyView, target: pd.Series, values: pd.Series, predictor: Predictor
) -> dict[str, object]:
    parts: list[tuple[Prediction, float]] = []
    try:
        for out in thirds(values):
            if out.sum() < _MIN_REGION or (~out).sum() < MIN_TRIALS // 2:
                continue
            fitted = predictor.fit(view, target[~out])
            prediction = fitted.predict(view, target.index[out])
            parts.append((prediction, float(target[~out].mean())))
    except CannotPredictError as error:
        return {"n": 0, "problem": f"not computable: {error}"}
    if not parts:
        return {"n": 0, "problem": f"not computable: no third of {_MIN_REGION} trials"}
    mean = pd.concat([prediction.mean for prediction, _ in parts])
    sd = pd.concat([prediction.sd for prediction, _ in parts])
    centre = np.concatenate([np.full(len(p.mean), c) for p, c in parts])
    if not np.isfinite(mean).all():
        missing = int((~np.isfinite(mean)).sum())
        return {"n": len(mean), "problem": f"not computable: no prediction for {missing} trials"}
    y = target.reindex(mean.index).to_numpy(float)
    rest = float(((mean - y) ** 2).mean())
    return {
        "n": len(mean),
        "rmse": math.sqrt(rest),
        "r2": 1 - rest / float(((y - centre) ** 2).mean()),
        "coverage": _coverage(mean.to_numpy(), sd.to_numpy(), y),
        "problem": "",
    }
