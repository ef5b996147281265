"""What an LSTM does between the products of a step, forth and back.

i, f, o = σ and g = tanh of their arguments, c' = f c + i g, h' = o tanh c'. With δ the gradient of
what follows it: s = δc' + o (1 − tanh² c') δh', δi = g s, δf = c s, δo = tanh c' δh', δg = i s,
each by the slope of its own function, and δc = f s.

Shapes: N members, B sequences, H units. Rows of V and of the arguments: i, f, o, g.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.networks.activations import IN_PLACE
from tasks.networks.recurrent_walk import Walk, of

_sigmoid, _tanh = IN_PLACE["sigmoid"], IN_PLACE["tanh"]


class LSTMWalk(Walk):
    """One LSTM layer on its way; the state is (h, c)."""

    def _prepare(self) -> None:
        H = self.num_units
        self._logistic = [a[:, : 3 * H] for a in self.arguments_NRB]
        self._gates = [torch.split(a, H, dim=1) for a in self.arguments_NRB]
        self._c_NHB = self._of_steps("c", H, self.num_steps + 1)
        self._tanh_c_NHB = self._of_steps("tanh_c", H, self.num_steps)

    def begin(self, parts_NBH: Sequence[Tensor] | None) -> None:
        """Sets (h, c) before the first step; None for zeros."""
        if parts_NBH is None:
            self.h_NHB[0].zero_()
            self._c_NHB[0].zero_()
        else:
            self.h_NHB[0].copy_(parts_NBH[0].mT)
            self._c_NHB[0].copy_(parts_NBH[1].mT)

    def _advance(self, step: int) -> None:
        i, f, o, g = self._gates[step]
        _sigmoid.apply(self._logistic[step], self._logistic[step])
        _tanh.apply(g, g)
        c_after, tanh_c = self._c_NHB[step + 1], self._tanh_c_NHB[step]
        torch.mul(f, self._c_NHB[step], out=c_after)
        c_after.addcmul_(i, g)
        _tanh.apply(c_after, tanh_c)
        torch.mul(o, tanh_c, out=self.h_NHB[step + 1])

    def end(self) -> tuple[Tensor, ...]:
        """Copies of (h, c) after the last step, each (N, B, H)."""
        return self.h_NHB[-1].mT.clone(), self._c_NHB[-1].mT.clone()

    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        H = self.num_units
        self._d_c = self._scratch(f"{self._name}.d_c", H).zero_()
        self._s = self._scratch("s", H)
        self._d_logistic = [d[:, : 3 * H] for d in d_arguments]
        self._d_gates = [torch.split(d, H, dim=1) for d in d_arguments]

    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> None:
        i, f, o, g = self._gates[step]
        d_i, d_f, d_o, d_g = of(self._d_gates, step)
        tanh_c, d_c = self._tanh_c_NHB[step], self._d_c
        torch.mul(d_h, o, out=self._s)
        _tanh.pull_back(self._s, tanh_c)
        d_c.add_(self._s)
        torch.mul(d_c, g, out=d_i)
        torch.mul(d_c, self._c_NHB[step], out=d_f)
        torch.mul(d_h, tanh_c, out=d_o)
        torch.mul(d_c, i, out=d_g)
        _sigmoid.pull_back(of(self._d_logistic, step), self._logistic[step])
        _tanh.pull_back(d_g, g)
        d_c.mul_(f)
