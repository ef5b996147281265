"""Exact arithmetic: no reduced precision and no wrong kernel where digits make the difference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No gradients, no autocast, no TF32: reduced products put a false floor under exponents."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if torch.cuda.is_available():
                with torch.autocast("cuda", enabled=False):
                    yield
            else:
                yield
    finally:
        torch.set_float32_matmul_precision(before)


def log_abs_det(J: Tensor) -> Tensor:
    """ln|det J| (…) of matrices (…, D, D), float64; −inf for singular ones.

    One matrix after the other: on a CPU, torch 2.13 with MKL factorises batches of LU in parallel
    threads, from about 200 × 200 on with wrong results and a complaint about DLASWP.

    Example:
        >>> log_abs_det(2 * torch.eye(3).expand(2, 3, 3)).exp().round(decimals=6).tolist()
        [8.0, 8.0]
    """
    logs = [torch.linalg.slogdet(M).logabsdet for M in J.double().reshape(-1, *J.shape[-2:])]
    return torch.stack(logs).view(J.shape[:-2])


def inverse(M: Tensor) -> Tensor:
    """The inverses of matrices (…, K, K), NaN where there is none; see `log_abs_det`.

    Example:
        >>> inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0]])).tolist()
        [[0.5, 0.0], [0.0, 0.25]]
    """
    found = [torch.linalg.inv_ex(one) for one in M.reshape(-1, *M.shape[-2:])]
    return torch.stack([torch.where(info == 0, W, torch.nan) for W, info in found]).view(M.shape)
