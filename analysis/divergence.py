"""The probability that a trial diverges later: a class of its own, told by a logistic regression.

Diverged trials have no final loss to foretell. Penalised by a fixed, strong prior, because there
are few of them; King & Zeng 2001 on rare events.
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from analysis import inputs
from analysis.early_view import EarlyView
from analysis.inputs import Group
from analysis.predictors.base import CannotPredictError

MIN_CASES = 5
_PENALTY = 10.0


def probability(
    view: EarlyView, is_case: pd.Series, groups: tuple[Group, ...], trials: pd.Index
) -> pd.Series:
    """That these trials diverge, learned from those in `is_case`'s index.

    Raises CannotPredictError.
    """
    cases = int(is_case.sum())
    if min(cases, len(is_case) - cases) < 2:
        raise CannotPredictError(f"{cases} of {len(is_case)} trials diverge")
    base = inputs.table(view, groups)
    scale = inputs.Scale.of(base.reindex(is_case.index))
    fitted = LogisticRegression(C=1 / _PENALTY, max_iter=500).fit(
        scale(base, is_case.index), is_case.to_numpy(bool)
    )
    return pd.Series(fitted.predict_proba(scale(base, trials))[:, 1], index=trials)


def held_out(
    view: EarlyView, is_case: pd.Series, groups: tuple[Group, ...], num_folds: int
) -> pd.Series:
    """The probability for each trial from folds without it. Raises CannotPredictError."""
    cases = int(is_case.sum())
    if min(cases, len(is_case) - cases) < MIN_CASES:
        raise CannotPredictError(
            f"{cases} diverge later and {len(is_case) - cases} do not, {MIN_CASES} of each needed"
        )
    splits = StratifiedKFold(min(num_folds, cases), shuffle=True, random_state=0)
    found = pd.Series(np.nan, index=is_case.index)
    for train, test in splits.split(np.zeros(len(is_case)), is_case.to_numpy(bool)):
        out = is_case.index[test]
        found[out] = probability(view, is_case.iloc[train], groups, out)
    return found
