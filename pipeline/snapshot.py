"""A population between two epochs as plain arrays: what training can go on from, bit for bit.

At the end of an epoch nobody is in the middle of anything. Batches are a function of seed and
epoch, the draws of measurements are functions of seeds, and recurrent state is not carried from
epoch to epoch; nothing draws from torch's or numpy's global generators. What is left is what
`_state_of` lists, and how much time has been spent (`pipeline.spending`).

Shapes: N members that live, in the order of the population.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.spending import Spent

if TYPE_CHECKING:
    from pipeline.populations import Population

_LOSS = "val_loss"


class SnapshotError(ValueError):
    """A snapshot that is not one of this population."""


@dataclass(frozen=True)
class Snapshot:
    """Where a population stands at a rung, before anyone leaves there.

    Attributes:
        epoch, update: how far it is.
        numbers: trials that live, in member order.
        diverged_at: trial number → update, of all that diverged so far.
        arrays: each leads with the member axis, N the number of `numbers`.
        spent: seconds so far, on which budgets depend.
    """

    epoch: int
    update: int
    numbers: tuple[int, ...]
    diverged_at: dict[int, int]
    arrays: dict[str, np.ndarray]
    spent: Spent = field(default_factory=Spent)

    @property
    def val_losses(self) -> dict[int, float]:
        """Validation losses at this rung by trial number."""
        return dict(zip(self.numbers, self.arrays[_LOSS].tolist(), strict=True))


def take(
    population: "Population",
    epoch: int,
    val_loss: Mapping[int, float],
    diverged_at: Mapping[int, int],
    spent: Spent,
) -> Snapshot:
    """Copies what is to be kept of those who live."""
    living = [n for n, number in enumerate(population.numbers) if number not in diverged_at]
    numbers = tuple(population.numbers[n] for n in living)
    arrays = {
        name: tensor.detach()[living].to("cpu", copy=True).numpy()
        for name, tensor in _state_of(population).items()
    }
    arrays[_LOSS] = np.array([val_loss[number] for number in numbers])
    return Snapshot(epoch, population.update, numbers, dict(diverged_at), arrays, spent)


def restore(population: "Population", snapshot: Snapshot) -> None:
    """Sets a population as built to where a snapshot was taken, without those gone by then.

    Raises SnapshotError, and then the population is as it was.
    """
    place = {number: n for n, number in enumerate(population.numbers)}
    strangers = [number for number in snapshot.numbers if number not in place]
    if strangers:
        raise SnapshotError(f"trial {strangers[0]} must be one of the cohort's")
    members = [place[number] for number in snapshot.numbers]
    if not members or members != sorted(set(members)):
        raise SnapshotError(f"must hold trials in the cohort's order, got {snapshot.numbers}")
    _check(population, snapshot)
    if len(members) < len(place):
        population.keep(members)
    with torch.no_grad():
        for name, tensor in _state_of(population).items():
            tensor.copy_(torch.from_numpy(snapshot.arrays[name].copy()))
    population.update = snapshot.update


def _state_of(population: "Population") -> dict[str, Tensor]:
    """Everything that training moves, by name, in the memory where training moves it."""
    return {
        **{f"network.{name}": t for name, t in population.network.state_dict().items()},
        **{f"optimiser.{name}": t for name, t in population.optimiser.state.items()},
        # A stream of random bits is where it stands: there is no other generator state.
        "dropout.position": population.dropout.position_N1,
        "begun": population.begun_N,
    }


def _check(population: "Population", snapshot: Snapshot) -> None:
    """Raises SnapshotError unless all arrays are there, with their shapes and types."""
    count = len(snapshot.numbers)
    expected = {name: (t.shape[1:], t.dtype) for name, t in _state_of(population).items()}
    expected[_LOSS] = torch.Size(), torch.float64
    missing, odd = expected.keys() - snapshot.arrays.keys(), snapshot.arrays.keys() - expected
    if missing or odd:
        raise SnapshotError(
            f"must hold what {type(population.network).__name__} and its optimiser do, but "
            f"lacks {', '.join(sorted(missing)) or 'nothing'} and has "
            f"{', '.join(sorted(odd)) or 'nothing'} besides"
        )
    for name, (shape, dtype) in expected.items():
        array = snapshot.arrays[name]
        right = (count, *shape), torch.empty(0, dtype=dtype).numpy().dtype
        if (array.shape, array.dtype) != right:
            raise SnapshotError(
                f"{name}: must be {right[1]} of shape {right[0]}, "
                f"got {array.dtype} of shape {array.shape}"
            )
