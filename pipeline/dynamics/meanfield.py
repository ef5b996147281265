"""Mean-field theory of wide random networks: what a spectrum is before training has changed it.

h^l = W^l φ(h^{l−1}) + b^l with W_ij ~ N(0, σ_w²/N), b_i ~ N(0, σ_b²) and N → ∞ (Poole et al. 2016;
Schoenholz et al. 2017), layers in place of time for feed-forward networks. A recurrent network
whose W stays the same obeys the same equations (Sompolinsky et al. 1988; Molgedey et al. 1992),
and white input of standard deviation σ_x enters exactly as a bias does: put σ_b² + σ_x² for σ_b².

q is the mean square of a pre-activation, c the correlation of two inputs, ∫Dz the mean over a
standard normal z. Exponents are nats per layer or step.

Gaussian means come from `quadrature`; a Gauss–Hermite rule would not do. The theory itself is in
the files of `wide`, a subject each; here are their names together.

>>> print(f"q* = {fixed_point(2.5, 0.3):.3f}, c* = {fixed_correlation(2.5, 0.3):.3f}")
q* = 4.079, c* = 0.122
>>> print(f"λ_1 = {largest_exponent(2.5, 0.3):.3f}, critical at σ_w = {critical_sigma_w(0.3):.3f}")
λ_1 = 0.230, critical at σ_w = 1.396
"""

from pipeline.dynamics.wide.activations import (
    GELU,
    LINEAR,
    RELU,
    SIGMOID,
    SILU,
    TANH,
    Activation,
    piecewise_linear,
)
from pipeline.dynamics.wide.correlations import (
    correlation_length,
    correlation_map,
    correlation_slope,
    fixed_correlation,
)
from pipeline.dynamics.wide.curves import (
    CircleGeometry,
    circle_geometry,
    curvature_limit,
    curvature_recursion,
    metric_recursion,
)
from pipeline.dynamics.wide.exponents import (
    largest_exponent,
    mean_exponent,
    relu_direction_exponent,
)
from pipeline.dynamics.wide.lengths import (
    chi_1,
    chi_2,
    fixed_point,
    length_map,
)
from pipeline.dynamics.wide.phases import (
    critical_sigma_b,
    critical_sigma_w,
)
from pipeline.dynamics.wide.weight_changes import changed_weights_correlation

__all__ = [
    "GELU",
    "LINEAR",
    "RELU",
    "SIGMOID",
    "SILU",
    "TANH",
    "Activation",
    "CircleGeometry",
    "changed_weights_correlation",
    "chi_1",
    "chi_2",
    "circle_geometry",
    "correlation_length",
    "correlation_map",
    "correlation_slope",
    "critical_sigma_b",
    "critical_sigma_w",
    "curvature_limit",
    "curvature_recursion",
    "fixed_correlation",
    "fixed_point",
    "largest_exponent",
    "length_map",
    "mean_exponent",
    "metric_recursion",
    "piecewise_linear",
    "relu_direction_exponent",
]
