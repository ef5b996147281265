"""Lyapunov spectra of networks and of given maps, with the error each number carries.

λ_i = lim (1/t) log σ_i(J_t … J_1), by QR along the orbit (Benettin et al. 1980; Shimada &
Nagashima 1979), in nats per application of the map. Never per epoch, never in bits unless asked.

What can be measured: our networks, recurrent modules of `torch.nn`, functions of the state, and
given Jacobians. A network's state is (h, c) of all layers, "full"; "hidden" holds the cells fixed
and is the convention of Vogt et al. (2022), whose numbers are those of no dynamics.

Shapes: N members, B sequences, T steps, I inputs, D state, K exponents, M time blocks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dynamics import derived
from pipeline.dynamics.arithmetic import exact_arithmetic
from pipeline.dynamics.prepared import prepared
from pipeline.dynamics.propagate import Growth, Orbit, carry, floor_depth
from pipeline.dynamics.selfcheck import SelfCheck
from pipeline.dynamics.sources import DrivenNetwork, whole_number
from pipeline.dynamics.uncertainty import standard_error

__all__ = ["Spectrum", "exact_arithmetic", "lyapunov_spectrum"]

LN2 = math.log(2)
FEWEST_INDEPENDENT = 10
"""Independent blocks below which an error says too little about itself."""

EARLIEST_END = 16
"""Counted steps before which no `tolerance` ends a run."""


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
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be greater than 0, got {tolerance}")
    if t_on != "auto":
        t_on = whole_number("t_on", t_on, or_auto=True)
        if t_on < 1:
            raise ValueError(f"t_on must be at least 1 or 'auto', got {t_on}")
    with prepared(
        network_or_maps,
        inputs,
        k=k,
        state=state,
        steps=steps,
        warmup=warmup,
        dtype=dtype,
        tangents=tangents,
        loop=loop,
        start=start,
        generator=generator,
    ) as run:
        orbit = run.orbit
        goal = None if tolerance is None else _Goal(tolerance, orbit.dtype)
        # A run that may end early is checked where it certainly passes.
        certain = run.counted if goal is None else min(run.counted, EARLIEST_END)
        check = SelfCheck(orbit, run.frame, run.warmup, certain)
        growth = carry(
            orbit,
            run.frame,
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
    # With a longer T_ON of the caller's, it may be that alone which brought it to the floor.
    is_singular = (at_floor | minus_infinity).any(-1) & (t_on in ("auto", 1))
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
        self_check_passed=check.passed(errors, is_singular) & ~torch.isnan(exponents).any(-1),
        loop=getattr(orbit, "loop", "open"),
        method=growth.method,
        has_reached_tolerance=(
            None if goal is None else goal(growth) and not bool(exponents.isnan().any())
        ),
    )
    return result if run.is_population else _without_members(result)


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
