"""What a measurement is: quantities with axes and units, read from a population in eval mode.

Shapes: N members; a reading's values are (N, *shape), one axis name for each of `shape`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Annotated, Any, ClassVar

from torch import Tensor

from tasks.base import Bounds, Config, Task
from tasks.networks.base import Network


class Mark(IntFlag):
    """What is to be known about a single value before it is used."""

    NONE = 0
    AT_FLOOR = 1
    MINUS_INFINITY = 2
    NOT_CONVERGED = 4


@dataclass(frozen=True)
class Reading:
    """One quantity, measured on every member at once.

    Attributes:
        quantity: dotted name, `lyapunov.spectrum`.
        values_N: (N, *shape) float64; NaN where there is no number (then a flag says why).
        axes: a name for each axis of shape; () for a scalar.
        unit: `nats/step`, `1` for pure numbers.
        error_N: standard errors, of values_N's shape, or None where none is known.
        marks_N: `Mark` bits, of values_N's shape, or None for no marks.
        flags: per member, words about the whole reading (`self_check_failed`).
        details: how it was measured; the same for all members, JSON values only.
    """

    quantity: str
    values_N: Tensor
    axes: tuple[str, ...] = ()
    unit: str = "1"
    error_N: Tensor | None = None
    marks_N: Tensor | None = None
    flags: Sequence[tuple[str, ...]] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DiagnosticConfig(Config):
    """When to measure, and how dear it may be.

    at: epochs after which to measure; 0 is before training.
    budget: largest share of the training time that may go into this measurement. Measurements
        that can be made cheaper are, once, before their first reading; a reading that would
        exceed the budget all the same is skipped and recorded as skipped (never that before
        training). None: no limit.
    """

    at: tuple[Annotated[int, Bounds(ge=0)], ...] | None = None
    budget: Annotated[float, Bounds(gt=0, le=10)] | None = None


@dataclass(frozen=True)
class Moment:
    """Where in training a measurement is taken, and the seeds it may use.

    probe_seed is the sweep's: every trial is probed with the same inputs. tangent_seeds are
    the members' own, (N,).
    """

    epoch: int
    update: int
    probe_seed: int
    tangent_seeds: tuple[int, ...]


class Diagnostic(ABC):
    """One measurement. Leaves the network, its gradients and every random state as they were."""

    Config: ClassVar[type[DiagnosticConfig]]
    can_shrink: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError where this cannot be measured on this network or task."""

    def fit(self, network: Network, task: Task, moment: Moment, seconds: float) -> "Diagnostic":
        """This measurement, cut down where needed so that a reading takes about `seconds`.

        Asked where `can_shrink`, once a run, so that all its readings are of one kind; what was
        cut stands in their details. Raises nothing where even the least is too dear.
        """
        return self

    def fitted(self, config: Any) -> "Diagnostic":
        """What `fit` returned once, from its `config`: a resumed trial is not fitted again."""
        return type(self)(config)

    @abstractmethod
    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """Reads all members. A member with NaN weights yields NaN and a flag, never a raise."""
