"""What a GRU does between the products of a step, forth and back.

r, z = σ of their arguments, n = tanh(a + r m), h' = n + z (h − n), with a = W_n x + b_n and
m = U_n h + b_hn. With δ the gradient of what follows it: δn = (1 − z) δh' and δz = (h − n) δh',
each by its slope; then δa = δn, δm = r δn, δr = m δn by its slope, and h gets z δh' past all that.

Shapes: N members, B sequences, H units. Rows of V and of the arguments: r, z, a (later n), m.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.networks.activations import IN_PLACE
from tasks.networks.recurrent_walk import HiddenWalk, of

_sigmoid, _tanh = IN_PLACE["sigmoid"], IN_PLACE["tanh"]


class GRUWalk(HiddenWalk):
    """One GRU layer on its way; the state is h."""

    def _prepare(self) -> None:
        H = self.num_units
        self._logistic = [a[:, : 2 * H] for a in self.arguments_NRB]
        self._gates = [torch.split(a, H, dim=1) for a in self.arguments_NRB]
        self._difference = self._scratch("difference", H)

    def _advance(self, step: int) -> None:
        r, z, n, m = self._gates[step]
        _sigmoid.apply(self._logistic[step], self._logistic[step])
        n.addcmul_(r, m)
        _tanh.apply(n, n)
        torch.sub(self.h_NHB[step], n, out=self._difference)
        torch.addcmul(n, z, self._difference, out=self.h_NHB[step + 1])

    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        H = self.num_units
        self._past = self._scratch("past", H)
        self._d_logistic = [d[:, : 2 * H] for d in d_arguments]
        self._d_gates = [torch.split(d, H, dim=1) for d in d_arguments]

    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> Tensor:
        r, z, n, m = self._gates[step]
        d_r, d_z, d_n, d_m = of(self._d_gates, step)
        torch.mul(d_h, z, out=self._past)
        torch.sub(d_h, self._past, out=d_n)
        _tanh.pull_back(d_n, n)
        torch.mul(d_n, r, out=d_m)
        torch.mul(d_n, m, out=d_r)
        torch.sub(self.h_NHB[step], n, out=d_z)
        d_z.mul_(d_h)
        _sigmoid.pull_back(of(self._d_logistic, step), self._logistic[step])
        return self._past
