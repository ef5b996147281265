"""What can be measured, and how it becomes an orbit with a warm-up and a number of steps.

A source is a network with `orbit`, an `Orbit`, a recurrent module of `torch.nn`, a function of the
state, or given Jacobians or maps. What cannot be measured is refused here, before any arithmetic.

Shapes: B sequences, T steps, I inputs, D state, K tangents.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.dynamics.modules import MODULES, ModuleOrbit
from pipeline.dynamics.propagate import Orbit
from pipeline.dynamics.steps import GivenMaps, StepOrbit, check_precision, num_arguments

WARMUP_SHARE = 5
"""`warmup="auto"` gives one part in this many of the steps to the warm-up."""


class DrivenNetwork(Protocol):
    """Anything that can say which maps it applies to given inputs."""

    def orbit(self, inputs: Tensor, *, state: Any, dtype: torch.dtype) -> Any:
        """An `Orbit`."""
        ...


class Run(NamedTuple):
    """An orbit and how far to go along it; `is_population`: whether results lead with N."""

    orbit: Orbit
    is_population: bool
    warmup: int
    counted: int


def as_run(
    source: Any,
    inputs: Tensor | None,
    state: Literal["full", "hidden"],
    dtype: torch.dtype,
    steps: int | None,
    warmup: int | Literal["auto"],
    tangents: Tensor | None,
    *,
    loop: Literal["open", "closed"],
    start: Tensor | None,
) -> Run:
    """What to carry frames along, and how far.

    Raises ValueError for what cannot be measured and for settings that do not fit it.
    """
    if warmup != "auto":
        warmup = whole_number("warmup", warmup, or_auto=True)
    if steps is not None:
        steps = whole_number("steps", steps)
    if state not in ("full", "hidden"):
        raise ValueError(f"state must be 'full' or 'hidden', got {state!r}")
    if loop not in ("open", "closed"):
        raise ValueError(f"loop must be 'open' or 'closed', got {loop!r}")
    refuse_imprecise(source, inputs, start)
    is_network, is_module = hasattr(source, "orbit"), isinstance(source, MODULES)
    is_orbit = hasattr(source, "maps") and not is_network
    is_step = callable(source) and not (is_network or is_module or is_orbit)
    if start is not None and not (is_module or is_step):
        raise ValueError(
            "`start` belongs to functions and torch.nn modules; our networks start at zero, "
            "and given maps have no state"
        )
    if loop == "closed" and not (is_network or is_step):
        raise ValueError(
            "a closed loop needs something that turns states into inputs; a torch.nn module has no "
            "readout, and given maps have no inputs. Wrap it in a function step(s), or in "
            "step(s, x) with step.readout(s)"
        )
    if is_step:
        orbit, available = _step_orbit(source, inputs, state, dtype, steps, warmup, loop, start)
        return Run(orbit, False, *_split_steps(available, steps, warmup))
    if is_network or is_module:
        if inputs is None:
            raise ValueError("a network needs `inputs`: (B, T, I), tokens (B, T) or vectors (B, I)")
        if inputs.ndim < 2 or 0 in inputs.shape:
            raise ValueError(
                f"inputs must be (B, T, I), (B, T) or (B, I), none empty; got {tuple(inputs.shape)}"
            )
        if loop == "closed":
            return _closed_network(source, inputs, state, dtype, steps, warmup)
        driven: Orbit = (
            ModuleOrbit(source, inputs, state=state, dtype=dtype, start=start)
            if is_module
            else source.orbit(inputs, state=state, dtype=dtype)
        )
        return Run(driven, is_network, *_split_steps(driven.num_steps, steps, warmup))
    if inputs is not None or state != "full":
        raise ValueError("`inputs` and `state` belong to networks; maps and orbits have their own")
    if is_orbit:
        if source.dtype != dtype:
            raise ValueError(f"the orbit computes in {source.dtype}, but dtype is {dtype}")
        return Run(source, True, *_split_steps(source.num_steps, steps, warmup))
    maps, available = _given_maps(source, steps, warmup)
    split = _split_steps(available, steps, warmup)
    return Run(_maps_orbit(maps, sum(split), tangents, dtype), False, *split)


def _step_orbit(
    step: Callable[..., Tensor],
    inputs: Tensor | None,
    state: str,
    dtype: torch.dtype,
    steps: int | None,
    warmup: int | Literal["auto"],
    loop: str,
    start: Tensor | None,
) -> tuple[StepOrbit, int]:
    """A function as an orbit, and how many maps there are."""
    if state != "full":
        raise ValueError("state='hidden' belongs to networks; a function has one state, the full")
    given = num_arguments(step)
    if given == 1 and inputs is not None and start is not None:
        raise ValueError(
            "a function of the state alone gets no inputs, but both `inputs` and `start` are "
            "given; for step(s, x), x must have no default"
        )
    is_driven = given == 2 if given in (1, 2) else inputs is not None and start is not None
    if start is None and not is_driven:
        start, inputs = inputs, None
    if start is None or start.ndim not in (1, 2) or 0 in start.shape:
        shape = None if start is None else tuple(start.shape)
        raise ValueError(f"a function needs its `start` state, (D,) or (B, D), got {shape}")
    if is_driven and (inputs is None or inputs.ndim != 3 or 0 in inputs.shape):
        raise ValueError(
            "step(s, x) needs inputs (B, T, I), none empty; got "
            f"{None if inputs is None else tuple(inputs.shape)}"
        )
    s = start.to(dtype)
    x = None if inputs is None else inputs.to(dtype) if inputs.is_floating_point() else inputs
    if s.ndim == 1:
        s = s.expand(1 if x is None else x.shape[0], -1)
    if is_driven and loop == "closed":
        readout = getattr(step, "readout", None)
        if readout is None:
            raise ValueError("loop='closed' needs step.readout(s), the next input, got none")
        assert x is not None
        for x_now in x.unbind(1):
            s = step(s, x_now)
        return _endless(lambda s: step(s, readout(s)), s, steps, warmup, "closed")
    if is_driven:
        assert x is not None
        return StepOrbit(step, s, x, x.shape[1]), x.shape[1]
    return _endless(step, s, steps, warmup, "closed" if loop == "closed" else "autonomous")


def _endless(
    step: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int | None,
    warmup: int | Literal["auto"],
    loop: str,
) -> tuple[StepOrbit, int]:
    available = _length_wanted(steps, warmup)
    return StepOrbit(step, start, None, available, loop), available


def _closed_network(
    network: Any,
    inputs: Tensor,
    state: Literal["full", "hidden"],
    dtype: torch.dtype,
    steps: int | None,
    warmup: int | Literal["auto"],
) -> Run:
    name = type(network).__name__
    if not hasattr(network, "closed_orbit"):
        raise ValueError(f"loop='closed' needs a network with `closed_orbit`; {name} has none")
    if not inputs.is_floating_point():
        raise ValueError(
            "loop='closed' needs real inputs: choosing the next token is no differentiable map"
        )
    available = _length_wanted(steps, warmup)
    orbit = network.closed_orbit(inputs, steps=available, state=state, dtype=dtype)
    return Run(orbit, True, *_split_steps(available, steps, warmup))


def _length_wanted(steps: int | None, warmup: int | Literal["auto"]) -> int:
    """Maps of an orbit that has no end of its own: "auto" adds a warm-up of a quarter of `steps`,
    a fifth of the whole."""
    if steps is None:
        raise ValueError("an orbit without given inputs has no end of its own: pass `steps`")
    if warmup == "auto":
        return steps + math.ceil(steps / (WARMUP_SHARE - 1))
    return steps + max(0, warmup)


def _given_maps(
    source: Any, steps: int | None, warmup: int | Literal["auto"]
) -> tuple[Iterable[Any], int]:
    if isinstance(source, Tensor):
        if source.ndim not in (3, 4):
            raise ValueError(
                f"Jacobians must be (T, D, D) or (T, B, D, D), got {tuple(source.shape)}"
            )
        return source.unbind(0), len(source)
    if not isinstance(source, Iterable):
        raise ValueError(
            "a spectrum needs a network, an orbit, a torch.nn recurrence, a function of the state, "
            f"or Jacobians; got {type(source).__name__}"
        )
    if not hasattr(source, "__len__") and steps is not None:
        # A stream is read map by map: it may be longer than memory, or have no end.
        wanted = _length_wanted(steps, warmup)
        if warmup != "auto":
            return source, wanted
        source = itertools.islice(source, wanted)
    maps = list(source)
    return maps, len(maps)


def _maps_orbit(
    maps: Iterable[Any], num_steps: int, tangents: Tensor | None, dtype: torch.dtype
) -> GivenMaps:
    stream = iter(maps)
    first = next(stream, None)
    if first is None:
        raise ValueError("there are no maps: a spectrum needs at least one")
    if isinstance(first, Tensor):
        if first.ndim not in (2, 3) or 0 in first.shape:
            raise ValueError(f"a Jacobian must be (D, D) or (B, D, D), got {tuple(first.shape)}")
        size, device = first.shape[-1], first.device
        num_sequences = first.shape[0] if first.ndim == 3 else 1
    elif not callable(first):
        raise ValueError(f"maps must be matrices or functions Q → J Q, got {type(first).__name__}")
    elif tangents is None or tangents.ndim < 2:
        raise ValueError("maps given as functions do not say their size: pass `tangents` (D, k)")
    else:
        size, device = tangents.shape[-2], tangents.device
        num_sequences = tangents.shape[1] if tangents.ndim == 4 else 1
    whole = itertools.chain([first], stream)
    return GivenMaps(whole, num_steps, num_sequences, size, dtype, device)


def whole_number(name: str, value: Any, *, or_auto: bool = False) -> int:
    """The setting as an int. Raises ValueError for what is none.

    Example:
        >>> whole_number("steps", 7)
        7
        >>> try:
        ...     whole_number("warmup", 2.5, or_auto=True)
        ... except ValueError as error:
        ...     print(error)
        warmup must be a whole number or 'auto', got 2.5
    """
    try:
        return operator.index(value)
    except TypeError:
        choice = " or 'auto'" if or_auto else ""
        raise ValueError(f"{name} must be a whole number{choice}, got {value!r}") from None


def refuse_imprecise(*sources: Any) -> None:
    """Raises ValueError for half precision and for complex numbers, anywhere in what is given.

    Modules are looked at by their parameters, tensors by themselves, all else is let through.
    """
    for source in sources:
        given = source.parameters() if isinstance(source, nn.Module) else [source]
        for tensor in given:
            if isinstance(tensor, Tensor):
                check_precision(tensor)


def _split_steps(
    available: int, steps: int | None, warmup: int | Literal["auto"]
) -> tuple[int, int]:
    """Warm-up and counted steps out of those available."""
    if available < 1:
        raise ValueError("there are no maps: a spectrum needs at least one")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if warmup == "auto":
        spare = available if steps is None else max(0, available - steps)
        before = min(available // WARMUP_SHARE, spare)
    elif warmup >= 0:
        before = warmup
    else:
        raise ValueError(f"warmup must be at least 0 or 'auto', got {warmup}")
    counted = available - before if steps is None else steps
    if counted < 1 or before + counted > available:
        raise ValueError(
            f"warmup + steps must fit the maps there are; got warmup={warmup}, "
            f"steps={steps} and {available} maps"
        )
    return before, counted


@contextmanager
def in_eval_mode(source: Any) -> Iterator[None]:
    """Modules are measured as they are used, without dropout and with fixed norms."""
    is_module = isinstance(source, nn.Module)
    was_training = [m for m in source.modules() if m.training] if is_module else []
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True
