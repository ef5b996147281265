"""Frames of a state in two halves (a, b) of which b moves elementwise, and their elimination.

With F = (A 0; C A  B), A and B unit lower triangular up to an order of their rows, and
J = (M, (d; d')), the first half of the columns becomes W A, W = M + (d; d') C: what the directions
of a do when those of b follow them by C. Its upper half is factorised, W_a A = A' R, and
C' = W_b W_a⁻¹ = (W_b A) R⁻¹ A'⁻¹. What remains of the second half, (d' − C' d) B, is a product with
the triangle B and is factorised as well. C enters and leaves elementwise, so that nothing but
triangles is ever multiplied.

Shapes: H half of the state, D = K = 2H. Frames and maps are given transposed, so that columns lie
along memory.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.dynamics import blas
from pipeline.dynamics.orthonormal import (
    Eliminated,
    inverse,
    logs_and_depth,
    norms_below,
    order_of,
    squares_above,
    write_out,
)
from pipeline.dynamics.staircase import Stairs, columns

LARGEST = 1e3
"""Largest entry of C: beyond, pivots are looked for among all rows instead."""


class HalfDiagonal(Protocol):
    """J of a state (a, b) in two halves of H entries, where ∂/∂b is diagonal."""

    @property
    def dense_HD(self) -> Tensor:
        """Jᵀ of the columns of a, (H, 2H)."""
        ...

    @property
    def a_by_b(self) -> Tensor:
        """(H,)."""
        ...

    @property
    def b_by_b(self) -> Tensor:
        """(H,)."""
        ...

    @property
    def shear(self) -> Any:
        """The coordinates of what comes out."""
        ...


@dataclass(frozen=True)
class HalvedStairs:
    """One frame (Pᵀ L, 0; C Pᵀ L, P'ᵀ L'), in the coordinates `shear`.

    `Q_KD` holds L, C Pᵀ and L', transposed. Its fourth quarter, and what stands beside the
    triangles, is not read. Row i of L is row order_a[i] of a, row i of L' row order_b[i] of b.

    Example:
        >>> first = torch.tensor([0])
        >>> frame = HalvedStairs(torch.tensor([[1.0, 3.0], [7.0, 1.0]]), first, first)
        >>> frame.stairs().rows(slice(0, 2)).mT.tolist()  # C = 3; the 7 is not read
        [[1.0, 0.0], [3.0, 1.0]]
    """

    Q_KD: Tensor
    order_a: Tensor
    order_b: Tensor
    shear: Any = None

    @classmethod
    def of(cls, frame: Stairs) -> "HalvedStairs | None":
        """A frame that `is_split`, whose memory is used. None where C would be large."""
        H = len(frame.Q_KD) // 2
        order_a, order_b = frame.order_D[:H], frame.order_D[H:] - H  # type: ignore[index]
        C = columns(frame.Q_KD[:H, H:], inverse(order_b))
        blas.divide_unit(C, frame.Q_KD[:H, :H])
        if _is_large(C):
            return None
        frame.Q_KD[:H, H:] = C
        return cls(frame.Q_KD, order_a, order_b, frame.shear)

    @classmethod
    def start(cls, Q_KD: Tensor) -> "tuple[HalvedStairs, Tensor] | None":
        """F and log|U_ii| (K,) of any square frame Q = F U, in the memory of Q.

        None, and that memory spoilt, where C would be large.
        """
        H = len(Q_KD) // 2
        V_a, V_b, rest = Q_KD[:H, :H], Q_KD[:H, H:], Q_KD[H:, H:]
        order_a = _follow(V_a, V_b)
        if order_a is None:
            return None
        blas.add_product(rest, V_b, columns(Q_KD[H:, :H], order_a), factor=-1)
        order_b = order_of(blas.eliminate(rest), H)
        logs = torch.cat([V_a.diagonal(), rest.diagonal()]).double().abs().log()
        return cls(Q_KD, order_a, order_b), logs

    def quarters(self) -> tuple[Tensor, Tensor, Tensor]:
        """L, C Pᵀ and L'."""
        H = len(self.order_a)
        return self.Q_KD[:H, :H], self.Q_KD[:H, H:], self.Q_KD[H:, H:]

    def stairs(self) -> Stairs:
        """The frame in one piece; this one's memory is used."""
        A, C, _ = self._with_zeros()
        blas.multiply(C, A)
        C.copy_(columns(C, self.order_b))
        self.Q_KD[len(A) :, : len(A)] = 0
        order = torch.cat([self.order_a, self.order_b + len(A)])
        return Stairs(self.Q_KD, order, self.shear)

    def write(self, out_KD: Tensor) -> Tensor:
        """Writes the frame itself; returns where its rows end, (D,)."""
        A, C, B = self._with_zeros()
        H = len(A)
        places_a, places_b = inverse(self.order_a), inverse(self.order_b)
        torch.gather(A, 1, places_a.expand(H, H), out=out_KD[:H, :H])
        torch.gather(B, 1, places_b.expand(H, H), out=out_KD[H:, H:])
        out_KD[:H, H:] = C
        blas.multiply(out_KD[:H, H:], A)
        out_KD[H:, :H] = 0
        ends = torch.cat([places_a, places_b + H]) + 1
        if self.shear is not None:
            self.shear.undo(out_KD, ends)
        return ends

    def _with_zeros(self) -> tuple[Tensor, Tensor, Tensor]:
        """The quarters, their triangles written out."""
        A, C, B = self.quarters()
        return write_out(A), C, write_out(B)


def eliminate_halves(
    frame: HalvedStairs, J: HalfDiagonal, out_KD: Tensor
) -> tuple[HalvedStairs, Eliminated] | None:
    """The frame after J, factorised, in `out_KD`. None where C would be large."""
    A, C, B = frame.quarters()
    H = len(A)
    V, V_a, V_b, rest = out_KD[:H], out_KD[:H, :H], out_KD[:H, H:], out_KD[H:, H:]
    order_b = frame.order_b

    torch.index_select(J.dense_HD, 0, frame.order_a, out=V)
    V_a.addcmul_(C, J.a_by_b)
    V_b.addcmul_(C, J.b_by_b)
    blas.multiply(V, A)
    order_a = _follow(V_a, V_b)
    if order_a is None:
        return None

    torch.index_select(V_b, 0, inverse(order_a)[order_b], out=rest)
    rest *= -J.a_by_b[order_b].unsqueeze(-1)
    rest.scatter_add_(1, order_b.unsqueeze(-1), J.b_by_b[order_b].unsqueeze(-1))
    blas.multiply(rest, B)
    order_rest = order_of(blas.eliminate(rest), H)

    diagonal = torch.cat([V_a.diagonal(), rest.diagonal()])
    # ‖R_:,i‖ of the right half is not at hand; that of the columns before elimination is.
    weights = J.a_by_b.square() + J.b_by_b.square()
    before = squares_above(B, weights[order_b]).sqrt_()
    norms = torch.cat([norms_below(V_a), torch.hypot(before, norms_below(rest))])
    eliminated = Eliminated(*logs_and_depth(diagonal, norms), torch.cat([order_a, order_rest + H]))
    return HalvedStairs(out_KD, order_a, order_rest, J.shear), eliminated


def _follow(V_a: Tensor, V_b: Tensor) -> Tensor | None:
    """Eliminates V_a, and V_b becomes C Pᵀ, V_b V_a⁻¹ in the order returned. None if C is large."""
    order_a = order_of(blas.eliminate(V_a), len(V_a))
    blas.divide(V_b, V_a)
    blas.divide_unit(V_b, V_a)
    return None if _is_large(V_b) else order_a


def _is_large(C: Tensor) -> bool:
    """Whether entries are above LARGEST, or no numbers."""
    least, most = map(float, C.aminmax())
    return not max(-least, most) <= LARGEST
