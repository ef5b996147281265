"""Lyapunov spectra of networks and of given maps, with the error each number carries.

λ_i = lim (1/t) log σ_i(J_t … J_1), by QR along the orbit (Benettin et al. 1980; Shimada &
Nagashima 1979), in nats per application of the map. Never per epoch, never in bits unless asked.

Shapes: N members, B sequences, T steps, I inputs, D state, K exponents, M time blocks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.dynamics import derived
from pipeline.dynamics.propagate import Map, Orbit, carry, floor_depth, random_frame
from pipeline.dynamics.uncertainty import standard_error

LN2 = math.log(2)
WARMUP_SHARE = 5
"""`warmup="auto"` gives one part in this many of the steps to the warm-up."""


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
            error is known and neither flag above is set. Not a promise about longer times.
        steps: counted maps. warmup: maps before them. tangent_size: D.
        t_on: T_ON of each member at the end of the run.
        state: "full", "hidden" or what the orbit calls it. loop: "open", driven by inputs.
        dtype: precision of the tangents; logs are float64 always.
        self_check: name → (…,) error. `autodiff`: relative difference between the tangent used
            and automatic differentiation at one step. `sum_rule`: |Σλ − ⟨log|det J|⟩| per
            step and dimension, where K = D and the determinant is known.
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

    def bits(self) -> "Spectrum":
        """The same spectrum in bits per step."""
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
        """One row an exponent (and a member): columns of equal length by name."""
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
    network_or_maps: DrivenNetwork | Orbit | Tensor | Sequence[Tensor],
    inputs: Tensor | None = None,
    *,
    k: int | None = None,
    state: Literal["full", "hidden"] = "full",
    steps: int | None = None,
    warmup: int | Literal["auto"] = "auto",
    t_on: int | Literal["auto"] = "auto",
    dtype: torch.dtype = torch.float64,
    tangents: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Spectrum:
    """The k largest Lyapunov exponents, or all of them.

    Args:
        network_or_maps: a network with `orbit` (its population axis leads the result), an
            `Orbit`, square Jacobians (T, D, D) or (B, T, D, D), or a list of T matrices.
        inputs: for a network: (B, T, I) sequences, (B, T) tokens, (B, I) vectors.
        k: number of exponents; None: all D.
        state: for a network whose state has parts: "full", the true state, or "hidden", the
            papers' H×H block with the cell state held fixed.
        steps: maps to count; None: all that the warm-up leaves.
        warmup: maps through which state and frame relax before counting, taken from the start of
            the same inputs; 0: none. "auto": a fifth of the maps, less if `steps` needs them.
        t_on: maps between re-orthonormalisations; "auto": per member, from its own R.
        dtype: float64 or float32, of state and tangents. For maps given as tensors, they are
            converted; an `Orbit` must already have it.
        tangents: initial frame (D, k), (N, D, k) or (N, B, D, k), any full-rank columns.
        generator: draws the random orthonormal frame otherwise; a list gives each member its
            own. None: a generator with a fixed seed. Global random state is never used.

    Raises ValueError for settings that do not fit, e.g. a warm-up longer than the inputs.
    NaN weights or states give NaN exponents for their member, and leave the others alone.

    Example:
        >>> spectrum = lyapunov_spectrum(torch.tensor([[2.0, 1.0], [1.0, 1.0]]).expand(200, 2, 2))
        >>> [round(x, 6) for x in spectrum.exponents.tolist()]
        [0.962424, -0.962424]
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    with exact_arithmetic():
        orbit, is_population = _as_orbit(network_or_maps, inputs, state, dtype)
        warmup_steps, counted = _split_steps(orbit.num_steps, steps, warmup)
        num_exponents = _check_count(k, orbit.tangent_size)
        if t_on != "auto" and t_on < 1:
            raise ValueError(f"t_on must be at least 1 or 'auto', got {t_on}")
        if tangents is None:
            source = torch.Generator().manual_seed(0) if generator is None else generator
            frame = random_frame(orbit, num_exponents, source)
        else:
            frame = _given_frame(tangents, orbit, k)
        check = _SelfCheck(orbit, frame.shape[-1], warmup_steps, counted)
        growth = carry(
            orbit,
            frame,
            warmup=warmup_steps,
            steps=counted,
            t_on=t_on,
            observe=check,
            rectangular=steps is not None,
        )
    logs, block_steps = growth.logs_NBKM, growth.block_steps_M
    per_sequence = logs.sum(-1) / counted
    exponents = per_sequence.mean(1)
    error = standard_error(logs, block_steps)
    at_floor = growth.deepest_NK < floor_depth(orbit.dtype)
    minus_infinity = torch.isneginf(exponents)
    has_settled = _halves_agree(logs, block_steps, error)
    errors = check.errors(logs)
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
        warmup=warmup_steps,
        tangent_size=orbit.tangent_size,
        t_on=growth.t_on_N,
        state=getattr(orbit, "state", "full"),
        dtype=orbit.dtype,
        self_check=errors,
        self_check_passed=check.passed(errors),
    )
    return result if is_population else _without_members(result)


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


class _Matrix:
    """One given Jacobian of every sequence."""

    def __init__(self, J_NBDD: Tensor) -> None:
        self._J = J_NBDD

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        return self._J @ Q_NBDK

    def log_abs_det(self) -> Tensor | None:
        if self._J.shape[-1] != self._J.shape[-2]:
            return None
        return cast(Tensor, torch.linalg.slogdet(self._J.double()).logabsdet)


class _Matrices:
    """Given Jacobians as an orbit of one member."""

    num_members = 1

    def __init__(self, maps: Sequence[Tensor], num_sequences: int, dtype: torch.dtype) -> None:
        self._maps = maps
        self.num_sequences, self.num_steps = num_sequences, len(maps)
        self.tangent_size = maps[0].shape[-1]
        self.dtype, self.device = dtype, maps[0].device

    def maps(self) -> Iterator[Map]:
        for J in self._maps:
            yield _Matrix(J.to(self.dtype).expand(1, self.num_sequences, *J.shape[-2:]))


def _as_orbit(
    source: DrivenNetwork | Orbit | Tensor | Sequence[Tensor],
    inputs: Tensor | None,
    state: Literal["full", "hidden"],
    dtype: torch.dtype,
) -> tuple[Orbit, bool]:
    if state not in ("full", "hidden"):
        raise ValueError(f"state must be 'full' or 'hidden', got {state!r}")
    if hasattr(source, "orbit"):
        if inputs is None:
            raise ValueError("a network needs `inputs`: (B, T, I), tokens (B, T) or vectors (B, I)")
        if inputs.ndim < 2 or 0 in inputs.shape:
            raise ValueError(
                f"inputs must be (B, T, I), (B, T) or (B, I), none empty; got {tuple(inputs.shape)}"
            )
        return cast(DrivenNetwork, source).orbit(inputs, state=state, dtype=dtype), True
    if inputs is not None or state != "full":
        raise ValueError("`inputs` and `state` belong to networks; maps and orbits have their own")
    if hasattr(source, "maps"):
        orbit = cast(Orbit, source)
        if orbit.dtype != dtype:
            raise ValueError(f"the orbit computes in {orbit.dtype}, but dtype is {dtype}")
        return orbit, True
    if isinstance(source, Tensor):
        if source.ndim not in (3, 4):
            raise ValueError(
                f"Jacobians must be (T, D, D) or (B, T, D, D), got {tuple(source.shape)}"
            )
        maps: Sequence[Tensor] = source.unbind(-3)
    else:
        maps = list(source)
    if len(maps) == 0:
        raise ValueError("there are no maps: a spectrum needs at least one")
    num_sequences = maps[0].shape[0] if maps[0].ndim == 3 else 1
    return _Matrices(maps, num_sequences, dtype), False


def _split_steps(
    available: int, steps: int | None, warmup: int | Literal["auto"]
) -> tuple[int, int]:
    """Warm-up and counted steps out of those available."""
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


class _SelfCheck:
    """Compares the tangents that are used with what is known about them independently."""

    def __init__(self, orbit: Orbit, k: int, warmup: int, counted: int) -> None:
        self._orbit, self._warmup, self._last = orbit, warmup, warmup + counted
        self._is_full = k == orbit.tangent_size
        choice = torch.Generator().manual_seed(counted)
        self._step = warmup + int(torch.randint(counted, (), generator=choice))
        q = torch.randn(orbit.tangent_size, generator=choice, dtype=torch.float64)
        self._probe = (q / q.norm()).to(dtype=orbit.dtype, device=orbit.device)
        self._autodiff: Tensor | None = None
        self._log_det: Tensor | None = None
        self._counted = counted

    def __call__(self, step: int, J: Map) -> None:
        if step == self._step and hasattr(J, "autodiff"):
            shape = (self._orbit.num_members, self._orbit.num_sequences, -1)
            q = self._probe.expand(*shape)
            ours, reference = J(q.unsqueeze(-1)).squeeze(-1), J.autodiff(q)
            scale = torch.linalg.vector_norm(reference, dim=-1)
            difference = torch.linalg.vector_norm(ours - reference, dim=-1)
            relative = torch.where(difference == 0, 0.0, difference / scale)
            self._autodiff = relative.double().amax(1)
        if self._is_full and step >= self._warmup and hasattr(J, "log_abs_det"):
            log_det = J.log_abs_det()
            if log_det is not None:
                log_det = log_det.double()
                self._log_det = log_det if self._log_det is None else self._log_det + log_det

    def errors(self, logs_NBKM: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self._autodiff is not None:
            found["autodiff"] = self._autodiff
        if self._log_det is not None:
            total = logs_NBKM.sum((-1, -2))
            difference = torch.where(total == self._log_det, 0.0, (total - self._log_det).abs())
            found["sum_rule"] = difference.amax(1) / self._counted / self._orbit.tangent_size
        return found

    def passed(self, errors: dict[str, Tensor]) -> Tensor:
        # √ε for the sum: with a fixed T_ON, half of the digits may be lost between two QRs.
        eps = torch.finfo(self._orbit.dtype).eps
        allowed = {"autodiff": 1e5 * eps, "sum_rule": math.sqrt(eps)}
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
