"""What training N networks as one population gains over training them one after another.

One thread. Both ways go through `pipeline.train.train_epoch`; the same members, the same data.
"""

import time

import torch

from pipeline import catalog
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.train import build, load_task, train_epoch


def cases():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, num_members, task, network in (
            (
                "MLP, 8 layers of 10, batch 64",
                32,
                _choice("tasks", "planar", points=4000, batch_size=64),
                _choice("networks", "mlp", depth=8, width=10),
            ),
            (
                "MLP, 3 layers of 50, batch 64",
                32,
                _choice("tasks", "planar", points=4000, batch_size=64),
                _choice("networks", "mlp", depth=3, width=50),
            ),
            (
                "LSTM of 64, batch 32 × 64",
                8,
                _choice(
                    "tasks", "char_text", text="pydoc", characters=60000, batch_size=32, seq_len=64
                ),
                _choice("networks", "lstm", units=64),
            ),
        ):
            together, alone = _both(task, network, num_members)
            yield f"{name}: {num_members} as one, an epoch", together, "s"
            yield f"{name}: {num_members} one by one, an epoch", alone, "s"
            yield f"{name}: gain", alone / together, "×"
    finally:
        torch.set_num_threads(threads)


def _both(task, network, num_members):
    """Seconds an epoch, best of two, together and one by one."""
    specs = [
        TrialSpec(n, n, task, network, Trainer(learning_rate=1e-3 * (1 + n / num_members)))
        for n in range(num_members)
    ]
    whole = Cohort(sweep_seed=1, trials=tuple(specs))
    data = load_task(whole)
    populations = [build(whole, data)]
    singles = [build(Cohort(sweep_seed=1, trials=(spec,)), data) for spec in specs]
    together, alone = [], []
    for epoch in (1, 2):
        together.append(_seconds(populations, epoch))
        alone.append(_seconds(singles, epoch))
    return min(together), min(alone)


def _seconds(populations, epoch):
    started = time.perf_counter()
    for population in populations:
        train_epoch(population, epoch)
    return time.perf_counter() - started


def _choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))
