"""Gradient flossing: the first k Lyapunov exponents are pulled towards a target (Engelken 2023).

Gradients that cross T steps grow and shrink with the product of T Jacobians. Exponents near 0 keep
it well conditioned along k directions. The penalty is the mean over sequences of
Σ_{i≤k} (λ_i − target)², λ_i over a window of the batch's own sequences, from their first step on.

The chain J_t Q_{t−1} = Q_t R_t is differentiated as a whole. Directions of which a step leaves
nothing have λ = −∞, which no gradient could mend; they are left out.

Shapes: N members, B sequences, T steps, D state, K exponents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from pipeline.dynamics.propagate import random_frame
from pipeline.regularisers.base import Regulariser, RegulariserConfig
from tasks.base import Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network, Orbit


class Flossing(Regulariser):
    """Penalty on exponents of a recurrent network that are far from a target."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RegulariserConfig):
        """Which exponents are looked at. Every epoch begins with frames of its own.

        exponents: k.
        target: in nats per step.
        steps: of the window, or those there are where sequences are shorter. Gradients through
            long chaotic runs explode.
        sequences: of every batch, its first so many.
        """

        exponents: Annotated[int, Bounds(ge=1)] = 4
        target: float = 0.0
        steps: Annotated[int, Bounds(ge=1)] = 20
        sequences: Annotated[int, Bounds(ge=1)] = 4

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for feed-forward networks and for more exponents than state."""
        if not network.is_recurrent:
            raise UnsuitableError(
                f"flossing needs a recurrent network, got {type(network).__name__}; "
                "feed-forward networks have ftle_suppression"
            )
        probe = task.probe_inputs(1, 1, generator_for(0, "flossing"))
        size = _orbit(network, probe.inputs).tangent_size
        if self.config.exponents > size:
            raise UnsuitableError(
                f"flossing.exponents must be at most {size}, the size of the state, "
                f"got {self.config.exponents}"
            )

    def penalty(self, network: Network, inputs: Tensor) -> Tensor:
        """See `Regulariser.penalty`. Directions that are annihilated (λ = −∞) are left out."""
        orbit = _orbit(network, inputs[: self.config.sequences, : self.config.steps])
        generators = [generator_for(seed, "flossing", self._epoch) for seed in self.seeds]
        frames = random_frame(orbit, self.config.exponents, generators)
        exponents_NBK, is_left_NBK = leading_exponents(orbit, frames)
        errors_NBK = (exponents_NBK - self.config.target) * is_left_NBK
        return errors_NBK.square().sum(-1).mean(1)


def leading_exponents(orbit: Orbit, frames_NBDK: Tensor) -> tuple[Tensor, Tensor]:
    """λ_i (N, B, K) along an orbit in nats per step, differentiable, and which of them are finite.

    frames: orthonormal, N or 1 and B or 1 of them.
    """
    orthonormalise: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = _Orthonormalise.apply
    Q = frames_NBDK.expand(orbit.num_members, orbit.num_sequences, -1, -1)
    is_left = torch.ones(Q.shape[:2] + Q.shape[3:], dtype=torch.bool, device=Q.device)
    all_logs = []
    for J in orbit.maps():
        Q, logs, is_finite = orthonormalise(J(Q))
        all_logs.append(logs)
        is_left = is_left & is_finite
    return torch.stack(all_logs).mean(0), is_left


class _Orthonormalise(torch.autograd.Function):
    """V = Q R as Q and log|R_ii|; 0 and False for directions of which nothing is left.

    Holding the R fixed would give the same gradient, but for rounding, which on the way back grows
    with the gaps between the exponents. Here it is cut away at every step.
    """

    @staticmethod
    def forward(ctx: Any, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        Q, R = torch.linalg.qr(V)
        sizes = R.diagonal(dim1=-2, dim2=-1)
        is_finite = sizes != 0
        Q = Q * is_finite.unsqueeze(-2)
        R = R + torch.diag_embed((~is_finite).to(R.dtype))
        ctx.save_for_backward(Q, R)
        ctx.mark_non_differentiable(is_finite)
        return Q, sizes.abs().log().where(is_finite, 0), is_finite

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_Q: Tensor, d_logs: Tensor, _: Tensor) -> Tensor:
        Q, R = ctx.saved_tensors
        M = (torch.diag_embed(d_logs) - d_Q.mT @ Q).tril()
        right = d_Q + Q @ (M + M.tril(-1).mT)
        d_V: Tensor = torch.linalg.solve_triangular(R.mT, right, upper=False, left=False)
        return d_V


def _orbit(network: Network, inputs: Tensor) -> Orbit:
    found = network.differentiable_orbit(inputs)
    if found is None:
        raise UnsuitableError(
            "flossing needs a network whose steps' derivatives can be differentiated once more; "
            f"{type(network).__name__} has no `differentiable_orbit`"
        )
    return found
