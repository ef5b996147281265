"""What a learning problem is, and how every object of a sweep declares its settings.

A *task* owns the data, the loss and the scores; it knows nothing of the network that learns it.
Settings are frozen dataclasses (`Config`) whose field types carry their own bounds. They are
plain Python: `pipeline.config` checks them with pydantic when they come from a person, and code
that builds them directly needs no more than torch.

Shapes: N members, B examples, T steps along a sequence, I inputs, O outputs.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
InputKind = Literal["tokens", "sequence", "vector"]


class UnsuitableError(ValueError):
    """Settings that are each valid but do not fit together, e.g. an MLP on a text task."""


class MissingDataError(FileNotFoundError):
    """A data set that is not on this machine; the message names the command that fetches it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings: frozen, unknown keys refused, every field with a type and bounds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class PerMember:
    """Marks a setting that may differ between the members of one population.

    Every other setting shapes the arithmetic, so that trials which differ in it are trained in
    different cohorts.
    """


@dataclass(frozen=True)
class Bounds:
    """Admissible values of a number, enforced where settings come from a person."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = handler(source)
        target = schema["schema"] if schema["type"] == "nullable" else schema
        for name in ("ge", "gt", "le", "lt"):
            bound = getattr(self, name)
            if bound is not None:
                target[name] = bound
        return schema


def per_member_fields(config_type: type) -> frozenset[str]:
    """Names of the fields of a Config that are marked `PerMember`."""
    hints = get_type_hints(config_type, include_extras=True)
    return frozenset(
        f.name
        for f in fields(config_type)
        if any(isinstance(m, PerMember) for m in getattr(hints[f.name], "__metadata__", ()))
    )


def seed_for(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on every part and on nothing else.

    `seed_for(trial_seed, "init")` is the same number in every process, on every machine.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator seeded by `seed_for(*parts)`."""
    return torch.Generator(device).manual_seed(seed_for(*parts))


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees; every member of a population sees the same.

    inputs: (B, T) int64 for tokens, (B, T, I) for sequences, (B, I) for vectors.
    targets: (B, T) or (B,) int64 classes, or real numbers of the outputs' shape.
    is_start: True where the state carried by a recurrent network starts afresh.
    """

    inputs: Tensor
    targets: Tensor
    is_start: bool = True


class Task(ABC):
    """A learning problem: data, loss, scores and the inputs that measurements probe with.

    Data order depends on `seed` (the sweep's) and the epoch alone, so that the members of a
    population share their batches and a trial sees the same data in any company.

    Attributes set by the constructor:
        input_size: I, or the size of the alphabet where `input_kind` is "tokens".
        output_size: O.
        num_updates: optimiser steps in one epoch.
        chance_loss: loss of a predictor that ignores its input; finite, > 0.
        fingerprint: sha256 of the data as trained on, so that two machines can be compared.
    """

    Config: ClassVar[type[Config]]
    input_kind: ClassVar[InputKind]
    score_name: ClassVar[str]
    higher_is_better: ClassVar[bool]

    input_size: int
    output_size: int
    num_updates: int
    chance_loss: float
    fingerprint: str

    @abstractmethod
    def __init__(
        self,
        config: Any,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads the data onto `device`. Raises MissingDataError, UnsuitableError."""

    @abstractmethod
    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """The `num_updates` batches of training epoch `epoch` (1, 2, …), in order."""

    @abstractmethod
    def batches(self, split: Split) -> Iterator[Batch]:
        """A whole split in a fixed order, for evaluation."""

    @abstractmethod
    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Per-prediction quantities, each (N, M), M predictions; "loss" is one of them."""

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        """The "loss" of `per_example` alone, (N, M): what training needs at every update."""
        return self.per_example(outputs_N, targets)["loss"]

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores, each (N,), from the means of `per_example` over a split; has `score_name`."""
        return means

    @abstractmethod
    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` validation examples drawn with `generator`, never from the training split.

        Sequences are `steps` long; tasks of vectors ignore `steps`. A sequence longer than
        the validation split raises UnsuitableError.
        """
