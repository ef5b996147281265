"""A device that is not there: tensors of the CPU that call themselves CUDA's and mix with no other.

For machines without a GPU. What a GPU would refuse is refused: operations between tensors here and
there, and NumPy's view of one that is there. The engine takes the way it takes on CUDA. What CUDA's
kernels compute is not tested. Derivatives in forward mode do not reach into such tensors.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

THERE = torch.device("cuda:0")
aten = torch.ops.aten
# These may bring both together; so may indices that are here, of a tensor that is there.
TRANSFERS = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class There(torch.Tensor):
    """`here` is the tensor that holds the numbers."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
        )

    def __init__(self, here):
        self.here = here

    device = property(lambda self: THERE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.here.tolist()

    def __repr__(self):
        return f"There({self.here})"

    def numpy(self):
        raise TypeError("can't convert a CUDA tensor to numpy; use Tensor.cpu() first")

    def __array__(self, dtype=None):
        raise TypeError("can't convert a CUDA tensor to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        strangers = [x for x in tensors if not isinstance(x, There) and x.dim() > 0]
        is_indexing = function in INDEXING and isinstance(tensors[0], There)
        if strangers and function not in TRANSFERS and not is_indexing:
            raise RuntimeError(f"{function}: tensors of {THERE} and of the CPU, {strangers[0]}")
        found = function(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs or {}))
        return tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) else x, found)


def unwrapped(x):
    return x.here if isinstance(x, There) else x


class _Moves(TorchFunctionMode):
    """Making tensors there, and taking them here and there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.cpu:
            return _Here.apply(args[0]) if isinstance(args[0], There) else args[0]
        if function is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != "cuda":
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor) and isinstance(args[0], There):
            return function(*args, **{**kwargs, "device": None})
        if isinstance(args[0], There):  # x.new_zeros(…, device=x.device) and their like
            del kwargs["device"]
            return function(*args, **kwargs)
        return There(function(*args, **{**kwargs, "device": "cpu"}))

    def _to(self, x, *args, **kwargs):
        wanted = [torch.device(a) for a in args if isinstance(a, str | torch.device)]
        wanted += [a.device for a in args if isinstance(a, torch.Tensor)]
        dtypes = [a for a in args if isinstance(a, torch.dtype)]
        dtypes += [a.dtype for a in args if isinstance(a, torch.Tensor)]
        kwargs.pop("non_blocking", None)
        if (device := kwargs.pop("device", None)) is not None:
            wanted.append(torch.device(device))
        if wanted and wanted[0].type == "cuda" and not isinstance(x, There):
            x = _There.apply(x)
        if wanted and wanted[0].type == "cpu" and isinstance(x, There):
            x = _Here.apply(x)
        options = {"dtype": kwargs.pop("dtype", dtypes[0] if dtypes else x.dtype), **kwargs}
        return x.to(**options)


class _There(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return There(x.detach().clone())

    @staticmethod
    def backward(_, d):
        return unwrapped(d)


class _Here(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.here.clone()

    @staticmethod
    def backward(_, d):
        return There(d)


@contextmanager
def pretended():
    """Inside, `THERE` is a device."""
    fork_rng = torch.random.fork_rng
    with (
        mock.patch("torch.cuda.get_rng_state", return_value=torch.zeros(0)),
        mock.patch("torch.random.fork_rng", side_effect=lambda **_: fork_rng()),
        _Moves(),
    ):
        yield
