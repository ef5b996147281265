"""Puts the numbers of the sweeps' reports into the tables of ../findings.md.

    python docs/findings/quoted.py --store folder:reports/findings/store --reports reports/findings

What the page quotes is kept beside each sweep: tables to eight digits, which the order of sums does
not move, and one figure. Without `--reports` the page is written from what was kept before.

Between `<!-- NAME -->` and `<!-- end -->` the page holds the table NAME of `TABLES`; the words
around it are written by hand and must be read again when a table changes.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import words
from analysis.frame import SweepFrame
from pipeline.store import Store, open_store

HERE = Path(__file__).parent
PAGE = HERE.parent / "findings.md"
TESTED = ("recall", "recall-fresh", "charlm", "planar")
QUOTED, FIGURE = ("planned", "increments", "predictors"), "correlation_by_epoch.png"
WHOLE, PRUNED = "recall-fresh", "recall-pruned"
EARLY = (1, 2, 4)
_TOP = 0.1
_OUTCOMES = {"True": "holds", "False": "does not hold"}
# Predictors without and with the spectrum, from the stiffest to the most supple.
_PAIRS = {
    "ridge": ("settings + loss seen", "settings + loss seen + spectrum"),
    "Gaussian process": (
        "Gaussian process: settings + loss seen + norms",
        "Gaussian process: settings + loss seen + norms + spectrum",
    ),
    "ensemble": ("ensemble without spectrum", "ensemble with spectrum"),
}


def planned(role: str) -> str:
    """Every planned test of one role, over all sweeps."""
    rows = []
    for name in TESTED:
        for line in _lines(name, "planned"):
            if line["role"] != role:
                continue
            outcome = _OUTCOMES.get(str(line["holds"]), str(line["problem"]))
            least = f", at least {line['at_least']:g}" if line["at_least"] else ""
            is_gain = "held-out" in str(line["claim"])
            estimate = _percent if is_gain else words.estimate
            value = estimate(line["value"], line["low"], line["high"])
            rows.append(
                (name, line["claim"] + least, f"{line['n']}", value,
                 words.p_value(line["p_holm"]), outcome)
            )  # fmt: skip
    return _markdown(("sweep", "claim", "n", "estimate [95 %]", "p (Holm)", "outcome"), rows)


def added() -> str:
    """What spectrum or FTLEs add early, what measuring cost, what the test would have found."""
    rows = []
    for name in TESTED:
        for line in _lines(name, "increments"):
            if line["epoch"] not in EARLY:
                continue
            rows.append(
                (
                    name,
                    f"{line['epoch']}",
                    _percent(line["gain"], line["gain_low"], line["gain_high"]),
                    words.p_value(line["p"]),
                    f"{line['power_ten']:.0%}",
                    f"{line['cost_epochs']:.2f}",
                    _percent(line["against"], line["against_low"], line["against_high"]),
                )
            )
    head = ("sweep", "epoch", "smaller error [95 %]", "p", "power against a tenth",
            "cost in epochs", "instead of training on [95 %]")  # fmt: skip
    return _markdown(head, rows)


def pairs() -> str:
    """Held-out errors of predictors without and with the spectrum."""
    rows = []
    for name in ("recall", "recall-fresh"):
        found = pd.DataFrame(_lines(name, "predictors")).set_index(["epoch", "predictor"])
        for epoch in EARLY:
            cells = []
            for without, with_it in _PAIRS.values():
                before, after = (float(found["rmse"][epoch, p]) for p in (without, with_it))
                change = f"{after / before - 1:+.0%}".replace("-", "−")
                cells.append(f"{before:.3g} → {after:.3g} ({change})")
            rows.append((name, f"{epoch}", *cells))
    return _markdown(("sweep", "epoch", *_PAIRS), rows)


def live(store: Store) -> str:
    """The same trials with the pruner and without."""
    frames = {name: SweepFrame.from_store(store, name) for name in (WHOLE, PRUNED)}
    whole, kept = frames[WHOLE].target, frames[PRUNED].target
    low, high = whole.quantile([0.05, 0.95])
    best = set(whole.nsmallest(round(_TOP * len(whole))).index)
    rows = []
    for name, frame in frames.items():
        trials, final = frame.trials, frame.target
        spent = trials[["seconds_training", "seconds_measuring"]].sum()
        rows.append(
            (
                name,
                f"{sum(h.epochs or 0 for h in frame.headers):,}",
                f"{frame.num_pruned} of {len(trials)}",
                f"{final.min():.6f}",
                f"{(final.min() - whole.min()) / (high - low):.2%}",
                f"{len(best & set(final.index))} of {len(best)}",
                f"{spent['seconds_measuring'] / spent['seconds_training']:.0%}",
                f"{int((whole.reindex(final.index) != final).sum())} of {len(final)}",
            )
        )
    assert kept.index.isin(whole.index).all(), "the pruned sweep has no other trials"
    head = ("sweep", "epochs", "pruned", "best final loss", "regret", "best tenth kept",
            "measuring / training", "other final loss")  # fmt: skip
    return _markdown(head, rows)


def replayed() -> str:
    """What `lyapsweep replay` printed of the pruners as they come."""
    text = (HERE / "replay.txt").read_text("utf-8").partition("\nMost that is saved")[0]
    return f"```text\n{text.strip()}\n```"


TABLES: dict[str, Callable[[Store], str]] = {
    "primary": lambda _: planned("primary"),
    "secondary": lambda _: planned("secondary"),
    "added": lambda _: added(),
    "pairs": lambda _: pairs(),
    "replay": lambda _: replayed(),
    "live": live,
}


def renewed(page: str, store: Store) -> str:
    """The page with its tables as they are now. Raises KeyError for a table that is not there."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{TABLES[match[1]](store)}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, page, flags=re.S)


def take(reports: Path) -> None:
    """Copies what the page quotes from the folders that `lyapsweep report` has written."""
    for name in TESTED:
        for table in QUOTED:
            found = pd.read_parquet(reports / name / "tables" / f"{table}.parquet")
            found.to_csv(HERE / name / f"{table}.csv", index=False, float_format="%.8g")
        shutil.copy(reports / name / "figures" / FIGURE, HERE / name / FIGURE)


def _lines(name: str, table: str) -> list[dict[Hashable, Any]]:
    return pd.read_csv(HERE / name / f"{table}.csv").to_dict("records")


def _percent(value: float, low: float, high: float) -> str:
    if value != value:
        return "–"
    return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]".replace("-", "−")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> None:
    """Rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="where the sweeps are: folder:PATH")
    parser.add_argument("--reports", type=Path, help="folder with a report a sweep")
    asked = parser.parse_args(arguments)
    store = open_store(asked.store)
    if asked.reports is not None:
        take(asked.reports)
    PAGE.write_text(renewed(PAGE.read_text("utf-8"), store), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
