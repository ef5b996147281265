"""What a sweep will take: the arithmetic from the paces of its cohorts to its time and memory.

Cohorts go to workers in the order of planning, as the driver hands them out. The driver does one
thing at a time: a worker whose cohort has ended waits until its trials are recorded, and an
adaptive sampler is asked again only when all it was asked for before is recorded. Nobody is taken
to leave early, so with a pruner, or where trials diverge, the time is an upper bound.
"""

import heapq
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.capture import WARMUP
from pipeline.populations import Population

_UPDATES = 6
_SECONDS = 3.0


@dataclass(frozen=True)
class Load:
    """What a cohort asks of a worker, in seconds."""

    members: int
    training: float
    measuring: float


@dataclass(frozen=True)
class Driving:
    """What the driver takes, in seconds.

    Attributes:
        start: until the first trials are asked for and the workers are ready.
        ask, begin, follow, publish: for each trial: asking the sampler, telling the store that it
            trains, taking its rungs while it does, recording it.
        end: after the last trial.
    """

    start: float = 0.0
    ask: float = 0.0
    begin: float = 0.0
    follow: float = 0.0
    publish: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """Where the time of a sweep goes, in seconds by the clock.

    Attributes:
        start: start and end of the processes.
        training: evaluation included, were nothing measured and nothing recorded.
        measuring, recording: how much later the sweep ends because of them.
        working: of all workers together, training and measuring.
    """

    start: float
    training: float
    measuring: float
    recording: float
    working: float

    @property
    def total(self) -> float:
        """From the command to its end."""
        return self.start + self.training + self.measuring + self.recording


def forecast(
    batches: Sequence[Sequence[Load]],
    driving: Driving,
    *,
    slots: int,
    waits: bool = False,
    is_inline: bool = False,
) -> Forecast:
    """The time of a sweep.

    Args:
        batches: the cohorts of each batch that the sampler is asked for, in order.
        driving: what the driver takes.
        slots: how many cohorts train at a time.
        waits: whether a batch is asked for only when the one before is recorded.
        is_inline: whether the driver trains, and so does nothing meanwhile.
    """
    quiet = Driving()
    bare = [[Load(c.members, c.training, 0.0) for c in batch] for batch in batches]
    training, measured, recorded = (
        _end(found, costs, slots, waits, is_inline)
        for found, costs in ((bare, quiet), (batches, quiet), (batches, driving))
    )
    return Forecast(
        start=driving.start + driving.end,
        training=training,
        measuring=measured - training,
        recording=recorded - measured,
        working=sum(c.training + c.measuring for batch in batches for c in batch),
    )


def _end(
    batches: Sequence[Sequence[Load]], driving: Driving, slots: int, waits: bool, is_inline: bool
) -> float:
    """When the last trial is recorded, from the time the first are asked for."""
    now = owed = 0.0
    queue: list[Load] = []
    left = list(batches)[::-1]
    running: list[tuple[float, int, Load]] = []
    order = itertools.count()
    while queue or left or running:
        submitted = []
        while len(running) < slots:
            if not queue:
                if not left or (waits and running):
                    break
                queue = list(left.pop())
                now += driving.ask * sum(c.members for c in queue)
                continue
            cohort = queue.pop(0)
            heapq.heappush(running, (now + cohort.training + cohort.measuring, next(order), cohort))
            submitted.append(cohort)
        # To be done while workers train: the store is told that they do, rungs come in.
        owed += (driving.begin + driving.follow) * sum(c.members for c in submitted)
        if not running:
            continue
        end, _, cohort = heapq.heappop(running)
        now = end + owed if is_inline else max(end, now + owed)
        now += driving.publish * cohort.members
        owed = 0.0
    return now


@dataclass(frozen=True)
class Known:
    """A cohort that was timed: its shape, how large its networks are, and its load."""

    shape: str
    num_parameters: int
    load: Load


def load_of(shape: str, num_parameters: int, members: int, known: Sequence[Known]) -> Load:
    """Of a cohort, from those that were timed: of its shape, else by the size of its networks."""
    own = [k for k in known if k.shape == shape]
    if own:
        found = {k.load.members: k.load for k in own}
        return Load(
            members,
            *(
                _line(members, {n: getattr(load, name) for n, load in found.items()})
                for name in ("training", "measuring")
            ),
        )
    alike: dict[int, list[Load]] = {}
    for other in known:
        by_size = load_of(other.shape, other.num_parameters, members, known)
        alike.setdefault(other.num_parameters, []).append(by_size)
    sizes = sorted(alike)
    return Load(
        members,
        *(
            float(
                np.interp(
                    num_parameters,
                    sizes,
                    [np.mean([getattr(load, name) for load in alike[size]]) for size in sizes],
                )
            )
            for name in ("training", "measuring")
        ),
    )


def _line(members: int, known: Mapping[int, float]) -> float:
    """Seconds of a cohort by its size, from one or two sizes."""
    if len(known) == 1:
        [(size, seconds)] = known.items()
        # Between two laws: all overhead, and all arithmetic. Sizes of one sweep are much alike.
        return seconds * (1 + members / size) / 2
    (few, low), (many, high) = sorted(known.items())
    return max(0.0, low + (members - few) * (high - low) / (many - few))


def memory_of(driver: int, workers: Sequence[int], libraries: int) -> int:
    """Bytes of all processes: their own, and once what they share."""
    return driver + sum(workers) + libraries


def seconds_per_update(
    population: Population, *, updates: int = _UPDATES, seconds: float = _SECONDS
) -> float:
    """Median over a few updates, those that warm up (caches, a recording on a GPU) left out.

    At most `updates`, and no further one after `seconds`, but two. Trains the population.
    """
    is_cuda = torch.device(population.cohort.device).type == "cuda"
    population.network.train()
    population.optimiser.start_epoch(1)
    times: list[float] = []
    population.steps.forget()
    began = time.perf_counter()
    warm = WARMUP + 2 if is_cuda else 1
    for batch in itertools.islice(population.task.training_batches(1), updates + warm - 1):
        started = time.perf_counter()
        population.steps(population, batch)
        if is_cuda:
            torch.cuda.synchronize(population.cohort.device)
        times.append(time.perf_counter() - started)
        if time.perf_counter() - began > seconds and len(times) > warm:
            break
    population.network.eval()
    kept = sorted(times[warm:] or times)
    return kept[len(kept) // 2]
