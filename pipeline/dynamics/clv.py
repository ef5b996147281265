"""Covariant Lyapunov vectors: the directions that grow with λ_i both ways in time (Ginelli 2007).

J_t Q_{t−1} = Q_t R_t forward; the covariant vectors are V_t = Q_t C_t with upper triangular C_t,
found backward from C_{t−1} = R_t⁻¹ C_t D_t, D_t normalising columns. It is R_t, the factor of the
very step from t−1 to t, that leads back to t−1; with its neighbour the vectors are of no system.
Then J_t v_{t−1} is parallel to v_t and grows by 1/‖R_t⁻¹ c_t‖ (Ginelli et al. 2007, 2013).

Names as in Kuptsov & Parlitz (2012): *backward* vectors Q_t, which the far past determines,
*forward* vectors F_t, which the far future does (J_tᵀ F_t = F_{t−1} S_t), and *adjoint* covariant
vectors Θ_t, covariant under the inverse transpose, with ⟨θ_i, v_j⟩ = 0 for i ≠ j.

Shapes: N members, B sequences, T counted steps, P points in time, D state, K vectors.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.dynamics.arithmetic import inverse
from pipeline.dynamics.frames import Map
from pipeline.dynamics.prepared import Prepared, prepared
from pipeline.dynamics.propagate import floor_depth, random_frame
from pipeline.dynamics.sources import whole_number
from pipeline.dynamics.sweeps import positive_qr, transposed

COOLDOWN_SHARE = 5
"""`cooldown="auto"` gives one part in this many of the steps after the warm-up to the cool-down."""


@dataclass(frozen=True)
class CovariantVectors:
    """Unit vectors at P points in time, and their growth at every step.

    Leading axes (…) are (N,) for a network or an orbit, and () for maps and functions.

    Attributes:
        covariant: (…, B, P, D, K); column i grows with λ_i. Signs are arbitrary.
        backward: (…, B, P, D, K) orthonormal, from the QR forward in time.
        forward: (…, B, P, D, K) orthonormal, from the QR of the transposes backward in time;
            None without adjoint.
        adjoint: (…, B, P, D, K) orthogonal to all covariant vectors but their own; None without.
        residual: (…, B, P, K) sine of the angle by which a covariant vector misses the space
            where it belongs, orthogonal to the forward vectors before it: what the cool-down has
            left, an estimate of the error. It grows towards the end of the run. What the warm-up
            has left does not show here. None without adjoint.
        growth: (…, B, T, K) log ‖J_t v_i(t−1)‖, nats.
        times: (P,) maps after the warm-up that had been applied when the vectors were taken.
        at_floor: (…, K) True where an R_ii met rounding: vectors from there on are noise.
        warmup, cooldown: maps before and after the T counted ones.
        state: "full", "hidden" or what the orbit calls it.
    """

    covariant: Tensor
    backward: Tensor
    forward: Tensor | None
    adjoint: Tensor | None
    residual: Tensor | None
    growth: Tensor
    times: Tensor
    at_floor: Tensor
    warmup: int
    cooldown: int
    state: str

    @property
    def exponents(self) -> Tensor:
        """(…, K) mean growth over steps and sequences, nats per step."""
        return self.growth.mean((-3, -2))


def covariant_vectors(
    network_or_maps: Callable[..., Tensor] | Iterable[Any] | Any,
    inputs: Tensor | None = None,
    *,
    k: int | None = None,
    state: Literal["full", "hidden"] = "full",
    steps: int | None = None,
    warmup: int | Literal["auto"] = "auto",
    cooldown: int | Literal["auto"] = "auto",
    every: int = 1,
    adjoint: bool = True,
    tangents: Tensor | None = None,
    loop: Literal["open", "closed"] = "open",
    start: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> CovariantVectors:
    """The first k covariant vectors with their exponents, and the bases they come from.

    Args as for `spectrum.lyapunov_spectrum`, and:
        warmup: maps through which the frame relaxes to the backward vectors.
        cooldown: maps after the counted ones, through which coefficients and forward vectors
            relax on the way back. "auto": a fifth of the maps after the warm-up, or a quarter
            of `steps` where these are given.
        every: steps between the points in time whose vectors are returned; growth is given for
            every step.
        adjoint: whether to find forward and adjoint vectors too, for which the maps run
            backward: by their own `transposed(P)`, or else by way of dense matrices.

    All in float64. Vectors are accurate to about exp(−gap · transient), gap the smallest distance
    of neighbouring exponents: neighbours that (nearly) coincide have no directions of their own.
    Where R_ii is 0 a direction is annihilated and cannot be followed back: its vector and those
    after it are NaN, and their growth. NaN weights stay with their member. Raises ValueError for
    maps that are not square, and for settings that do not fit.

    Memory: 8 N B (T + cooldown) K² bytes for the R, 8 N B D K P for each of the four bases, and
    with `adjoint` the maps of all counted and cooling steps (D² each where they are matrices,
    some ten numbers a unit for networks). Use `every`, a smaller k or fewer steps.

    Source: Ginelli et al., PRL 99, 130601 (2007) and J. Phys. A 46, 254005 (2013); Kuptsov &
    Parlitz, J. Nonlinear Sci. 22, 727 (2012).

    Example:
        >>> J = torch.tensor([[2.0, 1.0], [1.0, 1.0]]).expand(100, 2, 2)  # the cat map
        >>> found = covariant_vectors(J)
        >>> [round(x, 6) for x in found.exponents.tolist()]
        [0.962424, -0.962424]
        >>> v = found.covariant[0, 0]  # it is symmetric: its eigenvectors
        >>> bool((v[:, 0] @ v[:, 1]).abs() < 1e-12)
        True
    """
    _check_settings(cooldown, every, steps)
    if steps is not None:
        tail = -(-steps // (COOLDOWN_SHARE - 1)) if cooldown == "auto" else cooldown
        needed: int | None = steps + tail
    else:
        needed = None
    with prepared(
        network_or_maps,
        inputs,
        k=k,
        state=state,
        steps=needed,
        warmup=warmup,
        dtype=torch.float64,
        tangents=tangents,
        loop=loop,
        start=start,
        generator=generator,
    ) as run:
        if steps is None:
            tail = run.counted // COOLDOWN_SHARE if cooldown == "auto" else cooldown
        if tail >= run.counted:
            raise ValueError(
                "warmup + cooldown must leave maps to count; got "
                f"warmup={run.warmup}, cooldown={tail} and {run.warmup + run.counted} maps"
            )
        result = _covariant(run, run.counted - tail, tail, every, adjoint)
    if run.is_population:
        return result
    return replace(
        result,
        covariant=result.covariant[0],
        backward=result.backward[0],
        forward=None if result.forward is None else result.forward[0],
        adjoint=None if result.adjoint is None else result.adjoint[0],
        residual=None if result.residual is None else result.residual[0],
        growth=result.growth[0],
        at_floor=result.at_floor[0],
    )


def _covariant(
    run: Prepared, steps: int, cooldown: int, every: int, adjoint: bool
) -> CovariantVectors:
    times = range(0, steps + 1, every)
    frames, factors, maps, at_floor = _forward(run, times, keep_maps=adjoint)
    K = run.frame.shape[-1]
    coefficients, growth = _back_substituted(factors, _triangular(_random(run, K)), times, steps)
    backward = torch.stack(frames, dim=2)
    covariant = backward @ torch.stack(coefficients, dim=2)
    forward: Tensor | None = None
    dual: Tensor | None = None
    residual: Tensor | None = None
    if adjoint:
        forward = torch.stack(_run_back(maps, _random(run, K), times), dim=2)
        dual, residual = _dual(covariant, forward)
    return CovariantVectors(
        covariant=covariant,
        backward=backward,
        forward=forward,
        adjoint=dual,
        residual=residual,
        growth=torch.stack(growth, dim=2),
        times=torch.tensor(list(times)),
        at_floor=at_floor,
        warmup=run.warmup,
        cooldown=cooldown,
        state=getattr(run.orbit, "state", "full"),
    )


def _forward(
    run: Prepared, times: range, *, keep_maps: bool
) -> tuple[list[Tensor], list[Tensor], list[Map], Tensor]:
    """Q at `times`, R of all steps after the warm-up, their maps if kept, and (N, K) at floor."""
    Q = run.frame
    D, K = Q.shape[-2:]
    frames: list[Tensor] = []
    factors: list[Tensor] = []
    maps: list[Map] = []
    at_floor = torch.zeros((Q.shape[0], K), dtype=torch.bool, device=Q.device)
    floor = floor_depth(Q.dtype)
    for step, J in enumerate(islice(run.orbit.maps(), run.warmup + run.counted)):
        time = step - run.warmup
        if time >= 0 and time in times:
            frames.append(Q)
        V = J(Q)
        if V.shape[-2] != D:
            raise ValueError(
                f"covariant vectors need square maps; map {step} is {V.shape[-2]} × {D}"
            )
        Q, R = positive_qr(V)
        if time >= 0:
            factors.append(R)
            diagonal = R.diagonal(dim1=-2, dim2=-1)
            depth = diagonal.log() - torch.linalg.vector_norm(R, dim=-2).log()
            at_floor |= ((depth < floor) | (diagonal == 0)).any(1)
            if keep_maps:
                maps.append(J)
    if run.counted in times:
        frames.append(Q)
    # A direction that is lost takes those after it along.
    return frames, factors, maps, at_floor.cumsum(-1) > 0


def _back_substituted(
    factors: Sequence[Tensor], C: Tensor, times: range, steps: int
) -> tuple[list[Tensor], list[Tensor]]:
    """C at `times`, and the growth of every counted step, both in order of time."""
    coefficients: list[Tensor] = []
    growth: list[Tensor] = []
    for time in range(len(factors), -1, -1):
        # C belongs to the state after `time` maps; factors[time − 1] is the R of the map before.
        if time in times:
            coefficients.append(C)
        if time == 0:
            break
        C, log_growth = _step_back(factors[time - 1], C)
        if time <= steps:
            growth.append(log_growth)
    return coefficients[::-1], growth[::-1]


def _step_back(R: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """C_{t−1} = R_t⁻¹ C_t with unit columns, and by how much these then grow."""
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    is_zero = diagonal == 0
    # Leading columns do not use the rows below them, but 0/0 there would spoil them.
    before = torch.linalg.solve_triangular(R + torch.diag_embed(is_zero.to(R.dtype)), C, upper=True)
    is_lost = (is_zero.cumsum(-1) > 0).unsqueeze(-2)
    before = torch.where(is_lost, torch.nan, before)
    norm = torch.linalg.vector_norm(before, dim=-2)
    return before / norm.unsqueeze(-2), -norm.log()


def _run_back(maps: Sequence[Map], frame: Tensor, times: range) -> list[Tensor]:
    """Forward vectors F at `times`, from J_tᵀ F_t = F_{t−1} S_t."""
    F = frame
    found: list[Tensor] = []
    for time in range(len(maps), -1, -1):
        if time in times:
            found.append(F)
        if time > 0:
            F, _ = positive_qr(transposed(maps[time - 1], F, F.shape[-2]))
    return found[::-1]


def _dual(covariant: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """Θ = F (VᵀF)⁻¹ with unit columns, and the residual of V.

    With J_t V_{t−1} = V_t D and J_tᵀ F_t = F_{t−1} S_t it follows that J_tᵀ Θ_t = Θ_{t−1} D and
    VᵀΘ = 1, however well V has settled. Once it has, VᵀF is upper triangular: v_i is orthogonal
    to the forward vectors before the i-th.
    """
    overlap = covariant.mT @ forward
    residual = torch.linalg.vector_norm(overlap.tril(-1), dim=-1)
    return _unit(forward @ inverse(overlap)), residual


def _random(run: Prepared, k: int) -> Tensor:
    """Orthonormal frames (N, B, D, k)."""
    lead = (run.orbit.num_members, run.orbit.num_sequences, -1, -1)
    return random_frame(run.orbit, k, run.generator).expand(lead)


def _triangular(frame: Tensor) -> Tensor:
    """Random upper triangular coefficients (N, B, k, k) with unit columns, from a random frame."""
    return _unit(frame[..., : frame.shape[-1], :].triu())


def _unit(columns: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
    return columns / norms


def _check_settings(cooldown: int | Literal["auto"], every: int, steps: int | None) -> None:
    if cooldown != "auto" and whole_number("cooldown", cooldown, or_auto=True) < 0:
        raise ValueError(f"cooldown must be at least 0 or 'auto', got {cooldown}")
    if whole_number("every", every) < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if steps is not None and whole_number("steps", steps) < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
