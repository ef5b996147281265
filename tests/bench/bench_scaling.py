"""What a trial costs by the size of its cohort and the number of workers, and a model of it.

    python tests/bench/run_all.py scaling

An update of N networks takes a + b N seconds: `a` is what every operation costs however small it
is, `b` the arithmetic of one network. A trial's share is a/N + b; N* = a/b is the size at which
half of it is overhead. Both are fitted to the relative errors of all sizes. One thread each.

With two workers, two cohorts train at the same time, each in a process of its own; `speed-up` is
how many times the trials of one worker they train in the same time. Sizes take turns in each of
LYAPSWEEP_BENCH_ROUNDS (3) rounds; medians are shown.
"""

import os
import statistics
import time

import numpy as np
import torch
from scipy.optimize import nnls

from pipeline import catalog
from pipeline.estimate import seconds_per_update
from pipeline.executors.base import Reached
from pipeline.executors.process import ProcessExecutor
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.populations import build, load_task
from tasks.base import seed_for

IS_LONG = True
ROUNDS = int(os.environ.get("LYAPSWEEP_BENCH_ROUNDS", "3"))
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WORKER_SIZES = (1, 8, 64)
EPOCHS = 2


def cases():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, choices in problems().items():
            yield from by_size(name, *choices)
    finally:
        torch.set_num_threads(threads)
    for name, choices in problems().items():
        yield from by_workers(name, *choices)


def problems():
    """Name → task and network."""
    plane = _choice("tasks", "planar", shape="spiral", points=4000, batch_size=64)
    text = _choice(
        "tasks", "char_text", text="pydoc", characters=64_100, batch_size=32, seq_len=100
    )
    return {
        "MLP 8 × 10": (plane, _choice("networks", "mlp", depth=8, width=10)),
        "MLP 8 × 50": (plane, _choice("networks", "mlp", depth=8, width=50)),
        "LSTM 16": (text, _choice("networks", "lstm", units=16)),
        "LSTM 64": (text, _choice("networks", "lstm", units=64)),
    }


def by_size(name, task, network):
    """Microseconds of one network's share of an update, and the model."""
    data = load_task(_cohort(1, task, network))
    populations = {size: build(_cohort(size, task, network), data) for size in SIZES}
    seconds = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size, population in populations.items():
            seconds[size].append(seconds_per_update(population, updates=8, seconds=2.0))
    share = {size: statistics.median(times) / size for size, times in seconds.items()}
    a, b = fit(share)
    for size, measured in share.items():
        model = a / size + b
        yield f"{name}, cohort of {size}: a trial's update", 1e6 * measured, "µs"
        yield f"{name}, cohort of {size}: model / measured", model / measured, "×"
    yield f"{name}: a, of every update", 1e6 * a, "µs"
    yield f"{name}: b, of every network in it", 1e6 * b, "µs"
    if b > 0:
        yield f"{name}: N* = a / b", a / b, "networks"


def fit(share):
    """(a, b), neither negative, of share(N) = a / N + b by the least squares of relative errors."""
    sizes, measured = np.array(list(share)), np.array(list(share.values()))
    columns = np.stack([1 / sizes, np.ones(len(sizes))], axis=1) / measured[:, None]
    a, b = nnls(columns, np.ones(len(sizes)))[0]
    return float(a), float(b)


def by_workers(name, task, network):
    """Milliseconds of one trial's epoch with one worker and with two, start-up not included."""
    pools = {count: ProcessExecutor(workers=count) for count in (1, 2)}
    try:
        for count, pool in pools.items():
            _seconds(pool, [_cohort(1, task, network)] * count)  # Loads torch and the data.
        for size in WORKER_SIZES:
            seconds = {count: [] for count in pools}
            for _ in range(ROUNDS):
                for count, pool in pools.items():
                    cohorts = [
                        _cohort(size, task, network, first=worker * size) for worker in range(count)
                    ]
                    seconds[count].append(_seconds(pool, cohorts) / (count * size * EPOCHS))
            for count, times in seconds.items():
                each = 1e3 * statistics.median(times)
                yield f"{name}, cohorts of {size}, {count} workers: a trial's epoch", each, "ms"
            ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
            yield f"{name}, cohorts of {size}: speed-up", statistics.median(ratios), "×"
    finally:
        for pool in pools.values():
            pool.close()


def _seconds(pool, cohorts):
    """From the first rung of every cohort to the last of all: building networks not included."""
    for cohort in cohorts:
        pool.submit(cohort)
    started, building, training = 0.0, len(cohorts), len(cohorts)
    while training:
        for event in pool.poll(timeout=1.0):
            assert isinstance(event, Reached), event
            if event.rung.epoch == 0:
                building -= 1
                started = started or time.perf_counter()
            training -= event.rung.is_last
    assert building == 0
    return time.perf_counter() - started


def _cohort(size, task, network, first=0):
    return Cohort(
        sweep_seed=1,
        trials=tuple(
            TrialSpec(n, seed_for(1, n), task, network, Trainer(epochs=EPOCHS))
            for n in range(first, first + size)
        ),
    )


def _choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))
