"""What an update of a population costs, by its size: one thread, in processor time.

Through `pipeline.populations.update`, dropout on. Processor time, because other work on the machine
lengthens the wall's; the least of several rounds, the sizes taking turns.
"""

import itertools
import time

import torch

from pipeline import catalog
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.populations import build, load_task, update
from tasks.base import seed_for

SIZES = (1, 8, 32)
ROUNDS, UPDATES = 5, 10


def cases():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plane = _choice("tasks", "planar", shape="spiral", points=4000, batch_size=64)
        text = _choice("tasks", "char_text", text="pydoc", characters=60000, batch_size=32)
        sgd = {"optimiser": "sgd", "momentum": 0.9, "learning_rate": 0.01}
        adam = {"clip_norm": 1.0}
        for name, task, network, settings, trainer in (
            ("MLP, 8 layers of 10, batch 64", plane, "mlp", {"depth": 8, "width": 10}, sgd),
            ("MLP, 8 layers of 50, batch 64", plane, "mlp", {"depth": 8, "width": 50}, sgd),
            ("LSTM of 16, batch 32 × 64", text, "lstm", {"units": 16}, adam),
            ("LSTM of 64, batch 32 × 64", text, "lstm", {"units": 64}, adam),
            ("GRU of 64, batch 32 × 64", text, "gru", {"units": 64}, adam),
        ):
            seconds = _seconds(task, network, settings, trainer)
            for size, value in seconds.items():
                yield f"{name}: an update of {size}", value, "s"
                yield f"{name}: of that, a member", value / size, "s"
    finally:
        torch.set_num_threads(threads)


def _seconds(task, network, settings, trainer):
    """Size → least seconds an update."""
    populations, data = {}, None
    for size in SIZES:
        trials = tuple(
            TrialSpec(
                n,
                seed_for("bench", n),
                task,
                _choice("networks", network, dropout=0.3 * n / size, **settings),
                Trainer(**trainer),
            )
            for n in range(size)
        )
        cohort = Cohort(sweep_seed=1, trials=trials)
        data = load_task(cohort) if data is None else data
        populations[size] = build(cohort, data)
    batches = list(itertools.islice(data.training_batches(1), UPDATES))
    least = dict.fromkeys(SIZES, float("inf"))
    for _ in range(ROUNDS):
        for size, population in populations.items():
            state, started = None, time.process_time()
            for batch in batches:
                _, state = update(population, batch, None if batch.is_start else state)
            least[size] = min(least[size], (time.process_time() - started) / len(batches))
    return least


def _choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))
