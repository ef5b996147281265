"""Lyapunov spectra of networks and of given maps, with the error each number carries.

λ_i = lim (1/t) log σ_i(J_t … J_1), by QR along the orbit (Benettin et al. 1980; Shimada &
Nagashima 1979), in nats per application of the map. Never per epoch, never in bits unless asked.

What can be measured: our networks, recurrent modules of `torch.nn`, functions of the state, and
given Jacobians. A network's state is (h, c) of all layers, "full"; "hidden" holds the cells fixed
and is the convention of Vogt et al. (2022), whose numbers are those of no dynamics.

Shapes: N members, B sequences, T steps, I inputs, D state, K exponents, M time blocks.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dynamics import derived
from pipeline.dynamics.modules import MODULES, ModuleOrbit
from pipeline.dynamics.orthonormal import factorise, pick
from pipeline.dynamics.propagate import Growth, Map, Orbit, carry, floor_depth, random_frame
from pipeline.dynamics.steps import GivenMaps, StepOrbit, num_arguments
from pipeline.dynamics.uncertainty import standard_error

LN2 = math.log(2)
WARMUP_SHARE = 5
"""`warmup="auto"` gives one part in this many of the steps to the warm-up."""

FEWEST_INDEPENDENT = 10
"""Independent blocks below which an error says too little about itself."""

EARLIEST_END = 16
"""Counted steps before which no `tolerance` ends a run."""


class DrivenNetwork(Protocol):
    """Anything that can say which maps it applies to given inputs."""

    def orbit(self, inputs: Tensor, *, state: Any, dtype: torch.dtype) -> Any:
        """An `Orbit`."""
        ...


@dataclass(frozen=True)
class Spectrum:
    """Lyapunov exponents and how far to trust them.

    Leading axes (…) are (N,) for a network or an orbit, a population of N ≥ 1, and () for maps.

    Attributes:
        exponents: (…, K) mean over sequences, in the order of the QR; −inf is a value.
        per_sequence: (…, B, K).
        standard_error: (…, K) of `exponents`; NaN where it cannot be known.
        block_logs: (…, B, K, M) growth Σ log R_ii in each time block; nats whatever the unit.
        block_steps: (M,) steps in each block.
        at_floor: (…, K) True where R_ii once met rounding: the exponent is an upper bound.
        minus_infinity: (…, K) True where the exponent is −inf.
        num_zeros: (…, K) how often R_ii was exactly 0.
        converged: (…, K) True where both halves of the run agree within their errors, the
            blocks amount to ten independent ones, and neither flag above is set. Not a promise
            about longer times.
        steps: counted maps. warmup: maps before them. tangent_size: D.
        t_on: T_ON of each member at the end of the run.
        state: "full", "hidden" or what the orbit calls it.
        loop: "open", driven by inputs; "closed", fed with its own outputs; "autonomous".
        method: how frames were factorised, `orthonormal.Method`.
        has_reached_tolerance: whether the run ended because its errors were small enough; None
            where no tolerance was given.
        dtype: precision of the tangents; logs are float64 always.
        self_check: name → (…,) error. `autodiff`: relative difference between the tangent used
            and automatic differentiation at one random step. `sum_rule`: |Σλ − ⟨log|det J|⟩|
            per step and dimension, where K = D and the determinant is known in closed form.
            `log_det`: the same at one random step against the determinant of the explicit J,
            where K = D and it is not.
        self_check_passed: (…,) bool; True where there was nothing to check.
    """

    exponents: Tensor
    per_sequence: Tensor
    standard_error: Tensor
    block_logs: Tensor
    block_steps: Tensor
    at_floor: Tensor
    minus_infinity: Tensor
    num_zeros: Tensor
    converged: Tensor
    steps: int
    warmup: int
    tangent_size: int
    t_on: tuple[int, ...]
    state: str
    dtype: torch.dtype
    self_check: dict[str, Tensor] = field(default_factory=dict)
    self_check_passed: Tensor = field(default_factory=lambda: torch.tensor(True))
    loop: str = "open"
    unit: str = "nats/step"
    method: str = "householder"
    has_reached_tolerance: bool | None = None

    def bits(self) -> "Spectrum":
        """The same spectrum in bits per step; `block_logs` stay in nats.

        Example:
            >>> doubling = lyapunov_spectrum(torch.full((50, 1, 1), 2.0))
            >>> doubling.bits().exponents.item(), doubling.bits().unit
            (1.0, 'bits/step')
        """
        if self.unit == "bits/step":
            return self
        return replace(
            self,
            exponents=self.exponents / LN2,
            per_sequence=self.per_sequence / LN2,
            standard_error=self.standard_error / LN2,
            unit="bits/step",
        )

    @property
    def history(self) -> Tensor:
        """(…, K, M) the estimate after each block, mean over sequences, in `unit`."""
        steps = self.block_steps.cumsum(0).to(self.block_logs.device)
        running = self.block_logs.cumsum(-1).mean(-3) / steps
        return running / LN2 if self.unit == "bits/step" else running

    @property
    def kaplan_yorke(self) -> Tensor:
        """(…,) Kaplan–Yorke dimension; NaN where K < D exponents do not suffice."""
        return self._derive(derived.kaplan_yorke(self._numpy(), self.tangent_size))

    @property
    def entropy_bound(self) -> Tensor:
        """(…,) sum of the positive exponents, an upper bound of the entropy rate."""
        return self._derive(derived.entropy_bound(self._numpy(), self.tangent_size))

    def table(self) -> dict[str, np.ndarray[Any, Any]]:
        """One row an exponent (and a member): columns of equal length by name.

        Example:
            >>> table = lyapunov_spectrum(torch.eye(2).expand(50, 2, 2)).table()
            >>> list(table)[:3], table["index"].tolist()
            (['index', 'exponent', 'standard_error'], [1, 2])
        """
        lead = self.exponents.shape[:-1]
        index = np.broadcast_to(np.arange(1, self.exponents.shape[-1] + 1), self.exponents.shape)
        columns: dict[str, np.ndarray[Any, Any]] = {}
        if lead:
            members = np.arange(lead[0])[:, None]
            columns["member"] = np.broadcast_to(members, self.exponents.shape).ravel()
        columns["index"] = index.ravel()
        names = ("exponents", "standard_error", "at_floor", "minus_infinity", "num_zeros")
        for name in (*names, "converged"):
            column = "exponent" if name == "exponents" else name
            columns[column] = getattr(self, name).cpu().numpy().ravel()
        return columns

    def _numpy(self) -> derived.Array:
        return self.exponents.cpu().numpy()

    def _derive(self, values: derived.Array) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=self.exponents.device)


def lyapunov_spectrum(
    network_or_maps: DrivenNetwork | nn.Module | Orbit | Callable[..., Tensor] | Iterable[Any],
    inputs: Tensor | None = None,
    *,
    k: int | None = None,
    state: Literal["full", "hidden"] = "full",
    steps: int | None = None,
    warmup: int | Literal["auto"] = "auto",
    t_on: int | Literal["auto"] = "auto",
    dtype: torch.dtype = torch.float64,
    tangents: Tensor | None = None,
    tolerance: float | None = None,
    loop: Literal["open", "closed"] = "open",
    start: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Spectrum:
    """The k largest Lyapunov exponents, or all of them.

    Args:
        network_or_maps: one of
            a network with `orbit`, or an `Orbit`: a population, whose N leads the result;
            `torch.nn.RNN`, `LSTM`, `GRU` or one of their cells. They are measured without
            dropout, whatever mode they are in, and left in that mode;
            a function (or module) `step(s)` or `step(s, x)` of states (B, D) and inputs (B, I),
            row by row, not random, that torch can differentiate;
            Jacobians: a tensor (T, D, D) or (T, B, D, D), or any iterable of matrices (D', D) or
            (B, D', D), or of functions Q (1, B, D, k) → J Q, for which `tangents` says D.
        inputs: for networks and modules: (B, T, I) sequences, whatever `batch_first` says; (B, T)
            tokens or (B, I) vectors where the network takes them. For `step(s, x)`: (B, T, I).
            For `step(s)`: its start state, if `start` is not given.
        k: number of exponents; None: all D.
        state: for networks and modules whose state has parts: "full", the true state, or
            "hidden", the papers' H×H block with the cell state held fixed. The state of a layer
            is h, then c; layers in order.
        steps: maps to count; None: all that the warm-up leaves. Needed by `step(s)`, by closed
            loops, and by maps between spaces of different size.
        warmup: maps through which state and frame relax before counting, taken from the start of
            the same maps; 0: none. "auto": a fifth of the maps, less if `steps` needs them.
        t_on: maps between re-orthonormalisations; "auto": per member, from its own R.
        dtype: float64 or float32, of state and tangents. For maps given as tensors, they are
            converted; an `Orbit` must already have it.
        tangents: initial frame (D, k), (N, D, k) or (N, B, D, k), any full-rank columns.
        tolerance: end the run as soon as the standard error of every exponent that is neither at
            a floor nor −inf is below this, in nats per step, and at least 16 time blocks are
            counted; `has_reached_tolerance` says whether that came before the maps ended. Members
            of a population end together.
        loop: "open": driven by `inputs`. "closed": all of `inputs` pass first, then the network's
            output is its next input for warm-up and `steps`; needs outputs of the size of inputs.
            For a function, `step.readout(s)` must give the next input.
        start: state before the first map, (D,) or (B, D), of a function or a `torch.nn` module;
            None: zeros for a module.
        generator: draws the random orthonormal frame otherwise; a list gives each member its
            own. None: a generator with a fixed seed. Global random state is never used.

    Raises ValueError for what cannot be measured and for settings that do not fit, e.g. a warm-up
    longer than the inputs, bidirectional modules, half precision. NaN weights, inputs or states
    give NaN exponents for their member, not converged and with a failed self-check, and leave
    other members alone.

    Example:
        >>> spectrum = lyapunov_spectrum(torch.tensor([[2.0, 1.0], [1.0, 1.0]]).expand(200, 2, 2))
        >>> [round(x, 6) for x in spectrum.exponents.tolist()]
        [0.962424, -0.962424]
        >>> henon = lambda s: torch.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1)
        >>> spectrum = lyapunov_spectrum(henon, torch.zeros(2), steps=400)
        >>> round(spectrum.exponents.sum().item(), 9)  # ln 0.3, whatever the orbit
        -1.203972804
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be greater than 0, got {tolerance}")
    if t_on != "auto" and t_on < 1:
        raise ValueError(f"t_on must be at least 1 or 'auto', got {t_on}")
    with exact_arithmetic(), _in_eval_mode(network_or_maps):
        run = _as_run(
            network_or_maps, inputs, state, dtype, steps, warmup, tangents, loop=loop, start=start
        )
        orbit = run.orbit
        num_exponents = _check_count(k, orbit.tangent_size)
        if tangents is None:
            source = torch.Generator().manual_seed(0) if generator is None else generator
            frame = random_frame(orbit, num_exponents, source)
        else:
            frame = _given_frame(tangents, orbit, k)
        goal = None if tolerance is None else _Goal(tolerance, orbit.dtype)
        # A run that may end early is checked where it certainly passes.
        certain = run.counted if goal is None else min(run.counted, EARLIEST_END)
        check = _SelfCheck(orbit, frame, run.warmup, certain)
        growth = carry(
            orbit,
            frame,
            warmup=run.warmup,
            steps=run.counted,
            t_on=t_on,
            observe=check,
            rectangular=steps is not None,
            enough=goal,
        )
    logs, block_steps = growth.logs_NBKM, growth.block_steps_M
    counted = int(block_steps.sum())
    per_sequence = logs.sum(-1) / counted
    exponents = per_sequence.mean(1)
    error = standard_error(logs, block_steps)
    at_floor = growth.deepest_NK < floor_depth(orbit.dtype)
    minus_infinity = torch.isneginf(exponents)
    has_settled = _halves_agree(logs, block_steps, error) & _is_long(logs, block_steps, error)
    errors = check.errors(logs, counted)
    result = Spectrum(
        exponents=exponents,
        per_sequence=per_sequence,
        standard_error=error,
        block_logs=logs,
        block_steps=block_steps,
        at_floor=at_floor,
        minus_infinity=minus_infinity,
        num_zeros=growth.num_zeros_NK,
        converged=has_settled & ~at_floor & ~minus_infinity,
        steps=counted,
        warmup=run.warmup,
        tangent_size=orbit.tangent_size,
        t_on=growth.t_on_N,
        state=getattr(orbit, "state", "full"),
        dtype=orbit.dtype,
        self_check=errors,
        self_check_passed=check.passed(errors) & ~torch.isnan(exponents).any(-1),
        loop=getattr(orbit, "loop", "open"),
        method=growth.method,
        has_reached_tolerance=None if goal is None else goal(growth),
    )
    return result if run.is_population else _without_members(result)


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


@contextmanager
def _in_eval_mode(source: Any) -> Iterator[None]:
    """Modules used as functions are measured as they are used: no dropout, fixed norms."""
    was_training = [m for m in source.modules() if m.training] if _is_module(source) else []
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _is_module(source: Any) -> bool:
    return isinstance(source, nn.Module)


class _Run(NamedTuple):
    orbit: Orbit
    is_population: bool
    warmup: int
    counted: int


def _as_run(
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
) -> _Run:
    """What to carry frames along, and how far."""
    if state not in ("full", "hidden"):
        raise ValueError(f"state must be 'full' or 'hidden', got {state!r}")
    if loop not in ("open", "closed"):
        raise ValueError(f"loop must be 'open' or 'closed', got {loop!r}")
    if isinstance(source, nn.Module):
        _refuse_half(next(source.parameters(), None))
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
        return _Run(orbit, False, *_split_steps(available, steps, warmup))
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
        return _Run(driven, is_network, *_split_steps(driven.num_steps, steps, warmup))
    if inputs is not None or state != "full":
        raise ValueError("`inputs` and `state` belong to networks; maps and orbits have their own")
    if is_orbit:
        if source.dtype != dtype:
            raise ValueError(f"the orbit computes in {source.dtype}, but dtype is {dtype}")
        return _Run(source, True, *_split_steps(source.num_steps, steps, warmup))
    maps, available = _given_maps(source, steps, warmup)
    split = _split_steps(available, steps, warmup)
    return _Run(_maps_orbit(maps, sum(split), tangents, dtype), False, *split)


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
    for tensor in (start, inputs):
        _refuse_half(tensor)
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
) -> _Run:
    name = type(network).__name__
    if not hasattr(network, "closed_orbit"):
        raise ValueError(f"loop='closed' needs a network with `closed_orbit`; {name} has none")
    if not inputs.is_floating_point():
        raise ValueError(
            "loop='closed' needs real inputs: choosing the next token is no differentiable map"
        )
    available = _length_wanted(steps, warmup)
    orbit = network.closed_orbit(inputs, steps=available, state=state, dtype=dtype)
    return _Run(orbit, True, *_split_steps(available, steps, warmup))


def _length_wanted(steps: int | None, warmup: int | Literal["auto"]) -> int:
    """Maps of an orbit that has no end of its own: "auto" adds a warm-up of a quarter of `steps`,
    a fifth of the whole."""
    if steps is None:
        raise ValueError("an orbit without given inputs has no end of its own: pass `steps`")
    if not isinstance(warmup, int):
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
        _refuse_half(source)
        return source.unbind(0), len(source)
    if not isinstance(source, Iterable):
        raise ValueError(
            "a spectrum needs a network, an orbit, a torch.nn recurrence, a function of the state, "
            f"or Jacobians; got {type(source).__name__}"
        )
    if not hasattr(source, "__len__") and steps is not None and isinstance(warmup, int):
        # A stream is read map by map: it may be longer than memory.
        return source, steps + max(0, warmup)
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
        _refuse_half(first)
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


def _refuse_half(tensor: Tensor | None) -> None:
    if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"{tensor.dtype} carries too few digits for exponents; convert to float32 or float64, "
            "knowing that the spectrum is then that of the converted network"
        )


def _split_steps(
    available: int, steps: int | None, warmup: int | Literal["auto"]
) -> tuple[int, int]:
    """Warm-up and counted steps out of those available."""
    if available < 1:
        raise ValueError("there are no maps: a spectrum needs at least one")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not isinstance(warmup, int):
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


def _check_count(k: int | None, tangent_size: int) -> int:
    if k is None:
        return tangent_size
    if not 1 <= k <= tangent_size:
        raise ValueError(f"k must be between 1 and the state's size {tangent_size}, got {k}")
    return k


def _given_frame(tangents: Tensor, orbit: Orbit, k: int | None) -> Tensor:
    lead = {2: (1, 1), 3: (orbit.num_members, 1), 4: (orbit.num_members, orbit.num_sequences)}
    rows, columns = tangents.shape[-2:] if tangents.ndim >= 2 else (0, 0)
    fits = (
        tangents.ndim in lead
        and tangents.shape[:-2] == lead[tangents.ndim][: tangents.ndim - 2]
        and rows == orbit.tangent_size
        and columns == (columns if k is None else k)
        and 1 <= columns <= rows
    )
    if not fits:
        raise ValueError(
            f"tangents must be (D, k), (N, D, k) or (N, B, D, k) with D = {orbit.tangent_size}, "
            f"k = {'at most D' if k is None else k}, N = {orbit.num_members}, "
            f"B = {orbit.num_sequences}; got {tuple(tangents.shape)}"
        )
    given = tangents.reshape(*lead[tangents.ndim], rows, columns)
    Q: Tensor = torch.linalg.qr(given.to(dtype=torch.float64)).Q
    return Q.to(dtype=orbit.dtype, device=orbit.device)


def _is_long(logs_NBKM: Tensor, block_steps_M: Tensor, error_NK: Tensor) -> Tensor:
    """True where the error is that of ten independent blocks or more: a trend makes it larger."""
    rates = logs_NBKM / block_steps_M.to(logs_NBKM.device)
    spread_NK = rates.movedim(2, 1).flatten(2).var(-1, correction=0)
    return error_NK.square() * FEWEST_INDEPENDENT <= spread_NK


def _halves_agree(logs_NBKM: Tensor, block_steps_M: Tensor, error_NK: Tensor) -> Tensor:
    """True where the means of both halves differ by no more than three standard errors.

    Each half has about √2 times the error of the whole, their difference twice.
    """
    num_blocks = logs_NBKM.shape[-1]
    if num_blocks < 2:
        return torch.zeros_like(error_NK, dtype=torch.bool)
    middle = num_blocks // 2
    early = logs_NBKM[..., :middle].sum(-1).mean(1) / block_steps_M[:middle].sum()
    late = logs_NBKM[..., middle:].sum(-1).mean(1) / block_steps_M[middle:].sum()
    return (late - early).abs() <= 3 * 2 * error_NK


class _Goal:
    """Whether every exponent that is a number is known to `tolerance`."""

    def __init__(self, tolerance: float, dtype: torch.dtype) -> None:
        self._tolerance, self._floor = tolerance, floor_depth(dtype)

    def __call__(self, growth: Growth) -> bool:
        error = standard_error(growth.logs_NBKM, growth.block_steps_M)
        total = growth.logs_NBKM.sum((1, -1))
        is_number = torch.isfinite(total) & (growth.deepest_NK >= self._floor)
        return bool(((error < self._tolerance) | ~is_number).all())


class _SelfCheck:
    """Compares the tangents that are used with what is known about them independently."""

    def __init__(self, orbit: Orbit, frame: Tensor, warmup: int, counted: int) -> None:
        self._orbit, self._warmup, self._frame = orbit, warmup, frame
        self._is_full = frame.shape[-1] == orbit.tangent_size
        choice = torch.Generator().manual_seed(counted)
        self._step = warmup + int(torch.randint(counted, (), generator=choice))
        q = torch.randn(orbit.tangent_size, generator=choice, dtype=torch.float64)
        self._probe = (q / q.norm()).to(dtype=orbit.dtype, device=orbit.device)
        self._autodiff: Tensor | None = None
        self._single: Tensor | None = None
        self._log_det: Tensor | None = None

    def __call__(self, step: int, J: Map) -> None:
        if step == self._step and hasattr(J, "autodiff"):
            self._autodiff = self._compare_with_autodiff(J)
        if self._is_full and step >= self._warmup and hasattr(J, "log_abs_det"):
            log_det = J.log_abs_det()
            if log_det is not None:
                log_det = log_det.double()
                self._log_det = log_det if self._log_det is None else self._log_det + log_det
        if self._is_full and step == self._step and self._log_det is None and hasattr(J, "dense"):
            self._single = self._compare_determinant(J)

    def _compare_with_autodiff(self, J: Any) -> Tensor:
        shape = (self._orbit.num_members, self._orbit.num_sequences, -1)
        q = self._probe.expand(*shape)
        ours, reference = J(q.unsqueeze(-1)).squeeze(-1), J.autodiff(q)
        scale = torch.linalg.vector_norm(reference, dim=-1)
        difference = torch.linalg.vector_norm(ours - reference, dim=-1)
        relative = torch.where(difference == 0, 0.0, difference / scale)
        return relative.double().amax(1)

    def _compare_determinant(self, J: Any) -> Tensor | None:
        """|Σ log R_ii − log|det J|| per dimension of the frame given, through the same methods."""
        dense: Tensor = J.dense()
        if dense.shape[-1] != dense.shape[-2]:
            return None
        N, B, D, _ = dense.shape
        method = pick(D, D, self._orbit.dtype, self._orbit.device)
        grown = factorise(J(self._frame.expand(N, B, D, D)), method).logs.sum(-1)
        known = torch.linalg.slogdet(dense.double()).logabsdet
        difference: Tensor = torch.where(grown == known, 0.0, (grown - known).abs()).amax(1)
        return difference / D

    def errors(self, logs_NBKM: Tensor, counted: int) -> dict[str, Tensor]:
        """Name → error (N,) of every check that could be made."""
        found: dict[str, Tensor] = {}
        if self._autodiff is not None:
            found["autodiff"] = self._autodiff
        if self._single is not None:
            found["log_det"] = self._single
        if self._log_det is not None:
            total = logs_NBKM.sum((-1, -2))
            difference = torch.where(total == self._log_det, 0.0, (total - self._log_det).abs())
            found["sum_rule"] = difference.amax(1) / counted / self._orbit.tangent_size
        return found

    def passed(self, errors: dict[str, Tensor]) -> Tensor:
        # √ε for the sum: with a fixed T_ON, half of the digits may be lost between two QRs.
        eps = torch.finfo(self._orbit.dtype).eps
        allowed = {"autodiff": 1e5 * eps, "sum_rule": math.sqrt(eps), "log_det": math.sqrt(eps)}
        passed = torch.ones(self._orbit.num_members, dtype=torch.bool, device=self._orbit.device)
        for name, error in errors.items():
            passed &= error <= allowed[name]
        return passed


def _without_members(spectrum: Spectrum) -> Spectrum:
    names = (
        "exponents",
        "per_sequence",
        "standard_error",
        "block_logs",
        "at_floor",
        "minus_infinity",
        "num_zeros",
        "converged",
        "self_check_passed",
    )
    squeezed: dict[str, Any] = {name: getattr(spectrum, name)[0] for name in names}
    checks = {name: value[0] for name, value in spectrum.self_check.items()}
    return replace(spectrum, self_check=checks, **squeezed)
