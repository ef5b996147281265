"""Finite-time Lyapunov exponents of feed-forward networks (Storm et al. 2024, eq. 3).

λ^(l)(x) = (1/l) log σ_max(J_l(x)), J_l = D_l W_l … D_1 W_1, for every input x and hidden layer l.
σ_max is the true largest singular value, from the Gram matrix of J_l, whose largest eigenvalue
is exact to rounding (only the small ones suffer from squaring). One QR sweep from a random frame
would give a different, smaller number.

Shapes: N members, B inputs, L hidden layers, I input size, r directions carried, E width.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.dynamics.spectrum import exact_arithmetic

LARGEST_CHUNK = 2**23
"""Numbers that a chunk of tangents may hold: 64 MB in float64."""


class LayeredNetwork(Protocol):
    """A network whose orbit has one map a hidden layer."""

    def orbit(self, inputs: Tensor, *, dtype: torch.dtype) -> Any:
        """An `Orbit`; its method `active_directions`, if any, gives the basis (N, I, r)."""
        ...


class Stretching(NamedTuple):
    """Largest FTLE and the input direction that is stretched most.

    exponents: (N, B), nats per layer. directions: (N, B, I), unit vectors up to their sign.
    """

    exponents: Tensor
    directions: Tensor


def max_ftle(network: LayeredNetwork, inputs: Tensor, layer: int | None = None) -> Tensor:
    """λ_max of every input, float64, nats per layer.

    Args:
        network: its orbit has one map a hidden layer.
        inputs: (B, I).
        layer: l = 1 … L for J_l alone, giving (N, B); None for all, giving (N, L, B).

    −inf where J_l = 0 (all units dead); NaN for a member with NaN weights. Raises ValueError for
    a layer that is not there and for inputs that are not (B, I).
    """
    _check(inputs)
    chunks = []
    with exact_arithmetic():
        for part in _chunks(network, inputs):
            layers = [_log_sigma_max(p) / p.layer for p in _products(network, part, layer)]
            chunks.append(torch.stack(layers, dim=1))
    result_NLB = torch.cat(chunks, dim=-1)
    return result_NLB if layer is None else result_NLB[:, -1]


def max_stretching(network: LayeredNetwork, inputs: Tensor, layer: int | None = None) -> Stretching:
    """λ_max of J_l with its direction in input space, the right singular vector v_1.

    Args as for `max_ftle`; `layer=None` is the last hidden layer.
    """
    _check(inputs)
    exponents, directions = [], []
    with exact_arithmetic():
        for part in _chunks(network, inputs):
            for product in _products(network, part, layer):
                last = product
            safe, is_finite = _finite(_gram(last.J_NBEr))
            values, vectors = torch.linalg.eigh(safe)
            largest = torch.where(is_finite, values[..., -1], math.nan)
            top_NBr = torch.where(is_finite[..., None], vectors[..., -1], math.nan)
            exponents.append(_from_eigenvalue(largest, last) / last.layer)
            directions.append(torch.einsum("nir,nbr->nbi", last.basis_NIr, top_NBr))
    return Stretching(torch.cat(exponents, dim=1), torch.cat(directions, dim=1))


class _Product(NamedTuple):
    """J_l restricted to the basis, divided by exp(log_scale); `layer` is l."""

    layer: int
    J_NBEr: Tensor
    log_scale_NB: Tensor
    basis_NIr: Tensor


def _products(network: LayeredNetwork, inputs: Tensor, layer: int | None) -> Iterator[_Product]:
    """J_l for l = 1 … `layer`; only the last one if a layer is asked for."""
    orbit = network.orbit(inputs, dtype=torch.float64)
    num_layers = orbit.num_steps
    if layer is not None and not 1 <= layer <= num_layers:
        raise ValueError(f"layer must be between 1 and {num_layers}, got {layer}")
    basis_NIr = _basis(orbit)
    J = basis_NIr.unsqueeze(1)
    log_scale = torch.zeros(
        orbit.num_members, orbit.num_sequences, dtype=torch.float64, device=orbit.device
    )
    last = num_layers if layer is None else layer
    for number, step in enumerate(orbit.maps(), start=1):
        J = step(J)
        # Products of many layers leave the range of float64, so each is brought back to 1.
        size = J.abs().amax((-2, -1))
        size = torch.where(size == 0, 1.0, size)
        J = J / size[..., None, None]
        log_scale = log_scale + size.log()
        if layer is None or number == last:
            yield _Product(number, J, log_scale, basis_NIr)
        if number == last:
            return


def _basis(orbit: Any) -> Tensor:
    """Orthonormal directions (N, I, r) outside of which all tangents vanish at once."""
    if hasattr(orbit, "active_directions"):
        basis: Tensor = orbit.active_directions()
        return basis
    identity = torch.eye(orbit.tangent_size, dtype=torch.float64, device=orbit.device)
    return identity.expand(orbit.num_members, -1, -1)


def _gram(J_NBEr: Tensor) -> Tensor:
    return J_NBEr.mT @ J_NBEr


def _log_sigma_max(product: _Product) -> Tensor:
    J = product.J_NBEr
    # The smaller of JᵀJ and JJᵀ: both have the same largest eigenvalue.
    gram = _gram(J) if J.shape[-1] <= J.shape[-2] else _gram(J.mT)
    return _from_eigenvalue(_largest_eigenvalue(gram), product)


def _from_eigenvalue(eigenvalue_NB: Tensor, product: _Product) -> Tensor:
    return 0.5 * eigenvalue_NB.clamp(min=0).log() + product.log_scale_NB


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """Largest eigenvalue of positive semidefinite matrices; NaN in, NaN out."""
    if gram.shape[-1] == 1:
        return gram[..., 0, 0]
    if gram.shape[-1] == 2:
        # Inputs in the plane are the common case, and all terms here are sums of positives.
        mean = (gram[..., 0, 0] + gram[..., 1, 1]) / 2
        half = (gram[..., 0, 0] - gram[..., 1, 1]) / 2
        return mean + torch.hypot(half, gram[..., 0, 1])
    safe, is_finite = _finite(gram)
    return torch.where(is_finite, torch.linalg.eigvalsh(safe)[..., -1], math.nan)


def _finite(gram: Tensor) -> tuple[Tensor, Tensor]:
    """`gram` with 0 for matrices that hold NaN, on which LAPACK raises, and where it does not."""
    is_finite = torch.isfinite(gram).all(-1).all(-1)
    return torch.where(is_finite[..., None, None], gram, 0.0), is_finite


def _check(inputs: Tensor) -> None:
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(f"inputs must be (B, I) and not empty, got {tuple(inputs.shape)}")


def _chunks(network: LayeredNetwork, inputs: Tensor) -> Iterator[Tensor]:
    """Inputs in parts whose tangents fit `LARGEST_CHUNK`."""
    orbit = network.orbit(inputs[:1], dtype=torch.float64)
    J = _basis(orbit).unsqueeze(1)
    largest = J.shape[-1] ** 2
    for step in orbit.maps():
        J = step(J)
        largest = max(largest, J.shape[-1] * J.shape[-2])
    size = max(1, LARGEST_CHUNK // (orbit.num_members * largest))
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]
