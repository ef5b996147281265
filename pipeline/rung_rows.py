"""One rung of a cohort as rows: losses and scores of a split, readings, and who has diverged.

Shapes: N members, M predictions.
"""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.diagnostics.base import Reading
from pipeline.rows import Row, now_ms
from tasks.base import Split, Task
from tasks.networks.base import Network

if TYPE_CHECKING:
    from pipeline.populations import Population


@torch.no_grad()
def evaluate(network: Network, task: Task, split: Split) -> dict[str, Tensor]:
    """Means over a split of what the task scores, each (N,) float64, dropout off.

    The state of recurrent networks is carried through the split as in training.
    """
    network.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    state: Any = None
    for batch in task.batches(split):
        outputs_N, state = network(batch.inputs, None if batch.is_start else state)
        scored = task.per_example(outputs_N, batch.targets)
        for name, values_NM in scored.items():
            part_N = values_NM.double().sum(1)
            sums[name] = sums[name] + part_N if name in sums else part_N
        count += scored["loss"].shape[1]
    return task.summarise({name: total / count for name, total in sums.items()})


class RungRows:
    """Collects one rung's rows for every trial that is not long diverged."""

    def __init__(self, population: "Population", epoch: int) -> None:
        self.population, self.epoch = population, epoch
        self.rows: dict[int, list[Row]] = {number: [] for number in population.numbers}
        self._was_alive = population.alive_N.clone()

    def forget_the_dead(self) -> None:
        """No more rows for members that have diverged by now."""
        self._was_alive = self.population.alive_N.clone()

    def add(
        self,
        quantity: str,
        values_N: Tensor,
        *,
        unit: str = "1",
        seconds: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """A scalar; NaN and a flag for members that diverged since the last rung."""
        now = now_ms()
        share = None if seconds is None else seconds / len(self.rows)
        for n, number in enumerate(self.population.numbers):
            if not self._was_alive[n]:
                continue
            is_alive = bool(self.population.alive_N[n])
            value = float(values_N[n]) if is_alive else math.nan
            self.rows[number].append(
                Row(
                    epoch=self.epoch,
                    update=self.population.diverged_at.get(number, self.population.update),
                    quantity=quantity,
                    values=np.array(value),
                    unit=unit,
                    flags=() if is_alive else ("diverged",),
                    details=details or {},
                    seconds=share,
                    time_ms=now,
                )
            )

    def evaluate(self, split: Split, prefix: str) -> Tensor:
        """Losses and scores of a split. A member whose loss is not finite has diverged."""
        population = self.population
        task = population.task
        started = time.perf_counter()
        scores = evaluate(population.network, task, split)
        seconds = time.perf_counter() - started
        loss_N = torch.where(population.alive_N, scores["loss"], math.nan)
        population.alive_N.logical_and_(torch.isfinite(loss_N))
        population.note_divergence()
        self.add(f"{prefix}_loss", loss_N, unit="nats", seconds=seconds)
        for name, values_N in scores.items():
            if name != "loss":
                self.add(f"{prefix}_{name}", values_N)
        self.add(
            f"{prefix}_score",
            scores[task.score_name],
            details={"name": task.score_name, "higher_is_better": task.higher_is_better},
        )
        return loss_N

    def add_readings(self, readings: Sequence[Reading], seconds: float) -> None:
        """A diagnostic's readings; the first carries the time they took together."""
        now = now_ms()
        for index, reading in enumerate(readings):
            values_N = reading.values_N.double().cpu().numpy()
            for n, number in enumerate(self.population.numbers):
                if not self.population.alive_N[n]:
                    continue
                self.rows[number].append(
                    Row(
                        epoch=self.epoch,
                        update=self.population.update,
                        quantity=reading.quantity,
                        values=values_N[n],
                        axes=reading.axes,
                        unit=reading.unit,
                        error=_member(reading.error_N, n),
                        marks=_member(reading.marks_N, n),
                        flags=tuple(reading.flags[n]) if reading.flags else (),
                        details=reading.details,
                        seconds=seconds / len(self.rows) if index == 0 else None,
                        time_ms=now,
                    )
                )

    def add_skipped(self, diagnostic: str, details: dict[str, Any]) -> None:
        """Says that a measurement was due and not taken."""
        for n, number in enumerate(self.population.numbers):
            if self.population.alive_N[n]:
                self.rows[number].append(
                    Row(
                        epoch=self.epoch,
                        update=self.population.update,
                        quantity=diagnostic,
                        values=np.array(math.nan),
                        flags=("skipped_over_budget",),
                        details=details,
                        time_ms=now_ms(),
                    )
                )


def _member(values_N: Tensor | None, n: int) -> np.ndarray | None:
    return None if values_N is None else values_N[n].cpu().numpy()
