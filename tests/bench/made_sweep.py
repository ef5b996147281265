"""Writes a sweep that nobody trained into a real store, trial by trial as a driver would.

    python tests/bench/made_sweep.py NAME --trials 10000 --store sqlite:////tmp/bench/mlflow.db

LSTMs on text, 20 epochs: five losses and scores an epoch, at six rungs a spectrum of 64 exponents
with its scalars, gradient and weight norms, and FTLEs, which is more than any one sweep measures.
The final loss has an optimum in the learning rate, and a trait of the trial that the spectrum
shows. Some trials diverge, fail, or are pruned (these among the later half only, so that replays of
the first trials have work).
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline import config, creating, records
from pipeline.records import TrialHeader, TrialRecord
from pipeline.rows import Row
from pipeline.store import TrialStart, open_store

EPOCHS, UPDATES = 20, 150
RUNGS = (0, 1, 2, 4, 8, 12)
EXPONENTS = 64
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
TREE = {
    "seed": 1,
    "sampler": {"name": "random"},
    "task": {"name": "char_text", "text": "pydoc", "batch_size": 32, "seq_len": 64},
    "network": {
        "name": "lstm",
        "units": EXPONENTS // 2,
        "init_scale": {"log_uniform": [0.02, 0.6]},
        "dropout": {"uniform": [0.0, 0.4]},
    },
    "trainer": {
        "epochs": EPOCHS,
        "learning_rate": {"log_uniform": [1e-4, 3e-2]},
        "weight_decay": {"choice": [0.0, 1e-4, 1e-3]},
    },
    "measure": {"lyapunov_spectrum": {"at": list(RUNGS)}, "gradient_norm": {"at": list(RUNGS)}},
    "execution": {"cohort_size": 8, "executor": "process"},
}
_SPECTRUM = {
    "dtype": "float64", "k": EXPONENTS, "loop": "open", "self_checks": ["autodiff", "sum_rule"],
    "sequences": 6, "state": "full", "state_size": EXPONENTS, "steps": 100, "t_on": "auto",
    "warmup": 50,
}  # fmt: skip
_FTLE = {"layer": 4, "probes": 500}


def write(store, name, num_trials, seed=0, say=lambda done, seconds: None):
    """The whole sweep. Returns the seconds of writing, without those of making trials up."""
    settings = config.check({**TREE, "trials": num_trials, "seed": seed + 1})
    store.prepare()
    info = creating.create(settings, name, store)
    spent = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_trials):
            start, record = trial(settings, info, number, seed)
            path = Path(folder) / f"trial-{number:05d}.parquet"
            began = time.perf_counter()
            store.begin_trial(name, start)
            records.write(record, path)
            store.publish(name, path)
            path.unlink()
            spent += time.perf_counter() - began
            if (number + 1) % 500 == 0:
                say(number + 1, spent)
    store.set_state(name, "complete")
    return spent


def trial(settings, info, number, seed=0):
    """What is known of a trial when it starts, and its record."""
    rng = np.random.default_rng([seed, number])
    u = rng.uniform(size=3)
    sampled = {
        "network.init_scale": float(0.02 * 30 ** u[0]),
        "network.dropout": float(0.4 * u[1]),
        "trainer.learning_rate": float(1e-4 * 300 ** u[2]),
        "trainer.weight_decay": float(rng.choice([0.0, 1e-4, 1e-3])),
    }
    spec = settings.spec(number, sampled)
    fate = rng.uniform()
    state = (
        "diverged" if fate < 0.04 or (u[2] > 0.9 and fate < 0.3)
        else "failed" if fate > 0.99
        else "pruned" if fate > 0.95 and number >= info.num_trials // 2
        else "complete"
    )  # fmt: skip
    last = {"complete": EPOCHS, "diverged": int(rng.integers(1, EPOCHS)), "failed": 3, "pruned": 4}
    trait = rng.normal()
    rate = 2 * u[2] - 1
    log_loss = 0.35 + 0.3 * (rate - 0.3) ** 2 - 0.05 * trait + 0.08 * u[1] + 0.05 * rng.normal()
    shown = 0.5 * rate + trait + 0.8 * (u[0] - 0.5) + (1.5 if state == "diverged" else 0)
    start_ms = 1_790_000_000_000 + 20_000 * number
    rows = [
        row
        for epoch in range(last[state] + 1)
        for row in _epoch(epoch, last[state], state, log_loss, shown, start_ms, rng)
    ]
    losses = [float(r.values) for r in rows if r.quantity == "val_loss"]
    start = TrialStart(
        number=number,
        uid=f"{info.sweep_id}/{number}",
        seed=spec.seed,
        params=settings.params(spec),
        sampled=tuple(settings.space),
        start_ms=start_ms,
        log_scaled=tuple(path for path, r in settings.space.items() if r.is_log),
    )
    header = TrialHeader(
        sweep=info.name,
        trial=number,
        trial_uid=start.uid,
        seed=spec.seed,
        state=state,
        params=start.params,
        sampled=start.sampled,
        value={"failed": None, "diverged": 45.0}.get(state, losses[-1]),
        diverged_at=last[state] * UPDATES - 7 if state == "diverged" else None,
        pruned_at=last[state] if state == "pruned" else None,
        epochs=last[state],
        epochs_planned=EPOCHS,
        start_ms=start_ms,
        end_ms=start_ms + 900 * last[state],
        error="Traceback:\nRuntimeError: worker lost" if state == "failed" else None,
        provenance={**info.provenance, "device": "cpu", "dtype": "float32", "threads": 1},
    )
    return start, TrialRecord(header, records.to_table(info.name, number, rows))


def _epoch(epoch, last, state, log_loss, shown, start_ms, rng):
    progress = 1 - np.exp(-epoch / 5)
    loss = np.exp(log_loss * progress + 1.5 * (1 - progress) + 0.06 * (1 - progress) * rng.normal())
    flags = ()
    if state == "diverged" and epoch == last:
        loss, flags = np.nan, ("diverged",)
    when = {"epoch": epoch, "update": UPDATES * epoch, "time_ms": start_ms + 900 * epoch}
    score = {"details": {"higher_is_better": False, "name": "bits_per_character"}}
    if epoch:
        seconds = 0.8 + 0.05 * rng.uniform()
        yield Row(**when, quantity="train_loss", values=np.array(0.97 * loss), unit="nats",
                  seconds=seconds, flags=flags)  # fmt: skip
    yield Row(**when, quantity="val_loss", values=np.array(loss), unit="nats", seconds=0.01,
              flags=flags)  # fmt: skip
    yield Row(**when, quantity="val_bits_per_character", values=np.array(loss / np.log(2)))
    yield Row(**when, quantity="val_perplexity", values=np.array(np.exp(loss)))
    yield Row(**when, quantity="val_score", values=np.array(loss / np.log(2)), **score)
    if epoch == EPOCHS:
        yield Row(**when, quantity="test_loss", values=np.array(1.02 * loss), unit="nats")
        yield Row(**when, quantity="test_score", values=np.array(1.02 * loss / np.log(2)), **score)
    if epoch in RUNGS and not flags:
        yield from _lyapunov(when, shown + 0.05 * epoch, rng)
        yield from _ftle(when, shown, rng)
        for quantity, scale in (("gradient_norm", 0.3), ("weight_norm", 9.0)):
            value = np.array(scale * np.exp(0.1 * rng.normal()))
            yield Row(**when, quantity=quantity, values=value, seconds=0.02,
                      details={"examples": 32, "weights": 19_036})  # fmt: skip


def _lyapunov(when, shown, rng):
    place = np.arange(EXPONENTS) / EXPONENTS
    top = -0.3 + 0.08 * shown + 0.02 * rng.normal()
    values = top - (1.5 + 0.1 * rng.normal()) * place - 0.5 * place**2
    values = values + 0.005 * rng.normal(size=EXPONENTS)
    marks = np.zeros(EXPONENTS, np.uint8)
    yield Row(**when, quantity="lyapunov.spectrum", values=values, axes=("exponent",),
              unit="nats/step", error=np.abs(0.01 * rng.normal(size=EXPONENTS)), marks=marks,
              details=_SPECTRUM, seconds=0.4)  # fmt: skip
    scalars = {
        "max": (values.max(), "nats/step"),
        "mean": (values.mean(), "nats/step"),
        "sum": (values.sum(), "nats/step"),
        "kaplan_yorke": (max(0.0, 5 * (top + 0.5)), "1"),
        "near_zero": (float((np.abs(values) < 0.05).sum()), "1"),
        "t_on": (1.0, "steps"),
        "self_check.autodiff": (1e-16 * rng.uniform(), "1"),
        "self_check.sum_rule": (1e-15 * rng.uniform(), "1"),
    }
    for name, (value, unit) in scalars.items():
        yield Row(**when, quantity=f"lyapunov.{name}", values=np.array(value), unit=unit,
                  marks=np.zeros((), np.uint8), details=_SPECTRUM)  # fmt: skip


def _ftle(when, shown, rng):
    mean, std = 0.2 + 0.1 * shown + 0.02 * rng.normal(), 0.15 * np.exp(0.1 * rng.normal())
    unit = "nats/layer"
    yield Row(**when, quantity="ftle.mean", values=np.array(mean), unit=unit, details=_FTLE,
              seconds=0.05)  # fmt: skip
    yield Row(**when, quantity="ftle.std", values=np.array(std), unit=unit, details=_FTLE)
    quantiles = mean + std * np.array([-1.64, -0.67, 0, 0.67, 1.64])
    yield Row(**when, quantity="ftle.quantiles", values=quantiles, axes=("level",), unit=unit,
              details={**_FTLE, "levels": list(LEVELS)})  # fmt: skip
    share = np.array(1 / (1 + np.exp(-1.7 * mean / std)))
    yield Row(**when, quantity="ftle.positive_share", values=share, details=_FTLE)
    for name, value in (("low_margin", mean + std), ("high_margin", mean - std / 2)):
        yield Row(**when, quantity=f"ftle.{name}", values=np.array(value), unit=unit,
                  details=_FTLE)  # fmt: skip
    yield Row(**when, quantity="ftle.layer_mean", values=mean + 0.05 * np.arange(4),
              axes=("layer",), unit=unit, details=_FTLE)  # fmt: skip


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("name")
    arguments.add_argument("--trials", type=int, default=10_000)
    arguments.add_argument("--store", default=None)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    seconds = write(
        open_store(chosen.store), chosen.name, chosen.trials, chosen.seed,
        lambda done, spent: print(f"{done:6d} {done / spent:6.1f} trials/s", file=sys.stderr),
    )  # fmt: skip
    print(json.dumps({"trials": chosen.trials, "writing": seconds}))
