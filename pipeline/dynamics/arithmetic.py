"""Exact arithmetic: no reduced precision and no wrong kernel where digits make the difference."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No gradients, no autocast, no TF32: reduced products put a false floor under exponents.

    Inference mode is left as well, in which no derivative of a function can be had.
    """
    with ExitStack() as stack:
        for restore in _full_float32():
            stack.callback(restore)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
        yield


def _full_float32() -> Iterator[Callable[[], None]]:
    """Switches reduced float32 off everywhere; yields what switches each back.

    torch has an old and a new set of switches, and refuses to read one where the other was used.
    """
    backends: Any = torch.backends
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        yield partial(torch.set_float32_matmul_precision, before)
    except RuntimeError:
        pass
    try:
        allowed = backends.cudnn.allow_tf32
        backends.cudnn.allow_tf32 = False
        yield partial(setattr, backends.cudnn, "allow_tf32", allowed)
    except RuntimeError:
        pass
    for one in (
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    ):
        precision = one.fp32_precision
        if precision not in ("ieee", "none"):
            one.fp32_precision = "ieee"
            yield partial(setattr, one, "fp32_precision", precision)


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
