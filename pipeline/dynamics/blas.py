"""Triangular products, quotients and eliminations in place, by the BLAS that SciPy brings.

torch has no product with a triangular matrix and only batched eliminations of fresh memory. The
BLAS that SciPy is built with has both, half of a square product's time for a triangular one, and
works on parts of a matrix where they stand. It is reached through the addresses that
`scipy.linalg.cython_blas` publishes, so that other Python threads run meanwhile. Measured on one
thread of an AMD EPYC, float64, 512 × 512: product 5.6 ms by MKL and 5.1 by OpenBLAS, triangular
product 2.7, elimination 2.5 (MKL's 2.9).

Matrices are tensors on the CPU, given transposed: what is a matrix here has its columns along
memory, so that a tensor (K, E) holds an E × K matrix; its rows may be apart by more than E.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import scipy
import torch
from scipy.linalg import cython_blas, cython_lapack
from torch import Tensor

_NUMBER = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_LETTER = {torch.float32: "s", torch.float64: "d"}


LARGEST_QUOTIENT = 64
"""Columns from which on a quotient is taken by halves: products are faster than OpenBLAS's. Below,
it is a product with the triangle's inverse, which takes half of the time again."""


def is_at_hand(tensor: Tensor) -> bool:
    """Whether the functions of this module take such tensors."""
    return tensor.device.type == "cpu" and tensor.dtype in _LETTER


def multiply(X_KE: Tensor, L_KK: Tensor) -> None:
    """X ← X L in place, L unit lower triangular; what stands on and above its diagonal is not read.

    Example:
        >>> X = torch.tensor([[1.0], [2.0]])  # the 1 × 2 matrix (1 2)
        >>> multiply(X, torch.tensor([[7.0, 3.0], [7.0, 7.0]]))  # with L = (1 0; 3 1)
        >>> X.flatten().tolist()
        [7.0, 2.0]
    """
    _triangular("trmm", X_KE, L_KK, b"L", b"U")


def divide(X_KE: Tensor, R_KK: Tensor) -> None:
    """X ← X R⁻¹ in place, R upper triangular; what stands below its diagonal is not read.

    Example:
        >>> X = torch.tensor([[4.0], [2.0]])
        >>> divide(X, torch.tensor([[2.0, 7.0], [0.0, 0.5]]))  # (2 0; 7 .5), read as (2 0; 0 .5)
        >>> X.flatten().tolist()
        [2.0, 4.0]
    """
    K = len(X_KE)
    if K <= LARGEST_QUOTIENT:
        _by_inverse(X_KE, R_KK, b"U", b"N")
        return
    left, right = slice(K // 2), slice(K // 2, K)
    divide(X_KE[left], R_KK[left, left])
    _subtract_product(X_KE[right], X_KE[left], R_KK[right, left])
    divide(X_KE[right], R_KK[right, right])


def divide_unit(X_KE: Tensor, L_KK: Tensor) -> None:
    """X ← X L⁻¹ in place, L as in `multiply`.

    Example:
        >>> X = torch.tensor([[7.0], [2.0]])
        >>> divide_unit(X, torch.tensor([[7.0, 3.0], [7.0, 7.0]]))
        >>> X.flatten().tolist()
        [1.0, 2.0]
    """
    K = len(X_KE)
    if K <= LARGEST_QUOTIENT:
        _by_inverse(X_KE, L_KK, b"L", b"U")
        return
    left, right = slice(K // 2), slice(K // 2, K)
    divide_unit(X_KE[right], L_KK[right, right])
    _subtract_product(X_KE[left], X_KE[right], L_KK[left, right])
    divide_unit(X_KE[left], L_KK[left, left])


def eliminate(V_KE: Tensor) -> Tensor:
    """Gaussian elimination with row exchanges of an E × K matrix in place: P V = L R.

    L is left below the diagonal, R on and above it. Returns with which row each of the first
    min(E, K) rows was exchanged, from the first on, counted from 0.

    Example:
        >>> V = torch.tensor([[1.0, 2.0], [1.0, 0.0]])  # (1 1; 2 0)
        >>> eliminate(V).tolist(), V.tolist()
        ([1, 1], [[2.0, 0.5], [0.0, 1.0]])
    """
    K, E = V_KE.shape
    pivots = torch.empty(min(E, K), dtype=torch.int32)
    info = ctypes.c_int()
    _function("getrf", V_KE.dtype)(
        _int(E), _int(K), *_address(V_KE), pivots.data_ptr(), ctypes.byref(info)
    )
    if info.value < 0:
        raise ValueError(f"elimination of a matrix {E} × {K}: argument {-info.value} is not valid")
    return pivots.long() - 1


def cholesky(G_KK: Tensor) -> bool:
    """G = Rᵀ R in place, R left on and above the diagonal; what is below is not read.

    Returns whether G is positive definite; where it is not, what is left is of no use.

    Example:
        >>> G = torch.tensor([[4.0, 7.0], [2.0, 2.0]])  # (4 2; 7 2), read as (4 2; 2 2)
        >>> cholesky(G), G.tolist()
        (True, [[2.0, 7.0], [1.0, 1.0]])
    """
    info = ctypes.c_int()
    _function("potrf", G_KK.dtype)(b"U", _int(len(G_KK)), *_address(G_KK), ctypes.byref(info))
    # Some versions call a matrix of NaN definite.
    return info.value == 0 and bool(G_KK.diagonal().isfinite().all())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, these functions use so many threads, where SciPy's OpenBLAS can be told."""
    library = _openblas()
    if library is None:
        yield
        return
    before = library.scipy_openblas_get_num_threads()
    library.scipy_openblas_set_num_threads(count)
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads(before)


def _by_inverse(X_KE: Tensor, T_KK: Tensor, triangle: bytes, diagonal: bytes) -> None:
    """X ← X T⁻¹; where there is no inverse, what division by 0 gives."""
    inverse = T_KK.clone(memory_format=torch.contiguous_format)
    info = ctypes.c_int()
    _function("trtri", T_KK.dtype)(
        triangle, diagonal, _int(len(inverse)), *_address(inverse), ctypes.byref(info)
    )
    if info.value:
        _triangular("trsm", X_KE, T_KK, triangle, diagonal)
    else:
        _triangular("trmm", X_KE, inverse, triangle, diagonal)


def _triangular(name: str, X_KE: Tensor, T_KK: Tensor, triangle: bytes, diagonal: bytes) -> None:
    K, E = X_KE.shape
    one = _NUMBER[X_KE.dtype](1)
    _function(name, X_KE.dtype)(
        *(b"R", triangle, b"N", diagonal, _int(E), _int(K), ctypes.byref(one)),
        *_address(T_KK),
        *_address(X_KE),
    )


def _subtract_product(X_KE: Tensor, Y_ME: Tensor, Z_KM: Tensor) -> None:
    """X ← X − Y Z."""
    (K, E), M = X_KE.shape, len(Y_ME)
    minus_one, one = map(_NUMBER[X_KE.dtype], (-1, 1))
    _function("gemm", X_KE.dtype)(
        *(b"N", b"N", _int(E), _int(K), _int(M), ctypes.byref(minus_one)),
        *_address(Y_ME),
        *_address(Z_KM),
        ctypes.byref(one),
        *_address(X_KE),
    )


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _address(matrix: Tensor) -> tuple[int, Any]:
    """Where it begins, and how far its columns are apart."""
    if matrix.shape[1] > 1 and matrix.stride(1) != 1:
        raise ValueError(f"columns must lie along memory, got strides {matrix.stride()}")
    return matrix.data_ptr(), _int(max(matrix.stride(0), matrix.shape[1], 1))


# Every argument is an address.
_ARGUMENTS = {"gemm": 13, "trmm": 11, "trsm": 11, "trtri": 6, "getrf": 6, "potrf": 5}


_LAPACK = {"trtri", "getrf", "potrf"}


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    module = cython_lapack if name in _LAPACK else cython_blas
    capsule = module.__pyx_capi__[_LETTER[dtype] + name]
    python = ctypes.pythonapi
    name_of, pointer_of = python.PyCapsule_GetName, python.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * _ARGUMENTS[name])
    return prototype(pointer_of(capsule, name_of(capsule)))


@cache
def _openblas() -> Any:
    """The OpenBLAS of SciPy's wheel, None where SciPy was built with another BLAS."""
    package = Path(scipy.__file__).parent
    for folder in (package.parent / "scipy.libs", package / ".dylibs"):
        for path in folder.glob("libscipy_openblas*"):
            library = ctypes.CDLL(str(path))
            if hasattr(library, "scipy_openblas_set_num_threads"):
                return library
    return None
