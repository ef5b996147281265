"""Pruners compared on a replayed sweep: what is saved against what is lost, in tables.

Intervals are of the middle 95 % of orders of the trials. They say how much is luck of the order,
not how another sweep would differ.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.contenders import all_choices, family
from analysis.frame import SweepFrame
from analysis.parallel import products_on_one_core
from analysis.recording import Recording, recording
from analysis.replay import TOP, outcome
from pipeline.plan import Choice

NUM_ORDERS = 20
LIMITS = (0.005, 0.01)


@products_on_one_core
def comparison(
    sweep: Recording,
    choices: Mapping[str, Choice],
    *,
    num_orders: int = NUM_ORDERS,
    top: float = TOP,
) -> pd.DataFrame:
    """One line a pruner: what it does in the sweep's own order, and over `num_orders` others.

    Columns: pruner; epochs, saved, net, regret, regret_loss, recall, rank (see Outcome), each in
    the sweep's own order, then with _mean, _low and _high over the other orders; pruned and kept
    (trials, own order); orders; note (what the pruner had to say).
    """
    lines = []
    for label, choice in choices.items():
        own = outcome(sweep, choice, 0, top)
        others = [outcome(sweep, choice, i, top) for i in range(1, num_orders + 1)]
        line: dict[str, object] = {"pruner": label}
        for field in ("epochs", "saved", "net", "regret", "regret_loss", "recall", "rank"):
            line |= _summary(field, getattr(own, field), [getattr(o, field) for o in others])
        line |= {
            "pruned": len(own.pruned),
            "kept": len(sweep.final.index.difference(list(own.pruned))),
        }
        lines.append({**line, "orders": num_orders, "note": "; ".join(own.said)})
    return pd.DataFrame(lines)


@products_on_one_core
def trade_off(
    sweep: Recording, choices: Mapping[str, Choice], *, num_orders: int = NUM_ORDERS
) -> pd.DataFrame:
    """The curve of what is saved against what is lost, over how strictly each pruner decides.

    One line a pruner, strength and order: pruner, settings, order, saved, net, regret, recall.
    """
    lines = []
    for label, choice in choices.items():
        for settings, one in family(choice, sweep.epochs).items():
            for order in range(1, num_orders + 1):
                found = outcome(sweep, one, order)
                lines.append(
                    {
                        "pruner": label, "settings": settings, "order": order,
                        "saved": found.saved, "net": found.net, "regret": found.regret,
                        "recall": found.recall,
                    }
                )  # fmt: skip
    return pd.DataFrame(lines)


def budget_at_regret(curve: pd.DataFrame, limits: Sequence[float] = LIMITS) -> pd.DataFrame:
    """From `trade_off`: the most that each pruner saves while its mean regret stays in a limit.

    The strength is chosen on one half of the orders and judged on the other, and the other way
    round: chosen and judged on the same, luck would be taken for skill. Trials are the same in
    both, so that another sweep may still do worse. Where no strength stays within the limit,
    nothing is pruned and nothing saved.

    Columns: pruner, limit, saved and net with _low and _high (middle 95 % of orders), regret
    (mean), settings (as chosen).
    """
    lines = []
    for label, limit in itertools.product(curve["pruner"].unique(), limits):
        mine = curve[curve["pruner"] == label]
        parts = [mine["order"] % 2 == 0, mine["order"] % 2 == 1]
        chosen, judged = [], []
        for learn, judge in (parts, parts[::-1]):
            best = _most_saving(mine[learn], limit)
            chosen.append(best if best is not None else "keeps all")
            line = mine[judge & (mine["settings"] == best)]
            judged.append(
                line if best is not None
                else mine[judge].drop_duplicates("order").assign(saved=0.0, net=0.0, regret=0.0)
            )  # fmt: skip
        whole = pd.concat(judged)
        lines.append(
            {
                "pruner": label,
                "limit": limit,
                **_interval("saved", whole["saved"]),
                **_interval("net", whole["net"]),
                "regret": float(whole["regret"].mean()),
                "settings": " or ".join(dict.fromkeys(chosen)),
            }
        )
    return pd.DataFrame(lines)


def saved_at_regret(
    frame: SweepFrame,
    *,
    num_orders: int = 10,
    max_trials: int = 200,
    limits: Sequence[float] = LIMITS,
) -> pd.DataFrame:
    """`budget_at_regret` of all pruners there are, for the report.

    A sweep of more than `max_trials` is stood for by its first ones, and a column `trials` says
    by how many: who leaves depends on how many came before. Raises AnalysisError.
    """
    if len(frame.headers) > max_trials:
        frame = _first(frame, max_trials)
    sweep = recording(frame)
    choices = all_choices(sweep.epochs, frame.measured_epochs)
    curve = trade_off(sweep, choices, num_orders=num_orders)
    return budget_at_regret(curve, limits).assign(trials=len(frame.headers))


def _first(frame: SweepFrame, count: int) -> SweepFrame:
    headers = frame.headers[:count]
    keep = frame.table["trial"].to_numpy() <= headers[-1].trial
    info = dataclasses.replace(frame.info, num_trials=count)
    return SweepFrame(info, headers, frame.table.filter(keep), frame.target_quantity)


def _summary(name: str, own: float, others: Sequence[float]) -> dict[str, float]:
    if not others:
        return {name: own, **{f"{name}_{w}": math.nan for w in ("mean", "low", "high")}}
    found = _interval(name, pd.Series(others, dtype=float))
    return {
        name: own,
        f"{name}_mean": found[name],
        f"{name}_low": found[f"{name}_low"],
        f"{name}_high": found[f"{name}_high"],
    }


def _interval(name: str, values: pd.Series) -> dict[str, float]:
    known = values.dropna()
    low, high = known.quantile([0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return {name: float(known.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _most_saving(lines: pd.DataFrame, limit: float) -> str | None:
    """The settings that save most, time of measuring counted, of those within the limit."""
    grouped = lines.groupby("settings", sort=False)[["net", "regret"]]
    # A strength that in some order kept nobody has no mean regret.
    means = grouped.mean()[grouped.count()["regret"] == grouped.size()]
    within = means[(means["regret"] <= limit) & (means["net"] > 0)]
    return str(within["net"].idxmax()) if len(within) else None
