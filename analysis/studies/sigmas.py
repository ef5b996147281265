"""Effects by how many standard errors they are from nothing, over independently trained networks.

The submission's reviewers asked for more than three (Q2 of `subspaces_alignment`), and for all
tests of a figure to be corrected together (Q1): Holm's p values stand beside the plain ones.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.statistics import holm
from analysis.studies.base import Finding, Verdict
from analysis.studies.over_seeds import mean

LEAST_SIGMAS = 3.0


def effects(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """A row for each group: mean over seeds, 95 % interval, sigmas, p and Holm's p.

    Args:
        table: one row a seed and group; a seed is one network, whatever it was measured on.
        by: columns that name a group. value: the effect, 0 where there is none.

    Columns beside `by`: networks, mean, low, high, sigmas, p, holm_p (over all groups). A single
    seed has none but the mean; seeds that all agree are infinitely many sigmas from 0.
    """
    rows = []
    for names, part in table.groupby(list(by), sort=False):
        values = part[value].to_numpy(float)
        centre = mean(values)
        sigmas, p = math.nan, math.nan
        if len(values) > 1:
            error = float(values.std(ddof=1)) / math.sqrt(len(values))
            sigmas = centre.value / error if error > 0 else math.copysign(math.inf, centre.value)
            p = float(2 * stats.t.sf(abs(sigmas), len(values) - 1))
        rows.append((*names, len(values), *centre, sigmas, p))
    columns = [*by, "networks", "mean", "low", "high", "sigmas", "p"]
    found = pd.DataFrame(rows, columns=columns)
    found["holm_p"] = holm(found["p"].to_numpy(float))
    return found


def verdict(row: pd.Series) -> Verdict:
    """Reproduced beyond three standard errors with an interval above 0, reversed below both."""
    if row["sigmas"] > LEAST_SIGMAS and row["low"] > 0:
        return "reproduced"
    if row["sigmas"] < -LEAST_SIGMAS and row["high"] < 0:
        return "reversed"
    return "not reproduced"


def finding(claim: str, row: pd.Series, what: str, unit: str = "1") -> Finding:
    """Of one row of `effects`; `what` is the beginning of "… +0.30 [0.10, 0.50] (4.1 σ, …)"."""
    words = "" if unit == "1" else f" {unit}"
    found = (
        f"{what} {row['mean']:+.3g} [{row['low']:.3g}, {row['high']:.3g}]{words} "
        f"({row['sigmas']:.1f} σ over {row['networks']} networks, Holm p = {row['holm_p']:.2g})."
    )
    ends = (float(row["mean"]), float(row["low"]), float(row["high"]))
    return Finding(claim, verdict(row), found, *ends, unit)


def pick(table: pd.DataFrame, **wanted: object) -> pd.Series:
    """The one row with these values. Raises KeyError where there is none or several."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in wanted.items():
        keep &= (table[column] == value).to_numpy()
    if keep.sum() != 1:
        raise KeyError(f"{int(keep.sum())} rows with {wanted}, one was expected")
    return table[keep].iloc[0]
