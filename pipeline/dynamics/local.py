"""Local exponents: how much each direction of the frame grows at every single step.

J_t Q_{t−1} = Q_t R_t, re-orthonormalised every step; log R_ii(t) over time, whose mean is the
finite-time spectrum. The first, log R_11(t) = log ‖J_t q_1(t−1)‖, is the growth along the leading
direction; it says where on an orbit perturbations grow, not which input made them grow (for that,
`ftle.input_ftle`).

Shapes: N members, B sequences, T steps, I inputs, D state, K exponents.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.dynamics.orthonormal import orthonormalise
from pipeline.dynamics.prepared import prepared
from pipeline.dynamics.propagate import floor_depth


class LocalExponents(NamedTuple):
    """Growth at every step; leading axes (…) are (N,) for networks and orbits, () otherwise.

    exponents: (…, B, T, K) log R_ii(t), nats, float64; −inf where R_ii was exactly 0.
    at_floor: (…, B, T, K) True where R_ii met rounding within the step: an upper bound.
    """

    exponents: Tensor
    at_floor: Tensor


def local_exponents(
    network_or_maps: Callable[..., Tensor] | Iterable[Any] | Any,
    inputs: Tensor | None = None,
    *,
    k: int | None = None,
    state: Literal["full", "hidden"] = "full",
    steps: int | None = None,
    warmup: int | Literal["auto"] = 0,
    dtype: torch.dtype = torch.float64,
    tangents: Tensor | None = None,
    loop: Literal["open", "closed"] = "open",
    start: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> LocalExponents:
    """log R_ii(t) for every step after the warm-up, (…, B, T, K) nats.

    Args as for `spectrum.lyapunov_spectrum`, but for `warmup`, which is 0 here, so that column t
    belongs to input t: until the frame has relaxed, its first values are those of the random
    start frame. Maps between spaces of different size (the layers of an MLP) are taken as they
    come, as long as they have at least K rows.

    Raises ValueError for what cannot be measured and for settings that do not fit. NaN weights or
    states give NaN for their member and leave the others alone. Memory: the result alone.
    Source: the summands of Benettin et al. (1980).

    Example:
        >>> J = torch.tensor([[2.0, 1.0], [1.0, 1.0]]).expand(50, 2, 2)  # the cat map
        >>> local = local_exponents(J)
        >>> local.exponents.shape, [round(x, 4) for x in local.exponents[0, -1].tolist()]
        (torch.Size([1, 50, 2]), [0.9624, -0.9624])
    """
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
        orbit, Q = run.orbit, run.frame
        K = Q.shape[-1]
        logs: list[Tensor] = []
        depths: list[Tensor] = []
        for step, J in enumerate(islice(orbit.maps(), run.warmup + run.counted)):
            V = J(Q)
            if V.shape[-2] < K:
                raise ValueError(
                    f"k must be at most the rows of every map; map {step} has {V.shape[-2]}, k={K}"
                )
            Q, log_R, depth = orthonormalise(V)
            if step >= run.warmup:
                logs.append(log_R)
                depths.append(depth)
        exponents = torch.stack(logs, dim=2)
        at_floor = torch.stack(depths, dim=2) < floor_depth(orbit.dtype)
    if run.is_population:
        return LocalExponents(exponents, at_floor)
    return LocalExponents(exponents[0], at_floor[0])
