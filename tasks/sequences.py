"""Sequences that each start from the zero state, with something to be told at their last steps.

What the tasks of that kind share: a store that evaluates and probes, the cross-entropy of the
last outputs, and splits drawn from the seed with training sequences that never come twice.

Shapes: N members, B sequences, T steps, I inputs, O outputs, S last steps whose outputs count.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from tasks import base
from tasks.base import Batch, Bounds, InputKind, Split, UnsuitableError, generator_for
from tasks.cross_entropy import accuracy, cross_entropy

# Evaluation takes as many sequences at a time as have so many steps together: enough to keep a
# core busy, while the gates of an LSTM with 64 units stay below 70 MB in float32.
_EVALUATION_STEPS = 65_536


@dataclass(frozen=True)
class Sequences:
    """Sequences of one length and what is to be told at their last steps, on one device.

    inputs: (B, T, I), or (B, T) int64 for tokens.
    targets: (B, S) int64 classes or (B, S, O) numbers: outputs T - S to T - 1.
    """

    inputs: Tensor
    targets: Tensor

    def in_order(self) -> Iterator[Batch]:
        """All of them, as stored."""
        size = max(1, _EVALUATION_STEPS // self.inputs.shape[1])
        for start in range(0, len(self.inputs), size):
            rows = slice(start, start + size)
            yield Batch(self.inputs[rows], self.targets[rows])

    def probe(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` runs of `steps` steps (None: T), no sequence used twice.

        Beyond T steps, sequences follow each other without a restart, and the run ends where its
        last one does; the first is cut. Below T steps, a sequence is cut at its end: targets are
        those due by then or, where none is due yet, as many of the first as there are steps for.

        Raises UnsuitableError where that takes more sequences than there are.
        """
        available, length = self.inputs.shape[:2]
        steps = length if steps is None else steps
        each = -(-steps // length)
        if count * each > available:
            raise UnsuitableError(
                f"a probe may take at most {available} sequences, the size of the validation "
                f"split; {count} runs of {steps} steps take {count * each} (a sequence has "
                f"{length} steps)"
            )
        order = torch.randperm(available, generator=generator, device=generator.device)
        chosen = order[: count * each].to(self.inputs.device).view(count, each)
        inputs = self.inputs[chosen].flatten(1, 2)
        targets = self.targets[chosen[:, -1]]
        if steps >= length:
            return Batch(inputs[:, inputs.shape[1] - steps :], targets)
        asked = targets.shape[1]
        due = steps - (length - asked)
        return Batch(inputs[:, :steps], targets[:, : due if due > 0 else min(asked, steps)])


def last_outputs(outputs_N: Tensor, targets: Tensor) -> Tensor:
    """Those of the outputs (N, B, T, O) that the targets (B, S, …) speak of: (N, B, S, O)."""
    return outputs_N[:, :, outputs_N.shape[2] - targets.shape[1] :]


class ClassesAtTheEnd:
    """A mixin for `Task`: cross-entropy, in nats, and accuracy of the last outputs."""

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss, and accuracy (0 or 1), of outputs (N, B, T, O) with classes (B, S): (N, B S).

        NaN gives NaN in both.
        """
        told_N = last_outputs(outputs_N, targets)
        loss_N = cross_entropy(told_N, targets)
        right_N = accuracy(told_N, targets, loss_N)
        return {"loss": loss_N.flatten(1), "accuracy": right_N.flatten(1)}

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        """The loss alone, (N, B S)."""
        return cross_entropy(last_outputs(outputs_N, targets), targets).flatten(1)


def fingerprint(batches: Iterable[Batch]) -> str:
    """sha256 of inputs and targets, in the precision they are stored in."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.inputs, batch.targets):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DrawnConfig(base.Config):
    """Settings that all tasks of drawn sequences have.

    batch_size: sequences of one update.
    updates: updates in one epoch; epochs are what rungs and measurements count in.
    validation_size, test_size: sequences of these splits.
    """

    batch_size: Annotated[int, Bounds(ge=1)] = 20
    updates: Annotated[int, Bounds(ge=1)] = 100
    validation_size: Annotated[int, Bounds(ge=1)] = 1000
    test_size: Annotated[int, Bounds(ge=1)] = 1000


class DrawnSequences(ClassesAtTheEnd):
    """A mixin for `Task`: every epoch draws its own sequences, validation and test are fixed.

    All are drawn in float64 on the CPU, so that devices and precisions see the same. The
    sequences of epoch 1 stand for the training split where it is evaluated.
    """

    input_kind: ClassVar[InputKind] = "sequence"
    score_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        config: Any,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config, self.seed = config, seed
        self._dtype, self._device = dtype, device
        self.num_updates: int = config.updates
        self._fixed: dict[Split, Sequences] = {
            "validation": self._drawn(config.validation_size, generator_for(seed, "validation")),
            "test": self._drawn(config.test_size, generator_for(seed, "test")),
        }
        splits: tuple[Split, ...] = ("train", "validation", "test")
        self.fingerprint = fingerprint(batch for s in splits for batch in self.batches(s))

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `count` sequences, float64 or int64, on the CPU; see Sequences."""

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """Sequences of this epoch alone, a function of the seed and the epoch."""
        generator = generator_for(self.seed, "train", epoch)
        for _ in range(self.num_updates):
            drawn = self._drawn(self.config.batch_size, generator)
            yield Batch(drawn.inputs, drawn.targets)

    def batches(self, split: Split) -> Iterator[Batch]:
        """A whole split in a fixed order."""
        return self.training_batches(1) if split == "train" else self._fixed[split].in_order()

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` runs of `steps` steps through validation sequences; see `Sequences.probe`."""
        return self._fixed["validation"].probe(count, steps, generator)

    def _drawn(self, count: int, generator: torch.Generator) -> Sequences:
        inputs, targets = self.draw(count, generator)
        return Sequences(self._placed(inputs), self._placed(targets))

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self._device, self._dtype if values.is_floating_point() else None)
