"""One LSTM through PyTorch's fused CPU kernel (oneDNN), which takes a layer's steps in one call.

The kernel keeps its own books for the way back, by way of autograd; layers are joined by hand, so
that dropout between them is the population's.

Shapes: B sequences, T steps, I inputs, H units, O outputs, L layers, M = T · B. One member.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tasks.networks.dropout import DropoutRates
from tasks.networks.recurrent_way import Parts, State

_kernel: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch._VF.lstm


class Fused:
    """One member's way through a batch; see `recurrent_way.Way`.

    Args:
        weights: of every layer its parameters' names and values: W, U and maybe b.
        member: which one it is.
        drawn_LTHB: the numbers that decide what is dropped; None drops nothing.
        keep: whether there will be a way back.
    """

    top_NHM: Tensor

    def __init__(
        self,
        weights: list[dict[str, Tensor]],
        member: slice,
        rates: DropoutRates,
        drawn_LTHB: Tensor | None,
        *,
        keep: bool,
    ) -> None:
        self._member = member
        self._rates, self._drawn, self._keep = rates, drawn_LTHB, keep
        self._weights = [
            {name: self._scaled(n, name, w).detach() for name, w in layer.items()}
            for n, layer in enumerate(weights)
        ]
        self._passes: list[tuple[Tensor, Tensor]] = []
        self._ends: list[Parts] = []

    def _scaled(self, layer: int, name: str, weight: Tensor) -> Tensor:
        if self._drawn is None or layer == 0 or not name.startswith("weight_in"):
            return weight
        return weight * self._rates.scale_N11[self._member][0]

    def forth(self, x_TIB: Tensor, state: State | None) -> Tensor:
        """See `Way`."""
        y_TBH = x_TIB.mT.contiguous()
        zeros = y_TBH.new_zeros(1, y_TBH.shape[1], self._weights[0]["weight_rec_0"].shape[-1])
        for layer, named in enumerate(self._weights):
            start: Parts = (zeros, zeros) if state is None else state[layer]
            flat = [w.requires_grad_(self._keep) for w in named.values()]
            if len(flat) == 3:
                flat.append(torch.zeros_like(flat[2], requires_grad=False))
            x_TBI = y_TBH.requires_grad_(self._keep)
            with torch.set_grad_enabled(self._keep):
                # One layer at a time, and the kernel's own dropout stays at 0. Its flag `train`
                # makes it keep what the way back needs.
                options: tuple[Any, ...] = (len(flat) == 4, 1, 0.0, self._keep, False, False)
                out_TBH, h, c = _kernel(x_TBI, start, flat, *options)
            self._passes.append((x_TBI, out_TBH))
            self._ends.append((h.detach(), c.detach()))
            y_TBH = out_TBH.detach()
            mask = self._mask(layer, y_TBH)
            y_TBH = y_TBH if mask is None else y_TBH * mask
        self.top_NHM = y_TBH.flatten(0, 1).T.unsqueeze(0)
        return self.top_NHM

    def end(self) -> State:
        """See `Way`."""
        return tuple(self._ends)

    def back(self, readout_NOH: Tensor, d_NOM: Tensor, d_x_TIB: Tensor | None) -> None:
        """See `Way`."""
        d_y = (d_NOM[0].T @ readout_NOH[0]).view(self._passes[-1][1].shape)
        self._gradients: list[tuple[Tensor, ...]] = []
        for layer in range(len(self._weights) - 1, -1, -1):
            x_TBI, out_TBH = self._passes[layer]
            mask = self._mask(layer, d_y)
            d_y = d_y if mask is None else d_y * mask
            wanted = list(self._weights[layer].values())
            if layer > 0 or d_x_TIB is not None:
                wanted.append(x_TBI)
            # Kept, because the tape stays as it was.
            found = torch.autograd.grad(out_TBH, wanted, d_y, retain_graph=True)
            self._gradients.insert(0, found)
            d_y = found[-1]
        if d_x_TIB is not None:
            d_x_TIB += d_y.mT

    def write_gradient(self, into: Mapping[str, Tensor]) -> None:
        """See `Way`."""
        for layer, (named, found) in enumerate(zip(self._weights, self._gradients, strict=True)):
            for name, gradient in zip(named, found, strict=False):
                into[name][0].copy_(self._scaled(layer, name, gradient))

    def _mask(self, layer: int, like_TBH: Tensor) -> Tensor | None:
        if self._drawn is None:
            return None
        out = torch.empty_like(like_TBH)
        drawn_TBH = self._drawn[layer].mT
        return self._rates.mask(drawn_TBH, out, self._member)
