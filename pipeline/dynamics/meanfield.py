"""Mean-field theory of wide random networks: what a spectrum is before training has changed it.

h^l = W^l φ(h^{l−1}) + b^l with W_ij ~ N(0, σ_w²/N), b_i ~ N(0, σ_b²) and N → ∞ (Poole et al. 2016;
Schoenholz et al. 2017), layers in place of time for feed-forward networks. A recurrent network
whose W stays the same obeys the same equations (Sompolinsky et al. 1988; Molgedey et al. 1992),
and white input of standard deviation σ_x enters exactly as a bias does: put σ_b² + σ_x² for σ_b².

q is the mean square of a pre-activation, c the correlation of two inputs, ∫Dz the mean over a
standard normal z. Exponents are nats per layer or step.

Gaussian means come from `quadrature`; a Gauss–Hermite rule would not do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import digamma, expit, gammaln, log_expit, ndtr

from pipeline.dynamics.quadrature import Problem, gaussian_mean, normal_density

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

NOISE = 1e-13
"""Error of an inner mean, relative to its size, that the mean over it must not chase."""


@dataclass(frozen=True)
class Activation:
    """φ with the derivatives that the theory needs, each elementwise on float64 arrays.

    Attributes:
        value, slope: φ and φ′.
        curvature: φ″; None where it does not exist as a function, which rules out `chi_2`.
        log_slope: log|φ′|, where taking the logarithm of `slope` would underflow.
        centres: arguments at which φ bends or kinks; integration is refined around them.
        slopes: (φ′ below 0, φ′ above 0) of a φ that is linear on either side of 0; the means
            then have closed forms.

    >>> softsign = Activation(lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0)
    >>> print(f"{fixed_point(2.0, 0.3, activation=softsign):.6f}")
    0.706646
    """

    value: Function
    slope: Function
    curvature: Function | None = None
    log_slope: Function | None = None
    centres: tuple[float, ...] = (0.0,)
    slopes: tuple[float, float] | None = None


def _sech2(x: Array) -> Array:
    # 1 − tanh² cancels to 0 for |x| > 19, and cosh² overflows for |x| > 355.
    decay = np.exp(-2 * np.abs(x))
    return np.asarray(4 * decay / (1 + decay) ** 2)


def _log_sech2(x: Array) -> Array:
    size = np.abs(x)
    return np.asarray(2 * (math.log(2) - size - np.log1p(np.exp(-2 * size))))


def piecewise_linear(below: float, above: float) -> Activation:
    """φ(x) = `below`·x for x < 0 and `above`·x for x ≥ 0, with closed-form means.

    (0, 1) is ReLU, (1, 1) the identity. The means are the arc-cosine kernels of Cho & Saul (2009),
    split into the even and the odd part of φ. Raises ValueError unless both slopes are finite.

    >>> leaky = piecewise_linear(0.1, 1.0)
    >>> print(f"{chi_1(1.4, 0.1, activation=leaky):.4f}")
    0.9898
    """
    if not (math.isfinite(below) and math.isfinite(above)):
        raise ValueError(f"the slopes of φ must be finite, got below={below}, above={above}")
    return Activation(
        value=lambda x: np.where(x < 0, below, above) * x,
        slope=lambda x: np.where(x < 0, below, above),
        curvature=np.zeros_like if below == above else None,
        slopes=(below, above),
    )


TANH = Activation(np.tanh, _sech2, lambda x: -2 * np.tanh(x) * _sech2(x), _log_sech2)
RELU = piecewise_linear(0.0, 1.0)
LINEAR = piecewise_linear(1.0, 1.0)
SIGMOID = Activation(
    expit,
    lambda x: expit(x) * expit(-x),
    lambda x: expit(x) * expit(-x) * (expit(-x) - expit(x)),
    lambda x: log_expit(x) + log_expit(-x),
)
GELU = Activation(
    lambda x: x * ndtr(x),
    lambda x: ndtr(x) + x * normal_density(x),
    lambda x: (2 - x * x) * normal_density(x),
)
SILU = Activation(
    lambda x: x * expit(x),
    lambda x: expit(x) * (1 + x * expit(-x)),
    lambda x: expit(x) * expit(-x) * (2 + x * (expit(-x) - expit(x))),
)


def length_map(
    q: ArrayLike, sigma_w: float, sigma_b: float, *, activation: Activation = TANH
) -> Array:
    """V(q) = σ_w² ∫Dz φ(√q z)² + σ_b² (Poole et al. 2016, fig. 1).

    Args:
        q: any shape, mean square of the pre-activations of a layer.
        sigma_w, sigma_b: σ_w and σ_b.
        activation: φ.

    Returns the mean square one layer on, in the shape of q. Raises ValueError for q < 0 and for
    σ that are negative or not finite.

    >>> print(f"{length_map(0.607046792, 1.3, 0.3):.9f}")
    0.607046792
    """
    _check_scales(sigma_w, sigma_b)
    return np.asarray(sigma_w**2 * _mean_square(activation, _lengths(q)) + sigma_b**2)[()]


def fixed_point(sigma_w: float, sigma_b: float, *, activation: Activation = TANH) -> float:
    """q* = V(q*), the length that layers converge to (Poole et al. 2016, fig. 1).

    Where V has several fixed points, the one that V's iteration from q = 1 meets first. 0 where
    lengths shrink to nothing (tanh: σ_b = 0, σ_w ≤ 1).

    Raises ValueError where lengths grow without end and where every length is a fixed point
    (ReLU with σ_w = √2, σ_b = 0): there is no q* then.

    >>> print(f"{fixed_point(2.5, 0.3):.6f}")
    4.079124
    """
    _check_scales(sigma_w, sigma_b)
    where = f"σ_w={sigma_w:g}, σ_b={sigma_b:g}"
    if activation.slopes is not None:
        return _fixed_point_of_line(sigma_w**2 * _half_square(activation.slopes), sigma_b, where)

    def relative(log_q: float) -> float:
        q = math.exp(log_q)
        return float(length_map(q, sigma_w, sigma_b, activation=activation)) / q - 1

    at_1 = relative(0.0)
    if at_1 == 0:
        return 1.0
    step = math.log(2) if at_1 > 0 else -math.log(2)
    near, far = 0.0, step
    while relative(far) * at_1 > 0:
        near, far = far, far + step
        if far > 300:
            raise ValueError(f"lengths grow without end at {where}: no fixed point of V")
        if far < -32 and float(length_map(0.0, sigma_w, sigma_b, activation=activation)) == 0:
            return 0.0  # V(q) < q down to 1e-14, where rounding decides, and V(0) = 0
    return math.exp(brentq(relative, near, far, xtol=1e-15, rtol=1e-15))


def chi_1(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """χ_1 = σ_w² ∫Dz φ′(√q z)² (Poole et al. 2016, fig. 2): mean square growth of a tangent.

    E‖J u‖²/‖u‖² of one layer, and the slope of the correlation map at c = 1. Order for χ_1 < 1,
    chaos for χ_1 > 1. `q=None` is the fixed point q*; raises as `fixed_point` does.

    >>> print(f"{chi_1(2.5, 0.3):.6f}")
    1.585225
    """
    _check_scales(sigma_w, sigma_b)
    q = _length(sigma_w, sigma_b, q, activation)
    return sigma_w**2 * float(_mean_square_slope(activation, _lengths(q)))


def chi_2(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """χ_2 = σ_w² ∫Dz φ″(√q z)² (Poole et al. 2016, fig. 3): source of new curvature.

    C″(1) = q* χ_2. `q=None` is the fixed point q*; raises as `fixed_point` does, and ValueError
    where φ has kinks, whose φ″ has no square.

    >>> print(f"{chi_2(4.0, 0.3):.4f}")
    1.8572
    """
    _check_scales(sigma_w, sigma_b)
    if activation.curvature is None:
        raise ValueError("χ_2 needs φ″ as a function; this activation gives no curvature")
    q = _length(sigma_w, sigma_b, q, activation)
    curvature = activation.curvature
    return sigma_w**2 * float(_mean(lambda x: curvature(x) ** 2, activation, _lengths(q)))


def correlation_map(
    c: ArrayLike,
    sigma_w: float,
    sigma_b: float,
    *,
    q: float | None = None,
    activation: Activation = TANH,
) -> Array:
    """C(c) = (σ_w² ∫Dz_1 Dz_2 φ(u_1) φ(u_2) + σ_b²)/V(q) (Poole et al. 2016, fig. 2).

    u_1 and u_2 have variance q and correlation c.

    Args:
        c: any shape, correlations in [−1, 1] of two inputs of length q.
        q: their length; None for the fixed point q*, where V(q) = q.

    Returns the correlation one layer on, in the shape of c. Raises ValueError for |c| > 1, where
    V(q) = 0 and correlations do not exist, and as `fixed_point` does.

    >>> print(f"{correlation_map(0.122, 2.5, 0.3):.3f}")
    0.122
    """
    _check_scales(sigma_w, sigma_b)
    values = np.asarray(c, dtype=np.float64)
    if not (np.abs(values) <= 1).all():
        raise ValueError(f"correlations must be within −1 … 1, got {values}")
    q = _length(sigma_w, sigma_b, q, activation)
    after = float(length_map(q, sigma_w, sigma_b, activation=activation))
    if after == 0:
        raise ValueError(_no_correlation(sigma_w, sigma_b))
    if q == 0:  # both inputs are 0, whatever their correlation
        return np.ones_like(values)[()]
    product = np.array([_mean_product(activation, q, float(x)) for x in values.ravel()])
    return np.asarray((sigma_w**2 * product.reshape(values.shape) + sigma_b**2) / after)[()]


def correlation_slope(
    c: float,
    sigma_w: float,
    sigma_b: float,
    *,
    q: float | None = None,
    activation: Activation = TANH,
) -> float:
    """C′(c) = σ_w² ∫Dz_1 Dz_2 φ′(u_1) φ′(u_2) at the fixed length (Schoenholz et al. 2017).

    χ_1 at c = 1. For a q that is not a fixed point, dC/dc is this times q/V(q). Arguments and
    errors as for `correlation_map`.

    >>> print(f"{correlation_slope(1.0, 1.3, 0.3):.6f}")
    0.939807
    """
    _check_scales(sigma_w, sigma_b)
    if not -1 <= c <= 1:
        raise ValueError(f"correlations must be within −1 … 1, got {c}")
    q = _length(sigma_w, sigma_b, q, activation)
    if c == 1:
        return chi_1(sigma_w, sigma_b, q=q, activation=activation)
    return sigma_w**2 * _mean_slope_product(activation, q, c)


def fixed_correlation(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """c*, the correlation that any two inputs converge to (Poole et al. 2016, fig. 2).

    The stable fixed point of C on [0, 1], where C is convex: 1 in the ordered phase and on the
    critical line, less in the chaotic one. A `q` that is passed must be a fixed point of V; it
    says which one where there are many. Raises as `correlation_map` does, and
    ValueError for a q that is not.

    >>> print(f"{fixed_correlation(2.5, 0.3):.3f}, {fixed_correlation(4.0, 0.3):.4f}")
    0.122, 0.0297
    """
    _check_scales(sigma_w, sigma_b)
    q = _length(sigma_w, sigma_b, q, activation)
    if q == 0:
        raise ValueError(_no_correlation(sigma_w, sigma_b))
    after = float(length_map(q, sigma_w, sigma_b, activation=activation))
    if abs(after - q) > 1e-6 * q:
        raise ValueError(f"q must be a fixed point of V, but V({q:g}) = {after:g}")
    if chi_1(sigma_w, sigma_b, q=q, activation=activation) <= 1 + 1e-12:
        return 1.0

    def relative(log_e: float) -> float:
        # (1 − C(1 − e))/e − 1, from the difference itself: C alone would cancel near c = 1.
        e = math.exp(log_e)
        return sigma_w**2 * _mean_gap(activation, q, e) / (q * e) - 1

    if relative(0.0) > -1e-13:
        return 0.0
    far = -math.log(2)
    while relative(far) < 0:
        far -= math.log(2)
    return -math.expm1(brentq(relative, far, far + math.log(2), xtol=1e-12, rtol=1e-12))


def correlation_length(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """ξ = −1/log C′(c*), layers in which |c − c*| falls by e (Schoenholz et al. 2017).

    −1/log χ_1 in the ordered phase, where c* = 1; infinite on the critical line; 0 where
    C′(c*) = 0. Raises as `fixed_correlation` does.

    >>> print(f"{correlation_length(1.3, 0.3):.3f}")
    16.108
    """
    c = fixed_correlation(sigma_w, sigma_b, q=q, activation=activation)
    slope = correlation_slope(c, sigma_w, sigma_b, q=q, activation=activation)
    if slope <= 0:
        return 0.0
    return math.inf if slope >= 1 - 1e-12 else -1 / math.log(slope)


def critical_sigma_w(sigma_b: float, *, activation: Activation = TANH) -> float:
    """σ_w(σ_b) on the line χ_1 = 1 between order and chaos (Poole et al. 2016, fig. 2).

    Raises ValueError for a σ_b that is negative or not finite, and where no σ_w is critical.

    >>> print(f"{critical_sigma_w(0.3):.4f}, {critical_sigma_w(0.0):.1f}")
    1.3956, 1.0
    """
    _check_scales(1.0, sigma_b)
    if activation.slopes is not None:
        slope2 = float(_mean_square_slope(activation, _lengths(1.0)))
        if slope2 == 0:
            raise ValueError("no σ_w is critical: φ′ = 0 everywhere")
        return 1 / math.sqrt(slope2)
    at_0 = _lengths(0.0)
    slope2_at_0 = float(_mean_square_slope(activation, at_0))
    if sigma_b == 0 and float(_mean_square(activation, at_0)) == 0 and slope2_at_0 > 0:
        return 1 / math.sqrt(slope2_at_0)

    def excess(log_q: float) -> float:
        # On the line σ_w² = 1/∫φ′², so q = V(q) says which σ_b belongs to q.
        q = _lengths(math.exp(log_q))
        ratio = _mean_square(activation, q) / _mean_square_slope(activation, q)
        return float(q - ratio) - sigma_b**2

    log_q = _first_root(excess, math.log(1e-6), 300.0, f"no σ_w is critical at σ_b={sigma_b:g}")
    return 1 / math.sqrt(_mean_square_slope(activation, _lengths(math.exp(log_q))))


def critical_sigma_b(sigma_w: float, *, activation: Activation = TANH) -> float:
    """σ_b(σ_w) on the line χ_1 = 1: the bias, or white input, that just silences chaos.

    Raises ValueError for a σ_w that is negative or not finite, and where no σ_b is critical
    (tanh: σ_w < 1, where nothing is chaotic; ReLU: the line does not depend on σ_b).

    >>> print(f"{critical_sigma_b(2.0):.3f}")
    1.279
    """
    _check_scales(sigma_w, 0.0)
    nothing = f"no σ_b is critical at σ_w={sigma_w:g}"
    if activation.slopes is not None:
        raise ValueError(f"{nothing}: for a φ linear on either side of 0, σ_b does not matter")
    if sigma_w**2 * float(_mean_square_slope(activation, _lengths(0.0))) == 1:
        log_q = -math.inf
    else:
        log_q = _first_root(
            lambda x: 1 - sigma_w**2 * float(_mean_square_slope(activation, _lengths(math.exp(x)))),
            math.log(1e-12),
            300.0,
            nothing,
        )
    q = _lengths(math.exp(log_q))
    sigma_b2 = float(q - sigma_w**2 * _mean_square(activation, q))
    if sigma_b2 < -1e-12 * float(q):
        raise ValueError(f"{nothing}: it would take a negative variance σ_b² = {sigma_b2:g}")
    return math.sqrt(max(sigma_b2, 0.0))


def largest_exponent(
    sigma_w: float,
    sigma_b: float = 0.0,
    *,
    q: float | None = None,
    activation: Activation = TANH,
) -> float:
    """λ_1 = ½ log χ_1, nats per layer or step (Poole et al. 2016; Molgedey et al. 1992).

    Of a recurrent network h' = W φ(h) + input with σ_w = g, undriven or with white input of
    standard deviation σ_b, as of a deep network: N → ∞ before time. Storm et al. (2024) write
    log(G N σ²) for the same; the ½ belongs there, since theirs is the exponent of a singular
    value and G N σ² = χ_1 that of its square. −inf at χ_1 = 0; raises as `fixed_point` does.

    >>> print(f"{largest_exponent(3.0):.6f}")
    0.310249
    """
    growth = chi_1(sigma_w, sigma_b, q=q, activation=activation)
    return 0.5 * math.log(growth) if growth > 0 else -math.inf


def mean_exponent(
    sigma_w: float,
    sigma_b: float = 0.0,
    *,
    q: float | None = None,
    activation: Activation = TANH,
    weights: Literal["gaussian", "orthogonal"] = "gaussian",
) -> float:
    """Mean of all N exponents, ⟨log|det J|⟩/N = log σ_w − ½ + ∫Dz log|φ′(√q z)|.

    The −½ is log|det|/N of a Gaussian W/σ_w for N → ∞, and 0 where W/σ_w is orthogonal. Nats per
    layer or step. −inf where φ′ = 0 on a set of positive measure (ReLU) or σ_w = 0. Raises as
    `fixed_point` does, ValueError for other weights.

    >>> print(f"{mean_exponent(3.0):.6f}")
    -2.272805
    """
    if weights not in ("gaussian", "orthogonal"):
        raise ValueError(f"weights must be 'gaussian' or 'orthogonal', got {weights!r}")
    _check_scales(sigma_w, sigma_b)
    if sigma_w == 0:
        return -math.inf
    q = _length(sigma_w, sigma_b, q, activation)
    volume = math.log(sigma_w) - (0.5 if weights == "gaussian" else 0.0)
    if activation.slopes is not None:
        if 0 in activation.slopes:
            return -math.inf
        return volume + sum(0.5 * math.log(abs(slope)) for slope in activation.slopes)
    log_slope = activation.log_slope or (lambda x: np.log(np.abs(activation.slope(x))))
    return volume + float(_mean(log_slope, activation, _lengths(q)))


def relu_direction_exponent(width: int, sigma_w: float = math.sqrt(2)) -> float:
    """Exponent of a random direction in a deep bias-free ReLU network of finite width N.

    ½ E[log(σ_w² χ²_K/N) | K ≥ 1] with K ~ Binomial(N, ½) units active, nats per layer, given
    that the direction survives. Lies below ½ log χ_1 = ½ log(σ_w²/2), and tends to it for
    N → ∞. Raises ValueError for width < 1 or σ_w ≤ 0.

    >>> print(f"{relu_direction_exponent(16):.5f}")
    -0.08820
    """
    if width < 1 or not 0 < sigma_w < math.inf:
        raise ValueError(f"width must be ≥ 1 and σ_w > 0, got width={width}, σ_w={sigma_w}")
    K = np.arange(1, width + 1)
    log_weight = gammaln(width + 1) - gammaln(K + 1) - gammaln(width - K + 1)
    weight = np.exp(log_weight - log_weight.max())
    mean_log_chi2 = digamma(K / 2) + math.log(2)
    mean = float((weight * mean_log_chi2).sum() / weight.sum())
    return 0.5 * (mean + math.log(sigma_w**2 / width))


def metric_recursion(num_layers: int, chi_1: float, start: float) -> Array:
    """ḡ^l = χ_1 ḡ^{l−1} (Poole et al. 2016, fig. 3): stretching of a manifold, layer by layer.

    ḡ = g^E/N is the squared speed of a curve h(θ) per unit. Returns (num_layers,) with `start`
    first. Raises ValueError for num_layers < 1 and for values that are negative or not finite.

    >>> metric_recursion(3, 2.0, 0.5).tolist()
    [0.5, 1.0, 2.0]
    """
    _check_recursion(num_layers, chi_1=chi_1, start=start)
    return np.asarray(start * chi_1 ** np.arange(num_layers, dtype=np.float64))


def curvature_recursion(num_layers: int, chi_1: float, chi_2: float, start: float) -> Array:
    """(κ̄^l)² = 3χ_2/χ_1² + (κ̄^{l−1})²/χ_1 (Poole et al. 2016, fig. 3).

    κ̄ = √N κ is the curvature of a curve in units of 1/√N. Returns the *squared* curvatures
    (num_layers,) with `start` first. For χ_1 > 1 they tend to (3χ_2/χ_1²)/(1 − 1/χ_1); for
    χ_1 < 1 they grow. Raises ValueError for num_layers < 1, χ_1 = 0 and values that are negative
    or not finite.

    >>> curvature_recursion(3, 2.0, 4.0, 1.0).tolist()
    [1.0, 3.5, 4.75]
    """
    _check_recursion(num_layers, chi_1=chi_1, chi_2=chi_2, start=start)
    if chi_1 == 0:
        raise ValueError("curvature needs χ_1 > 0: at 0 curves shrink to points")
    squares = [start]
    for _ in range(num_layers - 1):
        squares.append(3 * chi_2 / chi_1**2 + squares[-1] / chi_1)
    return np.array(squares)


class CircleGeometry(NamedTuple):
    """A circle on its way through the layers, each (num_layers,), the circle itself first.

    metric: ḡ = g^E/N. curvature: κ̄ = √N κ. euclidean_length: L̄ = L^E/√N.
    grassmann_length: L^G in radians, 2π for the circle.
    """

    metric: Array
    curvature: Array
    euclidean_length: Array
    grassmann_length: Array


def circle_geometry(
    num_layers: int, sigma_w: float, sigma_b: float, *, activation: Activation = TANH
) -> CircleGeometry:
    """Theory of h^1(θ) = √(N q*)(u_0 cos θ + u_1 sin θ) in h^1, h^2, … (Poole et al. 2016, fig. 3).

    Starts at ḡ = q* and κ̄² = 1/q*. L̄ = 2π √ḡ and L^G = 2π κ̄ √ḡ, as both densities are the same
    for all θ. Raises as `fixed_point`, `chi_2` and `curvature_recursion` do, and ValueError where
    q* = 0, a circle of no radius.

    >>> circle_geometry(13, 2.5, 0.3).grassmann_length[[0, 6, 12]].round(1).tolist()
    [6.3, 96.4, 395.3]
    """
    q = fixed_point(sigma_w, sigma_b, activation=activation)
    if q == 0:
        raise ValueError(f"q* = 0 at σ_w={sigma_w:g}, σ_b={sigma_b:g}: a circle of no radius")
    growth = chi_1(sigma_w, sigma_b, q=q, activation=activation)
    source = chi_2(sigma_w, sigma_b, q=q, activation=activation)
    metric = metric_recursion(num_layers, growth, q)
    curvature = np.sqrt(curvature_recursion(num_layers, growth, source, 1 / q))
    length = 2 * math.pi * np.sqrt(metric)
    return CircleGeometry(metric, curvature, length, curvature * length)


def _fixed_point_of_line(gain: float, sigma_b: float, where: str) -> float:
    """V(q) = gain·q + σ_b²."""
    if gain < 1 - 1e-14:
        return sigma_b**2 / (1 - gain)
    if gain <= 1 + 1e-14 and sigma_b == 0:
        raise ValueError(f"every length is a fixed point at {where}; pass q, the one in question")
    raise ValueError(f"lengths grow without end at {where}: no fixed point of V")


def _mean_square(activation: Activation, q: Array) -> Array:
    if activation.slopes is not None:
        return np.asarray(_half_square(activation.slopes) * q)
    return _mean(lambda x: activation.value(x) ** 2, activation, q)


def _mean_square_slope(activation: Activation, q: Array) -> Array:
    if activation.slopes is not None:
        return np.full_like(q, _half_square(activation.slopes))
    return _mean(lambda x: activation.slope(x) ** 2, activation, q)


def _half_square(slopes: tuple[float, float]) -> float:
    return (slopes[0] ** 2 + slopes[1] ** 2) / 2


def _odd_even(slopes: tuple[float, float]) -> tuple[float, float]:
    """φ(x) = a x + b |x|."""
    return (slopes[1] + slopes[0]) / 2, (slopes[1] - slopes[0]) / 2


def _mean_product(activation: Activation, q: float, c: float) -> float:
    """∫Dz_1 Dz_2 φ(u_1) φ(u_2)."""
    if activation.slopes is None:
        return _product(activation.value, activation, q, c)
    a, b = _odd_even(activation.slopes)
    absolute = 2 / math.pi * (math.sqrt(1 - c * c) + c * math.asin(c))
    return q * (a * a * c + b * b * absolute)


def _mean_slope_product(activation: Activation, q: float, c: float) -> float:
    """∫Dz_1 Dz_2 φ′(u_1) φ′(u_2)."""
    if activation.slopes is None:
        return _product(activation.slope, activation, q, c)
    a, b = _odd_even(activation.slopes)
    return a * a + b * b * 2 / math.pi * math.asin(c)


def _mean_gap(activation: Activation, q: float, e: float) -> float:
    """∫Dz φ² − ∫Dz_1 Dz_2 φ(u_1) φ(u_2) at correlation c = 1 − e ≥ 0, right to its last digits."""
    # u_i = √q (√c w + √e a_i) with shared w, so that the gap is the mean variance over a.
    shared, own = math.sqrt(q * (1 - e)), math.sqrt(q * e)
    f = activation.value

    def variance(m: Array, _: Problem) -> Array:
        g = gaussian_mean(lambda x, _: f(x), m, own, centres=activation.centres)
        return gaussian_mean(
            lambda x, i: (f(x) - g[i]) ** 2,
            m,
            own,
            centres=activation.centres,
            noise=1e-15 * np.abs(g),
        )

    return float(_mean_of_means(variance, shared, activation, noise=0.0))


def _product(f: Function, activation: Activation, q: float, c: float) -> float:
    """∫Dz_1 Dz_2 f(u_1) f(u_2): u_i share √(q|c|) w and are independent given w."""
    shared, own = math.sqrt(q * abs(c)), math.sqrt(q * (1 - abs(c)))

    def given(mean: Array) -> Array:
        return gaussian_mean(lambda x, _: f(x), mean, own, centres=activation.centres)

    def product(m: Array, _: Problem) -> Array:
        first = given(m)
        return first * (first if c >= 0 else given(-m))

    size = math.sqrt(float(_mean(lambda x: f(x) ** 2, activation, _lengths(q))))
    return float(_mean_of_means(product, shared, activation, noise=NOISE * size))


def _mean_of_means(
    f: Callable[[Array, Problem], Array], shared: float, activation: Activation, *, noise: float
) -> float:
    """∫Dw f(shared·w), where f is itself a mean and good to NOISE only."""
    both_signs = tuple(sign * b for b in activation.centres for sign in (1, -1))
    mean = gaussian_mean(
        f,
        np.zeros(1),
        shared,
        centres=both_signs,
        tolerance=100 * NOISE,
        noise=np.array([noise]),
    )
    return float(mean[0])


def _mean(f: Function, activation: Activation, q: Array) -> Array:
    """∫Dz f(√q z) in the shape of q."""
    scale = np.sqrt(q).ravel()
    result = gaussian_mean(
        lambda x, _: f(x), np.zeros_like(scale), scale, centres=activation.centres
    )
    return result.reshape(q.shape)


def _first_root(f: Callable[[float], float], low: float, high: float, failure: str) -> float:
    """Root of an f that is negative at first, found by steps of log 2 upwards from `low`."""
    if f(low) > 0:
        raise ValueError(failure)
    while low < high:
        above = low + math.log(2)
        if f(above) > 0:
            return float(brentq(f, low, above, xtol=1e-14, rtol=1e-14))
        low = above
    raise ValueError(failure)


def _length(sigma_w: float, sigma_b: float, q: float | None, activation: Activation) -> float:
    if q is None:
        return fixed_point(sigma_w, sigma_b, activation=activation)
    _lengths(q)
    return q


def _lengths(q: ArrayLike) -> Array:
    values = np.asarray(q, dtype=np.float64)
    if not ((values >= 0) & np.isfinite(values)).all():
        raise ValueError(f"q is a mean square: it must be finite and at least 0, got {values}")
    return values


def _check_scales(sigma_w: float, sigma_b: float) -> None:
    for name, value in (("σ_w", sigma_w), ("σ_b", sigma_b)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")


def _check_recursion(num_layers: int, **values: float) -> None:
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")


def _no_correlation(sigma_w: float, sigma_b: float) -> str:
    return (
        f"signals vanish (q* = 0) at σ_w={sigma_w:g}, σ_b={sigma_b:g}, so that correlations do not "
        "exist; take σ_b > 0 or pass q"
    )
