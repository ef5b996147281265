"""How Optuna draws trials from the space, so that a design repeats and survives interruption.

The samplers that results must not steer (qmc, random, grid) are indexed by the trial's number:
trial 17 of a sweep has the same values whatever was asked, lost or resumed before it. The
adaptive ones (tpe, gp, cmaes) are reseeded for each batch from (sweep seed, first number). Of a
batch TPE knows what it has asked for and not been told yet, and takes it for bad (constant liar),
so that the trials of a batch keep apart.

Optuna's own QMC and random samplers do the drawing. What is added: the space is known from the
start (Optuna's QMC sampler infers it from finished trials, and draws the first at random).
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, TPESampler
from optuna.trial import FrozenTrial, Trial

from pipeline.config import Sampler
from pipeline.space import Range
from tasks.base import seed_for


def distributions(space: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """Ranges as Optuna's distributions, in the space's order."""
    return {path: _distribution(r) for path, r in space.items()}


def make_sampler(
    sampler: Sampler, space: Mapping[str, Range], *, seed: int, first_number: int
) -> BaseSampler:
    """The sampler for a batch of trials starting at `first_number`."""
    design_seed = seed_for(seed, "design") % 2**32
    batch_seed = seed_for(seed, "design", first_number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match sampler.name:
            case "qmc":
                return _NumberedQMC(space, design_seed)
            case "random":
                return _NumberedRandom(space, seed)
            case "grid":
                return _NumberedGrid(space)
            case "tpe":
                return TPESampler(
                    seed=batch_seed,
                    constant_liar=True,
                    multivariate=True,
                    n_startup_trials=sampler.startup,
                )
            case "gp":
                return GPSampler(seed=batch_seed, n_startup_trials=sampler.startup)
            case "cmaes":
                return CmaEsSampler(seed=batch_seed)


def suggest(trial: Trial, space: Mapping[str, Range]) -> dict[str, Any]:
    """Values for every range; those the trial has already stay as they are."""
    values: dict[str, Any] = {}
    for path, r in space.items():
        if r.kind == "choice":
            values[path] = trial.suggest_categorical(path, list(r.choices))
        elif r.is_whole:
            values[path] = trial.suggest_int(path, int(r.low), int(r.high), log=r.is_log)
        else:
            values[path] = trial.suggest_float(path, r.low, r.high, log=r.is_log)
    return values


def _distribution(r: Range) -> BaseDistribution:
    if r.kind == "choice":
        return CategoricalDistribution(r.choices)
    if r.is_whole:
        return IntDistribution(int(r.low), int(r.high), log=r.is_log)
    return FloatDistribution(r.low, r.high, log=r.is_log)


class _Numbered(BaseSampler):
    """A design: values are a function of the trial's number alone."""

    def __init__(self, space: Mapping[str, Range]) -> None:
        self._ranges = dict(space)
        self._space = distributions(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise KeyError(f"{param_name} is not in the space of this sweep")


class _NumberedQMC(QMCSampler):
    """Optuna's scrambled Sobol points; trial n gets point n of the sequence."""

    def __init__(self, space: Mapping[str, Range], seed: int) -> None:
        super().__init__(
            qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False
        )
        self._fixed_space = distributions(space)
        self._number = 0

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._fixed_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._number = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution]
    ) -> int:
        # Optuna counts asks, and an ask that died would shift all later points.
        return self._number


class _NumberedRandom(_Numbered):
    """Independent uniform draws, from a generator of the trial's own."""

    def __init__(self, space: Mapping[str, Range], seed: int) -> None:
        super().__init__(space)
        self._seed = seed

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        own = optuna.samplers.RandomSampler(
            seed=seed_for(self._seed, "design", trial.number) % 2**32
        )
        return {
            name: own.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }


class _NumberedGrid(_Numbered):
    """Combination n of the product of all grids; the last range varies fastest."""

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        grids: Sequence[tuple[Any, ...]] = [r.grid() for r in self._ranges.values()]
        size = math.prod(len(g) for g in grids)
        combination = next(itertools.islice(itertools.product(*grids), trial.number % size, None))
        return dict(zip(self._ranges, combination, strict=True))
