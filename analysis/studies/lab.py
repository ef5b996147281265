"""Where studies train: the sweeps of a study's conf, kept in the store, and their networks.

A sweep is named after study, part and settings, so that a study run again finds what it has trained
and one that was interrupted goes on. Networks come back as populations of one shape.
"""

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from safetensors.torch import load_file

from analysis.frame import AnalysisError, SweepFrame
from analysis.studies.base import Scale
from analysis.studies.settings import Settings
from pipeline import creating
from pipeline.config import SweepConfig
from pipeline.home import Home
from pipeline.plan import TrialSpec, plan
from pipeline.populations import build
from pipeline.preflight import preflight
from pipeline.progress import view_for
from pipeline.running import executor_kind, starting
from pipeline.store import NoSuchSweepError, Store
from pipeline.sweep import Driver
from tasks.base import Task, generator_for, seed_for
from tasks.networks.base import Network

Moment = Literal["start", "end"]


@dataclass(frozen=True)
class Group:
    """Networks of one shape, as one population in eval mode.

    numbers: the trials, in member order. `params` has one row each, in that order: every setting by
        its dotted name (`network.width`).
    """

    numbers: tuple[int, ...]
    params: pd.DataFrame
    network: Network
    task: Task


class Trained:
    """A sweep that has ended: its records, and its networks before and after training."""

    def __init__(self, config: SweepConfig, store: Store, name: str) -> None:
        self.config, self.name, self._store = config, name, store

    @cached_property
    def frame(self) -> SweepFrame:
        """All records."""
        return SweepFrame.from_store(self._store, self.name)

    @cached_property
    def params(self) -> pd.DataFrame:
        """Every setting of every trial, by dotted name; index: its number."""
        return self.frame.params

    @cached_property
    def specs(self) -> dict[int, TrialSpec]:
        """Trials that ended complete, by number."""
        sampled = {
            h.trial: {path: h.params[path] for path in self.config.space}
            for h in self.frame.headers
            if h.state == "complete"
        }
        return {number: self.config.spec(number, values) for number, values in sampled.items()}

    def groups(
        self,
        at: Moment = "end",
        *,
        dtype: Literal["float32", "float64"] = "float64",
        only: Collection[int] | None = None,
    ) -> Iterator[Group]:
        """Trials that ended complete, by shape; weights and data in `dtype`, on the CPU.

        Raises AnalysisError if there is none.
        """
        specs = [s for n, s in sorted(self.specs.items()) if only is None or n in only]
        if not specs:
            raise AnalysisError(f"sweep {self.name!r}: no trial of it ended complete")
        limits = dataclasses.replace(self.config.limits_of(len(specs)), device="cpu")
        precise = [
            dataclasses.replace(s, trainer=dataclasses.replace(s.trainer, dtype=dtype))
            for s in specs
        ]
        tasks: dict[str, Task] = {}
        for cohort in plan(precise, limits):
            key = repr(cohort.trials[0].task)
            population = build(cohort, tasks.get(key), recorder=None)
            tasks[key] = population.task
            if at == "end":
                self._load(population.network, cohort.numbers)
            population.network.eval().requires_grad_(False)
            params = self.params.loc[list(cohort.numbers)]
            yield Group(cohort.numbers, params, population.network, population.task)

    def _load(self, network: Network, numbers: tuple[int, ...]) -> None:
        """Puts the stored weights of these trials into the members."""
        with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
            members = []
            for number in numbers:
                path = self._store.fetch_trial(self.name, number, Path(folder))
                members.append(load_file(path.with_suffix(".safetensors")))
        state: Mapping[str, torch.Tensor] = network.state_dict()
        for name, tensor in state.items():
            # A view, for numbers without axes were once stored with one.
            stacked = torch.stack([member[name] for member in members]).view(tensor.shape)
            tensor.copy_(stacked.to(tensor.dtype))


class Lab:
    """What a study may use: its sweeps, and randomness that depends on its settings alone.

    scale, seeds: as asked.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self.trained: dict[str, Trained] = {}

    @property
    def scale(self) -> Scale:
        """small or paper."""
        return self._settings.scale

    @property
    def seeds(self) -> int:
        """How often what is random is repeated."""
        return self._settings.seeds

    def generator(self, *parts: object) -> torch.Generator:
        """A CPU generator of this study's, for the purpose that `parts` name."""
        return generator_for("study", self._settings.name, *parts)

    def seed(self, *parts: object) -> int:
        """A seed of this study's, below 2³², for libraries that take one."""
        return seed_for("study", self._settings.name, *parts) % 2**32

    def sweep(self, part: str) -> Trained:
        """Trains a part of the conf, or finds it trained, or goes on where it was interrupted.

        Raises KeyError for an unknown part, AnalysisError where it cannot be brought to its end.
        """
        if part not in self.trained:
            config = self._settings.sweeps[part]
            name = f"study-{self._settings.name}-{part}-{config.hash[:8]}"
            self._train(config, name)
            self.trained[part] = Trained(config, self._store, name)
        return self.trained[part]

    def _train(self, config: SweepConfig, name: str) -> None:
        store = self._store
        store.prepare()
        try:
            info = store.sweep(name)
            if info.state == "complete":
                return
            config = creating.stored_config(info)
        except NoSuchSweepError:
            info = None
        kind = executor_kind(config, None)
        preflight(config, executor=kind)
        home = Home.of(name)
        home.create()
        with starting(kind, config, None) as executor_ready, view_for(name) as view:
            if info is None:
                info = creating.create(config, name, store)
                config = creating.stored_config(info)
            driver = Driver(config, info, store, home, executor_ready(), view.show)
            outcome = driver.run()
        if outcome.state != "complete":
            why = f": {outcome.reason}" if outcome.reason else ""
            raise AnalysisError(
                f"sweep {name!r} is {outcome.state}{why}; the same command goes on with it"
            )
