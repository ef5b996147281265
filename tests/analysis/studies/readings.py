"""Made-up tables of early readings, as `analysis.studies.early_readings` makes them."""

import numpy as np
import pandas as pd

from analysis.studies import early_readings as er


def correlations(epoch, values):
    """Rows of `against_final`: (feature, held fixed) → (value, low, high)."""
    lines = [
        {
            "epoch": epoch,
            "feature": feature,
            "held fixed": held,
            "networks": 64,
            "rank correlation": value,
            "low": low,
            "high": high,
            "p": 0.01,
            "problem": "",
        }
        for (feature, held), (value, low, high) in values.items()
    ]
    return pd.DataFrame(lines)


def networks(epoch, exponents, losses, **settings):
    """Rows of `networks`."""
    values = np.asarray(exponents, dtype=float)
    return pd.DataFrame(
        {
            "network": range(len(values)),
            "epoch": epoch,
            er.LARGEST: values,
            er.DISTANCE: np.abs(values),
            er.MEAN: values - 1,
            er.SEEN: losses,
            er.FINAL: losses,
            **settings,
        }
    )
