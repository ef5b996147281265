"""How strongly each input of a sequence moved the last state: log ‖∂h_T/∂x_t‖ by the adjoint.

The profile over time (the last step is T), its mean over the sequence, and how far back it drops,
as a slope: the mean change of the log for every step that the input lies further in the past.
Asked for by reviewers of "Linking finite-time Lyapunov exponents to RNN gradient subspaces"
(submission to ICLR 2024); the sweep is `dynamics.ftle.input_ftle`.

Policy: −inf, an input that cannot matter, stays −inf and is marked. NaN weights give NaN and a
flag.

Shapes: N members, B sequences, T steps.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Mark, Moment, Reading
from pipeline.dynamics.ftle import input_ftle
from tasks.base import Batch, Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network


class InputFTLE(Diagnostic):
    """Adjoint sensitivity of the last state to every input, over validation sequences."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """Over which sequences.

        sequences: validation sequences, the same for every trial of a sweep.
        steps: of each; None: the task's own length.
        """

        sequences: Annotated[int, Bounds(ge=2)] = 25
        steps: Annotated[int, Bounds(ge=2)] | None = None

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for feed-forward networks and for more probes than there are."""
        if not network.is_recurrent:
            raise UnsuitableError(
                f"input_ftle needs a recurrent network, got {type(network).__name__}; "
                "feed-forward networks have ftle"
            )
        self._probe(task, 0)

    def _probe(self, task: Task, seed: int) -> Batch:
        generator = generator_for(seed, "input_ftle")
        return task.probe_inputs(self.config.sequences, self.config.steps, generator)

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """`profile` over time, its `spread` over sequences, `mean` and `slope`."""
        inputs = self._probe(task, moment.probe_seed).inputs
        log_NBT = input_ftle(network, inputs)
        num_sequences, num_steps = log_NBT.shape[1:]
        profile_NT = log_NBT.mean(1)
        is_nan = torch.isnan(log_NBT).any(-1).any(-1).tolist()
        flags: list[tuple[str, ...]] = [("not_a_number",) if nan else () for nan in is_nan]
        details = {"sequences": num_sequences, "steps": num_steps}

        def reading(
            name: str, values: Tensor, axes: tuple[str, ...] = (), unit: str = "nats"
        ) -> Reading:
            return Reading(
                quantity=f"input_ftle.{name}",
                values_N=values,
                axes=axes,
                unit=unit,
                marks_N=torch.isneginf(values) * int(Mark.MINUS_INFINITY),
                flags=flags,
                details=details,
            )

        slope_N = (profile_NT[:, -1] - profile_NT[:, 0]) / (num_steps - 1)
        return [
            reading("profile", profile_NT, ("step",)),
            reading("spread", log_NBT.std(1), ("step",)),
            reading("mean", profile_NT.mean(1)),
            reading("slope", slope_N, unit="nats/step"),
        ]
