"""Findings on claims that must hold in every case: deviations within a tolerance, signs of means.

The finding's low and high are the least and the largest of all cases, so that the worst is told.
"""

import math

import pandas as pd

from analysis.studies.base import Finding, by_interval, by_rule


def within(
    claim: str, deviations: pd.Series, tolerance: float, what: str, *, is_relative: bool = True
) -> Finding:
    """Whether every deviation is at most `tolerance` in size; NaN is not.

    Args:
        deviations: from what was foretold; relative ones are told in per cent.
        what: the sentence's subject, "lengths, in 30 cases,".
    """
    largest = math.nan if deviations.isna().any() else float(deviations.abs().max())
    low, high = float(deviations.min()), float(deviations.max())
    if is_relative:
        told, allowed = f"{100 * low:+.1f} % to {100 * high:+.1f} %", f"{100 * tolerance:g} %"
    else:
        told, allowed = f"{low:+.3f} to {high:+.3f}", f"{tolerance:g}"
    found = f"{what} deviate by {told} in {len(deviations)} cases; {allowed} were allowed."
    return Finding(claim, by_rule(largest <= tolerance), found, largest, low, high)


def all_above(
    claim: str, table: pd.DataFrame, told: str, *, above: float = 0.0, unit: str = "1"
) -> Finding:
    """Whether the 95 % intervals of all cases lie above a bound; reversed if all lie below.

    Args:
        table: a row a case; columns mean, low, high, and those `told` names. Not reproduced if
            it has no row.
        told: what is said of a case, a format of the row's columns.
    """
    if table.empty:
        return Finding(claim, by_rule(False), "There is no such case to look at.", unit=unit)
    least = table.loc[table["low"].isna() | (table["low"] == table["low"].min())].iloc[0]
    low, high = table["low"].min(skipna=False), table["high"].max(skipna=False)
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    found = "; ".join(told.format(**row) for row in rows) + "."
    return Finding(
        claim,
        by_interval(float(low), float(high), above=above),
        found[0].upper() + found[1:],
        float(least["mean"]),
        float(low),
        float(high),
        unit,
    )
