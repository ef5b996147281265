"""What a network of numerical steps keeps of its differential equation (Owren 2020).

Logarithmic norm and spectral abscissa of every layer's Df at the states of validation inputs,
growth along these trajectories beside the bound from the logarithmic norm, the distance of the
maps from symplectic ones, and how much the parameters change from layer to layer.

Policy: NaN weights give NaN and a flag. Where a learned step is not positive, growth and bound are
NaN and flagged, as they have no time to be divided by.

Shapes: N members, B inputs, L blocks, D state.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Moment, Reading
from pipeline.dynamics.structure import (
    contraction,
    log_norm,
    spectral_abscissa,
    symplectic_defect,
)
from tasks.base import Batch, Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network
from tasks.networks.flow import Flow

RATE = "nats/time"


class Structure(Diagnostic):
    """Contraction, symplecticity and smoothness of networks whose layers are steps of an ODE."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """Along which trajectories.

        probes: validation inputs, the same for every trial of a sweep.
        """

        probes: Annotated[int, Bounds(ge=1)] = 100

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for networks without a field, and for too many probes."""
        if not isinstance(network, Flow):
            raise UnsuitableError(
                f"structure needs layers that are steps of a differential equation, got "
                f"{type(network).__name__}; resnet, ode_net, runge_kutta, gradient_flow and "
                "hamiltonian have them"
            )
        self._probe(task, 0)

    def _probe(self, task: Task, seed: int) -> Batch:
        return task.probe_inputs(self.config.probes, None, generator_for(seed, "structure"))

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """Rates by layer, growth and its bound, symplectic defect, variation over layers."""
        assert isinstance(network, Flow)
        probe = self._probe(task, moment.probe_seed)
        along = trajectories(network, probe.inputs)
        norms_NBL, abscissas_NBL = log_norm(along.fields), spectral_abscissa(along.fields)
        ftle_NB, bound_NB = growth(along)
        details = {"probes": len(probe.inputs)}
        weights = torch.cat([p.detach().flatten(1) for p in network.parameters()], 1)
        is_broken_N = ~torch.isfinite(weights).all(1)
        is_backward_N = (along.steps_NL <= 0).any(1)

        def reading(name: str, values: Tensor, *axes: str, unit: str = RATE) -> Reading:
            flags = [
                ("not_a_number",) if broken else ("step_not_positive",) if backward else ()
                for broken, backward in zip(
                    is_broken_N.tolist(), is_backward_N.tolist(), strict=True
                )
            ]
            return Reading(f"structure.{name}", values, axes, unit, flags=flags, details=details)

        found = [
            reading("log_norm", norms_NBL.mean(1), "layer"),
            reading("log_norm_max", norms_NBL.amax(1), "layer"),
            reading("abscissa", abscissas_NBL.mean(1), "layer"),
            reading("ftle_max", ftle_NB.amax(1)),
            reading("bound_max", bound_NB.amax(1)),
            reading("excess_max", (ftle_NB - bound_NB).amax(1)),
            reading("step", along.steps_NL, "layer", unit="time"),
        ]
        if getattr(network, "has_momenta", False):
            defects_NBL = symplectic_defect(along.maps)
            found.append(reading("symplectic_defect", defects_NBL.amax((1, 2)), unit="1"))
        variation = variations(network)
        if variation is not None:
            found.append(reading("variation", variation, "parameter", unit="1"))
        return found


@dataclass(frozen=True)
class Trajectories:
    """Float64 Jacobians along the trajectories of some inputs, the lift left out.

    maps, fields: (N, B, L, D, D), of the steps taken and of the field where each starts.
    steps_NL: the lengths h.
    """

    maps: Tensor
    fields: Tensor
    steps_NL: Tensor


def trajectories(network: Flow, inputs: Tensor) -> Trajectories:
    """What the blocks of a network do to these inputs (B, I), dropout off."""
    maps, fields, steps = [], [], []
    with torch.no_grad():
        for block, x_NDB in network.orbit(inputs, dtype=torch.float64).steps():
            maps.append(block.tangent(x_NDB).dense())
            fields.append(block.field(x_NDB))
            steps.append(block.step_N)
    return Trajectories(
        torch.stack(maps, 2), torch.stack(fields, 2), torch.stack(steps, 1).double()
    )


def growth(along: Trajectories) -> tuple[Tensor, Tensor]:
    """The largest FTLE and the mean logarithmic norm of each trajectory, (N, B), nats over time.

    NaN for members with a step that is not positive.
    """
    is_forward_N11 = (along.steps_NL > 0).all(1)[:, None, None]
    sizes = torch.where(is_forward_N11, along.steps_NL.unsqueeze(1), 1.0)
    found = contraction(along.maps, along.fields, sizes)
    is_forward_N1 = is_forward_N11[..., 0]
    return (
        torch.where(is_forward_N1, found.ftle, torch.nan),
        torch.where(is_forward_N1, found.bound, torch.nan),
    )


def variations(network: Network) -> Tensor | None:
    """Σ_l ‖θ_{l+1} − θ_l‖₂ of every role of parameters, (N, R) float64; None with one layer."""
    sequence = network.layer_sequence()
    if sequence is None:
        return None
    totals = []
    for role in sequence.roles:
        layers_NLP = torch.stack([t.detach().double().flatten(1) for t in role], 1)
        totals.append(layers_NLP.diff(dim=1).norm(dim=2).sum(1))
    return torch.stack(totals, 1)
