"""The orbit of an LSTM and the exact derivative of each of its steps (EXPERIMENTS 0.3, 0.5).

Per layer, with A = U δh + W δx the tangent of the gates' arguments,

    δc' = f δc + f(1−f)c A_f + i(1−i)g A_i + i(1−g²) A_g
    δh' = o(1−o) tanh c' A_o + o (1−tanh² c') δc'

No diagonal matrix is formed: one product with U serves every sequence and tangent of a member,
the rest is elementwise. δx is 0 in the first layer and the δh' of the layer below in the others,
which makes J block lower-triangular.

Shapes: N members, B sequences, T steps, I inputs, H units, G = 4H gates, K tangents,
D = 2·H·layers for the full state (h then c, layers in order), H·layers for the hidden state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.networks.base import StateConvention
from tasks.networks.layers import linear, matmul_tangents, sech2


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
    arguments = torch.baddbmm(drive_NBG, h, weights.U.mT)
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


@dataclass(frozen=True)
class LSTMStep:
    """The derivative of one time step."""

    layers: tuple[LayerWeights, ...]
    gains: tuple[LayerGains, ...]
    state: StateConvention
    drive_NBG: Tensor
    before: tuple[tuple[Tensor, Tensor], ...]
    log_det_Uo_N: Tensor | None

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (N, B, D, K), for a frame of every sequence."""
        H = self.layers[0].U.shape[-1]
        N, B, D, K = Q_NBDK.shape
        Q_NBKD = Q_NBDK.mT
        moved_NBKD = Q_NBKD.new_empty(N, B, K, D)
        width = 2 * H if self.state == "full" else H
        below: Tensor | None = None
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
            for layer, weights in enumerate(self.layers):
                drive = self.drive_NBG if h_below is None else linear(h_below, *weights[::2])
                h_below, c, _ = advance(weights, drive, flat[2 * layer], flat[2 * layer + 1])
                after += [h_below, c] if self.state == "full" else [h_below]
            return torch.cat(after, dim=-1)

        with torch.enable_grad():
            varied = [primal.clone().requires_grad_() for primal in primals]
            after = step(*varied)
            u = torch.zeros_like(after, requires_grad=True)
            pulled = torch.autograd.grad(after, varied, u, create_graph=True)
            (moved,) = torch.autograd.grad(pulled, u, tangents)
        return moved

    def log_abs_det(self) -> Tensor | None:
        """ln|det J| (N, B) in closed form for the full state; None for the hidden one.

        Σ ln f + ln|o(1−o) tanh c'| over the units of every layer, and ln|det U_o| a layer.
        """
        if self.log_det_Uo_N is None:
            return None
        logs = [(g.f.log() + g.by_o.abs().log()).sum(-1) for g in self.gains]
        return self.log_det_Uo_N.unsqueeze(1) + torch.stack(logs).sum(0)


class LSTMOrbit:
    """An LSTM driven by given inputs from the zero state, without dropout and gradients.

    state: "full" differentiates (h', c') by (h, c), "hidden" h' by h with c held fixed, which is
        the convention of Vogt et al. (2022) and the derivative of no map once iterated.

    Only the current state is kept, so that memory does not grow with the number of steps.
    """

    def __init__(
        self, layers: tuple[LayerWeights, ...], inputs: Tensor, *, state: StateConvention
    ) -> None:
        self._layers, self._inputs, self.state = layers, inputs, state
        U = layers[0].U
        self.num_members, self._units = U.shape[0], U.shape[-1]
        self.num_sequences, self.num_steps = inputs.shape[0], inputs.shape[1]
        self.tangent_size = (2 if state == "full" else 1) * self._units * len(layers)
        self.dtype, self.device = U.dtype, U.device

    def maps(self) -> Iterator[LSTMStep]:
        """The derivative of every step, in order."""
        zeros = self._layers[0].U.new_zeros(self.num_members, self.num_sequences, self._units)
        states = [(zeros, zeros) for _ in self._layers]
        log_det = self._log_det_output_gates() if self.state == "full" else None
        for x_now in self._inputs.unbind(1):
            below = drive = self._drive(x_now)
            before = tuple(states)
            all_gains: list[LayerGains] = []
            for layer, weights in enumerate(self._layers):
                if layer:
                    below = linear(states[layer - 1][0], weights.W, weights.b)
                h, c, gains = advance(weights, below, *states[layer])
                states[layer] = (h, c)
                all_gains.append(gains)
            yield LSTMStep(self._layers, tuple(all_gains), self.state, drive, before, log_det)

    def _drive(self, x_now: Tensor) -> Tensor:
        """W x + b of the first layer, (N, B, 4H); a token picks a column of W."""
        W, _, b = self._layers[0]
        if x_now.is_floating_point():
            return linear(x_now.to(W.dtype).expand(self.num_members, *x_now.shape), W, b)
        drive = W.index_select(2, x_now).mT
        return drive if b is None else drive + b.unsqueeze(1)

    def _log_det_output_gates(self) -> Tensor:
        H = self._units
        logs = [torch.linalg.slogdet(w.U[:, 3 * H :].double()).logabsdet for w in self._layers]
        return torch.stack(logs).sum(0)
