"""Routines of BLAS and LAPACK on matrices where they stand, as SciPy brings them.

They are reached through the addresses that `scipy.linalg.cython_blas` and `cython_lapack` publish,
so that other Python threads run meanwhile, and take parts of a matrix by numbers: a view of a
tensor costs as much as some of the products it would be for.

Matrices have their columns along memory: a tensor (K, E) holds an E × K matrix.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import scipy
import torch
from scipy.linalg import cython_blas, cython_lapack
from torch import Tensor

_NUMBER = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_LETTER = {torch.float32: "s", torch.float64: "d"}

Range: TypeAlias = tuple[int, int]


def is_at_hand(tensor: Tensor) -> bool:
    """Whether the routines take such tensors."""
    return tensor.device.type == "cpu" and tensor.dtype in _LETTER


class Triangle(NamedTuple):
    """Which part of a matrix is read: above or below the diagonal; `is_unit`: not itself."""

    is_upper: bool
    is_unit: bool

    @property
    def letters(self) -> tuple[bytes, bytes]:
        """As the routines take them."""
        return b"U" if self.is_upper else b"L", b"U" if self.is_unit else b"N"


class Matrix(NamedTuple):
    """Where a matrix, or a part of one, stands; whoever made it keeps the memory.

    step: how far columns are apart, in entries.

    Example:
        >>> whole = Matrix.of(torch.zeros(4, 3))
        >>> part = whole.block((1, 3), (2, 4))
        >>> part.rows, part.columns, (part.address - whole.address) // 4
        (2, 2, 7)
    """

    dtype: torch.dtype
    address: int
    rows: int
    columns: int
    step: int

    @classmethod
    def of(cls, tensor_KE: Tensor) -> "Matrix":
        """Raises ValueError where columns do not lie along memory."""
        (K, E), (step, within) = tensor_KE.shape, tensor_KE.stride()
        if E > 1 and within != 1:
            raise ValueError(f"columns must lie along memory, got strides {(step, within)}")
        return cls(tensor_KE.dtype, tensor_KE.data_ptr(), E, K, max(step, E, 1))

    def block(self, rows: Range, columns: Range) -> "Matrix":
        """Rows and columns from the first number to before the second."""
        (top, bottom), (left, right) = rows, columns
        size = 8 if self.dtype == torch.float64 else 4
        address = self.address + size * (left * self.step + top)
        return Matrix(self.dtype, address, bottom - top, right - left, self.step)

    @property
    def place(self) -> tuple[int, Any]:
        """As the routines take it."""
        return self.address, _int(self.step)


def add_product(X: Matrix, Y: Matrix, Z: Matrix, *, factor: float = 1, beta: float = 1) -> None:
    """X ← beta X + factor Y Z; `beta=0` overwrites whatever X holds."""
    sizes = _int(X.rows), _int(X.columns), _int(Y.columns)
    by, kept = _number(factor, X.dtype), _number(beta, X.dtype)
    _routine("gemm", X.dtype)(b"N", b"N", *sizes, by, *Y.place, *Z.place, kept, *X.place)


def multiply(X: Matrix, T: Matrix, triangle: Triangle) -> None:
    """X ← X T."""
    _triangular("trmm", X, T, triangle)


def solve(X: Matrix, T: Matrix, triangle: Triangle) -> None:
    """X ← X T⁻¹."""
    _triangular("trsm", X, T, triangle)


def invert(T: Matrix, triangle: Triangle) -> bool:
    """T ← T⁻¹. False, and nothing done, where there is none."""
    info, size = ctypes.c_int(), _int(T.rows)
    _routine("trtri", T.dtype)(*triangle.letters, size, *T.place, ctypes.byref(info))
    return info.value == 0


def copy(T: Matrix, to: Matrix, triangle: Triangle) -> None:
    """The triangle of T and its diagonal."""
    upper, _ = triangle.letters
    _routine("lacpy", T.dtype)(upper, _int(T.rows), _int(T.columns), *T.place, *to.place)


def eliminate(V: Matrix, pivots: int) -> None:
    """P V = L R in place.

    At the address `pivots` is left with which row each was exchanged, an int32 each, counted
    from 1.
    """
    info = ctypes.c_int()
    sizes = _int(V.rows), _int(V.columns)
    _routine("getrf", V.dtype)(*sizes, *V.place, pivots, ctypes.byref(info))
    if info.value < 0:
        raise ValueError(
            f"elimination of a matrix {V.rows} × {V.columns}: argument {-info.value} is not valid"
        )


def cholesky(G: Matrix) -> bool:
    """G ← R above the diagonal, G = Rᵀ R. Returns whether LAPACK finds G positive definite."""
    info = ctypes.c_int()
    _routine("potrf", G.dtype)(b"U", _int(G.rows), *G.place, ctypes.byref(info))
    return info.value == 0


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, the routines use so many threads, where SciPy's OpenBLAS can be told."""
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


def _triangular(name: str, X: Matrix, T: Matrix, triangle: Triangle) -> None:
    upper, unit = triangle.letters
    sizes = _int(X.rows), _int(X.columns)
    one = _number(1, X.dtype)
    _routine(name, X.dtype)(b"R", upper, b"N", unit, *sizes, one, *T.place, *X.place)


# What is handed over is only read, so that one of each number will do.
@cache
def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


@cache
def _number(value: float, dtype: torch.dtype) -> Any:
    return ctypes.byref(_NUMBER[dtype](value))


# Every argument is an address.
_BLAS = {"gemm": 13, "trmm": 11, "trsm": 11}
_LAPACK = {"getrf": 6, "lacpy": 7, "potrf": 5, "trtri": 6}


@cache
def _routine(name: str, dtype: torch.dtype) -> Any:
    module, counts = (cython_blas, _BLAS) if name in _BLAS else (cython_lapack, _LAPACK)
    capsule = module.__pyx_capi__[_LETTER[dtype] + name]
    python = ctypes.pythonapi
    name_of, pointer_of = python.PyCapsule_GetName, python.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * counts[name])
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
