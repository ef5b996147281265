"""Two classes of points in the plane (or on a line), where FTLE fields can be looked at.

circle: uniform in the square [-a, a]^2, class 1 outside the circle of half the square's area,
R = sqrt(2/pi) a (Storm et al., Phys. Rev. Lett. 2024, Fig. 1). spiral, donut, donut1d, squares:
the sets of Benning, Celledoni, Ehrhardt, Owren, Schönlieb, "Deep learning as optimal control
problems", J. Comput. Dyn. 2019, section 5. donut1d is the donut's cut along a line: one input, and
twice as many points outside as inside.

Shapes: N members, B points.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks import base
from tasks.base import Batch, Bounds, Split, UnsuitableError, generator_for
from tasks.cross_entropy import accuracy, cross_entropy
from tasks.examples import Examples

Shape = Literal["circle", "spiral", "donut", "donut1d", "squares"]


class Planar(base.Task):
    """Tell two classes of points apart.

    Loss "cross_entropy": two outputs, in nats. Loss "mse": one output y and targets t = -1
    (class 0) and +1 (class 1), loss (tanh(y) - t)^2, which is Storm et al.'s tanh output unit
    on top of a network whose own output is linear.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(base.Config):
        """Which set, and how it is cut.

        points, noise: None for the published ones (circle 40,000 and 0; spiral 1,000 and 0.05;
            donuts and squares 1,000 and 0.1). Noise is the standard deviation of a Gaussian
            displacement applied after the classes are given, so classes overlap.
        half_width: a of the circle's square. Scaling a by s shifts L λ by -log s, so quote it
            with every exponent. Other sets have their published size, whatever this says.
        loss: see Planar.
        train, validation: shares of the points; the rest is the test split.
        """

        shape: Shape = "circle"
        points: Annotated[int, Bounds(ge=10)] | None = None
        noise: Annotated[float, Bounds(ge=0)] | None = None
        half_width: Annotated[float, Bounds(gt=0)] = 1.0
        batch_size: Annotated[int, Bounds(ge=1)] = 32
        loss: Literal["cross_entropy", "mse"] = "cross_entropy"
        train: Annotated[float, Bounds(gt=0, lt=1)] = 0.8
        validation: Annotated[float, Bounds(gt=0, lt=1)] = 0.1

    input_kind = "vector"
    score_name = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Draws the points from `seed`, in float64 on the CPU, so that all devices agree."""
        self.config = config
        self.seed = seed
        points, classes = draw_points(config, generator_for(seed, "data"))
        sizes = _split_sizes(len(points), config)
        self.input_size = points.shape[1]
        share = _SHAPES[config.shape].share
        if config.loss == "mse":
            # Of the constant tanh(y) = 2 share − 1, and of the constant log-odds below.
            self.output_size, self.chance_loss = 1, 4 * share * (1 - share)
            targets = (2.0 * classes - 1.0).to(dtype)[:, None]
        else:
            self.output_size = 2
            self.chance_loss = -share * math.log(share) - (1 - share) * math.log1p(-share)
            targets = classes
        self.examples = Examples(
            _cut(points.to(device, dtype), sizes), _cut(targets.to(device), sizes)
        )
        self.num_updates = self.examples.num_updates(config.batch_size)
        self.fingerprint = self.examples.fingerprint()

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """All training points, shuffled anew each epoch; the last batch may be smaller."""
        order = generator_for(self.seed, "order", epoch)
        return self.examples.shuffled(self.config.batch_size, order)

    def batches(self, split: Split) -> Iterator[Batch]:
        """A whole split in a fixed order."""
        return self.examples.in_order(split)

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss, and accuracy (0 or 1), of outputs (N, B, O): (N, B). NaN gives NaN in both."""
        loss = self.losses(outputs_N, targets)
        if self.config.loss == "cross_entropy":
            return {"loss": loss, "accuracy": accuracy(outputs_N, targets, loss)}
        right = ((outputs_N > 0) == (targets > 0)).squeeze(-1)
        return {"loss": loss, "accuracy": right.to(loss.dtype).where(~loss.isnan(), torch.nan)}

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        """Loss of outputs (N, B, O): (N, B)."""
        if self.config.loss == "cross_entropy":
            return cross_entropy(outputs_N, targets)
        return (outputs_N.tanh() - targets).square().squeeze(-1)

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` different validation points; `steps` has no meaning here."""
        return self.examples.drawn(count, generator)


def draw_points(config: Planar.Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (B, 2), or (B, 1) on a line, float64, and classes (B,) int64, in random order."""
    own = _SHAPES[config.shape]
    count = own.points if config.points is None else config.points
    points, classes = own.draw(count, config.half_width, generator)
    points = points + noise_of(config) * _normal(points.shape, generator)
    order = torch.randperm(count, generator=generator)
    return points[order], classes[order]


def noise_of(config: Planar.Config) -> float:
    """The standard deviation of the displacement: the set's published one where none is given."""
    return _SHAPES[config.shape].noise if config.noise is None else config.noise


def _circle(count: int, half_width: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    points = half_width * (2 * _uniform((count, 2), generator) - 1)
    return points, (points.norm(dim=1) > math.sqrt(2 / math.pi) * half_width).long()


def _spiral(count: int, _: float, __: torch.Generator) -> tuple[Tensor, Tensor]:
    arms = []
    for size, offset in zip(_halves(count), (0.0, math.pi), strict=True):
        angle = torch.linspace(0.1, 2 * math.pi, size, dtype=torch.float64) + offset
        radius = torch.linspace(0.1, 1.0, size, dtype=torch.float64)
        arms.append(_polar(radius, angle))
    return torch.cat(arms), _two_classes(count)


def _donut(count: int, _: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # Density exp(-(r - r0)^2 / 2 σ^2) per area: class 0 is the ring r0 = 0.5, class 1 the disc.
    parts = []
    for size, centre in zip(_halves(count), (0.5, 0.0), strict=True):
        radii = np.linspace(0, 1.2, 4097)
        density = radii * np.exp(-((radii - centre) ** 2) / (2 * 0.1**2))
        below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        share = _uniform((size,), generator).numpy()
        radius = torch.from_numpy(np.interp(share, below / below[-1], radii))
        parts.append(_polar(radius, 2 * math.pi * _uniform((size,), generator)))
    return torch.cat(parts), _two_classes(count)


def _donut1d(count: int, _: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inside = torch.arange(count) < count // 3
    side = torch.where(_uniform((count,), generator) < 0.5, -1.0, 1.0)
    centre = torch.where(inside, 0.0, 0.5 * side)
    return (centre + 0.1 * _normal(centre.shape, generator))[:, None], inside.long()


def _squares(count: int, _: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    points = 0.7 * (2 * _uniform((count, 2), generator) - 1)
    return points, (points.prod(dim=1) > 0).long()


class _Published(NamedTuple):
    """Number of points, noise, how the noiseless points are drawn, and the share of class 1."""

    points: int
    noise: float
    draw: Callable[[int, float, torch.Generator], tuple[Tensor, Tensor]]
    share: float = 0.5


_SHAPES: dict[Shape, _Published] = {
    "circle": _Published(40_000, 0.0, _circle),
    "spiral": _Published(1_000, 0.05, _spiral),
    "donut": _Published(1_000, 0.1, _donut),
    "donut1d": _Published(1_000, 0.1, _donut1d, 1 / 3),
    "squares": _Published(1_000, 0.1, _squares),
}


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _halves(count: int) -> tuple[int, int]:
    return count // 2, count - count // 2


def _two_classes(count: int) -> Tensor:
    return (torch.arange(count) >= count // 2).long()


def _split_sizes(count: int, config: Planar.Config) -> list[int]:
    train, validation = round(count * config.train), round(count * config.validation)
    sizes = [train, validation, count - train - validation]
    if min(sizes) < 1:
        raise UnsuitableError(
            f"train, validation and the rest must each get at least 1 of {count} points; train "
            f"{config.train} and validation {config.validation} give {sizes[0]}, {sizes[1]}, "
            f"{sizes[2]}"
        )
    return sizes


def _cut(values: Tensor, sizes: list[int]) -> dict[Split, Tensor]:
    train, validation, test = torch.split(values, sizes)
    return {"train": train, "validation": validation, "test": test}
