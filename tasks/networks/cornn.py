"""coRNN: driven, damped oscillators coupled by a nonlinearity (Rusch & Mishra 2021).

z' = z + Δt (tanh(W y + 𝒲 z + V x + b) − γ y − ε z) and y' = y + Δt z', the discretisation of
ÿ = tanh(W y + 𝒲 ẏ + V x + b) − γ y − ε ẏ that T. K. Rusch and S. Mishra, "Coupled oscillatory
recurrent neural network (coRNN): an accurate and (gradient) stable architecture for learning long
time dependencies", ICLR 2021, trained with: eq. (3) with the damping taken from the step before.
Layers above and the readout see y. Without 𝒲 every step multiplies volumes of a layer of H units
by (1 − Δt ε)^H, whatever the weights and the inputs: the exponents then have a known sum.

Shapes: N members, B sequences, I inputs, H units, K tangents. The state of a layer is s = (y, z)
side by side, 2H numbers, which (W | 𝒲), called U here as elsewhere, multiplies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.base import Bounds, UnsuitableError
from tasks.networks.base import Network, StateConvention
from tasks.networks.layers import draw_weight, matmul_states, sech2
from tasks.networks.recurrent import Recurrent, RecurrentConfig
from tasks.networks.recurrent_orbit import ClosedLoop, Readout, RecurrentOrbit
from tasks.networks.recurrent_tangent import Cell, shared_product
from tasks.networks.recurrent_walk import HiddenWalk
from tasks.networks.recurrent_way import Parts


class Oscillation(NamedTuple):
    """Δt, γ and ε; and one step of y and z, given the tanh of their arguments."""

    step: float
    stiffness: float
    damping: float

    def after(self, s: Tensor, force: Tensor) -> Tensor:
        """(y', z') of (y, z) and tanh(a), the last axis first y then z."""
        y, z = s.chunk(2, dim=-1)
        z_after = self.kept * z - self.pull * y + self.step * force
        return torch.cat([y + self.step * z_after, z_after], dim=-1)

    @property
    def kept(self) -> float:
        """1 − Δt ε: what of z is left a step later."""
        return 1 - self.step * self.damping

    @property
    def pull(self) -> float:
        """Δt γ: what y takes from z in a step."""
        return self.step * self.stiffness


class OscillatorWalk(HiddenWalk):
    """With t = tanh(arguments): back, δt = Δt ζ where ζ = δz' + Δt δy' is all that z' is owed.

    δy = δy' − Δt γ ζ and δz = (1 − Δt ε) ζ, past the arguments.
    """

    def __init__(self, *args: Any, oscillation: Oscillation, **others: Any) -> None:
        self._oscillation = oscillation
        super().__init__(*args, **others)

    @staticmethod
    def _shown(h_NHB: Tensor) -> Tensor:
        return h_NHB[:, : h_NHB.shape[1] // 2]

    def _advance(self, step: int) -> None:
        force = self.arguments_NRB[step].tanh_()
        y, z = self.h_NHB[step].chunk(2, dim=1)
        y_after, z_after = self.h_NHB[step + 1].chunk(2, dim=1)
        dt, kept, pull = self._oscillation.step, self._oscillation.kept, self._oscillation.pull
        torch.mul(z, kept, out=z_after).add_(y, alpha=-pull).add_(force, alpha=dt)
        torch.add(y, z_after, alpha=dt, out=y_after)

    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        self._past = self._scratch("past", self.num_units)

    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> Tensor:
        force = self.arguments_NRB[step]
        dt, kept, pull = self._oscillation.step, self._oscillation.kept, self._oscillation.pull
        d_y, d_z = d_h.chunk(2, dim=1)
        past_y, owed = self._past.chunk(2, dim=1)
        torch.add(d_z, d_y, alpha=dt, out=owed)
        torch.mul(force, force, out=d_arguments).neg_().add_(1).mul_(owed).mul_(dt)
        torch.add(d_y, owed, alpha=-pull, out=past_y)
        owed.mul_(kept)
        return self._past


class CoRNN(Recurrent, Network):
    """A population of coupled oscillatory RNNs; the state of a layer is (y, z)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RecurrentConfig):
        """Settings of a coRNN, beside those that every recurrent network has.

        step, stiffness, damping: Δt, γ and ε; what the authors' code has for sequential digits.
        """

        step: Annotated[float, Bounds(gt=0)] = 0.042
        stiffness: Annotated[float, Bounds(ge=0)] = 2.7
        damping: Annotated[float, Bounds(ge=0)] = 4.7

    num_gates = 1
    num_parts = 1
    walk = OscillatorWalk
    columns_a_unit = 2

    def __init__(self, configs: Any, **others: Any) -> None:
        Recurrent.__init__(self, configs, **others)
        first = configs[0]
        self.oscillation = Oscillation(first.step, first.stiffness, first.damping)

    def _draw(self, config: Any, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = super()._draw(config, scale, generator)
        for layer in range(config.layers):
            by_z = draw_weight(config.init, config.units, config.units, scale, generator)
            by_y = drawn[f"weight_rec_{layer}"]
            drawn[f"weight_rec_{layer}"] = torch.cat([by_y, by_z], dim=1)
        return drawn

    def _layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """V, U and b; V of layers above the first takes the whole s below, of which it sees y."""
        V, U, b = super()._layer(layer)
        return pad(V, (0, self.units)) if layer else V, U, b

    def _orbit(
        self,
        inputs: Tensor,
        state: StateConvention,
        dtype: torch.dtype,
        closed: ClosedLoop | None,
    ) -> RecurrentOrbit[Any]:
        if state != "full":
            raise UnsuitableError(
                f"a coRNN has no {state} state apart from the full one: y and z of an oscillator "
                "belong together; ask for state: full"
            )
        if closed is not None:
            (readout, b), steps = closed
            closed = ClosedLoop(Readout(pad(readout, (0, self.units)), b), steps)
        orbit = super()._orbit(inputs, state, dtype, closed)
        start = orbit.output_rows.start
        orbit.output_rows = slice(start, start + self.units)
        return orbit

    def _tangent_cell(self, layer: int, dtype: torch.dtype) -> Cell:
        return OscillatorCell(*self._detached_layer(layer, dtype), self.oscillation)

    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        U_N2HH = self._layer(layer)[1].mT

        def after(drive_NBH: Tensor, parts: Parts) -> Parts:
            force = torch.tanh(torch.baddbmm(drive_NBH, parts[0], U_N2HH))
            return (self.oscillation.after(parts[0], force),)

        return after

    def _walk_options(self) -> dict[str, Any]:
        return {"oscillation": self.oscillation}


@dataclass(frozen=True)
class OscillatorCell:
    """δz' = (1 − Δt ε) δz − Δt γ δy + Δt sech²(a) ∘ (U δs + V δx) and δy' = δy + Δt δz'.

    W (N, H, I), which is V of the paper, U (N, H, 2H), b (N, H).
    """

    W: Tensor
    U: Tensor
    b: Tensor | None
    oscillation: Oscillation

    def advance(self, drive_NBG: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """s' and Δt sech²(a), given V x + b and s."""
        a = drive_NBG + matmul_states(h, self.U)
        return self.oscillation.after(h, torch.tanh(a)), self.oscillation.step * sech2(a)

    def push(self, gains: Tensor, dh: Tensor, dx: Tensor | None, out: Tensor) -> None:
        """Writes δs' into `out`, (N, B, K, 2H)."""
        da = shared_product(dh, self.U.mT)
        if dx is not None:
            da += shared_product(dx, self.W.mT)
        dy, dz = dh.chunk(2, dim=-1)
        dy_after, dz_after = out.chunk(2, dim=-1)
        torch.mul(gains.unsqueeze(2), da, out=dz_after)
        dz_after.add_(dz, alpha=self.oscillation.kept).add_(dy, alpha=-self.oscillation.pull)
        torch.add(dy, dz_after, alpha=self.oscillation.step, out=dy_after)

    def by_h(self, gains: Tensor, member: int, sequence: int, out: Tensor) -> Tensor:
        """∂s'/∂s of one member and sequence transposed, (2H, 2H), written into `out`."""
        by_y, by_z = out.chunk(2, dim=1)
        H = by_z.shape[1]
        torch.mul(self._transposed_U[member], gains[member, sequence], out=by_z)
        by_z[:H].diagonal().sub_(self.oscillation.pull)
        by_z[H:].diagonal().add_(self.oscillation.kept)
        torch.mul(by_z, self.oscillation.step, out=by_y)
        by_y[:H].diagonal().add_(1)
        return out

    @cached_property
    def _transposed_U(self) -> Tensor:
        return self.U.mT.contiguous()

    def by_x(self, gains: Tensor, member: int, sequence: int) -> Tensor:
        """∂s'/∂x of one member and sequence, (2H, I)."""
        dz = gains[member, sequence].unsqueeze(-1) * self.W[member]
        return torch.cat([self.oscillation.step * dz, dz])

    def pull(self, gains: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """(∂s'/∂s)ᵀ p, and the adjoint of V x + b."""
        p_y, p_z = p.chunk(2, dim=-1)
        owed = p_z + self.oscillation.step * p_y
        drive = gains.unsqueeze(2) * owed
        past = torch.cat([p_y - self.oscillation.pull * owed, self.oscillation.kept * owed], dim=-1)
        return shared_product(drive, self.U) + past, drive

    def log_abs_det(self, gains: Tensor) -> None:
        """None: there is no closed form with 𝒲."""
