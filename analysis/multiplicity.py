"""How many tests the report makes, and what is left of each once all are counted."""

import pandas as pd

from analysis.correlations import correlations, divergence
from analysis.curvature import curvature
from analysis.evidence import increments
from analysis.frame import SweepFrame
from analysis.statistics import benjamini_hochberg


def all_tests(frame: SweepFrame) -> pd.DataFrame:
    """Every p value of the report with Holm's correction in its table and q over all of them."""
    found = []
    table = correlations(frame)
    if len(table):
        table = table[table["group"] != "loss"]
        for column in ("spearman", "given_settings", "given_settings_and_loss"):
            part = table[["epoch", "feature", f"{column}_p", f"{column}_p_holm"]]
            found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test=column))
    tested = increments(frame) if len(frame.target) else pd.DataFrame()
    if len(tested):
        part = tested[["epoch", "group", "p", "p_holm"]]
        found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test="increment"))
    bends = curvature(frame) if len(frame.target) else pd.DataFrame()
    for test in ("square", "square_held", "size"):
        if len(bends):
            part = bends[["epoch", "feature", f"{test}_p", f"{test}_p_holm"]]
            found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test=test))
    diverged = divergence(frame)
    if len(diverged):
        part = diverged[["epoch", "feature", "auc_p", "auc_p_holm"]]
        found.append(part.set_axis(["epoch", "of", "p", "p_holm"], axis=1).assign(test="auc"))
    if not found:
        return pd.DataFrame()
    whole = pd.concat(found, ignore_index=True).dropna(subset=["p"])
    return whole.assign(q=benjamini_hochberg(whole["p"].to_numpy(float)))


def discoveries(frame: SweepFrame) -> dict[tuple[str, int, str], float]:
    """q by (test, epoch, of what)."""
    whole = all_tests(frame)
    if whole.empty:
        return {}
    keys = zip(whole["test"], whole["epoch"].astype(int), whole["of"], strict=True)
    return dict(zip(keys, whole["q"], strict=True))
