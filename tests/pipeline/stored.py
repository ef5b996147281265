"""A small sweep as drivers leave it, for tests of stores."""

import math

import numpy as np

from pipeline import records
from pipeline.records import TrialHeader, TrialRecord
from pipeline.rows import Row
from pipeline.store import SweepInfo, TrialStart

NAME = "sweep-1"


def info(name=NAME, **changes):
    content = {"sweep_id": f"id-{name}", "config": {"trials": 2}, "config_hash": "f" * 64}
    content |= {"num_trials": 2, "created_ms": 1_700_000_000_000, "provenance": {"host": "h"}}
    return SweepInfo(name=name, **{**content, **changes})


def start(number=0, **changes):
    params = {
        "network.units": 64,
        "network.bias": True,
        "trainer.clip_norm": None,
        "trainer.learning_rate": 1.2345678901e-05,
        "trainer.dropout": 0.0,
        "task.name": "planar",
    }
    content = {"uid": f"id-{NAME}/{number}", "seed": 5, "params": params}
    content |= {"sampled": ("trainer.learning_rate", "trainer.dropout"), "start_ms": 1000}
    content |= {"log_scaled": ("trainer.learning_rate",)}
    return TrialStart(number=number, **{**content, **changes})


def scalar(epoch, quantity, value, time_ms, **more):
    return Row(epoch, epoch * 10, quantity, np.array(value), time_ms=time_ms, **more)


ROWS = [
    scalar(0, "val_loss", 0.7, 1001),
    scalar(1, "train_loss", 0.6, 1002, seconds=2.0),
    scalar(1, "val_loss", 0.5, 1003),
    scalar(1, "lyapunov.max", -0.25, 1004, seconds=0.5),
    scalar(1, "val_perplexity", math.inf, 1005),
    scalar(1, "gradient_norm", math.nan, 1006),
    Row(1, 10, "lyapunov.spectrum", np.arange(3.0), axes=("index",), time_ms=1007),
]


def spool(tmp_path, number=0, rows=ROWS, weights=None, **changes):
    """A finished trial's file, as the driver leaves it."""
    s = start(number)
    header = TrialHeader(
        sweep=NAME,
        trial=number,
        trial_uid=s.uid,
        seed=s.seed,
        state=changes.get("state", "complete"),
        params=s.params,
        sampled=s.sampled,
        value=changes.get("value", 0.5),
        diverged_at=changes.get("diverged_at"),
        start_ms=1000,
        end_ms=2000,
        error=changes.get("error"),
    )
    folder = tmp_path / "spool"
    folder.mkdir(exist_ok=True)
    path = folder / f"trial-{number:05d}.parquet"
    records.write(TrialRecord(header, records.to_table(NAME, number, rows)), path)
    if weights is not None:
        path.with_suffix(".safetensors").write_bytes(weights)
    return path
