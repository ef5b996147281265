"""How many trials to train as one population: measured, and fixed when a sweep is created.

A larger cohort shares the overhead of every operation among its members, until arithmetic or
memory is what counts; and it leaves less to share out among the workers. So: the time of an update
is measured for a few sizes, every admissible size is planned, and the smallest is taken that ends
about as soon as any. What follows is fixed with it (`SweepConfig.with_cohort_size`), because how
many train together shows in the last bits of a result.
"""

import dataclasses
import heapq
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.asking import rehearsed
from pipeline.config import SweepConfig, most_in_batch
from pipeline.estimate import seconds_per_update
from pipeline.plan import Cohort, Shared, TrialSpec, shape_key
from pipeline.populations import Population, build, load_task, update
from tasks.base import seed_for

_MEASURED = (1, 4, 16, 64)
_SECONDS = 2.0
_UPDATES = 4
# So many times the largest measured size is as far as its line is trusted.
_REACH = 2
# Trials looked at to see which shapes a sweep has, and in what shares.
_MOST_REHEARSED = 128
# Of free memory; the rest is for the data, for measurements and for other people.
_SHARE_OF_MEMORY = 0.5
# Size of the population whose memory is looked at: kernels may differ from those for one.
_BOOK_KEPT = 4
# A size that ends later by less than this share than the best is as good.
_TOLERANCE = 0.03
# Cohorts a worker should train one after the other where the pruner learns from those before.
_TURNS = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes of one member.

    Attributes:
        lasting: weights and the optimiser's moments.
        passing: most that an update needs besides at any moment: activations, gradients, work
            space.
    """

    lasting: int
    passing: int

    @property
    def total(self) -> int:
        """What a member adds to a population."""
        return self.lasting + self.passing


def settled(config: SweepConfig) -> SweepConfig:
    """The config with `execution.cohort_size: auto` replaced by a measured number.

    Takes two seconds at most, once data are loaded. Raises UnsuitableError, MissingDataError.
    """
    if config.is_settled:
        return config
    return config.with_cohort_size(_choose(config))


def _choose(config: SweepConfig) -> int:
    workers = config.execution.num_workers
    batch = min(config.trials, most_in_batch(config.sampler, config.trials))
    shapes = _shapes(config)
    # Members of a batch by shape, at least one of each.
    counts = [max(1, round(share * batch)) for share, _ in shapes]
    spec = shapes[0][1]
    seconds, footprint = measure(spec, config.limits_of(1), most=max(counts))
    most = _REACH * max(seconds)
    free = free_bytes(config.execution.device)
    if free is not None:
        most = min(most, max(1, int(_SHARE_OF_MEMORY * free / workers / footprint.total)))
    if config.judge is not None and config.judge.needs_finished:
        most = min(most, max(1, config.trials // (_TURNS * workers)))
    return best_size(counts, seconds, workers=workers, most=most)


def best_size(
    counts: Sequence[int], seconds: Mapping[int, float], *, workers: int, most: int
) -> int:
    """The smallest size with which trials of several shapes end about as soon as with any.

    Args:
        counts: trials of each shape.
        seconds: size of a population → time of one update; in between and beyond, by lines.
        workers: how many cohorts train at a time.
        most: largest size admitted.
    """
    # A smaller population cannot take longer: where it seems to, others were using the machine.
    seconds = {size: min(s for k, s in seconds.items() if k >= size) for size in seconds}
    sizes = range(1, max(1, min(most, max(counts))) + 1)
    ends = {size: _end(counts, size, seconds, workers) for size in sizes}
    best = min(ends.values())
    return next(size for size in sizes if ends[size] <= (1 + _TOLERANCE) * best)


def _end(counts: Sequence[int], size: int, seconds: Mapping[int, float], workers: int) -> float:
    """When the last of `workers` is done that take even cohorts one after the other."""
    free_at = [0.0] * workers
    for count in counts:
        num_cohorts = -(-count // size)
        ends = [round(i * count / num_cohorts) for i in range(num_cohorts + 1)]
        for members in np.diff(ends).tolist():
            heapq.heapreplace(free_at, free_at[0] + _interpolated(members, seconds))
    return max(free_at)


def _interpolated(size: int, seconds: Mapping[int, float]) -> float:
    known = sorted(seconds)
    if len(known) == 1:
        return size / known[0] * seconds[known[0]]
    above = next((k for k in known[1:] if k >= size), known[-1])
    below = known[known.index(above) - 1]
    slope = (seconds[above] - seconds[below]) / (above - below)
    return seconds[below] + slope * (size - below)


def measure(spec: TrialSpec, shared: Shared, *, most: int) -> tuple[dict[int, float], Footprint]:
    """Seconds of an update by population size, and the memory of one member.

    Sizes are those measured within the time there is, none above `most`; throw-away populations.
    """
    device = shared.device
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        device = "cpu"  # The workers have one, this machine has not.
    torch.set_num_threads(shared.threads)

    def cohort(size: int) -> Cohort:
        trials = (
            dataclasses.replace(spec, number=n, seed=seed_for("measure", n)) for n in range(size)
        )
        return Cohort(trials=tuple(trials), sweep_seed=shared.sweep_seed, device=device)

    task = load_task(cohort(1))
    # First, for it warms torch up too.
    footprint = footprint_of(build(cohort(min(_BOOK_KEPT, most)), task))
    began = time.perf_counter()
    found: dict[int, float] = {}
    for size in _MEASURED:
        left = _SECONDS - (time.perf_counter() - began)
        # At worst it takes as much longer as there are more members, and it takes all updates.
        dearest = _UPDATES * size / max(found) * found[max(found)] if found else 0.0
        if found and (size > most or dearest > left):
            break
        population = build(cohort(size), task)
        found[size] = seconds_per_update(population, updates=_UPDATES, seconds=_SECONDS / 8)
    return found, footprint


def footprint_of(population: Population) -> Footprint:
    """Of one member, by an update under book-keeping. Trains the population."""
    optimiser = population.optimiser
    lasting = [optimiser.weights_NP, *optimiser.moments.values()]
    batch = next(iter(population.task.training_batches(1)))
    population.network.train()
    optimiser.start_epoch(1)
    with _Allocations(lasting) as allocations:
        update(population, batch, None)
    population.network.eval()
    num = len(population.numbers)
    return Footprint(sum(t.nbytes for t in lasting) // num, allocations.peak // num)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, and how many bytes of them live at a time.

    Not autograd's hooks: they do not see what an operation of our own keeps for its backward.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._made = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler for this class alone: a second, for nothing.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or (key in self._live and not _is_gone(self._live[key][0])):
            return
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._live[key] = reference, storage.nbytes()
        self._made += storage.nbytes()
        # Sums are dear: they are taken again only when they may have grown by an eighth.
        if self._made > self.peak / 8:
            self._made = 0
            self._live = {k: v for k, v in self._live.items() if not _is_gone(v[0])}
            self.peak = max(self.peak, sum(size for _, size in self._live.values()))


def _is_gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def free_bytes(device: str) -> int | None:
    """Memory that may still be taken where cohorts are trained; None where nobody says."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] if torch.cuda.is_available() else None
    found = [_meminfo(), _cgroup()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _meminfo(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _cgroup(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return None if limit.strip() == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def _shapes(config: SweepConfig) -> list[tuple[float, TrialSpec]]:
    """Share of the trials of each shape with one of them, the most frequent first."""
    first = {path: r.ends()[0] for path, r in config.space.items()}
    one = config.spec(0, first)
    others = (
        config.spec(0, {**first, path: end}) for path, r in config.space.items() for end in r.ends()
    )
    if all(shape_key(other) == shape_key(one) for other in others):
        return [(1.0, one)]
    specs = next(rehearsed(config, min(config.trials, _MOST_REHEARSED)))
    counts = Counter(map(shape_key, specs))
    by_key = {shape_key(spec): spec for spec in reversed(specs)}
    return [(n / len(specs), by_key[key]) for key, n in counts.most_common()]
