"""How many new points of a planar set networks put into the right class, beside the best possible.

Noise moves points across the border, so that no rule gets all of them right. The best one compares
the densities of the two classes; these are known, as the noise is normal: each is the mean of
normal densities around the set's noiseless points.

Shapes: N members, B points.
"""

import dataclasses
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from analysis.studies.lab import Group, Trained
from analysis.studies.over_seeds import Mean, mean
from tasks.planar import Planar, draw_points, noise_of

# Noiseless points that stand for the set; with so many the rule is right about 0.1 % less often
# than with ten times as many.
_CENTRES = 4000
ACCURACY, BEST, ABOVE = "accuracy [%]", "best possible [%]", "above the best [percentage points]"


def accuracies(
    trained: Trained, points: int, generator: torch.Generator, columns: Mapping[str, str]
) -> pd.DataFrame:
    """One row a network: its settings and its accuracy on new points, all networks' the same.

    Args:
        points: how many are drawn of each set.
        columns: dotted names of settings → names of their columns.

    Columns: network, those of `columns`, and ACCURACY, BEST, ABOVE, which is below 0 where the
    best rule is better.
    """
    drawn: dict[str, tuple[Tensor, Tensor, float]] = {}
    parts = []
    for group in trained.groups("end"):
        assert isinstance(group.task, Planar)
        config = group.task.config
        key = repr(config)
        if key not in drawn:
            many = dataclasses.replace(config, points=points)
            x, classes = draw_points(many, generator)
            drawn[key] = x, classes, 100 * _share_right(best_rule(config, x, generator), classes)
        x, classes, best = drawn[key]
        table = group.params[list(columns)].rename(columns=dict(columns))
        table[ACCURACY] = [100 * _share_right(row, classes) for row in predicted(group, x)]
        table[BEST] = best
        table[ABOVE] = table[ACCURACY] - best
        parts.append(table.rename_axis("network").reset_index())
    return pd.concat(parts).sort_values("network", ignore_index=True)


def predicted(group: Group, x: Tensor) -> Tensor:
    """Classes (N, B) that the networks give these points."""
    with torch.no_grad():
        outputs_NBO: Tensor = group.network(x)[0]
    if outputs_NBO.shape[-1] == 1:
        return (outputs_NBO[..., 0] > 0).long()
    return outputs_NBO.argmax(-1)


def best_rule(config: Planar.Config, x: Tensor, generator: torch.Generator) -> Tensor:
    """Classes (B,) by the larger of the two densities, for a set with noise."""
    exact = dataclasses.replace(config, points=_CENTRES, noise=0.0)
    centres, classes = draw_points(exact, generator)
    found = []
    for chunk in torch.split(x, 1000):
        exponents = -torch.cdist(chunk, centres).square() / (2 * noise_of(config) ** 2)
        by_class = [exponents[:, classes == c].logsumexp(1) for c in (0, 1)]
        found.append((by_class[1] > by_class[0]).long())
    return torch.cat(found)


def by_case(table: pd.DataFrame, columns: list[str], value: str) -> dict[str, Mean]:
    """Means over networks of every combination of the columns, named by them."""
    return {
        ", ".join(map(str, case if isinstance(case, tuple) else (case,))): mean(part[value])
        for case, part in table.groupby(columns, sort=False)
    }


def _share_right(found: Tensor, classes: Tensor) -> float:
    return float((found == classes).double().mean())
