"""Forecast chaotic series whose Lyapunov exponents are known: Lorenz 1963, 1996, Mackey–Glass.

The next value of a normalised series is to be told at every step. A network that has learned it
can be fed with its own outputs, and the spectrum of that closed loop compared with
`known_exponents`, as Pathak et al. did with reservoirs (Chaos 27, 121102, 2017). The flows and
their integrators are in `chaotic_flows`.

Shapes: N members, B sequences, T steps, S series, D values observed at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from tasks import base
from tasks.base import Batch, Bounds, Split, UnsuitableError, generator_for
from tasks.chaotic_flows import SYSTEMS, integrate
from tasks.sequences import fingerprint, last_outputs

# Evaluation takes as many windows at a time as have so many steps together; see `sequences`.
_EVALUATION_STEPS = 65_536


class ChaoticSeries(base.Task):
    """Tell the next value at every step. Loss: squared error, mean over the values of a step.

    Every value has variance 1 over the training series, which is the loss of always saying 0.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Which flow, how it is sampled, and how its series are cut.

        system: lorenz63 (3 values), lorenz96 (40 sites), mackey_glass (1 value, delay 17).
        dt: time between two values; None: 0.05 of both Lorenz systems, 1 of Mackey–Glass.
        series, length: independent training series and the steps of each; validation and test
            have a fifth as many (at least one).
        steps: T of a window, read from the zero state; training draws its windows at random.
        skip: first steps of a window whose predictions do not count, while the network finds out
            where it is.
        noise: standard deviation of Gaussian noise on training inputs; targets are without. A
            network fed with its own outputs then knows what to do with their errors.
        batch_size, updates: windows of one update, and updates in one epoch.
        """

        system: Literal["lorenz63", "lorenz96", "mackey_glass"] = "lorenz63"
        dt: Annotated[float, Bounds(gt=0)] | None = None
        series: Annotated[int, Bounds(ge=1)] = 50
        length: Annotated[int, Bounds(ge=2)] = 500
        steps: Annotated[int, Bounds(ge=2)] = 50
        skip: Annotated[int, Bounds(ge=0)] = 0
        noise: Annotated[float, Bounds(ge=0)] = 0.0
        batch_size: Annotated[int, Bounds(ge=1)] = 32
        updates: Annotated[int, Bounds(ge=1)] = 100

    input_kind = "sequence"
    score_name = "rmse"
    higher_is_better = False
    chance_loss = 1.0

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Integrates all series from start states drawn with `seed`. Raises UnsuitableError."""
        if config.skip >= config.steps or config.steps > config.length:
            raise UnsuitableError(
                f"chaotic_series needs skip < steps <= length, got skip {config.skip}, "
                f"steps {config.steps}, length {config.length}"
            )
        self.config, self.seed = config, seed
        system = SYSTEMS[config.system]
        self.dt = system.dt if config.dt is None else config.dt
        self.input_size = self.output_size = system.observed
        self.num_updates = config.updates
        self.known_exponents = system.exponents
        rest = max(1, config.series // 5)
        counts: dict[Split, int] = {"train": config.series, "validation": rest, "test": rest}
        whole_TSD = integrate(
            system, self.dt, sum(counts.values()), config.length + 1, generator_for(seed, "start")
        )
        self.mean = whole_TSD[:, : config.series].mean((0, 1))
        self.scale = whole_TSD[:, : config.series].std((0, 1))
        normal = torch.from_numpy((whole_TSD - self.mean) / self.scale).movedim(0, 1)
        parts = torch.split(normal.to(device, dtype).contiguous(), list(counts.values()))
        self.series: dict[Split, Tensor] = dict(zip(counts, parts, strict=True))
        self.fingerprint = fingerprint(b for split in counts for b in self.batches(split))

    @property
    def exponents_per_step(self) -> tuple[float, ...]:
        """`known_exponents`, nats per step instead of per unit of time."""
        return tuple(exponent * self.dt for exponent in self.known_exponents)

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """Windows from random places of the training series, a function of seed and epoch."""
        config, series = self.config, self.series["train"]
        generator = generator_for(self.seed, "train", epoch)
        of_noise = generator_for(self.seed, "noise", epoch)
        B, T = config.batch_size, config.steps
        for _ in range(self.num_updates):
            which = torch.randint(len(series), (B,), generator=generator)
            first = torch.randint(config.length - T + 1, (B,), generator=generator)
            batch = self._windows(series, which, first, T)
            if config.noise > 0:
                shape = batch.inputs.shape
                noise = torch.randn(shape, generator=of_noise, dtype=torch.float64)
                inputs = batch.inputs + config.noise * noise.to(batch.inputs)
                batch = Batch(inputs, batch.targets)
            yield batch

    def batches(self, split: Split) -> Iterator[Batch]:
        """A whole split, window after window, without noise."""
        series, T = self.series[split], self.config.steps
        places = torch.cartesian_prod(torch.arange(len(series)), self._starts(T))
        for some in torch.split(places, max(1, _EVALUATION_STEPS // T)):
            yield self._windows(series, some[:, 0], some[:, 1], T)

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Squared error of outputs (N, B, T, D) where there are targets: (N, B (T − skip))."""
        return {"loss": self.losses(outputs_N, targets)}

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        """The loss of `per_example`."""
        return (last_outputs(outputs_N, targets) - targets).square().mean(-1).flatten(1)

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds `rmse`, the root of the loss: an error in standard deviations of the series."""
        return means | {"rmse": means["loss"].sqrt()}

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` stretches of validation series that do not overlap, without noise."""
        series = self.series["validation"]
        T = self.config.steps if steps is None else steps
        starts = self._starts(T)
        available = len(series) * len(starts)
        if count > available:
            raise UnsuitableError(
                f"a probe may take at most {available} stretches of {T} steps from "
                f"{len(series)} validation series of {self.config.length}, got {count}; "
                "more `series` or a larger `length` would do"
            )
        places = torch.cartesian_prod(torch.arange(len(series)), starts)
        order = torch.randperm(available, generator=generator, device=generator.device)
        chosen = places[order[:count].cpu()]
        return self._windows(series, chosen[:, 0], chosen[:, 1], T)

    def _starts(self, steps: int) -> Tensor:
        return torch.arange(0, max(0, self.config.length - steps + 1), steps)

    def _windows(self, series: Tensor, which: Tensor, first: Tensor, steps: int) -> Batch:
        """Inputs (B, T, D), and targets (B, T − skip, D) one step later."""
        times = first[:, None] + torch.arange(steps + 1)
        both = series[which.to(series.device)[:, None], times.to(series.device)]
        # A stretch shorter than a window is asked for whatever can be told of it.
        skip = min(self.config.skip, steps - 1)
        return Batch(both[:, :-1].contiguous(), both[:, 1 + skip :].contiguous())
