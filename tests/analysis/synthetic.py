"""Made-up sweeps whose truth is known: what the report must find, or must not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import records
from pipeline.folder_store import FolderStore
from pipeline.records import Row, TrialHeader, TrialRecord
from pipeline.store import SweepInfo

Effect = Literal["planted", "confounded", "null", "reversed"]
Tails = Literal["normal", "heavy"]
Family = Literal["lstm", "mlp"]

EPOCHS = 6
MEASURED = (0, 1, 2, 4, 6)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
CONFIG = {
    "seed": 7,
    "trials": 40,
    "sampler": {"name": "qmc"},
    "task": {"name": "char_text", "text": "pydoc"},
    "network": {
        "name": "lstm",
        "units": 64,
        "init_scale": {"log_uniform": [0.05, 0.5]},
        "dropout": {"uniform": [0.0, 0.3]},
    },
    "trainer": {"epochs": EPOCHS, "learning_rate": {"log_uniform": [1e-4, 1e-1]}},
    "measure": {"lyapunov_spectrum": {"at": list(MEASURED)}},
}
SAMPLED = ("network.init_scale", "network.dropout", "trainer.learning_rate")


def info(name: str = "made-up", num_trials: int = 40) -> SweepInfo:
    return SweepInfo(
        name=name,
        sweep_id="0123abcd",
        config=json.loads(json.dumps({**CONFIG, "trials": num_trials})),
        config_hash="f" * 64,
        num_trials=num_trials,
        created_ms=1_700_000_000_000,
        state="complete",
        provenance={"torch": "2.13.0", "python": "3.11.2", "git": "abc1234"},
    )


def sweep(
    effect: Effect,
    n: int = 40,
    *,
    family: Family = "lstm",
    seed: int = 0,
    num_exponents: int = 12,
    diverged: int = 0,
    failed: int = 0,
    name: str = "made-up",
) -> list[TrialRecord]:
    """Trials whose final loss depends on a hidden trait that the spectrum shows (planted), on
    the learning rate, which the spectrum follows (confounded), or on neither (null). reversed:
    the learning rate lowers the loss and lifts the spectrum; at a fixed rate a lifted spectrum
    goes with a higher loss (Simpson's paradox).

    The loss seen early is a noisy version of the final one in each case.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        unit = rng.uniform(size=3)
        params = _settings(unit, family)
        trait, rate = rng.normal(), 2 * unit[2] - 1
        shown = {
            "planted": trait,
            "confounded": 1.6 * rate,
            "null": rng.normal(),
            "reversed": 4 * rate + trait,
        }[effect]
        drive = {
            "planted": 0.5 * trait,
            "confounded": 0.9 * rate,
            "null": 0.0,
            "reversed": 4 * rate - 0.6 * trait,
        }[effect]
        log_loss = 0.5 - 0.25 * drive - 0.1 * unit[1] + 0.06 * rng.normal()
        state = "complete"
        if number >= n - failed:
            state = "failed"
        elif number >= n - failed - diverged:
            state, shown = "diverged", shown + 3
        found.append(
            _trial(name, number, params, state, shown, log_loss, family, num_exponents, rng)
        )
    return found


TRAIT, NOISE = 0.14, 0.35


def curved(
    effect: Effect, n: int, *, seed: int = 0, tails: Tails = "normal", trait: float = TRAIT
) -> list[TrialRecord]:
    """Trials as hard to judge as real ones: the settings bend the final loss in every kind.

    The loss has an optimum in the learning rate, a threshold in it, and a product with the init
    scale. The spectrum shows a trait of the trial that lowers the loss by `trait` (planted), a
    curved and noisy function of learning rate and init scale alone (confounded), or noise (null).
    """
    rng = np.random.default_rng(seed)
    noise = _heavy(rng) if tails == "heavy" else rng.normal
    found = []
    for number in range(n):
        unit = rng.uniform(size=3)
        init, _, rate = 2 * unit - 1
        own = noise()
        shown = {
            "planted": own,
            "confounded": 1.2 * np.tanh(2.5 * rate) + 0.5 * np.sin(2 * init) + 0.4 * noise(),
            "null": noise(),
        }[effect]
        bend = 1.2 * (rate - 0.2) ** 2 + 0.5 * np.tanh(3 * rate) + 0.3 * init * (init + rate)
        log_loss = 0.5 + 0.25 * (bend + NOISE * noise()) - 0.1 * unit[1]
        if effect == "planted":
            log_loss -= 0.25 * trait * own
        params = _settings(unit, "lstm")
        found.append(
            _trial("made-up", number, params, "complete", shown, log_loss, "lstm", 12, rng)
        )
    return found


def explained_share(epoch: int, trait: float = TRAIT, num_draws: int = 200_000) -> float:
    """Share of what settings and curve leave of the final loss that the planted trait explains.

    By least squares on many draws of the hidden variables of `curved`, settings held fixed.
    """
    rng = np.random.default_rng(0)
    own, rest, spectrum = rng.normal(size=(3, num_draws))
    log_loss = 0.25 * (NOISE * rest - trait * own)
    progress = np.arange(epoch + 1) / EPOCHS
    curve = progress[:, None] * log_loss + 0.25 * (1 - progress[:, None]) * rng.normal(
        size=(epoch + 1, num_draws)
    )
    seen = own + spectrum / 4  # the largest exponent is -0.3 + 0.08 shown + 0.02 noise
    without, with_it = (
        log_loss - X @ np.linalg.lstsq(X, log_loss, rcond=None)[0]
        for X in (curve.T, np.column_stack([curve.T, seen]))
    )
    return 1 - float(with_it.var() / without.var())


def _heavy(rng: np.random.Generator) -> Callable[[], float]:
    return lambda: float(rng.standard_t(3) / np.sqrt(3))


def _settings(unit: np.ndarray, family: Family) -> dict[str, object]:
    return {
        "network.name": "lstm" if family == "lstm" else "mlp",
        "network.units": 64,
        "network.init_scale": float(0.05 * 10 ** unit[0]),
        "network.dropout": float(0.3 * unit[1]),
        "trainer.learning_rate": float(10 ** (-4 + 3 * unit[2])),
        "trainer.epochs": EPOCHS,
    }


def stored(root: Path, trials: list[TrialRecord], name: str = "made-up") -> FolderStore:
    """The trials in a folder store, through its own writing methods."""
    store = FolderStore(root / "store")
    store.prepare()
    store.create_sweep(info(name, len(trials)))
    for trial in trials:
        path = root / "spool.parquet"
        records.write(trial, path)
        store.publish(name, path)
    return store


def scrambled(trials: list[TrialRecord], after: int, seed: int = 1) -> list[TrialRecord]:
    """The same trials with another future: all rows after an epoch and the outcome."""
    rng = np.random.default_rng(seed)
    changed = []
    for trial in trials:
        rows = trial.table.to_pylist()
        for row in rows:
            if row["epoch"] > after:
                row["values"] = [float(v) for v in rng.normal(size=len(row["values"]))]
        table = trial.table.from_pylist(rows, schema=records.SCHEMA)
        header = replace(
            trial.header,
            value=float(rng.normal()),
            state="diverged" if trial.header.state == "complete" else trial.header.state,
            diverged_at=10_000,
            end_ms=int(rng.integers(1, 10**9)),
        )
        changed.append(TrialRecord(header, table))
    return changed


def _trial(
    sweep_name: str,
    number: int,
    params: dict[str, object],
    state: str,
    shown: float,
    log_loss: float,
    family: Family,
    num_exponents: int,
    rng: np.random.Generator,
) -> TrialRecord:
    last = {"complete": EPOCHS, "diverged": 3, "failed": 1}[state]
    rows = []
    for epoch in range(last + 1):
        progress = epoch / EPOCHS
        noise = 0.25 * (1 - progress) * rng.normal()
        loss = float(np.exp(log_loss * progress + 1.2 * (1 - progress) + noise))
        if state == "diverged" and epoch == last:
            loss = float("nan")
        update = 50 * epoch
        flags = ("diverged",) if np.isnan(loss) else ()
        if epoch > 0:
            rows.append(
                Row(epoch, update, "train_loss", np.array(0.95 * loss), unit="nats",
                    seconds=2.0, flags=flags)
            )  # fmt: skip
        rows.append(Row(epoch, update, "val_loss", np.array(loss), unit="nats", flags=flags))
        details = {"name": "bits_per_character", "higher_is_better": False}
        rows.append(Row(epoch, update, "val_score", np.array(loss / np.log(2)), details=details))
        if epoch in MEASURED:
            measure = _spectrum if family == "lstm" else _ftle
            rows += measure(epoch, update, shown, num_exponents, rng)
            for quantity, scale in (("gradient_norm", 0.3), ("weight_norm", 9.0)):
                value = np.array(scale * np.exp(0.1 * rng.normal()))
                rows.append(Row(epoch, update, quantity, value, seconds=0.01))
        if epoch == EPOCHS and state == "complete":
            rows.append(Row(epoch, update, "test_loss", np.array(loss * 1.02), unit="nats"))
            rows.append(Row(epoch, update, "test_score", np.array(loss * 1.5)))
    header = TrialHeader(
        sweep=sweep_name,
        trial=number,
        trial_uid=f"0123abcd/{number}",
        seed=1000 + number,
        state=state,  # type: ignore[arg-type]
        params=params,
        sampled=SAMPLED,
        value=log_loss if state == "complete" else None,
        diverged_at=150 if state == "diverged" else None,
        error="Traceback:\nRuntimeError: worker lost" if state == "failed" else None,
        provenance={"torch": "2.13.0", "dtype": "float32"},
    )
    return TrialRecord(header, records.to_table(sweep_name, number, rows))


def _spectrum(epoch: int, update: int, shown: float, k: int, rng: np.random.Generator) -> list[Row]:
    index = np.arange(k) / k
    top = -0.3 + 0.08 * shown + 0.02 * rng.normal() + 0.02 * epoch
    values = top - (1.5 + 0.1 * rng.normal()) * index - 0.5 * index**2
    scalars = {
        "max": (values[0], "nats/step"),
        "mean": (values.mean(), "nats/step"),
        "sum": (values.sum(), "nats/step"),
        "kaplan_yorke": (max(0.0, 5 * (top + 0.5)), "1"),
        "near_zero": (float((np.abs(values) < 0.4).sum()), "1"),
    }
    return [
        Row(epoch, update, "lyapunov.spectrum", values, axes=("exponent",), unit="nats/step",
            error=np.full(k, 0.01), marks=np.zeros(k, np.uint8), seconds=0.2,
            details={"state": "full", "k": k, "state_size": k, "steps": 100}),
        *(
            Row(epoch, update, f"lyapunov.{name}", np.array(value), unit=unit)
            for name, (value, unit) in scalars.items()
        ),
    ]  # fmt: skip


def _ftle(epoch: int, update: int, shown: float, k: int, rng: np.random.Generator) -> list[Row]:
    mean, std = 0.2 + 0.1 * shown + 0.02 * rng.normal(), 0.15 * np.exp(0.1 * rng.normal())
    sample = np.sort(mean + std * rng.normal(size=200))
    scalars = {
        "mean": sample.mean(),
        "std": sample.std(),
        "positive_share": (sample > 0).mean(),
        "low_margin": mean + std,
        "high_margin": mean - 0.5 * std,
    }
    return [
        Row(epoch, update, "ftle.quantiles", np.quantile(sample, LEVELS), axes=("level",),
            unit="nats/layer", seconds=0.1, details={"levels": list(LEVELS)}),
        Row(epoch, update, "ftle.layer_mean", mean + 0.05 * np.arange(4), axes=("layer",),
            unit="nats/layer"),
        *(
            Row(epoch, update, f"ftle.{name}", np.array(value),
                unit="1" if name == "positive_share" else "nats/layer")
            for name, value in scalars.items()
        ),
    ]  # fmt: skip


def rewritten(
    trial: TrialRecord, change: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> TrialRecord:
    """The trial with each of its rows changed, or left out where None comes back."""
    rows = [row for row in map(change, trial.table.to_pylist()) if row is not None]
    return TrialRecord(trial.header, trial.table.from_pylist(rows, schema=records.SCHEMA))


def ended_at(trial: TrialRecord, epoch: int) -> TrialRecord:
    """The trial, complete after fewer epochs."""
    return rewritten(trial, lambda row: row if row["epoch"] <= epoch else None)


def described_as(trial: TrialRecord, **details: object) -> TrialRecord:
    """The trial with these details at its spectra."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["quantity"] == "lyapunov.spectrum":
            row["details"] = json.dumps({**json.loads(row["details"]), **details})
        return row

    return rewritten(trial, change)


def skipping(trial: TrialRecord, epoch: int) -> TrialRecord:
    """The trial without its spectrum at an epoch, recorded as skipped over budget."""

    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["epoch"] != epoch or not row["quantity"].startswith("lyapunov."):
            return row
        if row["quantity"] != "lyapunov.spectrum":
            return None
        return {
            **row, "quantity": "lyapunov_spectrum", "axes": [], "shape": [], "unit": "1",
            "values": [float("nan")], "error": None, "marks": None, "seconds": None,
            "flags": ["skipped_over_budget"], "details": "{}",
        }  # fmt: skip

    return rewritten(trial, change)
