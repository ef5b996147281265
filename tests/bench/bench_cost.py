"""What spectra cost beside the training they watch: CharLSTM with 512 units, War and Peace.

One real epoch of the network of Vogt et al. (2022), Fig. 4, through `pipeline.train`, with every
spectrum measured before and after it by the diagnostic of a sweep (10 sequences × 100 counted
steps, no warm-up: one of 50 steps makes them half as dear again). The share is that of readings
at 5 of 15 epochs: 5 readings over 15 such epochs.

A second epoch runs with `budget: 0.02` on the most expensive of them, as a sweep would, and shows
what was left of it and what it cost.

Minutes, and the text: `LYAPSWEEP_DATA` or `lyapsweep data fetch war_and_peace`. All cores, or
`LYAPSWEEP_BENCH_THREADS`.

    python tests/bench/run_all.py cost
"""

import os
import statistics
import time

import torch

from pipeline import catalog
from pipeline.diagnostics.base import Moment
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.populations import build, diagnostics_of, load_task, train_epoch
from pipeline.train import train

IS_LONG = True
READINGS, EPOCHS = 5, 15
TRAINER = Trainer(epochs=EPOCHS, learning_rate=2e-3, decay=0.95, decay_from=10)
SPECTRA = {
    "k = 32 of the full state": {"state": "full", "k": 32},
    "all 512 of the hidden state": {"state": "hidden"},
    "all 1024 of the full state": {"state": "full"},
}


def cases():
    threads = torch.get_num_threads()
    chosen = int(os.environ.get("LYAPSWEEP_BENCH_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(chosen)
    try:
        yield "threads", chosen, ""
        yield from _shares(chosen)
        yield from _budget(chosen)
    finally:
        torch.set_num_threads(threads)


def _cohort(threads, trainer, **measures):
    task = _choice("tasks", "char_text", text="war_and_peace", batch_size=100, seq_len=100)
    network = _choice("networks", "lstm", units=512, bias=False, init_scale=0.08, dropout=0.1)
    measure = tuple(_choice("diagnostics", "lyapunov_spectrum", **m) for m in measures.values())
    spec = TrialSpec(0, 0, task, network, trainer)
    return Cohort(sweep_seed=0, trials=(spec,), measure=measure, threads=threads)


def _shares(threads):
    settings = {name: {"warmup": 0, **m} for name, m in SPECTRA.items()}
    cohort = _cohort(threads, TRAINER, **settings)
    population = build(cohort)
    diagnostics = diagnostics_of(cohort, population.network, population.task)
    seconds = {name: [] for name in SPECTRA}
    _measure(population, diagnostics, seconds, epoch=0)
    started = time.perf_counter()
    loss = train_epoch(population, 1)
    training = time.perf_counter() - started
    _measure(population, diagnostics, seconds, epoch=1)
    yield "training, one epoch", training, "s"
    yield "its training loss", loss.item(), "nats"
    for name, times in seconds.items():
        reading = statistics.mean(times)
        yield f"{name}: a reading", reading, "s"
        share = READINGS * reading / (EPOCHS * training)
        yield f"{name}: {READINGS} of {EPOCHS} epochs", 100 * share, "% of training"


def _measure(population, diagnostics, seconds, epoch):
    moment = Moment(epoch=epoch, update=0, probe_seed=0, tangent_seeds=(0,))
    for name, diagnostic in zip(SPECTRA, diagnostics, strict=True):
        started = time.perf_counter()
        diagnostic.measure(population.network, population.task, moment)
        seconds[name].append(time.perf_counter() - started)


def _budget(threads):
    """One epoch of training, readings at 0 and 1 within 2 % of it."""
    trainer = Trainer(epochs=1, learning_rate=2e-3)
    asked = {"state": "full", "at": (0, 1), "budget": 0.02}
    cohort = _cohort(threads, trainer, asked=asked)
    spent, training = 0.0, 0.0
    for rung in train(cohort, load_task(cohort)):
        for row in rung.rows[0]:
            if row.quantity == "train_loss":
                training += row.seconds
            if row.quantity == "lyapunov.spectrum":
                spent += row.seconds
                yield f"budget 2 %, epoch {row.epoch}: exponents", len(row.values), ""
                yield f"budget 2 %, epoch {row.epoch}: sequences", row.details["sequences"], ""
                yield f"budget 2 %, epoch {row.epoch}: steps", row.details["steps"], ""
    yield "budget 2 %: measuring", 100 * spent / training, "% of training"


def _choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))
