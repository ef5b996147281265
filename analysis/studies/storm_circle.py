"""Networks that tell the inside of a circle from the outside, and their exponents there.

Storm et al. (2024), Fig. 2: the stretching exp(L λ) of a network of L hidden layers is largest on
the boundary between its classes. Lengths are in units of a, half the width of the square of inputs
on which the circle has radius R = sqrt(2/π) a; with a = 1, L λ is as quoted.

Shapes: N members, P points.
"""

import copy
import math

import pandas as pd
import torch
from torch import Tensor

from analysis.studies.lab import Group, Moment, Trained
from pipeline.dynamics.ftle import ftle_field
from pipeline.dynamics.geometry import boundary_points
from tasks.networks.base import Network
from tasks.planar import Planar

RADIUS = math.sqrt(2 / math.pi)


def circle(points: int, half_width: float = 1.0) -> Tensor:
    """Points evenly on the true boundary, (P, 2) float64."""
    angle = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    return RADIUS * half_width * torch.stack([angle.cos(), angle.sin()], dim=1)


def single(network: Network, member: int) -> Network:
    """One member as a population of its own."""
    alone = copy.deepcopy(network)
    alone.select([member])
    return alone


def learned_boundary(network: Network, member: int, starts: Tensor) -> Tensor:
    """Points of a member's own decision boundary near `starts`, (P′, 2); those that were found."""
    alone = single(network, member)

    def score(x: Tensor) -> Tensor:
        outputs: Tensor = alone(x)[0][0]
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]

    found = boundary_points(score, starts, tolerance=1e-6, num_steps=60)
    inside = found.points.abs().amax(1) <= 2 * starts.abs().max()
    return found.points[found.is_found & inside]


def heights(trained: Trained, points: int, at: Moment = "end") -> pd.DataFrame:
    """L λ on each network's boundary and at the centre, nats; one row a network.

    Columns: network, width, depth, boundary_nats, centre_nats, alignment, boundary_found,
    test_accuracy. `boundary_nats` is the mean over those of `points` points of its own decision
    boundary that were found, NaN if none were; `alignment` is the mean of |v₁ · n| there, n the
    circle's normal.
    """
    accuracy = trained.frame.trials["test_score"]
    rows = [row for group in trained.groups(at) for row in _of_group(group, points)]
    table = pd.DataFrame(rows).sort_values("network", ignore_index=True)
    table["test_accuracy"] = table["network"].map(accuracy).astype(float)
    return table


def by_shape(table: pd.DataFrame) -> dict[tuple[int, int], pd.DataFrame]:
    """The rows of every (width, depth), narrow and shallow ones first."""
    pairs = table[["width", "depth"]].drop_duplicates().sort_values(["width", "depth"])
    return {
        (int(N), int(L)): table[(table["width"] == N) & (table["depth"] == L)]
        for N, L in pairs.to_numpy()
    }


def _of_group(group: Group, points: int) -> list[dict[str, float]]:
    network, task = group.network, group.task
    assert isinstance(task, Planar)
    starts = circle(points, task.config.half_width)
    depth = network.orbit(starts[:1]).num_steps
    centre_N1 = ftle_field(network, torch.zeros(1, 2).double(), layer=depth).exponents
    rows = []
    for member, number in enumerate(group.numbers):
        where = learned_boundary(network, member, starts)
        stretch, alignment = math.nan, math.nan
        if len(where):
            field = ftle_field(single(network, member), where, layer=depth)
            assert field.directions is not None
            stretch = depth * float(field.exponents[0].mean())
            normal = where / where.norm(dim=1, keepdim=True)
            alignment = float((field.directions[0] * normal).sum(1).abs().mean())
        rows.append(
            {
                "network": number,
                "width": int(group.params["network.width"].iloc[member]),
                "depth": depth,
                "boundary_nats": stretch,
                "centre_nats": depth * float(centre_N1[member, 0]),
                "alignment": alignment,
                "boundary_found": len(where) / points,
            }
        )
    return rows
