"""Orbits of plain functions and of given maps: what has no network behind it.

A step is a function of the state, `step(s)`, or of state and input, `step(s, x)`, for states
(B, D) row by row. Its derivative comes from forward-mode automatic differentiation where all its
operations have one, and from D reverse passes otherwise.

Shapes: B sequences, T steps, I inputs, D state, K tangents. The member axis N is 1 throughout.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.dynamics.propagate import Map


class StepMap:
    """The derivative of a step at one state, the input held fixed."""

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
    """A step applied `num_steps` times from `start` (B, D), with the inputs (B, T, I) if any."""

    num_members = 1

    def __init__(
        self,
        step: Callable[..., Tensor],
        start_BD: Tensor,
        inputs_BTI: Tensor | None,
        num_steps: int,
        loop: str = "open",
    ) -> None:
        self._step, self._start, self._inputs = step, start_BD, inputs_BTI
        self.num_sequences, self.tangent_size = start_BD.shape
        self.num_steps, self.loop = num_steps, loop
        self.dtype, self.device = start_BD.dtype, start_BD.device
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            after, again = self._at(0)(start_BD), self._at(0)(start_BD)
        if not torch.equal(after.nan_to_num(), again.nan_to_num()):
            raise ValueError(
                "a step must not be random, but two calls with the same state differ; switch "
                "dropout off or draw its mask once"
            )
        if after.shape != start_BD.shape:
            raise ValueError(
                f"a step must return states of the shape it gets; it got {tuple(start_BD.shape)} "
                f"and returned {tuple(after.shape)}"
            )

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
    """One given Jacobian of every sequence."""

    def __init__(self, J_NBDD: Tensor) -> None:
        self._J = J_NBDD

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q."""
        return self._J @ Q_NBDK

    def log_abs_det(self) -> Tensor | None:
        """ln|det J| (1, B); None for a map between different spaces."""
        if self._J.shape[-1] != self._J.shape[-2]:
            return None
        return cast(Tensor, torch.linalg.slogdet(self._J.double()).logabsdet)


class GivenMaps:
    """Given Jacobians (D', D) or (B, D', D), or functions Q → J Q, one a step, read once."""

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
                moved = J.to(dtype=self.dtype, device=self.device)
                yield MatrixMap(moved.expand(1, self.num_sequences, *J.shape[-2:]))
            else:
                yield J


def num_arguments(step: Callable[..., Any]) -> int | None:
    """How many positional arguments a step must be given; None where it does not say."""
    try:
        parameters = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
