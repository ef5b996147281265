"""Explicit Runge–Kutta methods, and the adjoint of each that finds its gradient.

x′ = x + h Σ w_i k_i with k_i = f(Z_i), Z_i = x + h Σ_{j<i} a_ij k_j. The gradient of a function of
x′ goes back through the step by another explicit method, with the same weights and
ã_ij = w_j a_ji / w_i (Benning et al. 2019, eq. 4.6, from its end): together the two are symplectic,
so that discretising and optimising may be done in either order.
"""

from dataclasses import dataclass
from typing import Literal

Method = Literal["euler", "heun", "kutta3", "kutta4"]


@dataclass(frozen=True)
class Tableau:
    """The coefficients of one method.

    stages: a_ij, row i with j < i.
    weights: w_i; none is 0, or the method had no adjoint.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.stages]
        if lengths != list(range(len(self.weights))):
            raise ValueError(f"row i of an explicit method has i entries (i = 0, …), got {lengths}")
        if 0 in self.weights:
            raise ValueError(f"weights must differ from 0 for an adjoint, got {self.weights}")

    def adjoint(self) -> tuple[tuple[float, ...], ...]:
        """ã_ij of the adjoint method, square; row i with j > i, for stages are found last first."""
        w, count = self.weights, len(self.weights)
        return tuple(
            tuple(w[j] * self.stages[j][i] / w[i] if j > i else 0.0 for j in range(count))
            for i in range(count)
        )


TABLEAUS: dict[Method, Tableau] = {
    "euler": Tableau(((),), (1.0,)),
    "heun": Tableau(((), (1.0,)), (1 / 2, 1 / 2)),
    "kutta3": Tableau(((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "kutta4": Tableau(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Of order 1 to 4: explicit Euler, Heun's (improved Euler), and Kutta's (1901)."""
