"""Triangular frames, and products with them that leave out their zeros.

Between time blocks a frame of many tangents is what a Gaussian elimination left of it,
F = S⁻¹ Pᵀ L: L unit lower trapezoidal, P an order of its rows, S a change of the coordinates of the
state that the map brought in. A product with some of its rows takes half the operations of a square
one.

Shapes: D state, K tangents, M rows of the frame that enter a product, E rows of the product. Frames
are given transposed, so that their columns lie along memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.dynamics import blas
from pipeline.dynamics.orthonormal import inverse, write_out

PANEL = 64
"""Columns a product where the rows of a frame end elsewhere than in columns of their own."""


class Shear(Protocol):
    """An invertible change S of the coordinates of a state."""

    def undo(self, Q_KD: Tensor, ends_D: Tensor) -> None:
        """S⁻¹ of a frame, given transposed, and of the places where its rows end; in place."""
        ...


@dataclass(frozen=True)
class Stairs:
    """One frame. With `order`, row i of Q is row order[i] of it, 1 in column i and 0 from there on.

    Those ones and zeros need not be written: what stands in their place is not read.

    Example:
        >>> frame = Stairs(torch.tensor([[1.0, 3.0], [0.0, 1.0]]), torch.tensor([1, 0]))
        >>> frame.rows(slice(0, 2)).mT.tolist()
        [[3.0, 1.0], [1.0, 0.0]]
    """

    Q_KD: Tensor
    order_D: Tensor | None = None
    shear: Any = None

    @cached_property
    def places_D(self) -> Tensor:
        """Row of Q that holds each row of the frame."""
        assert self.order_D is not None
        return inverse(self.order_D)

    @cached_property
    def _written_KD(self) -> Tensor:
        return self.Q_KD if self.order_D is None else write_out(self.Q_KD)

    @property
    def is_split(self) -> bool:
        """Whether all of a square frame's first rows in L are those of the state's first half."""
        if self.order_D is None or len(self.order_D) % 2 or len(self.Q_KD) != len(self.order_D):
            return False
        half = len(self.order_D) // 2
        return bool((self.order_D[:half] < half).all())

    def rows(self, here: slice) -> Tensor:
        """Rows of the frame, (K, M), in the coordinates `shear`."""
        if self.order_D is None:
            return self.Q_KD[:, here]
        return columns(self._written_KD, self.places_D[here])

    def write(self, out_KD: Tensor) -> Tensor:
        """Writes the frame itself; returns where its rows end, (D,)."""
        K, D = out_KD.shape
        if self.order_D is None:
            out_KD.copy_(self.Q_KD)
            return torch.full((D,), K, device=out_KD.device)
        torch.gather(self._written_KD, 1, self.places_D.expand(K, D), out=out_KD)
        ends = (self.places_D + 1).clamp_(max=K)
        if self.shear is not None:
            self.shear.undo(out_KD, ends)
        return ends

    def add_product(self, out_KE: Tensor, here: slice, J_ME: Tensor, *, beta: float = 1) -> None:
        """out ← beta·out + (J rows[here])ᵀ, J given transposed and used up.

        `beta=0` overwrites whatever `out` holds.
        """
        if self.order_D is None:
            blas.add_product(out_KE, J_ME, self.Q_KD[:, here], beta=beta)
            return
        K = len(self.Q_KD)
        if beta == 0 and K == len(J_ME) == len(self.order_D):
            torch.index_select(J_ME, 0, self.order_D, out=out_KE)
            blas.multiply(out_KE, self.Q_KD)
            return
        places, order = self.places_D[here].sort()
        # Rows that end in a column of their own: with those columns they are a triangle.
        M = int(torch.searchsorted(places, K))
        first, last = int(places[0]), int(places[-1])
        is_contiguous = last - first == len(places) - 1
        own: slice | Tensor = slice(first, first + M) if is_contiguous else places[:M]
        L_KD = self._written_KD
        L_KM = L_KD[:, first : last + 1] if is_contiguous else columns(L_KD, places)
        J_ME = J_ME[order]
        if beta == 0:
            out_KE.zero_()
        if len(places) > M:
            out_KE.addmm_(L_KM[:, M:], J_ME[M:])
        if M == 0:
            return
        others = torch.ones(K, dtype=torch.bool)
        others[own] = False
        rest = others.nonzero().flatten()
        for panel in torch.split(rest, PANEL) if len(rest) else ():
            begin = int(torch.searchsorted(places[:M], panel[0]))
            if begin < M:
                out_KE[panel] += L_KM[panel, begin:M] @ J_ME[begin:M]
        T_MM = L_KM[own, :M]
        blas.multiply(J_ME[:M], T_MM)
        out_KE[own] += J_ME[:M]


def columns(of_RC: Tensor, order_M: Tensor) -> Tensor:
    """of[:, order], (R, M)."""
    # gather: three times as fast as index_select along the last axis.
    return torch.gather(of_RC, 1, order_M.expand(len(of_RC), len(order_M)))
