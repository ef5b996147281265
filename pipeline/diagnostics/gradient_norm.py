"""Norm of the loss gradient and of the weights, the baseline features of early prediction.

‖∇L‖₂ over all parameters of a member, L the mean loss over validation examples without dropout,
and ‖w‖₂ beside it. NaN and inf are kept and flagged.

Shapes: N members.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Moment, Reading
from tasks.base import Batch, Bounds, Task, generator_for
from tasks.networks.base import Network


class GradientNorm(Diagnostic):
    """Gradient and weight norm of every member."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """Over which examples the gradient is taken.

        examples: validation examples or sequences, the same for every trial of a sweep.
        steps: length of the sequences; without meaning for tasks of vectors.
        """

        examples: Annotated[int, Bounds(ge=1)] = 32
        steps: Annotated[int, Bounds(ge=1)] = 100

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError where validation has too few examples or too few steps."""
        self._probe(network, task, 0)

    def _probe(self, network: Network, task: Task, seed: int) -> Batch:
        steps = self.config.steps if network.is_recurrent else None
        return task.probe_inputs(self.config.examples, steps, generator_for(seed, "gradient_norm"))

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """`gradient_norm` and `weight_norm`."""
        probe = self._probe(network, task, moment.probe_seed)
        weights = [p for p in network.parameters() if p.requires_grad]
        with torch.enable_grad():
            outputs, _ = network(probe.inputs)
            losses_N = task.per_example(outputs, probe.targets)["loss"].mean(-1)
            # Members do not mix, so the gradient of the sum holds each member's own. `grad`
            # returns it instead of adding to .grad, where training may have left something.
            gradients = torch.autograd.grad(losses_N.sum(), weights)
        details = {"examples": len(probe.inputs), "weights": sum(w[0].numel() for w in weights)}
        return [
            _reading("gradient_norm", gradients, details),
            _reading("weight_norm", [w.detach() for w in weights], details),
        ]


def _reading(
    quantity: str, tensors: tuple[Tensor, ...] | list[Tensor], details: dict[str, int]
) -> Reading:
    squares = torch.stack([t.double().square().flatten(1).sum(-1) for t in tensors])
    norms_N = squares.sum(0).sqrt()
    flags: list[tuple[str, ...]] = [
        () if fine else ("not_finite",) for fine in torch.isfinite(norms_N).tolist()
    ]
    return Reading(quantity=quantity, values_N=norms_N, flags=flags, details=dict(details))
