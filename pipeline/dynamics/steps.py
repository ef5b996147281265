"""Orbits of plain functions and of given maps: what has no network behind it.

A step is a function of the state, `step(s)`, or of state and input, `step(s, x)`, for states
(B, D) row by row. Its derivative comes from forward-mode automatic differentiation where all its
operations have one, and from D reverse passes otherwise.

Shapes: B sequences, T steps, I inputs, D state, K tangents. The member axis N is 1 throughout.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.dynamics.arithmetic import log_abs_det
from pipeline.dynamics.frames import Map


class StepMap:
    """The derivative of a step at one state, the input held fixed.

    Example:
        >>> J = StepMap(lambda s: s**2, torch.tensor([[1.0, 3.0]]))
        >>> J(torch.eye(2).expand(1, 1, 2, 2))[0, 0].tolist()
        [[2.0, 0.0], [0.0, 6.0]]
    """

    def __init__(self, step: Callable[[Tensor], Tensor], state_BD: Tensor) -> None:
        self._step, self._state = step, state_BD

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (1, B, D, K)."""
        Q_KBD = Q_NBDK[0].movedim(-1, 0)
        try:
            with torch.enable_grad():
                moved_KBD = torch.func.vmap(self._push)(Q_KBD)
        except (RuntimeError, NotImplementedError):
            # No forward derivative, or something vmap cannot follow: D reverse passes can.
            return self.dense() @ Q_NBDK
        return moved_KBD.permute(1, 0, 2).contiguous().mT.unsqueeze(0)

    def _push(self, q_BD: Tensor) -> Tensor:
        return cast(Tensor, torch.func.jvp(self._step, (self._state,), (q_BD,))[1])

    def dense(self) -> Tensor:
        """J, (1, B, D, D), by reverse mode."""
        with torch.enable_grad():
            state = self._state.clone().requires_grad_()
            after = self._step(state)
            rows = []
            for i in range(after.shape[-1]):
                total = after[:, i].sum()
                row = (
                    torch.autograd.grad(total, state, retain_graph=True, allow_unused=True)[0]
                    if total.requires_grad
                    else None
                )
                rows.append(torch.zeros_like(state) if row is None else row)
        return torch.stack(rows, dim=1).unsqueeze(0).detach()

    def autodiff(self, q_NBD: Tensor) -> Tensor:
        """J q by reverse mode."""
        return (self.dense() @ q_NBD.unsqueeze(-1)).squeeze(-1)


class StepOrbit:
    """A step applied `num_steps` times from `start` (B, D), with the inputs (B, T, I) if any.

    Raises ValueError for a step that is random, writes into the state it gets, returns another
    kind of state, or cannot be differentiated by torch.

    Example:
        >>> orbit = StepOrbit(lambda s: s / 2, torch.ones(3, 2), None, num_steps=4)
        >>> orbit.num_sequences, orbit.tangent_size, len(list(orbit.maps()))
        (3, 2, 4)
    """

    num_members = 1

    def __init__(
        self,
        step: Callable[..., Tensor],
        start_BD: Tensor,
        inputs_BTI: Tensor | None,
        num_steps: int,
        loop: str = "open",
    ) -> None:
        # A copy: a step may write to what it is given, and inference tensors have no derivative.
        self._step, self._start = step, start_BD.clone()
        self._inputs = None if inputs_BTI is None else _differentiable(inputs_BTI)
        self.num_sequences, self.tangent_size = start_BD.shape
        self.num_steps, self.loop = num_steps, loop
        self.dtype, self.device = start_BD.dtype, start_BD.device
        self._refuse_unsuitable()

    def _refuse_unsuitable(self) -> None:
        first, given = self._at(0), self._start.clone()
        with _untouched_generators(self.device), torch.no_grad():
            after, before = first(given), generator_states(self.device)
            again, is_random = first(self._start.clone()), have_drawn(before, self.device)
        # Values alone do not tell: a mask on a state of zeros leaves zeros.
        if is_random or not torch.equal(after.nan_to_num(), again.nan_to_num()):
            raise ValueError(
                "a step must not be random, but two calls with the same state draw different "
                "numbers; switch dropout off or draw its mask once"
            )
        if after.shape != given.shape or after.dtype != given.dtype:
            raise ValueError(
                "a step must return states of the shape and dtype it gets; it got "
                f"{given.dtype} {tuple(given.shape)} and returned "
                f"{after.dtype} {tuple(after.shape)}"
            )
        if not torch.equal(given.nan_to_num(), self._start.nan_to_num()):
            raise ValueError(
                "a step must leave the state it gets as it was, but writes into it; work on a copy"
            )
        cause: Exception | None = None
        try:
            with _untouched_generators(self.device), torch.enable_grad():
                is_recorded = first(self._start.clone().requires_grad_()).requires_grad
        except RuntimeError as error:
            is_recorded, cause = False, error
        if not is_recorded:
            raise ValueError(
                "torch cannot differentiate this step: what it returns does not come from its "
                "state by operations that torch records (numpy, .detach() and torch.no_grad() are "
                "outside). Write it in torch, or pass its Jacobians or functions Q → J Q"
            ) from cause

    def _at(self, t: int) -> Callable[[Tensor], Tensor]:
        if self._inputs is None:
            return self._step
        x = self._inputs[:, t]
        return lambda state: self._step(state, x)

    def maps(self) -> Iterator[StepMap]:
        """The derivative of every step, in order."""
        state = self._start
        for t in range(self.num_steps):
            step = self._at(t)
            yield StepMap(step, state)
            with torch.no_grad():
                state = step(state).detach()


class MatrixMap:
    """One given Jacobian of every sequence.

    Example:
        >>> J = MatrixMap(torch.diag(torch.tensor([2.0, 4.0])).expand(1, 1, 2, 2))
        >>> round(J.log_abs_det().exp().item(), 6)
        8.0
    """

    def __init__(self, J_NBDD: Tensor) -> None:
        self._J = J_NBDD

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q."""
        return self._J @ Q_NBDK

    def log_abs_det(self) -> Tensor | None:
        """ln|det J| (1, B); None for a map between different spaces."""
        if self._J.shape[-1] != self._J.shape[-2]:
            return None
        return log_abs_det(self._J)


class GivenMaps:
    """Given Jacobians (D', D) or (B, D', D), or functions Q → J Q, one a step, read once.

    Example:
        >>> orbit = GivenMaps([torch.eye(2)] * 3, 3, 1, 2, torch.float64, torch.device("cpu"))
        >>> next(orbit.maps())(torch.ones(1, 1, 2, 1).double()).shape
        torch.Size([1, 1, 2, 1])
    """

    num_members = 1

    def __init__(
        self,
        maps: Iterable[Any],
        num_steps: int,
        num_sequences: int,
        tangent_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._maps = maps
        self.num_steps, self.num_sequences = num_steps, num_sequences
        self.tangent_size, self.dtype, self.device = tangent_size, dtype, device

    def maps(self) -> Iterator[Map]:
        """The maps in order; matrices converted to the precision asked for."""
        for J in self._maps:
            if isinstance(J, Tensor):
                check_precision(J)
                moved = J.to(dtype=self.dtype, device=self.device)
                yield MatrixMap(moved.expand(1, self.num_sequences, *J.shape[-2:]))
            else:
                yield J


def check_precision(tensor: Tensor) -> None:
    """Raises ValueError for half precision and for complex numbers.

    Example:
        >>> check_precision(torch.zeros(2))
        >>> try:
        ...     check_precision(torch.zeros(2).half())
        ... except ValueError as error:
        ...     print(str(error)[:36])
        torch.float16 carries too few digits
    """
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"{tensor.dtype} carries too few digits for exponents; convert to float32 or float64, "
            "knowing that the spectrum is then that of the converted network"
        )
    if tensor.is_complex():
        raise ValueError(
            f"{tensor.dtype} is not supported: write a complex map as a real one of twice the size"
        )


def _differentiable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def _untouched_generators(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def generator_states(device: torch.device) -> list[Tensor]:
    """States of the global generators that a function on this device may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def have_drawn(before: list[Tensor], device: torch.device) -> bool:
    """Whether numbers were drawn since the generators were in these states."""
    return not all(map(torch.equal, before, generator_states(device)))


def num_arguments(step: Callable[..., Any]) -> int | None:
    """How many positional arguments a step must be given; None where it does not say.

    Example:
        >>> num_arguments(lambda s, x: s + x), num_arguments(lambda s, dt=0.1: dt * s)
        (2, 1)
    """
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
