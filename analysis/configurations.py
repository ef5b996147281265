"""Trials that share one configuration: the same settings under several seeds.

Such trials are no independent witnesses of what settings do. They are drawn together by the
bootstrap, kept in one fold, moved together by permutations, and counted as one where a test asks
how many there are (Cameron & Miller 2015 on clustered errors).

Shapes: n trials, G configurations.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

MIN_CONFIGURATIONS = 10
_NOT_A_SETTING = "seed"


def numbered(params: pd.DataFrame) -> pd.Series:
    """The number of each trial's configuration, from 0 in order of appearance, by trial."""
    found = np.zeros(len(params), dtype=np.int64)
    for name in params:
        if str(name).split(".")[-1] != _NOT_A_SETTING:
            values = pd.factorize(params[name])[0] + 1
            found = pd.factorize(found * (values.max(initial=0) + 1) + values)[0]
    return pd.Series(found, index=params.index)


def shared(params: pd.DataFrame, trials: pd.Index) -> np.ndarray | None:
    """Configurations of these trials, (n,), or None where trials may stand alone.

    They may where each has settings of its own. They do as well where there are fewer than ten
    configurations: a handful says nothing about how configurations differ, and what is found
    then holds for these alone.
    """
    return among(numbered(params), trials)


def among(numbers: pd.Series, trials: pd.Index) -> np.ndarray | None:
    """`shared`, where the trials have been numbered already."""
    found = numbers.reindex(trials).to_numpy()
    num = len(np.unique(found))
    return None if num == len(found) or num < MIN_CONFIGURATIONS else found


def folds(
    n: int, num_folds: int, rng: np.random.Generator, together: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Trials fitted on and trials held out, fold by fold; configurations stay whole."""
    _, unit = np.unique(np.arange(n) if together is None else together, return_inverse=True)
    num_units = int(unit.max()) + 1 if n else 0
    fold = rng.permutation(np.arange(num_units) % num_folds)[unit]
    for i in range(num_folds):
        if (fold == i).any() and (fold != i).any():
            yield np.flatnonzero(fold != i), np.flatnonzero(fold == i)


def sums(values: np.ndarray, together: np.ndarray | None) -> np.ndarray:
    """Sums over each configuration's trials: (n, …) to (G, …); values as they are where None."""
    if together is None:
        return values
    _, unit = np.unique(together, return_inverse=True)
    total = np.zeros((int(unit.max()) + 1, *values.shape[1:]))
    np.add.at(total, unit, values)
    return total


def shuffles(
    n: int, num: int, rng: np.random.Generator, together: np.ndarray | None = None
) -> np.ndarray:
    """Random orders of the trials, (num, n), that keep each configuration's trials together.

    Configurations of one size change places, and the trials in each do.
    """
    if together is None:
        return np.argsort(rng.random((num, n)), axis=1)
    _, unit, sizes = np.unique(together, return_inverse=True, return_counts=True)
    orders = np.empty((num, n), dtype=int)
    members = [np.flatnonzero(unit == g) for g in range(len(sizes))]
    for size in np.unique(sizes):
        block = np.stack([members[g] for g in np.flatnonzero(sizes == size)])
        moved = np.argsort(rng.random((num, len(block))), axis=1)
        inside = np.argsort(rng.random((num, *block.shape)), axis=2)
        taken = np.take_along_axis(block[moved], inside, axis=2)
        orders[:, block.ravel()] = taken.reshape(num, -1)
    return orders
