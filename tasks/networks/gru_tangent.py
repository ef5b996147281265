"""One layer of a GRU and its derivative (PyTorch's equations).

With A = U δh and B = W δx, rows in the order r, z, n, and m = U_n h + b_hn,

    δh' = z δh + (h−n) z(1−z) (A_z + B_z) + (1−z)(1−n²) [B_n + r A_n + m r(1−r) (A_r + B_r)]

No diagonal matrix is formed: one product with U serves every sequence and tangent of a member,
the rest is elementwise. The determinant has no closed form, since z is added to the product.

Shapes: N members, B sequences, I inputs, H units, G = 3H gates, K tangents.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.networks.layers import matmul_states, sech2
from tasks.networks.recurrent_tangent import shared_product

BLOCKS_FROM = 64
"""Tangents from which on forming the weighted sum of the U costs less than it saves (measured on
one CPU thread, H = 64 to 512: the break-even lies between 16 and 70)."""


class GRUGains(NamedTuple):
    """Elementwise derivatives of h' at one step, each (N, B, H).

    By the arguments of r and z, by m = U_n h + b_hn, by the argument of n with m fixed, and by h
    itself, which is z.
    """

    by_r: Tensor
    by_z: Tensor
    by_m: Tensor
    by_n: Tensor
    z: Tensor


@dataclass(frozen=True)
class GRUCell:
    """W (N, 3H, I), U (N, 3H, H), b (N, 3H) beside W x, and b_hn (N, H) beside U_n h."""

    W: Tensor
    U: Tensor
    b: Tensor | None
    b_hn: Tensor | None

    def advance(self, drive_NBG: Tensor, h: Tensor) -> tuple[Tensor, GRUGains]:
        """h' and the gains, given W x + b and h."""
        recurrent = matmul_states(h, self.U)
        u_r, u_z, m = recurrent.chunk(3, dim=-1)
        w_r, w_z, w_n = drive_NBG.chunk(3, dim=-1)
        if self.b_hn is not None:
            m = m + self.b_hn.unsqueeze(1)
        a_r, a_z = w_r + u_r, w_z + u_z
        # σ(−a) rather than 1 − σ(a): a saturated gate keeps its tiny derivative.
        r, z, open_z = torch.sigmoid(a_r), torch.sigmoid(a_z), torch.sigmoid(-a_z)
        a_n = w_n + r * m
        n = torch.tanh(a_n)
        by_n = open_z * sech2(a_n)
        by_m = by_n * r
        gains = GRUGains(
            by_r=by_m * m * torch.sigmoid(-a_r),
            by_z=(h - n) * z * open_z,
            by_m=by_m,
            by_n=by_n,
            z=z,
        )
        return open_z * n + z * h, gains

    def push(self, gains: GRUGains, dh: Tensor, dx: Tensor | None, out: Tensor) -> None:
        """Writes δh' into `out`, (N, B, K, H)."""
        by_r, by_z, by_m, by_n, z = (gain.unsqueeze(2) for gain in gains)
        if dh.shape[2] >= BLOCKS_FROM:
            self._push_by_blocks(gains, dh, dx, out)
            return
        A = shared_product(dh, self.U.mT)
        A_r, A_z, A_n = A.chunk(3, dim=-1)
        torch.mul(z, dh, out=out)
        if dx is not None:
            B_r, B_z, B_n = shared_product(dx, self.W.mT).chunk(3, dim=-1)
            A_r += B_r
            A_z += B_z
            out.addcmul_(by_n, B_n)
        out.addcmul_(by_z, A_z).addcmul_(by_r, A_r).addcmul_(by_m, A_n)

    def _push_by_blocks(self, gains: GRUGains, dh: Tensor, dx: Tensor | None, out: Tensor) -> None:
        """`push` by way of ∂h'/∂h and ∂h'/∂x, one sequence at a time: they stay in the cache."""
        H = dh.shape[-1]
        by_h = dh.new_empty(H, H)
        for n in range(dh.shape[0]):
            for b in range(dh.shape[1]):
                torch.mm(dh[n, b], self.by_h(gains, n, b, by_h), out=out[n, b])
                if dx is not None:
                    out[n, b].addmm_(dx[n, b], self.by_x(gains, n, b).mT)

    def by_h(self, gains: GRUGains, member: int, sequence: int, out: Tensor) -> Tensor:
        """∂h'/∂h of one member and sequence transposed, (H, H), written into `out`."""
        by_r, by_z, by_m, _, z = (gain[member, sequence] for gain in gains)
        T_r, T_z, T_n = self._gates_N3HH[member]
        torch.mul(T_n, by_m, out=out).addcmul_(T_r, by_r).addcmul_(T_z, by_z)
        out.diagonal().add_(z)
        return out

    @cached_property
    def _gates_N3HH(self) -> Tensor:
        """U gate by gate and transposed."""
        N, G, H = self.U.shape
        return self.U.view(N, 3, G // 3, H).mT.contiguous()

    def by_x(self, gains: GRUGains, member: int, sequence: int) -> Tensor:
        """∂h'/∂x of one member and sequence, (H, I)."""
        by_r, by_z, _, by_n, _ = (gain[member, sequence].unsqueeze(-1) for gain in gains)
        W_r, W_z, W_n = self.W[member].chunk(3)
        return (by_n * W_n).addcmul_(by_r, W_r).addcmul_(by_z, W_z)

    def pull(self, gains: GRUGains, p: Tensor) -> tuple[Tensor, Tensor]:
        """(∂h'/∂h)ᵀ p, and the adjoint of W x + b."""
        by_r, by_z, by_m, by_n, z = (gain.unsqueeze(2) for gain in gains)
        to_r, to_z = by_r * p, by_z * p
        pulled = shared_product(torch.cat([to_r, to_z, by_m * p], dim=-1), self.U)
        return pulled.addcmul_(z, p), torch.cat([to_r, to_z, by_n * p], dim=-1)

    def log_abs_det(self, gains: GRUGains) -> None:
        """None: there is no closed form."""
        return
