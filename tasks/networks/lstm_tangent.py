"""The orbit of an LSTM and the exact derivative of each of its steps.

Per layer, with A = U δh + W δx the tangent of the gates' arguments,

    δc' = f δc + f(1−f)c A_f + i(1−i)g A_i + i(1−g²) A_g
    δh' = o(1−o) tanh c' A_o + o (1−tanh² c') δc'

No diagonal matrix is formed: one product with U serves every sequence and tangent of a member,
the rest is elementwise. δx is 0 in the first layer and the δh' of the layer below in the others,
which makes J block lower-triangular. In a closed loop δx of the first layer is V δh of the last
one, and the triangle is gone. With very many tangents it pays to weight the rows of the
four U by their gains first, sequence by sequence, which halves the products of the full state
and quarters those of the hidden one.

Shapes: N members, B sequences, T steps, I inputs, H units, G = 4H gates, K tangents,
D = 2·H·layers for the full state (h then c, layers in order), H·layers for the hidden state.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.networks.base import StateConvention
from tasks.networks.layers import linear, log_abs_det, matmul_states, matmul_tangents, sech2
from tasks.networks.lstm_adjoint import pull
from tasks.networks.lstm_shear import Mix, Shear
from tasks.networks.recurrent_orbit import ClosedLoop, Readout, RecurrentOrbit, fed_back
from tasks.networks.staircase import Frame, Halves, WholeFrame
from tasks.networks.workspace import ThreadsWorkspace, Workspace

BLOCKS_FROM = 96
"""Tangents from which on forming the gain-weighted blocks costs less than it saves (measured,
H = 64 to 512: the break-even lies between 60 and 120)."""


class LayerWeights(NamedTuple):
    """W (N, 4H, I), U (N, 4H, H) and b (N, 4H) of one layer, rows in the order i, f, g, o."""

    W: Tensor
    U: Tensor
    b: Tensor | None


class LayerGains(NamedTuple):
    """Elementwise derivatives of one layer at one step, each (N, B, H).

    gates_c are those of c' by the arguments of i, f, g; gate_o that of h' by the argument of o
    with c' fixed; h_by_c that of h' by c'; f that of c' by c.
    """

    by_i: Tensor
    by_f: Tensor
    by_g: Tensor
    by_o: Tensor
    h_by_c: Tensor
    f: Tensor


def advance(
    weights: LayerWeights, drive_NBG: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, LayerGains]:
    """One step of one layer: h', c' and the gains, given W x + b."""
    arguments = drive_NBG + matmul_states(h, weights.U)
    a_i, a_f, a_g, a_o = arguments.chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
    c_new = f * c + i * g
    tanh_c = torch.tanh(c_new)
    # σ(−a) rather than 1 − σ(a): a saturated gate keeps its tiny derivative.
    gains = LayerGains(
        by_i=i * torch.sigmoid(-a_i) * g,
        by_f=f * torch.sigmoid(-a_f) * c,
        by_g=i * sech2(a_g),
        by_o=o * torch.sigmoid(-a_o) * tanh_c,
        h_by_c=o * sech2(c_new),
        f=f,
    )
    return o * tanh_c, c_new, gains


class TransposedGates:
    """W or U of a layer gate by gate and transposed, (4, E, H) a member, made when first used."""

    def __init__(self, weight_NGE: Tensor) -> None:
        self._weight_NGE = weight_NGE
        self._found: dict[int, Tensor] = {}

    def __getitem__(self, member: int) -> Tensor:
        if member not in self._found:
            G, E = self._weight_NGE.shape[1:]
            by_gate = self._weight_NGE[member].view(4, G // 4, E)
            self._found[member] = by_gate.mT.contiguous()
        return self._found[member]


def _weighted(
    gates_4EH: Tensor, gains: LayerGains, mix: Mix, is_full: bool, work: Workspace
) -> Tensor:
    """∂(h', c')/∂e transposed, (E, 2H), as `mix` has it, by what enters through these weights.

    ∂h'/∂e alone (E, H) if hidden. Gains are those of one member and sequence, (H,). The direct
    effect of c on c' is not in it.
    """
    T_i, T_f, T_g, T_o = gates_4EH
    gain_i, gain_f, gain_g, gain_o = gains[:4]
    E, H = T_i.shape
    if not is_full:
        by_h = work.take("blocks", (E, H), gates_4EH)
        _sum(by_h, gates_4EH, gains, mix)
        return by_h
    both = work.take("blocks", (E, 2 * H), gates_4EH)
    by_h, of_c = both[:, :H], both[:, H:]
    if not mix.c_by_c.any():
        torch.mul(T_o, mix.c_by_w * gain_o, out=of_c)
        _sum(by_h, gates_4EH, gains, mix)
        return both
    torch.mul(T_i, gain_i, out=of_c)
    of_c.addcmul_(T_f, gain_f).addcmul_(T_g, gain_g)
    torch.mul(T_o, mix.h_by_w * gain_o, out=by_h)
    by_h.addcmul_(of_c, mix.h_by_c)
    of_c.mul_(mix.c_by_c).addcmul_(T_o, mix.c_by_w * gain_o)
    return both


def _sum(by_h: Tensor, gates_4EH: Tensor, gains: LayerGains, mix: Mix) -> None:
    """∂h'/∂e transposed, as `mix` has it, written into `by_h`."""
    T_i, T_f, T_g, T_o = gates_4EH
    torch.mul(T_o, mix.h_by_w * gains.by_o, out=by_h)
    for T, gain in ((T_i, gains.by_i), (T_f, gains.by_f), (T_g, gains.by_g)):
        by_h.addcmul_(T, mix.h_by_c * gain)


def _through_sum(J_HD: Tensor, e: Tensor | None, f: Tensor, mix: Mix) -> None:
    """∂/∂ĥ in place of ∂/∂h in a map given transposed: h = e ĥ and c = ĉ + ĥ. e None: ĥ is h."""
    if e is None:
        return
    H = len(e)
    J_HD *= e.unsqueeze(-1)
    J_HD[:, :H].diagonal().addcmul_(mix.h_by_c, f)
    J_HD[:, H:].diagonal().addcmul_(mix.c_by_c, f)


@dataclass(frozen=True)
class LSTMStep:
    """The derivative of one time step."""

    layers: tuple[LayerWeights, ...]
    gains: tuple[LayerGains, ...]
    state: StateConvention
    drive_NBG: Tensor
    before: tuple[tuple[Tensor, Tensor], ...]
    log_det_Uo_N: Tensor | None
    readout: Readout | None = None
    gates: tuple[tuple[TransposedGates, TransposedGates], ...] = ()
    work: Workspace = field(default_factory=ThreadsWorkspace, compare=False, repr=False)

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (N, B, D, K), for a frame of every sequence."""
        if Q_NBDK.shape[-1] >= BLOCKS_FROM and self.readout is None:
            return self._by_blocks(Q_NBDK)
        H = self.layers[0].U.shape[-1]
        N, B, D, K = Q_NBDK.shape
        Q_NBKD = Q_NBDK.mT
        moved_NBKD = Q_NBKD.new_empty(N, B, K, D)
        width = 2 * H if self.state == "full" else H
        below: Tensor | None = None
        if self.readout is not None:
            top = width * (len(self.layers) - 1)
            below = matmul_tangents(self.readout.V, Q_NBKD[..., top : top + H].mT).mT
        for layer, (weights, gains) in enumerate(zip(self.layers, self.gains, strict=True)):
            start = layer * width
            A = matmul_tangents(weights.U, Q_NBKD[..., start : start + H].mT).mT
            if below is not None:
                A = A + matmul_tangents(weights.W, below.mT).mT
            A_i, A_f, A_g, A_o = A.chunk(4, dim=-1)
            by_i, by_f, by_g, by_o, h_by_c, f = (gain.unsqueeze(2) for gain in gains)
            dh = moved_NBKD[..., start : start + H]
            if self.state == "full":
                dc = moved_NBKD[..., start + H : start + 2 * H]
                torch.mul(f, Q_NBKD[..., start + H : start + 2 * H], out=dc)
                dc.addcmul_(by_f, A_f)
            else:
                dc = by_f * A_f
            dc.addcmul_(by_i, A_i).addcmul_(by_g, A_g)
            torch.mul(by_o, A_o, out=dh).addcmul_(h_by_c, dc)
            below = dh
        return moved_NBKD.mT

    def _by_blocks(self, Q_NBDK: Tensor) -> Tensor:
        """J Q by way of ∂(h', c')/∂h and ∂(h', c')/∂x of every layer and sequence."""
        Q_NBKD = Q_NBDK.mT
        moved_NBKD = torch.empty_like(Q_NBKD, memory_format=torch.contiguous_format)
        # One sequence at a time: blocks and frame then stay in the cache.
        for n in range(Q_NBKD.shape[0]):
            for b in range(Q_NBKD.shape[1]):
                self.move(n, b, WholeFrame(Q_NBKD[n, b]), moved_NBKD[n, b])
        return moved_NBKD.mT

    def move(
        self, member: int, sequence: int, frame: Frame, out_KD: Tensor, *, may_shear: bool = False
    ) -> Shear | None:
        """Writes J of one frame into `out_KD`, transposed.

        With `may_shear` the result is in coordinates of its own, which are returned.
        """
        is_full = self.state == "full"
        H = self.layers[0].U.shape[-1]
        width = 2 * H if is_full else H
        all_gains = [LayerGains(*(gain[member, sequence] for gain in g)) for g in self.gains]
        after = Shear.of([gains.h_by_c for gains in all_gains]) if is_full and may_shear else None
        before = (None,) * len(self.layers) if frame.shear is None else frame.shear.e
        below: Tensor | None = None
        if self.readout is not None:
            h = frame.rows(slice(width * len(before) - width, width * len(before) - width + H))
            below = (h if before[-1] is None else h * before[-1]) @ self.readout.V[member].mT
        for layer, (gates, gains) in enumerate(zip(self.gates, all_gains, strict=True)):
            start = layer * width
            out = out_KD[:, start : start + width]
            mix = (Mix.plain if after is None else Mix.sheared)(gains.h_by_c)
            J_HE = _weighted(gates[1][member], gains, mix, is_full, self.work)
            if is_full:
                c = frame.rows(slice(start + H, start + 2 * H))
                torch.mul(c, mix.h_by_c * gains.f, out=out[:, :H])
                torch.mul(c, mix.c_by_c * gains.f, out=out[:, H:])
                _through_sum(J_HE, before[layer], gains.f, mix)
            frame.add_product(out, slice(start, start + H), J_HE, beta=1 if is_full else 0)
            if below is not None:
                J_IE = _weighted(gates[0][member], gains, mix, is_full, self.work)
                out.addmm_(below, J_IE)
            below = out[:, :H]
            if after is not None and layer + 1 < len(self.layers):
                below = below * after.e[layer]
        return after

    def halves(self, member: int, sequence: int, shear: Shear | None) -> Halves | None:
        """J of one layer's full state by its halves h and c, of which c enters elementwise.

        From the coordinates `shear` into coordinates of its own, which it names. None where there
        are more layers, or a closed loop, or c is held fixed.
        """
        if self.state != "full" or len(self.layers) > 1 or self.readout is not None:
            return None
        gains = LayerGains(*(gain[member, sequence] for gain in self.gains[0]))
        mix = Mix.sheared(gains.h_by_c)
        J_HE = _weighted(self.gates[0][1][member], gains, mix, True, self.work)
        _through_sum(J_HE, None if shear is None else shear.e[0], gains.f, mix)
        return Halves(J_HE, mix.h_by_c * gains.f, mix.c_by_c * gains.f, Shear.of([gains.h_by_c]))

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P, (N, B, D, K)."""
        return pull(self, P_NBDK)[0]

    def transposed_with_inputs(self, P_NBDK: Tensor) -> tuple[Tensor, Tensor]:
        """Jᵀ P and (∂s'/∂x)ᵀ P (N, B, I, K), x the input of this step.

        In a closed loop Jᵀ P holds the path through x as well.
        """
        return pull(self, P_NBDK)

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        H = self.layers[0].U.shape[-1]
        N, B, _ = self.gains[0].f.shape
        D = (2 if self.state == "full" else 1) * H * len(self.layers)
        identity = torch.eye(D, dtype=self.gains[0].f.dtype, device=self.gains[0].f.device)
        return self(identity.expand(N, B, D, D))

    def autodiff(self, q_NBD: Tensor) -> Tensor:
        """J q by differentiating the step itself twice, the reference for `__call__`.

        Jᵀu is linear in u, and its derivative by u applied to q is J q. Forward mode would say it
        in one line, but costs a second of compilation in every process that uses it.
        """
        H = self.layers[0].U.shape[-1]
        blocks = q_NBD.chunk(q_NBD.shape[-1] // H, dim=-1)
        per_layer = 2 if self.state == "full" else 1
        primals = tuple(part for pair in self.before for part in pair)
        tangents: list[Tensor] = []
        for layer in range(len(self.layers)):
            q_h = blocks[layer * per_layer]
            q_c = blocks[layer * per_layer + 1] if self.state == "full" else torch.zeros_like(q_h)
            tangents += [q_h, q_c]

        def step(*flat: Tensor) -> Tensor:
            after: list[Tensor] = []
            h_below: Tensor | None = None
            first = self.drive_NBG
            if self.readout is not None:
                first = fed_back(self.layers[0], self.readout, flat[-2])
            for layer, weights in enumerate(self.layers):
                drive = first if h_below is None else linear(h_below, *weights[::2])
                h_below, c, _ = advance(weights, drive, flat[2 * layer], flat[2 * layer + 1])
                after += [h_below, c] if self.state == "full" else [h_below]
            return torch.cat(after, dim=-1)

        with torch.enable_grad():
            varied = [primal.clone().requires_grad_() for primal in primals]
            after = step(*varied)
            u = torch.zeros_like(after, requires_grad=True)
            # Both as gradients of scalars: with `grad_outputs` torch imports sympy, half a second.
            pulled = torch.autograd.grad((after * u).sum(), varied, create_graph=True)
            along = [(p * q).sum() for p, q in zip(pulled, tangents, strict=True)]
            (moved,) = torch.autograd.grad(torch.stack(along).sum(), u)
        return moved

    def log_abs_det(self) -> Tensor | None:
        """ln|det J| (N, B) in closed form for the full state; None for the hidden one.

        None in a closed loop as well, where J is not block-triangular.

        Σ ln f + ln|o(1−o) tanh c'| over the units of every layer, and ln|det U_o| a layer.
        """
        if self.log_det_Uo_N is None:
            return None
        logs = [(g.f.log() + g.by_o.abs().log()).sum(-1) for g in self.gains]
        return self.log_det_Uo_N.unsqueeze(1) + torch.stack(logs).sum(0)


class LSTMOrbit(RecurrentOrbit[LSTMStep]):
    """The layers of an LSTM; open without `closed`.

    state: "full" differentiates (h', c') by (h, c), "hidden" h' by h with c held fixed, which is
        the convention of Vogt et al. (2022) and the derivative of no map once iterated.
    """

    num_parts = 2

    def __init__(
        self,
        layers: tuple[LayerWeights, ...],
        inputs: Tensor,
        *,
        state: StateConvention,
        closed: ClosedLoop | None = None,
    ) -> None:
        rows = (2 if state == "full" else 1) * layers[0].U.shape[-1]
        super().__init__(layers, inputs, state=state, tangent_rows=rows, closed=closed)
        self._layers, self._work = layers, ThreadsWorkspace()
        self._gates = tuple((TransposedGates(w.W), TransposedGates(w.U)) for w in layers)

    def _advance(self, states: list[tuple[Tensor, ...]], drive_NBG: Tensor) -> LSTMStep:
        before = tuple((h, c) for h, c in states)
        drive = drive_NBG
        all_gains: list[LayerGains] = []
        for layer, weights in enumerate(self._layers):
            if layer:
                drive = linear(states[layer - 1][0], weights.W, weights.b)
            h, c, gains = advance(weights, drive, *before[layer])
            states[layer] = (h, c)
            all_gains.append(gains)
        return LSTMStep(
            self._layers,
            tuple(all_gains),
            self.state,
            drive_NBG,
            before,
            self._log_det_output_gates,
            None if self._closed is None else self._closed.readout,
            self._gates,
            self._work,
        )

    @cached_property
    def _log_det_output_gates(self) -> Tensor | None:
        """ln|det U_o| (N,) summed over the layers; None where det J has no closed form."""
        if self.state != "full" or self._closed is not None:
            return None
        H = self._units
        logs = [log_abs_det(w.U[:, 3 * H :]) for w in self._layers]
        return torch.stack(logs).sum(0)
