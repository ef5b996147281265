"""Finite-time Lyapunov exponents of feed-forward networks (Storm et al. 2024, eq. 3), and by input.

λ^(l)(x) = (1/l) log σ_max(J_l(x)), J_l = D_l W_l … D_1 W_1, for every input x and hidden layer l,
with the input direction that is stretched most. σ_max is the true largest singular value. Where
few directions enter, it is that of the product itself, by the Gram matrix, whose largest
eigenvalue is exact to rounding (only the small ones suffer from squaring); where many do, it is
found by forward and backward sweeps (`sweeps`). One QR sweep from a random frame would give a
different, smaller number.

For recurrent networks, `input_ftle` runs the same question backward in time: how strongly did
the input at time t move the last state?

Shapes: N members, B inputs, L hidden layers, I input size, r directions carried, E width, T steps.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.dynamics.arithmetic import exact_arithmetic
from pipeline.dynamics.sources import in_eval_mode, refuse_imprecise
from pipeline.dynamics.sweeps import largest_eigenpair, leading_singular_values

LARGEST_CHUNK = 2**17
"""Numbers that a chunk of tangents may hold on a CPU: 1 MB in float64, which stays in the cache
and is twice as fast as chunks that do not."""

LARGEST_CHUNK_ON_GPU = 2**25
"""The same on a GPU, where many inputs at once fill the machine."""

SWEEPS_FROM = 256
"""Directions from which on sweeps are cheaper than the product, for a single layer (measured on
one CPU thread: even at 128 to 250). A profile needs sweeps of its own for every layer, but only
one product."""

RESCALE_EVERY = 4
"""Maps after which a product is brought back to the middle of the range of float64."""

Method = Literal["auto", "product", "sweeps"]


class LayeredNetwork(Protocol):
    """A network whose orbit has one map a hidden layer."""

    def orbit(self, inputs: Tensor, *, dtype: torch.dtype) -> Any:
        """An `Orbit`.

        Optional: its method `active_directions` gives a basis (N, I, r) outside of which all
        tangents vanish; its maps' method `transposed(P)`, Jᵀ P, makes sweeps cheap.
        """
        ...


class DrivenNetwork(Protocol):
    """A recurrent network: one map a time step."""

    def orbit(self, inputs: Tensor, *, dtype: torch.dtype) -> Any:
        """An `Orbit` whose maps have `transposed_with_inputs(P)`.

        Optional: its attribute `output_rows` says which rows of the state the network shows.
        """
        ...


class Field(NamedTuple):
    """Largest FTLE at every point, and the input direction that is stretched most.

    exponents: (N, L, …) nats per layer, … the shape of the grid; (N, …) for a single layer.
    directions: (N, L, …, I) or (N, …, I), unit vectors up to their sign; None if not asked for.
    """

    exponents: Tensor
    directions: Tensor | None


def ftle_field(
    network: LayeredNetwork,
    grid: Tensor,
    *,
    layer: int | None = None,
    directions: bool = True,
    method: Method = "auto",
) -> Field:
    """λ_max of J_l with its direction in input space, at every point of a grid.

    Args:
        network: its orbit has one map a hidden layer.
        grid: (…, I), any number of leading axes.
        layer: l = 1 … L for J_l alone; None for the profile over all layers.
        directions: whether to keep the right singular vectors v_1 as well.
        method: "product" multiplies all directions out; "sweeps" carries a few forward and
            backward until σ_max has settled to 1e-11; "auto" takes the cheaper one.

    All in float64, nats per layer. −inf, with a NaN direction, where J_l = 0 (all units of a
    layer dead); NaN for a member with NaN weights and for points with NaN. v_1 is arbitrary where
    σ_1 = σ_2. Raises ValueError for a layer that is not there, for an empty grid and for half
    precision; TypeError for recurrent networks and for what has no orbit; ArithmeticError where
    sweeps do not settle.
    Source: Storm et al. (2024), eqs. 3 and 4.

    Example:
        >>> from tasks.networks.mlp import MLP
        >>> seed, axis = torch.Generator().manual_seed(0), torch.linspace(-1, 1, 20)
        >>> network = MLP([MLP.Config(width=10, depth=3)], input_size=2, output_size=1,
        ...               generators=[seed])
        >>> plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
        >>> field = ftle_field(network, plane)
        >>> field.exponents.shape, field.directions.shape
        (torch.Size([1, 3, 20, 20]), torch.Size([1, 3, 20, 20, 2]))
    """
    if grid.ndim < 2 or 0 in grid.shape:
        raise ValueError(f"inputs must be (…, I) and not empty, got {tuple(grid.shape)}")
    flat = grid.flatten(0, -2)
    with _measurable(network, grid, is_recurrent=False):
        parts = [
            _part(network, inputs, layer, directions, method)
            for inputs in _chunks(network, flat, method, layer)
        ]
    exponents = torch.cat([part.exponents for part in parts], dim=2)
    shape = grid.shape[:-1]
    exponents = exponents.reshape(*exponents.shape[:2], *shape)
    vectors: Tensor | None = None
    if directions:
        found = torch.cat([_known(part.directions) for part in parts], dim=2)
        vectors = found.reshape(*found.shape[:2], *grid.shape)
    if layer is not None:
        return Field(exponents[:, 0], None if vectors is None else vectors[:, 0])
    return Field(exponents, vectors)


def max_ftle(network: LayeredNetwork, inputs: Tensor, layer: int | None = None) -> Tensor:
    """λ_max of every input, float64, nats per layer: `ftle_field` without directions.

    Args:
        network: its orbit has one map a hidden layer.
        inputs: (B, I).
        layer: l = 1 … L for J_l alone, giving (N, B); None for all, giving (N, L, B).

    −inf where J_l = 0 (all units dead); NaN for a member with NaN weights and for inputs with NaN.
    Raises ValueError for a layer that is not there, for inputs that are not (B, I) and for half
    precision; TypeError for recurrent networks and for what has no orbit.

    Example:
        >>> from tasks.networks.mlp import MLP
        >>> config = MLP.Config(width=4, init="orthogonal", activation="identity", init_scale=2.0)
        >>> network = MLP([config], input_size=4, output_size=1, generators=[torch.Generator()])
        >>> [round(x, 4) for x in max_ftle(network, torch.zeros(2, 4), layer=2)[0].tolist()]
        [0.6931, 0.6931]
    """
    if inputs.ndim != 2:
        raise ValueError(f"inputs must be (B, I) and not empty, got {tuple(inputs.shape)}")
    return ftle_field(network, inputs, layer=layer, directions=False).exponents


def finite_time_exponents(
    network: LayeredNetwork, inputs: Tensor, *, k: int, layer: int | None = None
) -> Tensor:
    """(1/l) log σ_i(J_l) of the k largest singular values, by sweeps; (N, B, k) nats per layer.

    Args:
        network: its orbit has one map a hidden layer; they can be transposed or made dense.
        inputs: (B, I).
        k: at most the narrowest layer's width and I.
        layer: l; None: the last hidden layer.

    Each σ_i keeps its own digits, however far below σ_1 the product of layers brings it. −inf
    where σ_i cannot be told from 0: a layer sends its direction below 100 ε. NaN for NaN weights.
    Raises ValueError for k or layer out of range, ArithmeticError where sweeps do not settle
    within 200.

    Example:
        >>> from tasks.networks.mlp import MLP
        >>> config = MLP.Config(width=4, init="orthogonal", activation="identity", init_scale=2.0)
        >>> network = MLP([config], input_size=4, output_size=1, generators=[torch.Generator()])
        >>> found = finite_time_exponents(network, torch.zeros(1, 4), k=3)
        >>> [round(x, 4) for x in found[0, 0].tolist()]
        [0.6931, 0.6931, 0.6931]
    """
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(f"inputs must be (B, I) and not empty, got {tuple(inputs.shape)}")
    with _measurable(network, inputs, is_recurrent=False):
        found = [
            _swept(network.orbit(part, dtype=torch.float64), k, layer)
            for part in _chunks(network, inputs, "sweeps", layer)
        ]
    return torch.cat([part.log_values / part.layer for part in found], dim=1)


def input_ftle(
    network: DrivenNetwork, inputs: Tensor, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """log ‖∂h_T/∂x_t‖ for every t: how strongly each input moved the last output state.

    Args:
        network: recurrent, with an orbit of T maps that can be transposed together with the
            derivative by their input. h_T are the rows of the last state that the orbit names
            in `output_rows` (h of the last layer); the whole state where it names none.
        inputs: (B, T, I), or tokens (B, T), for which x is the one-hot vector.
        dtype: precision of tangents, float64 or float32; the result is float64.

    (N, B, T), nats; the norm is the largest singular value. It is not divided by T − t: for
    that, subtract its last column and divide by the number of steps. One backward sweep carries
    all rows of h_T, so that the cost is that of T products with H tangents; all T maps are kept,
    about ten numbers a unit, step, sequence and member. −inf where x_t cannot matter; NaN for a
    member with NaN weights. Raises ValueError for inputs without steps and for half precision,
    TypeError for what has no orbit and for maps without `transposed_with_inputs`. Source: the
    adjoint of Benettin's product; J_T … J_{t+1} ∂s_t/∂x_t by the transposes, last first.

    Example:
        >>> from tasks.networks.rnn import RNN
        >>> network = RNN([RNN.Config(units=8, init="orthogonal", activation="relu")],
        ...               input_size=1, output_size=1, generators=[torch.Generator()])
        >>> sensitivity = input_ftle(network, torch.ones(2, 30, 1))
        >>> sensitivity.shape, bool((sensitivity <= sensitivity[..., -1:] + 1e-9).all())
        (torch.Size([1, 2, 30]), True)
    """
    if inputs.ndim < 2 or 0 in inputs.shape:
        raise ValueError(
            f"inputs must be (B, T, I) or tokens (B, T), none empty; got {tuple(inputs.shape)}"
        )
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    with _measurable(network, inputs, is_recurrent=True):
        orbit = network.orbit(inputs, dtype=dtype)
        N, B, D = orbit.num_members, orbit.num_sequences, orbit.tangent_size
        maps = list(orbit.maps())
        if not hasattr(maps[-1], "transposed_with_inputs"):
            raise TypeError(
                "input_ftle needs maps with `transposed_with_inputs(P)`; those of "
                f"{type(network).__name__} are {type(maps[-1]).__name__}"
            )
        rows = getattr(orbit, "output_rows", slice(None))
        P = torch.eye(D, dtype=dtype, device=orbit.device)[:, rows].expand(N, B, D, -1)
        log_scale = torch.zeros((N, B), dtype=torch.float64, device=orbit.device)
        norms: list[Tensor] = []
        for count, J in enumerate(reversed(maps), start=1):
            P, by_input = J.transposed_with_inputs(P)
            norms.append(_top(by_input.double(), want_direction=False)[0] + log_scale)
            if count % RESCALE_EVERY == 0:
                P, log_scale = _rescaled(P, log_scale)
        return torch.stack(norms[::-1], dim=-1)


@contextmanager
def _measurable(network: Any, inputs: Tensor, *, is_recurrent: bool) -> Iterator[None]:
    """Exact arithmetic, modules in eval mode, and a network of the right kind."""
    name = type(network).__name__
    if not hasattr(network, "orbit"):
        raise TypeError(
            f"FTLEs need a network with `orbit`, its maps and their transposes; {name} has none. "
            "lyapunov_spectrum and local_exponents take torch.nn modules, functions and Jacobians"
        )
    if getattr(network, "is_recurrent", False) and not is_recurrent:
        raise TypeError(
            f"FTLEs by layer need a feed-forward network, and {name} is recurrent: its maps are "
            "time steps. Take lyapunov_spectrum or input_ftle"
        )
    refuse_imprecise(network, inputs)
    with exact_arithmetic(), in_eval_mode(network):
        yield


class _Product(NamedTuple):
    """J_l restricted to the basis, divided by exp(log_scale); `layer` is l."""

    layer: int
    J_NBEr: Tensor
    log_scale_NB: Tensor


def _products(orbit: Any, basis_NIr: Tensor, last: int) -> Iterator[_Product]:
    """J_l for l = 1 … `last`."""
    J = basis_NIr.unsqueeze(1)
    log_scale = torch.zeros(
        orbit.num_members, orbit.num_sequences, dtype=torch.float64, device=orbit.device
    )
    for number, step in enumerate(orbit.maps(), start=1):
        J = step(J)
        if number % RESCALE_EVERY == 0:
            J, log_scale = _rescaled(J, log_scale)
        yield _Product(number, J, log_scale)
        if number == last:
            return


def _rescaled(J: Tensor, log_scale_NB: Tensor) -> tuple[Tensor, Tensor]:
    """J with entries of at most 1, by powers of two, which change no digit."""
    exponent = torch.frexp(J.abs().amax((-2, -1))).exponent.to(J.dtype)
    # Two factors, because 2^−e alone may be out of range where e is at the end of it.
    half = torch.exp2(-torch.floor(exponent / 2))[..., None, None]
    rest = torch.exp2(-torch.ceil(exponent / 2))[..., None, None]
    return J * half * rest, log_scale_NB + exponent.double() * math.log(2)


def _part(
    network: LayeredNetwork, inputs: Tensor, layer: int | None, directions: bool, method: Method
) -> Field:
    """A field over one chunk: exponents (N, L, B), directions (N, L, B, I)."""
    orbit = network.orbit(inputs, dtype=torch.float64)
    last = _checked_layer(orbit, layer)
    if _is_swept(method, _num_directions(orbit), layer):
        found = [_swept(orbit, 1, number) for number in _layers(last, layer)]
        exponents = [part.log_values[..., 0] / part.layer for part in found]
        return Field(
            torch.stack(exponents, dim=1),
            torch.stack([part.right for part in found], dim=1) if directions else None,
        )
    basis_NIr = _basis(orbit)
    values: list[Tensor] = []
    vectors: list[Tensor] = []
    for product in _products(orbit, basis_NIr, last):
        if layer is not None and product.layer != layer:
            continue
        log_sigma, top_NBr = _top(product.J_NBEr, want_direction=directions)
        values.append((log_sigma + product.log_scale_NB) / product.layer)
        if top_NBr is not None:
            vectors.append(torch.einsum("nir,nbr->nbi", basis_NIr, top_NBr))
    return Field(torch.stack(values, dim=1), torch.stack(vectors, dim=1) if directions else None)


class _Swept(NamedTuple):
    layer: int
    log_values: Tensor
    right: Tensor


def _swept(orbit: Any, k: int, layer: int | None) -> _Swept:
    """Leading singular values of J_l by sweeps; `right` is v_1, (N, B, I)."""
    last = _checked_layer(orbit, layer)
    maps = [step for step, _ in zip(orbit.maps(), range(last), strict=False)]
    found = leading_singular_values(
        maps,
        k,
        num_rows=orbit.tangent_size,
        lead=(orbit.num_members, orbit.num_sequences),
        dtype=torch.float64,
        device=orbit.device,
    )
    if not bool(found.has_settled.all()):
        raise ArithmeticError(
            f"sweeps did not settle for {int((~found.has_settled).sum())} of "
            f"{found.has_settled.numel()} inputs, where singular values nearly coincide; "
            "method='product' gives the largest of them exactly"
        )
    is_dead = torch.isneginf(found.log_values[..., :1])
    right = torch.where(is_dead, math.nan, found.right[..., 0])
    return _Swept(last, found.log_values, right)


def _top(J_NBEr: Tensor, *, want_direction: bool) -> tuple[Tensor, Tensor | None]:
    """log σ_max (N, B) of every matrix, and its right singular vector (N, B, r) if wanted."""
    # Squares of what is far from 1 would leave the range.
    J_NBEr, log_scale_NB = _rescaled(J_NBEr, torch.zeros_like(J_NBEr[..., 0, 0]))
    E, r = J_NBEr.shape[-2:]
    if r == 1 or (E == 1 and not want_direction):
        value = J_NBEr.square().sum((-2, -1))
        vector = torch.ones_like(J_NBEr[..., :1, 0]) if want_direction else None
    elif r == 2:
        value, vector = _top_of_two(J_NBEr, want_direction)
    elif r <= E:
        value, vector = largest_eigenpair(J_NBEr.mT @ J_NBEr)
    else:
        # JJᵀ is smaller and has the same largest eigenvalue; v_1 = Jᵀ u_1 / σ_1.
        value, u = largest_eigenpair(J_NBEr @ J_NBEr.mT)
        pulled = (J_NBEr.mT @ u.unsqueeze(-1)).squeeze(-1)
        vector = pulled / torch.linalg.vector_norm(pulled, dim=-1, keepdim=True)
    value = torch.where(torch.isfinite(value), value, math.nan)
    log_sigma = 0.5 * value.log() + log_scale_NB
    if not want_direction or vector is None:
        return log_sigma, None
    is_number = (value > 0).unsqueeze(-1)
    return log_sigma, torch.where(is_number, vector, math.nan)


def _top_of_two(J_NBE2: Tensor, want_direction: bool) -> tuple[Tensor, Tensor | None]:
    """Inputs in the plane are the common case; all terms of the root are sums of positives."""
    a, b = J_NBE2.unbind(-1)
    aa, bb, ab = torch.linalg.vecdot(a, a), torch.linalg.vecdot(b, b), torch.linalg.vecdot(a, b)
    half = (aa - bb) / 2
    value = (aa + bb) / 2 + torch.hypot(half, ab)
    if not want_direction:
        return value, None
    angle = torch.atan2(ab, half) / 2
    return value, torch.stack([angle.cos(), angle.sin()], dim=-1)


def _basis(orbit: Any) -> Tensor:
    """Orthonormal directions (N, I, r) outside of which all tangents vanish at once."""
    if hasattr(orbit, "active_directions"):
        basis: Tensor = orbit.active_directions()
        return basis
    identity = torch.eye(orbit.tangent_size, dtype=torch.float64, device=orbit.device)
    return identity.expand(orbit.num_members, -1, -1)


def _num_directions(orbit: Any) -> int:
    return int(_basis(orbit).shape[-1])


def _is_swept(method: Method, num_directions: int, layer: int | None) -> bool:
    if method == "auto":
        return layer is not None and num_directions >= SWEEPS_FROM
    if method not in ("product", "sweeps"):
        raise ValueError(f"method must be 'auto', 'product' or 'sweeps', got {method!r}")
    return method == "sweeps"


def _checked_layer(orbit: Any, layer: int | None) -> int:
    num_layers: int = orbit.num_steps
    if layer is not None and not 1 <= layer <= num_layers:
        raise ValueError(f"layer must be between 1 and {num_layers}, got {layer}")
    return num_layers if layer is None else layer


def _layers(last: int, layer: int | None) -> range:
    return range(1, last + 1) if layer is None else range(layer, layer + 1)


def _known(directions: Tensor | None) -> Tensor:
    assert directions is not None  # they were asked for
    return directions


def _chunks(
    network: LayeredNetwork, inputs: Tensor, method: Method, layer: int | None
) -> Iterator[Tensor]:
    """Inputs in parts whose tangents fit the largest chunk."""
    orbit = network.orbit(inputs[:1], dtype=torch.float64)
    J = _basis(orbit).unsqueeze(1)
    if _is_swept(method, J.shape[-1], layer):
        J = J[..., :4]
    largest = J.shape[-1] * max(J.shape[-2:])
    for step in orbit.maps():
        J = step(J)
        largest = max(largest, J.shape[-1] * max(J.shape[-2:]))
    room = LARGEST_CHUNK if inputs.device.type == "cpu" else LARGEST_CHUNK_ON_GPU
    size = max(1, room // (orbit.num_members * largest))
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]
