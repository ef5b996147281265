"""Largest finite-time Lyapunov exponents on a grid in the plane of the inputs (Storm et al. 2024).

λ^(L)(x) = (1/L) log σ_max(J_L(x)), L the last hidden layer, at every point x of a square grid, in
nats per layer, and on request the direction v_1(x) that is stretched most. It is what a trained
network's ridges are looked at in; `ftle` has the averages over examples.

Policy: −inf (all units of a layer dead) is kept and marked; NaN weights give NaN and a flag.

Shapes: N members, R rows (second coordinate, rising), C columns (first coordinate, rising).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Mark, Moment, Reading
from pipeline.diagnostics.ftle import UNIT
from pipeline.dynamics.ftle import ftle_field
from tasks.base import Bounds, Task, UnsuitableError
from tasks.networks.base import Network


class FTLEField(Diagnostic):
    """Largest exponent at every point of a grid in the plane."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DiagnosticConfig):
        """Where the grid lies.

        points: along each side.
        half_width: of the square, which has its centre at 0 and points on its edges.
        directions: whether to keep v_1 as well; its sign has no meaning.
        """

        points: Annotated[int, Bounds(ge=2, le=1001)] = 61
        half_width: Annotated[float, Bounds(gt=0)] = 1.0
        directions: bool = False

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for recurrent networks and for inputs that are not a plane's."""
        if network.is_recurrent or task.input_kind != "vector" or task.input_size != 2:
            raise UnsuitableError(
                "ftle_field needs a feed-forward network and inputs of 2 numbers, got "
                f"{type(network).__name__} and {task.input_kind} inputs of {task.input_size}; "
                "ftle measures over the examples of any task of vectors"
            )

    def measure(self, network: Network, task: Task, moment: Moment) -> list[Reading]:
        """`ftle_field.exponents`, and `ftle_field.directions` if asked for."""
        config = self.config
        grid_RC2 = plane(config.points, config.half_width).to(next(network.parameters()).device)
        depth = network.orbit(grid_RC2[0, :1]).num_steps
        field = ftle_field(network, grid_RC2, layer=depth, directions=config.directions)
        values_NRC = field.exponents
        flags = [
            ("not_a_number",) if nan else ("minus_infinity",) if dead else ()
            for nan, dead in zip(
                torch.isnan(values_NRC).flatten(1).any(1).tolist(),
                torch.isneginf(values_NRC).flatten(1).any(1).tolist(),
                strict=True,
            )
        ]
        details = {"layer": depth, "half_width": config.half_width}
        found = [
            Reading(
                quantity="ftle_field.exponents",
                values_N=values_NRC,
                axes=("row", "column"),
                unit=UNIT,
                marks_N=torch.isneginf(values_NRC) * int(Mark.MINUS_INFINITY),
                flags=flags,
                details=details,
            )
        ]
        if field.directions is not None:
            found.append(
                Reading(
                    quantity="ftle_field.directions",
                    values_N=field.directions,
                    axes=("row", "column", "component"),
                    flags=flags,
                    details=details,
                )
            )
        return found


def plane(points: int, half_width: float) -> Tensor:
    """A square grid (R, C, 2) of (x, y), float64: x rises along columns, y along rows."""
    axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
