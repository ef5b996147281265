"""How a map bends space: curves and manifolds through a network, curvature of decision boundaries.

Extrinsic Riemannian geometry as in Poole et al. (2016, figs. 3 and 4). Derivatives are exact,
by automatic differentiation in float64, forwards along curves. Every callable here treats the
rows of its input apart from each other: normalisation over the batch has no geometry.

Shapes: B points, d coordinates of a manifold, D inputs, E outputs, … axes of the callable's own,
such as members.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.dynamics.steps import generator_states, have_drawn

LARGEST_CHUNK = 2**22
"""Numbers that the tangents of one chunk of a Hessian may hold: 32 MB in float64."""


@dataclass(frozen=True)
class CurveGeometry:
    """A curve h(θ) with its first two derivatives.

    Attributes:
        theta: (B,) parameters, increasing.
        points: (…, B, E) h.
        velocity: (…, B, E) v = dh/dθ.
        acceleration: (…, B, E) a = dv/dθ.
    """

    theta: Tensor
    points: Tensor
    velocity: Tensor
    acceleration: Tensor

    def metric(self) -> Tensor:
        """g^E = v·v, (…, B): squared length per squared unit of θ."""
        squares: Tensor = self.velocity.square()
        return squares.sum(-1)

    def curvature(self) -> Tensor:
        """κ = [(v·v)(a·a) − (v·a)²]^½/(v·v)^{3/2}, (…, B), one over length; NaN where v = 0."""
        v, a = self.velocity, self.acceleration
        metric = self.metric().unsqueeze(-1)
        # The part of a across v, which says the same without the difference of two products.
        across = a - v * ((v * a).sum(-1, keepdim=True) / metric)
        size: Tensor = torch.linalg.vector_norm(across, dim=-1)
        return size / metric.squeeze(-1)

    def grassmann_metric(self) -> Tensor:
        """g^G = κ² g^E, (…, B): squared turning of the tangent, radians² per squared unit of θ."""
        return self.curvature().square() * self.metric()

    def euclidean_length(self, period: float | None = None) -> Tensor:
        """L^E = ∫√g^E dθ, (…), trapezoid over θ; `period` closes a periodic curve.

        On evenly spaced θ of a smooth closed curve the error falls exponentially with B. Raises
        ValueError for fewer than two θ, or a period that does not exceed their range.
        """
        return _integrate(self.metric().sqrt(), self.theta, period)

    def grassmann_length(self, period: float | None = None) -> Tensor:
        """L^G = ∫√g^G dθ, (…), radians: how far the tangent turns, 2π for a circle.

        Integrated as `euclidean_length` is, and raises as it does.
        """
        return _integrate(self.grassmann_metric().sqrt(), self.theta, period)


def curve_geometry(
    curve: Callable[[Tensor], Tensor],
    theta: Tensor,
    *,
    through: Callable[[Tensor], Any] | None = None,
) -> CurveGeometry:
    """Points, velocity and acceleration of a curve, or of its image (Poole et al. 2016, fig. 3).

    Args:
        curve: (B,) → (B, D), every θ on its own.
        theta: (B,), increasing.
        through: (B, D) → (…, B, E), a network for one; of a tuple the first entry counts. A
            module is evaluated in float64 without being changed. None: the curve itself.

    Raises ValueError for θ that do not increase, for a module that is noisy or mixes rows (active
    dropout, batch statistics), and for a callable that leaves float64.

    >>> t = torch.arange(64, dtype=torch.float64) * (2 * math.pi / 64)
    >>> circle = great_circle(torch.eye(2, dtype=torch.float64), radius=3.0)
    >>> geometry = curve_geometry(circle, t)
    >>> print(f"{geometry.curvature()[5]:.6f} {geometry.euclidean_length(2 * math.pi):.6f}")
    0.333333 18.849556
    """
    theta = theta.detach().double()
    if theta.ndim != 1 or len(theta) == 0 or not (theta.diff() > 0).all():
        raise ValueError(f"theta must be (B,) and increase, got shape {tuple(theta.shape)}")
    network = None if through is None else _in_float64(through)

    def h(t: Tensor) -> Tensor:
        return _float64(curve(t) if network is None else network(curve(t)), len(t))

    def h_and_v(t: Tensor) -> tuple[Tensor, Tensor]:
        value_and_velocity: tuple[Tensor, Tensor] = _jvp(h, t, torch.ones_like(t))
        return value_and_velocity

    (points, velocity), (_, acceleration) = _jvp(h_and_v, theta, torch.ones_like(theta))
    return CurveGeometry(theta, points.detach(), velocity.detach(), acceleration.detach())


def great_circle(plane: Tensor, radius: float = 1.0) -> Callable[[Tensor], Tensor]:
    """θ ↦ radius·(u_0 cos θ + u_1 sin θ), (B,) → (B, D), for `plane` (2, D) with rows u_0, u_1.

    The circle of Poole et al. (2016, fig. 3) has radius √(N q*) and orthonormal rows. Raises
    ValueError unless the rows are orthonormal to 1e-6.

    >>> great_circle(torch.eye(2))(torch.tensor([0.0])).tolist()
    [[1.0, 0.0]]
    """
    u = plane.detach().double()
    if u.ndim != 2 or len(u) != 2:
        raise ValueError(f"plane must be (2, D), got {tuple(plane.shape)}")
    if not torch.allclose(u @ u.T, torch.eye(2, dtype=u.dtype, device=u.device), atol=1e-6):
        raise ValueError("the rows of plane must be orthonormal; torch.linalg.qr makes them so")
    return lambda t: radius * (t.cos()[:, None] * u[0] + t.sin()[:, None] * u[1])


def shallow_length_bound(width: int, span: float = 2.0, sign_changes: int = 1) -> float:
    """N_1 (1 + s) R ≥ L^E: no longer can a curve be after one hidden layer (Poole et al. 2016).

    For any weights and biases, in x = φ(h) with a monotone φ whose values `span` R = sup φ − inf φ
    (2 for tanh): each of the `width` N_1 units goes up and down by at most R as often as its h
    turns, and a curve is no longer than its coordinates' total variations together. `sign_changes`
    s: how often the velocity of the curve's projection on a line changes sign, at most; 1 for a
    great circle, which goes up once and down once wherever it is begun.

    Raises ValueError for width < 1, span ≤ 0 and sign_changes < 0.

    >>> shallow_length_bound(100)
    400.0
    """
    if width < 1 or not 0 < span < math.inf or sign_changes < 0:
        raise ValueError(
            "width must be at least 1, span positive and finite, sign_changes at least 0, got "
            f"{width}, {span} and {sign_changes}"
        )
    return width * (1 + sign_changes) * span


def pullback_metric(f: Callable[[Tensor], Any], points: Tensor) -> Tensor:
    """g = JᵀJ, (…, B, d, d): lengths and angles that f gives to its inputs, J = ∂f/∂x.

    exp(2 L λ_1) for a network of L layers is its largest eigenvalue, √det g the volume element.

    Args:
        f: (B, d) → (…, B, E), rows apart; modules as in `curve_geometry`.
        points: (B, d).

    Raises ValueError as `curve_geometry` does.

    >>> polar = lambda x: torch.stack([x[:, 0] * x[:, 1].cos(), x[:, 0] * x[:, 1].sin()], -1)
    >>> pullback_metric(polar, torch.tensor([[2.0, 0.3]]))[0].diagonal().round(decimals=6).tolist()
    [1.0, 4.0]
    """
    x = _points(points)
    network = _in_float64(f)

    def outputs(x: Tensor) -> Tensor:
        return _float64(network(x), len(x))

    columns = []
    for basis in torch.eye(x.shape[1], dtype=x.dtype, device=x.device):
        columns.append(_jvp(outputs, x, basis.expand_as(x))[1].detach())
    J = torch.stack(columns, dim=-1)
    metric: Tensor = J.mT @ J
    return metric


def principal_curvatures(score: Callable[[Tensor], Any], points: Tensor) -> Tensor:
    """Principal curvatures of the level set of `score` through each point, (B, D − 1), descending.

    The eigenvalues of P H P/‖∇G‖ with H the Hessian of G = `score` and P = I − n nᵀ, without the
    zero along n = ∇G/‖∇G‖ (Poole et al. 2016, fig. 4). One over length; positive where the level
    set curves away from n, as the sphere |x|² = r² does with 1/r.

    Args:
        score: (B, D) → B numbers, rows apart; positive on one side of the boundary. Twice
            differentiable: a ReLU network's curvatures are 0 wherever they exist. Modules as in
            `curve_geometry`.
        points: (B, D), D ≥ 2; see `boundary_points`.

    NaN for points where the gradient vanishes or anything is not finite. Raises ValueError as
    `curve_geometry` does.

    >>> sphere = lambda x: x.square().sum(-1) - 4
    >>> principal_curvatures(sphere, torch.tensor([[0.0, 2.0, 0.0]])).round(decimals=9).tolist()
    [[0.5, 0.5]]
    """
    x = _points(points)
    B, D = x.shape
    if D < 2:
        raise ValueError("a boundary in one dimension is a point: curvature needs D ≥ 2")
    G = _total_score(score)
    gradient = torch.func.grad(lambda x: G(x).sum())

    def hessian_column(basis: Tensor) -> Tensor:
        column: Tensor = _jvp(gradient, x, basis.expand(B, D))[1]
        return column

    chunk = max(1, LARGEST_CHUNK // (B * D))
    identity = torch.eye(D, dtype=x.dtype, device=x.device)
    H = torch.func.vmap(hessian_column, chunk_size=chunk)(identity).detach().movedim(0, 1)
    slope = gradient(x).detach()
    size = torch.linalg.vector_norm(slope, dim=-1)
    basis = _tangent_basis(slope / size[:, None])
    shape = basis.mT @ H @ basis / size[:, None, None]
    shape = (shape + shape.mT) / 2
    is_finite = torch.isfinite(shape).all(-1).all(-1)
    # LAPACK raises on NaN, and one bad point must not take the others with it.
    values = torch.linalg.eigvalsh(torch.where(is_finite[:, None, None], shape, 0.0)).flip(-1)
    return torch.where(is_finite[:, None], values, math.nan)


class Boundary(NamedTuple):
    """Points brought to G = 0.

    points: (B, D). distances: (B,) |G|/‖∇G‖, first-order distances left. is_found: (B,).
    """

    points: Tensor
    distances: Tensor
    is_found: Tensor


def boundary_points(
    score: Callable[[Tensor], Any],
    starts: Tensor,
    *,
    tolerance: float = 1e-10,
    num_steps: int = 200,
) -> Boundary:
    """A point of the decision boundary G = 0 near each start, by damped Newton steps along ∇G.

    Args:
        score: as for `principal_curvatures`, once differentiable.
        starts: (B, D).
        tolerance: on |G|/‖∇G‖, the distance left, in units of the input.
        num_steps: at most.

    Starts from which |G| has a minimum other than 0 in the way end there, with `is_found` False;
    so do NaNs. Raises ValueError as `curve_geometry` does, and for a tolerance or num_steps that
    is not positive.

    >>> circle = lambda x: x.square().sum(-1) - 1
    >>> found = boundary_points(circle, torch.tensor([[3.0, 4.0]]))
    >>> found.points.round(decimals=9).tolist(), found.is_found.tolist()
    ([[0.6, 0.8]], [True])
    """
    if not tolerance > 0 or num_steps < 1:
        raise ValueError(
            f"tolerance and num_steps must be positive, got {tolerance} and {num_steps}"
        )
    x = _points(starts)
    G = _total_score(score)

    def with_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            values = G(x)
            return values.sum(), values

        gradient, values = torch.func.grad(total, has_aux=True)(x)
        return values.detach(), gradient.detach()

    values, slope = with_gradient(x)
    damping = torch.ones_like(values)
    for _ in range(num_steps):
        distance = values.abs() / torch.linalg.vector_norm(slope, dim=-1)
        # NaN counts as open and never improves.
        is_open = ~(distance <= tolerance) & (damping > 1e-12)
        if not is_open.any():
            break
        step = -(values / slope.square().sum(-1))[:, None] * slope
        trial = torch.where(is_open[:, None], x + damping[:, None] * step, x)
        new_values, new_slope = with_gradient(trial)
        is_better = is_open & (new_values.abs() < values.abs())
        x = torch.where(is_better[:, None], trial, x)
        values = torch.where(is_better, new_values, values)
        slope = torch.where(is_better[:, None], new_slope, slope)
        shrunk = torch.where(is_open, damping / 4, damping)
        damping = torch.where(is_better, (2 * damping).clamp(max=1), shrunk)
    distances = values.abs() / torch.linalg.vector_norm(slope, dim=-1)
    distances = torch.where(values == 0, 0.0, distances)
    return Boundary(x, distances, distances <= tolerance)


def _jvp(f: Callable[[Tensor], Any], x: Tensor, direction: Tensor) -> Any:
    """f(x) and its derivative along `direction`; both in the structure that f returns."""
    return torch.func.jvp(f, (x,), (direction,))


def _tangent_basis(normal_BD: Tensor) -> Tensor:
    """Orthonormal columns across each unit normal, (B, D, D − 1), by a Householder reflection."""
    sign = torch.where(normal_BD[:, :1] < 0, -1.0, 1.0)
    w = torch.cat([normal_BD[:, :1] + sign, normal_BD[:, 1:]], dim=1)
    scaled = 2 * w / w.square().sum(-1, keepdim=True)
    identity = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    return identity[:, 1:] - w[:, :, None] * scaled[:, None, 1:]


def _integrate(density: Tensor, theta: Tensor, period: float | None) -> Tensor:
    if len(theta) < 2:
        raise ValueError("a length needs at least two values of theta")
    if period is not None:
        if not float(theta[-1] - theta[0]) < period:
            raise ValueError(
                f"theta spans {float(theta[-1] - theta[0]):g}, which must be less than the period "
                f"{period:g}: leave out the last point, which is the first again"
            )
        theta = torch.cat([theta, theta[:1] + period])
        density = torch.cat([density, density[..., :1]], dim=-1)
    return torch.trapezoid(density, theta, dim=-1)


def _points(points: Tensor) -> Tensor:
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points must be (B, D) and not empty, got {tuple(points.shape)}")
    return points.detach().double()


def _total_score(score: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    network = _in_float64(score)

    def values(x: Tensor) -> Tensor:
        output = _float64(network(x), None)
        if output.numel() != len(x):
            raise ValueError(
                f"a score is one number a point: {len(x)} points gave shape {tuple(output.shape)}"
            )
        return output.reshape(len(x))

    return values


def _float64(output: Any, num_rows: int | None) -> Tensor:
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor) or value.dtype != torch.float64:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"geometry needs float64 throughout; the callable returned {kind}. Pass a module "
            "itself, or call .double() on what it uses"
        )
    if num_rows is not None and (value.ndim < 2 or value.shape[-2] != num_rows):
        raise ValueError(
            f"the callable must return (…, B, E) with B = {num_rows}, got {tuple(value.shape)}"
        )
    return value


def _in_float64(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """`f`, and a module with float64 copies of its parameters and buffers; refuses random ones."""
    if not isinstance(f, nn.Module):
        return _not_random(f)
    for name, module in f.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        is_noisy = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if module.training and (is_noisy or is_norm):
            raise ValueError(
                f"'{name}' ({type(module).__name__}) is in training mode, where outputs are not a "
                "function of the input alone; call .eval() first"
            )
        if is_norm and module.running_mean is None:
            raise ValueError(
                f"'{name}' ({type(module).__name__}) keeps no running statistics, so that the rows "
                "of a batch depend on one another in any mode"
            )
    # Parameters stay parameters, as some modules look theirs up by that type.
    parameters = {
        name: nn.Parameter(_lift(value), requires_grad=False)
        for name, value in f.named_parameters()
    }
    buffers = {name: _lift(value) for name, value in f.named_buffers()}
    return _not_random(lambda x: torch.func.functional_call(f, {**parameters, **buffers}, (x,)))


def _not_random(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """`f`; raises ValueError where it draws from a global generator."""

    def checked(x: Tensor) -> Any:
        before = generator_states(x.device)
        output = f(x)
        if have_drawn(before, x.device):
            raise ValueError(
                "the callable draws random numbers, so that its outputs are not a function of the "
                "input alone; switch its dropout off (.eval())"
            )
        return output

    return checked


def _lift(value: Tensor) -> Tensor:
    return value.detach().double() if value.is_floating_point() else value
