"""What maps are told of frames that hold zeros, and the plainest of them, which holds none.

With many tangents, frames between time blocks are triangular, and whoever carries them knows how to
leave their zeros out of a product (`pipeline.dynamics.staircase`).

Shapes: D state, K tangents, M rows of the frame, E rows of a product, H half of the state. Frames
and maps are given transposed, so that columns lie along memory.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Frame(Protocol):
    """One frame, in the coordinates `shear`; None: in those of the state."""

    @property
    def shear(self) -> Any:
        """What the map before returned."""
        ...

    def rows(self, here: slice) -> Tensor:
        """Some of its rows, (K, M)."""
        ...

    def add_product(self, out_KE: Tensor, here: slice, J_ME: Tensor, *, beta: float = 1) -> None:
        """out ← beta·out + (J rows[here])ᵀ; J is used up, `beta=0` overwrites what `out` holds."""
        ...


class Halves(NamedTuple):
    """J of a state (a, b) in two halves of H entries, where ∂/∂b is diagonal.

    dense_HD: Jᵀ of the columns of a, (H, 2H). a_by_b, b_by_b: the diagonals, (H,). shear: the
    coordinates of what comes out.
    """

    dense_HD: Tensor
    a_by_b: Tensor
    b_by_b: Tensor
    shear: Any


@dataclass(frozen=True)
class WholeFrame:
    """Any frame, without zeros to leave out."""

    Q_KD: Tensor
    shear: None = None

    def rows(self, here: slice) -> Tensor:
        """Some of its rows, (K, M)."""
        return self.Q_KD[:, here]

    def add_product(self, out_KE: Tensor, here: slice, J_ME: Tensor, *, beta: float = 1) -> None:
        """out ← beta·out + (J rows[here])ᵀ."""
        out_KE.addmm_(self.Q_KD[:, here], J_ME, beta=beta)
