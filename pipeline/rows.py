"""One measured quantity of one trial at one epoch, as plain numbers: what workers hand back."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One quantity of one trial at one epoch.

    Attributes:
        epoch: 0 is before training.
        update: optimiser steps taken so far.
        quantity: dotted name: `val_loss`, `lyapunov.spectrum`.
        values: any shape, stored as float64; NaN where there is no number.
        axes: one name for each axis of `values`.
        unit: `nats`, `nats/step`, `1`.
        error: standard errors in the shape of `values`, or None.
        marks: `pipeline.diagnostics.base.Mark` bits in the shape of `values`, or None.
        flags: words about the whole row: `diverged`, `skipped_over_budget`.
        details: how it was obtained; JSON values only.
        seconds: this trial's share of the time it took to obtain, or None.
        time_ms: when, milliseconds since 1970 UTC.
    """

    epoch: int
    update: int
    quantity: str
    values: np.ndarray
    axes: tuple[str, ...] = ()
    unit: str = "1"
    error: np.ndarray | None = None
    marks: np.ndarray | None = None
    flags: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    time_ms: int = 0

    def __post_init__(self) -> None:
        if len(self.axes) != np.ndim(self.values):
            raise ValueError(
                f"{self.quantity}: {len(self.axes)} axis names for {np.ndim(self.values)} axes"
            )
        for name in ("error", "marks"):
            other = getattr(self, name)
            if other is not None and np.shape(other) != np.shape(self.values):
                raise ValueError(
                    f"{self.quantity}: {name} must have the shape of the values, "
                    f"{np.shape(self.values)}, got {np.shape(other)}"
                )
        try:
            json.dumps(self.details)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.quantity}: details must be JSON values ({error})") from error


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000
