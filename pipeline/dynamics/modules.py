"""Orbits of `torch.nn` recurrences: RNN, LSTM, GRU and their cells, with analytic tangents.

PyTorch's fused LSTM has no forward-mode derivative on the CPU and vmap over it fails, so the
cell equations are written out here; the modules only lend their weights. Dropout between layers
takes no part, whatever mode the module is in: a spectrum is that of the network as it is used.

With A_g = U_g δh and X_g = W_g δx for every gate g, all three cells are of the form

    δc' = f∘δc + Σ_g c_g∘(A_g + X_g)
    δh' = k∘δh + Σ_g (a_g∘A_g + x_g∘X_g) + d∘δc'

whose gains f, c, k, a, x, d are elementwise. No diagonal matrix is formed.

Shapes: B sequences, T steps, I inputs, H units, G gates, K tangents, D state (h, then c where
there is one, layers in order). The member axis N is 1 throughout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Modules = nn.RNN | nn.LSTM | nn.GRU | nn.RNNCell | nn.LSTMCell | nn.GRUCell
MODULES = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)

BLOCKS_FROM = 96
"""Tangents from which on rows of U are weighted by the gains first, sequence by sequence."""


class Gains(NamedTuple):
    """Elementwise derivatives of one layer at one step, each (B, H); see the module."""

    by_A: dict[int, Tensor]
    by_X: dict[int, Tensor]
    keep: Tensor | None = None
    of_c: dict[int, Tensor] | None = None
    f: Tensor | None = None
    by_c: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """W (G·H, I), U (G·H, H) and the biases of input and recurrence, (G·H,) or None."""

    kind: Literal["tanh", "relu", "lstm", "gru"]
    W: Tensor
    U: Tensor
    b_in: Tensor | None
    b_rec: Tensor | None

    def advance(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Gains]:
        """h', c' and the gains; c passes through cells that have none."""
        driven = nn.functional.linear(x, self.W, self.b_in)
        recurrent = nn.functional.linear(h, self.U, self.b_rec)
        if self.kind == "lstm":
            return _lstm(driven + recurrent, c)
        if self.kind == "gru":
            return *_gru(driven, recurrent, h, c), _gru_gains(driven, recurrent, h)
        a = driven + recurrent
        if self.kind == "tanh":
            slope = torch.cosh(a).reciprocal().square()
            return torch.tanh(a), c, Gains({0: slope}, {0: slope})
        # A comparison with NaN is false, and a slope of 0 would look like a dead unit.
        slope = torch.where(a.isnan(), a, (a > 0).to(a.dtype))
        return torch.relu(a), c, Gains({0: slope}, {0: slope})

    def reference(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """h', c' by PyTorch's own cells, for checks."""
        weights = (self.W, self.U, self.b_in, self.b_rec)
        if self.kind == "lstm":
            after: tuple[Tensor, Tensor] = torch.lstm_cell(x, (h, c), *weights)
            return after
        cell = {"gru": torch.gru_cell, "tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}
        return cell[self.kind](x, h, *weights), c


class ModuleStep:
    """The derivative of one time step."""

    def __init__(
        self,
        layers: list[Layer],
        gains: list[Gains],
        before: list[tuple[Tensor, Tensor]],
        x: Tensor,
        *,
        has_c: bool,
    ) -> None:
        self._layers, self._gains, self._before, self._x = layers, gains, before, x
        self._has_c = has_c

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (1, B, D, K)."""
        Q_BKD = Q_NBDK[0].mT
        moved_BKD = torch.empty_like(Q_BKD, memory_format=torch.contiguous_format)
        if Q_BKD.shape[-2] >= BLOCKS_FROM and Q_BKD.device.type == "cpu":
            # One sequence at a time: blocks and frame then stay in the cache.
            for b in range(Q_BKD.shape[0]):
                one = slice(b, b + 1)
                self._move(Q_BKD[one], moved_BKD[one], one)
        else:
            self._move(Q_BKD, moved_BKD, slice(None))
        return moved_BKD.mT.unsqueeze(0)

    def _move(self, Q_BKD: Tensor, moved_BKD: Tensor, b: slice) -> None:
        H = self._before[0][0].shape[-1]
        width = 2 * H if self._has_c else H
        for number, (layer, gains) in enumerate(zip(self._layers, self._gains, strict=True)):
            here = slice(number * width, (number + 1) * width)
            out, Q = moved_BKD[..., here], Q_BKD[..., here]
            dh, dc = out[..., :H], None
            A = _Gates(layer.U, Q[..., :H])
            X = None
            if number:
                X = _Gates(layer.W, moved_BKD[..., here.start - width : here.start - width + H])
            if gains.of_c is not None:
                dc = out[..., H:] if self._has_c else torch.zeros_like(dh)
                if self._has_c and gains.f is not None:
                    torch.mul(Q[..., H:], _row(gains.f[b]), out=dc)
                A.add(gains.of_c, b, dc)
                if X is not None:
                    X.add(gains.of_c, b, dc)
            if gains.keep is None:
                dh.zero_()
            else:
                torch.mul(Q[..., :H], _row(gains.keep[b]), out=dh)
            A.add(gains.by_A, b, dh)
            if X is not None:
                X.add(gains.by_X, b, dh)
            if dc is not None and gains.by_c is not None:
                dh.addcmul_(dc, _row(gains.by_c[b]))

    def dense(self) -> Tensor:
        """J, (1, B, D, D)."""
        h = self._before[0][0]
        B, H = h.shape
        D = (2 if self._has_c else 1) * H * len(self._layers)
        identity = torch.eye(D, dtype=h.dtype, device=h.device)
        return self(identity.expand(1, B, D, D))

    def autodiff(self, q_NBD: Tensor) -> Tensor:
        """J q by differentiating PyTorch's own cell twice, the reference for `__call__`."""
        blocks = torch.split(q_NBD[0], self._before[0][0].shape[-1], dim=-1)
        parts = 2 if self._has_c else 1
        with torch.enable_grad():
            hs = [h.clone().requires_grad_() for h, _ in self._before]
            cs = [c.clone().requires_grad_() for _, c in self._before]
            x, after = self._x, []
            for layer, h, c in zip(self._layers, hs, cs, strict=True):
                x, c_new = layer.reference(x, h, c)
                after += [x, c_new] if self._has_c else [x]
            whole = torch.cat(after, dim=-1)
            u = torch.zeros_like(whole, requires_grad=True)
            varied = [p for h, c in zip(hs, cs, strict=True) for p in (h, c)[:parts]]
            pulled = torch.autograd.grad((whole * u).sum(), varied, create_graph=True)
            along = [(p * q).sum() for p, q in zip(pulled, blocks, strict=True)]
            (moved,) = torch.autograd.grad(torch.stack(along).sum(), u)
        return moved.unsqueeze(0)


class ModuleOrbit:
    """A module driven by inputs (B, T, I), from the zero state or from `start` (B, D).

    Example:
        >>> orbit = ModuleOrbit(nn.GRU(3, 4), torch.zeros(2, 5, 3), state="full",
        ...                     dtype=torch.float64)
        >>> orbit.num_steps, orbit.tangent_size, next(orbit.maps()).dense().shape
        (5, 4, torch.Size([1, 2, 4, 4]))
    """

    num_members = 1

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        *,
        state: Literal["full", "hidden"],
        dtype: torch.dtype,
        start: Tensor | None = None,
    ) -> None:
        self._layers = layers_of(module, dtype)
        size = self._layers[0].W.shape[-1]
        if inputs.ndim != 3 or inputs.shape[-1] != size or not inputs.is_floating_point():
            raise ValueError(
                f"{type(module).__name__} needs real inputs (B, T, {size}), whatever its "
                f"batch_first; got {inputs.dtype} {tuple(inputs.shape)}"
            )
        U = self._layers[0].U
        self._has_c = state == "full" and self._layers[0].kind == "lstm"
        self.state = state
        self._inputs = inputs
        self._units = U.shape[-1]
        self.num_sequences, self.num_steps = inputs.shape[:2]
        self.tangent_size = (2 if self._has_c else 1) * self._units * len(self._layers)
        self.dtype, self.device = dtype, U.device
        self._start = self._states(start)

    def _states(self, start: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        is_lstm = self._layers[0].kind == "lstm"
        parts = (2 if is_lstm else 1) * len(self._layers)
        shape = (self.num_sequences, parts * self._units)
        if start is None:
            whole = torch.zeros(shape, dtype=self.dtype, device=self.device)
        elif start.shape in (shape, shape[1:]):
            whole = start.to(dtype=self.dtype, device=self.device).expand(shape)
        else:
            raise ValueError(
                f"start must be {shape[1:]} or {shape}, the {'(h, c)' if is_lstm else 'h'} of all "
                f"layers; got {tuple(start.shape)}"
            )
        blocks = torch.split(whole, self._units, dim=-1)
        if is_lstm:
            return list(zip(blocks[::2], blocks[1::2], strict=True))
        return [(h, torch.zeros_like(h)) for h in blocks]

    def maps(self) -> Iterator[ModuleStep]:
        """The derivative of every step, in order."""
        states = self._start
        for x_now in self._inputs.unbind(1):
            x = first = x_now.to(dtype=self.dtype, device=self.device)
            before, states, all_gains = states, [], []
            for layer, (h, c) in zip(self._layers, before, strict=True):
                x, c_new, gains = layer.advance(x, h, c)
                states.append((x, c_new))
                all_gains.append(gains)
            yield ModuleStep(self._layers, all_gains, before, first, has_c=self._has_c)


def layers_of(module: nn.Module, dtype: torch.dtype) -> list[Layer]:
    """The weights of a recurrent module, detached and in `dtype`.

    Weights that torch.nn.utils (weight_norm, spectral_norm, prune) keeps anew before each call are
    made as a call would make them.

    Raises ValueError for other modules, for bidirectional ones, for projections, and for subclasses
    that compute something else.

    Example:
        >>> layers = layers_of(nn.LSTM(3, 4, num_layers=2), torch.float64)
        >>> [(layer.kind, tuple(layer.W.shape)) for layer in layers]
        [('lstm', (16, 3)), ('lstm', (16, 4))]
    """
    if getattr(module, "bidirectional", False):
        raise ValueError(
            "bidirectional modules have no Lyapunov spectrum: the backward half runs against "
            "time, so that no one-step map of a state exists; measure each direction on its own"
        )
    own = next((kind for kind in MODULES if isinstance(module, kind)), None)
    if own is None:
        raise ValueError(
            f"{type(module).__name__} is no recurrence of torch.nn; those are "
            + ", ".join(kind.__name__ for kind in MODULES)
        )
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            hook(module, ())
    if type(module).forward is not own.forward:
        raise ValueError(
            f"{type(module).__name__} has a forward of its own, so that the equations of "
            f"{own.__name__} are not its; wrap it in a function step(s, x) with one state vector, "
            "its dropout switched off"
        )
    if getattr(module, "proj_size", 0):
        raise ValueError(
            "LSTMs with proj_size are not supported: their h has another size than their c. "
            "Fold the projection into weight_hh of an LSTM without one"
        )
    suffixes = [f"_l{n}" for n in range(getattr(module, "num_layers", 0))] or [""]
    kind: Literal["tanh", "relu", "lstm", "gru"]
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        kind = "lstm"
    elif isinstance(module, nn.GRU | nn.GRUCell):
        kind = "gru"
    else:
        kind = "relu" if module.nonlinearity == "relu" else "tanh"

    def weight(name: str) -> Tensor | None:
        value = getattr(module, name, None)
        return value.detach().to(dtype) if isinstance(value, Tensor) else None

    layers = []
    for suffix in suffixes:
        W, U = weight(f"weight_ih{suffix}"), weight(f"weight_hh{suffix}")
        assert W is not None
        assert U is not None
        layers.append(Layer(kind, W, U, weight(f"bias_ih{suffix}"), weight(f"bias_hh{suffix}")))
    return layers


def _lstm(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Gains]:
    a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)
    i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
    c_new = f * c + i * g
    tanh_c = torch.tanh(c_new)
    # σ(−a) rather than 1 − σ(a): a saturated gate keeps its tiny derivative.
    of_c = {
        0: i * torch.sigmoid(-a_i) * g,
        1: f * torch.sigmoid(-a_f) * c,
        2: i * torch.cosh(a_g).reciprocal().square(),
    }
    of_h = {3: o * torch.sigmoid(-a_o) * tanh_c}
    by_c = o * torch.cosh(c_new).reciprocal().square()
    return o * tanh_c, c_new, Gains(of_h, of_h, of_c=of_c, f=f, by_c=by_c)


def _gru(driven: Tensor, recurrent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    x_r, x_z, x_n = driven.chunk(3, dim=-1)
    u_r, u_z, u_n = recurrent.chunk(3, dim=-1)
    z = torch.sigmoid(x_z + u_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + u_r) * u_n)
    return (1 - z) * n + z * h, c


def _gru_gains(driven: Tensor, recurrent: Tensor, h: Tensor) -> Gains:
    x_r, x_z, x_n = driven.chunk(3, dim=-1)
    u_r, u_z, u_n = recurrent.chunk(3, dim=-1)
    a_r, a_z = x_r + u_r, x_z + u_z
    r, z, closed = torch.sigmoid(a_r), torch.sigmoid(a_z), torch.sigmoid(-a_z)
    a_n = x_n + r * u_n
    by_n = closed * torch.cosh(a_n).reciprocal().square()
    by_r = by_n * u_n * r * torch.sigmoid(-a_r)
    by_z = (h - torch.tanh(a_n)) * z * closed
    return Gains({0: by_r, 1: by_z, 2: by_n * r}, {0: by_r, 1: by_z, 2: by_n}, keep=z)


class _Gates:
    """Σ_g gain_g ∘ (W_g δ): by one product for all gates, or by weighting W first."""

    def __init__(self, W: Tensor, delta_BKE: Tensor) -> None:
        self._W, self._delta = W, delta_BKE
        self._num_gates = W.shape[0]
        self._product: Tensor | None = None

    def add(self, gains: dict[int, Tensor], b: slice, out_BKH: Tensor) -> None:
        H = out_BKH.shape[-1]
        if self._delta.shape[-2] >= BLOCKS_FROM:
            parts = torch.split(self._W, H)
            products = [g[b].unsqueeze(-1) * parts[n] for n, g in gains.items()]
            weighted = torch.stack(products).sum(0) if len(products) > 1 else products[0]
            out_BKH.baddbmm_(self._delta, weighted.mT)
            return
        if self._product is None:
            self._product = nn.functional.linear(self._delta, self._W)
        for n, gain in gains.items():
            out_BKH.addcmul_(_row(gain[b]), self._product[..., n * H : (n + 1) * H])


def _row(gain_BH: Tensor) -> Tensor:
    return gain_BH.unsqueeze(-2)
