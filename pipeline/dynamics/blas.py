"""Products with triangles, quotients and eliminations in place, at the speed of products.

torch has no product with a triangular matrix and only batched eliminations of fresh memory. The
BLAS that SciPy is built with (`routines`) has both, half of a square product's time for a
triangular one, and works on parts of a matrix where they stand. Its products are faster than its
quotients, which are therefore taken by halves, and by halves of those, until little but products is
left. Measured on one thread of an AMD EPYC, float64, 512 × 512: product 5.6 ms by MKL and 5.1 by
OpenBLAS, triangular product 2.7; quotient 4.3 by OpenBLAS and 3.0 here; elimination 2.9. (The same
done to eliminations, with LAPACK's for panels, gained nothing.)

Matrices are tensors on the CPU, given transposed: what is a matrix here has its columns along
memory, so that a tensor (K, E) holds an E × K matrix; its rows may be apart by more than E.
"""

from functools import cache

import torch
from torch import Tensor

from pipeline.dynamics import routines
from pipeline.dynamics.routines import Matrix, Range, Triangle

LARGEST_QUOTIENT = 64
"""Columns of a triangle up to which a quotient is a product with its inverse: half of the time."""

_UNIT_LOWER = Triangle(is_upper=False, is_unit=True)
_UPPER = Triangle(is_upper=True, is_unit=False)


def multiply(X_KE: Tensor, L_KK: Tensor) -> None:
    """X ← X L in place, L unit lower triangular; what stands on and above its diagonal is not read.

    Example:
        >>> X = torch.tensor([[1.0], [2.0]])  # the 1 × 2 matrix (1 2)
        >>> multiply(X, torch.tensor([[7.0, 3.0], [7.0, 7.0]]))  # with L = (1 0; 3 1)
        >>> X.flatten().tolist()
        [7.0, 2.0]
    """
    routines.multiply(Matrix.of(X_KE), Matrix.of(L_KK), _UNIT_LOWER)


def add_product(
    X_KE: Tensor, Y_ME: Tensor, Z_KM: Tensor, *, factor: float = 1, beta: float = 1
) -> None:
    """X ← beta X + factor Y Z in place; `beta=0` overwrites whatever X holds.

    Example:
        >>> X = torch.tensor([[1.0], [2.0]])  # (1 2)
        >>> add_product(X, torch.tensor([[3.0]]), torch.tensor([[10.0], [100.0]]))  # 3 (10 100)
        >>> X.flatten().tolist()
        [31.0, 302.0]
    """
    routines.add_product(*map(Matrix.of, (X_KE, Y_ME, Z_KM)), factor=factor, beta=beta)


def divide(X_KE: Tensor, R_KK: Tensor) -> None:
    """X ← X R⁻¹ in place, R upper triangular; what stands below its diagonal is not read.

    Example:
        >>> X = torch.tensor([[4.0], [2.0]])
        >>> divide(X, torch.tensor([[2.0, 7.0], [0.0, 0.5]]))  # (2 0; 7 .5), read as (2 0; 0 .5)
        >>> X.flatten().tolist()
        [2.0, 4.0]
    """
    _divide(Matrix.of(X_KE), Matrix.of(R_KK), _UPPER)


def divide_unit(X_KE: Tensor, L_KK: Tensor) -> None:
    """X ← X L⁻¹ in place, L as in `multiply`.

    Example:
        >>> X = torch.tensor([[7.0], [2.0]])
        >>> divide_unit(X, torch.tensor([[7.0, 3.0], [7.0, 7.0]]))
        >>> X.flatten().tolist()
        [1.0, 2.0]
    """
    _divide(Matrix.of(X_KE), Matrix.of(L_KK), _UNIT_LOWER)


def eliminate(V_KE: Tensor) -> Tensor:
    """Gaussian elimination with row exchanges of an E × K matrix in place: P V = L R.

    L is left below the diagonal, R on and above it. Returns with which row each of the first
    min(E, K) rows was exchanged, from the first on, counted from 0.

    Example:
        >>> V = torch.tensor([[1.0, 2.0], [1.0, 0.0]])  # (1 1; 2 0)
        >>> eliminate(V).tolist(), V.tolist()
        ([1, 1], [[2.0, 0.5], [0.0, 1.0]])
    """
    V = Matrix.of(V_KE)
    pivots = torch.empty(min(V.rows, V.columns), dtype=torch.int32)
    routines.eliminate(V, pivots.data_ptr())
    return pivots.long() - 1


def cholesky(G_KK: Tensor) -> bool:
    """G = Rᵀ R in place, R left on and above the diagonal; what is below is not read.

    Returns whether G is positive definite; where it is not, what is left is of no use.

    Example:
        >>> G = torch.tensor([[4.0, 7.0], [2.0, 2.0]])  # (4 2; 7 2), read as (4 2; 2 2)
        >>> cholesky(G), G.tolist()
        (True, [[2.0, 7.0], [1.0, 1.0]])
    """
    # Some versions call a matrix of NaN definite.
    return routines.cholesky(Matrix.of(G_KK)) and bool(G_KK.diagonal().isfinite().all())


def _divide(X: Matrix, T: Matrix, triangle: Triangle) -> None:
    """X ← X T⁻¹."""
    whole = (0, X.rows)
    work = torch.empty(LARGEST_QUOTIENT**2, dtype=X.dtype)
    for now, then in _halvings(X.columns, triangle.is_upper):
        known = X.block(whole, now)
        if then is None:
            _by_inverse(known, T.block(now, now), triangle, work)
        else:
            routines.add_product(X.block(whole, then), known, T.block(now, then), factor=-1)


def _by_inverse(X: Matrix, T: Matrix, triangle: Triangle, work: Tensor) -> None:
    inverse = Matrix(T.dtype, work.data_ptr(), T.rows, T.columns, T.rows)
    routines.copy(T, inverse, triangle)
    if routines.invert(inverse, triangle):
        routines.multiply(X, inverse, triangle)
    else:
        # What division by 0 gives.
        routines.solve(X, T, triangle)


@cache
def _halvings(num_columns: int, from_first: bool) -> list[tuple[Range, Range | None]]:
    """In which order columns are divided by a triangle.

    A range alone is divided by its own block of the triangle; of two, the first has been, and what
    it has to do with the second is taken off that.

    Example:
        >>> _halvings(100, True)
        [((0, 50), None), ((0, 50), (50, 100)), ((50, 100), None)]
    """

    def halve(begin: int, end: int) -> list[tuple[Range, Range | None]]:
        if end - begin <= LARGEST_QUOTIENT:
            return [((begin, end), None)]
        middle = begin + (end - begin) // 2
        first, last = (begin, middle), (middle, end)
        if not from_first:
            first, last = last, first
        return [*halve(*first), (first, last), *halve(*last)]

    return halve(0, num_columns)
