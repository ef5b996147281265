"""Geometry on curves and surfaces with known answers, and Poole's recursions on real layers."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ellipe
from torch import nn

from pipeline.dynamics import geometry as geometry_module
from pipeline.dynamics.geometry import (
    boundary_points,
    curve_geometry,
    great_circle,
    principal_curvatures,
    pullback_metric,
    shallow_length_bound,
)
from pipeline.dynamics.meanfield import circle_geometry, fixed_point
from tasks.networks.mlp import MLP

torch.set_num_threads(1)
F64 = torch.float64


def angles(num):
    return torch.arange(num, dtype=F64) * (2 * math.pi / num)


def orthonormal_plane(size, seed=0):
    normal = torch.randn(size, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(normal)[0].T


@settings(deadline=None, max_examples=20)
@given(radius=st.floats(0.01, 100), size=st.integers(2, 9), num=st.integers(3, 40))
def test_circle(radius, size, num):
    found = curve_geometry(great_circle(orthonormal_plane(size), radius), angles(num))
    torch.testing.assert_close(found.metric(), torch.full((num,), radius**2, dtype=F64))
    torch.testing.assert_close(found.curvature(), torch.full((num,), 1 / radius, dtype=F64))
    torch.testing.assert_close(found.grassmann_metric(), torch.ones(num, dtype=F64))
    assert float(found.euclidean_length(2 * math.pi)) == pytest.approx(2 * math.pi * radius)
    assert float(found.grassmann_length(2 * math.pi)) == pytest.approx(2 * math.pi)


def test_ellipse():
    """κ = ab/(a² sin² + b² cos²)^{3/2}; the tangent turns by 2π whatever the shape."""
    a, b, t = 3.0, 0.5, angles(400)
    stretch = torch.diag(torch.tensor([a, b], dtype=F64))
    found = curve_geometry(great_circle(torch.eye(2, dtype=F64)), t, through=lambda x: x @ stretch)
    speed2 = (a * t.sin()) ** 2 + (b * t.cos()) ** 2
    torch.testing.assert_close(found.metric(), speed2, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.curvature(), a * b / speed2**1.5, rtol=1e-11, atol=0)
    perimeter = 4 * a * ellipe(1 - (b / a) ** 2)
    assert float(found.euclidean_length(2 * math.pi)) == pytest.approx(perimeter, rel=1e-12)
    assert float(found.grassmann_length(2 * math.pi)) == pytest.approx(2 * math.pi, rel=1e-10)


def test_helix_and_open_lengths():
    r, pitch = 2.0, 0.7
    t = torch.linspace(0, 5, 11, dtype=F64)
    found = curve_geometry(lambda t: torch.stack([r * t.cos(), r * t.sin(), pitch * t], -1), t)
    speed2 = r * r + pitch * pitch
    torch.testing.assert_close(found.curvature(), torch.full((11,), r / speed2, dtype=F64))
    assert float(found.euclidean_length()) == pytest.approx(5 * math.sqrt(speed2))
    assert float(found.grassmann_length()) == pytest.approx(5 * r / math.sqrt(speed2))


def test_length_does_not_depend_on_the_speed_and_the_rule_is_of_second_order():
    def fast(t):
        return torch.stack([(t * t).cos(), (t * t).sin()], -1)

    errors = []
    for num in (50, 100):
        t = torch.linspace(0.1, 2, num + 1, dtype=F64)
        found = curve_geometry(lambda t: torch.stack([t.sinh(), t.cosh() * 0], -1), t)
        errors.append(abs(float(found.euclidean_length()) - math.sinh(2) + math.sinh(0.1)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=1e-2)
    t = torch.linspace(1, 2, 21, dtype=F64)
    found = curve_geometry(fast, t)
    torch.testing.assert_close(found.curvature(), torch.ones(21, dtype=F64))
    assert float(found.euclidean_length()) == pytest.approx(3, rel=1e-12)


def test_straight_line_has_no_curvature_and_a_point_has_none_to_give():
    t = torch.linspace(-1, 1, 5, dtype=F64)
    line = curve_geometry(lambda t: torch.stack([t**3 + t, 2 * (t**3 + t)], -1), t)
    torch.testing.assert_close(line.curvature(), torch.zeros(5, dtype=F64), atol=1e-14, rtol=0)
    cusp = curve_geometry(lambda t: torch.stack([t**2, t**3], -1), t)
    assert torch.isnan(cusp.curvature()).tolist() == [False, False, True, False, False]


def test_derivatives_through_a_network_agree_with_differences():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU())
    circle = great_circle(orthonormal_plane(5), 2.0)
    t, h = angles(7), 1e-4
    found, *around = (curve_geometry(circle, t + shift, through=network) for shift in (0.0, h, -h))
    after, before = around
    torch.testing.assert_close(
        found.velocity, (after.points - before.points) / (2 * h), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        found.acceleration, (after.velocity - before.velocity) / (2 * h), atol=1e-6, rtol=0
    )


def test_modules_are_lifted_to_float64_and_left_alone():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    found = curve_geometry(great_circle(orthonormal_plane(3)), angles(4), through=network)
    assert found.points.dtype == F64
    assert all(p.dtype == torch.float32 and p.grad is None for p in network.parameters())
    assert not found.points.requires_grad
    W, b = network[0].weight.double(), network[0].bias.double()
    expected = torch.tanh(great_circle(orthonormal_plane(3))(angles(4)) @ W.T + b)
    torch.testing.assert_close(found.points, expected.detach(), rtol=1e-14, atol=1e-14)


def test_member_axes_are_carried_and_do_not_mix():
    W = torch.randn(3, 4, 6, dtype=F64, generator=torch.Generator().manual_seed(2))
    circle, t = great_circle(orthonormal_plane(4)), angles(9)

    def population(x):
        return torch.tanh(x @ W), None

    found = curve_geometry(circle, t, through=population)
    assert found.curvature().shape == (3, 9)
    assert found.grassmann_length(2 * math.pi).shape == (3,)
    alone = curve_geometry(circle, t, through=lambda x: torch.tanh(x @ W[1]))
    torch.testing.assert_close(found.curvature()[1], alone.curvature())
    metric = pullback_metric(population, circle(t))
    assert metric.shape == (3, 9, 4, 4)
    tangent = torch.autograd.functional.jacobian(circle, t).diagonal(dim1=0, dim2=2).T
    along = torch.einsum("bi,nbij,bj->nb", tangent, metric, tangent)
    torch.testing.assert_close(along, found.metric())


@pytest.mark.parametrize("sigma_w", [1.3, 2.5, 4.0])
def test_circle_through_random_layers_follows_the_recursions(sigma_w):
    """Poole et al. 2016, fig. 3: N = 1000, six layers; mean of three networks."""
    N, depth = 1000, 6
    q = fixed_point(sigma_w, 0.3)
    theory = circle_geometry(depth + 1, sigma_w, 0.3)
    metrics, curvatures, lengths = [], [], []
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        W = torch.randn(depth, N, N, dtype=F64, generator=g) * (sigma_w / math.sqrt(N))
        b = torch.randn(depth, N, dtype=F64, generator=g) * 0.3

        def layers(x, W=W, b=b):
            states = [x]
            for W_l, b_l in zip(W, b, strict=True):
                states.append(torch.tanh(states[-1]) @ W_l.T + b_l)
            return torch.stack(states)

        circle = great_circle(orthonormal_plane(N, seed), math.sqrt(N * q))
        found = curve_geometry(circle, angles(64), through=layers)
        metrics.append(found.metric().mean(1) / N)
        curvatures.append(N * found.curvature().square().mean(1))
        lengths.append(found.grassmann_length(2 * math.pi))
    metric, curvature, length = (
        torch.stack(x).mean(0).cpu().numpy() for x in (metrics, curvatures, lengths)
    )
    # One network's metric strays by some 5 % in six layers, as all points share its weights.
    assert metric == pytest.approx(theory.metric, rel=0.08)
    assert curvature**0.5 == pytest.approx(theory.curvature, rel=0.05)
    assert length == pytest.approx(theory.grassmann_length, rel=0.08)


MONOTONE = {
    "tanh": (torch.tanh, 2.0),
    "sigmoid": (torch.sigmoid, 1.0),
    "arctan, falling": (lambda x: -torch.atan(x), math.pi),
    "clipped": (lambda x: x.clamp(-0.3, 1.2), 1.5),
}


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(MONOTONE)),
    width=st.integers(1, 12),
    size=st.integers(2, 6),
    sigma_w=st.floats(0, 300),
    sigma_b=st.floats(0, 30),
    seed=st.integers(0, 1000),
)
def test_no_layer_makes_a_circle_longer_than_the_shallow_bound(
    name, width, size, sigma_w, sigma_b, seed
):
    """Whatever its weights; the polygon through points of a curve is no longer than the curve."""
    phi, span = MONOTONE[name]
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(size, width, dtype=F64, generator=g) * sigma_w
    b = torch.randn(width, dtype=F64, generator=g) * sigma_b
    points = phi(great_circle(orthonormal_plane(size, seed))(angles(3000)) @ W + b)
    length = (points - points.roll(1, 0)).norm(dim=1).sum()
    assert length <= shallow_length_bound(width, span) * (1 + 1e-12)


def test_shallow_bound_is_met_by_a_single_unit_and_counts_turns():
    """φ(h) of one unit goes from one end of its range to the other and back."""
    circle = great_circle(torch.eye(2, dtype=F64))
    steep = curve_geometry(
        circle,
        angles(20000),
        through=lambda x: torch.tanh(x @ torch.tensor([[200.0], [0]]).double()),
    )
    length = float(steep.euclidean_length(2 * math.pi))
    assert length == pytest.approx(shallow_length_bound(1), rel=1e-6)
    # Twice around, a curve turns two more times.
    twice = curve_geometry(
        lambda t: circle(2 * t),
        angles(20000),
        through=lambda x: torch.tanh(x @ torch.tensor([[200.0], [0]]).double()),
    )
    length = float(twice.euclidean_length(2 * math.pi))
    assert length == pytest.approx(shallow_length_bound(1, sign_changes=3), rel=1e-6)


def test_pullback_metric_of_the_sphere():
    def sphere(x):
        polar, azimuth = x.unbind(-1)
        return torch.stack(
            [polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1
        )

    points = torch.tensor([[0.4, 0.1], [1.3, 5.0]], dtype=F64)
    expected = torch.diag_embed(
        torch.stack([torch.ones(2, dtype=F64), points[:, 0].sin() ** 2], -1)
    )
    torch.testing.assert_close(pullback_metric(sphere, points), expected)


@settings(deadline=None, max_examples=20)
@given(radius=st.floats(0.05, 20), size=st.integers(2, 8), power=st.integers(1, 3))
def test_sphere_has_one_curvature_whatever_function_describes_it(radius, size, power):
    generator = torch.Generator().manual_seed(size)
    points = torch.randn(6, size, dtype=F64, generator=generator)
    points = radius * points / points.norm(dim=1, keepdim=True)

    def score(x):
        return x.square().sum(-1) ** power - radius ** (2 * power)

    expected = torch.full((6, size - 1), 1 / radius, dtype=F64)
    torch.testing.assert_close(principal_curvatures(score, points), expected, rtol=1e-9, atol=0)
    # Seen from the other side, the same surface bends the other way.
    flipped = principal_curvatures(lambda x: -score(x), points)
    torch.testing.assert_close(flipped, -expected, rtol=1e-9, atol=0)


def test_ellipsoid_at_its_vertices_and_gauss_curvature_elsewhere():
    axes = torch.tensor([3.0, 2.0, 0.5], dtype=F64)

    def score(x):
        return (x / axes).square().sum(-1) - 1

    vertices = torch.diag(axes)
    a, b, c = axes.tolist()
    expected = torch.tensor(
        [[a / c**2, a / b**2], [b / c**2, b / a**2], [c / b**2, c / a**2]], dtype=F64
    )
    torch.testing.assert_close(principal_curvatures(score, vertices), expected)
    direction = torch.randn(20, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    points = axes * direction / direction.norm(dim=1, keepdim=True)
    gauss = 1 / ((a * b * c) ** 2 * (points / axes**2).square().sum(-1) ** 2)
    found = principal_curvatures(score, points).prod(-1)
    torch.testing.assert_close(found, gauss, rtol=1e-10, atol=0)


def test_cylinder_saddle_and_plane():
    points = torch.tensor([[0.0, 2.0, 5.0]], dtype=F64)
    cylinder = principal_curvatures(lambda x: x[:, :2].square().sum(-1), points)
    torch.testing.assert_close(cylinder, torch.tensor([[0.5, 0.0]], dtype=F64))
    origin = torch.zeros(1, 3, dtype=F64)
    saddle = principal_curvatures(lambda x: x[:, 2] + x[:, 0] ** 2 - 3 * x[:, 1] ** 2, origin)
    torch.testing.assert_close(saddle, torch.tensor([[2.0, -6.0]], dtype=F64))
    plane = principal_curvatures(lambda x: torch.tanh(x @ torch.ones(3, dtype=F64)), points)
    torch.testing.assert_close(plane, torch.zeros(1, 2, dtype=F64), atol=1e-12, rtol=0)


def test_dropping_the_normal_is_not_dropping_the_eigenvalue_nearest_to_zero():
    """P H P has a zero along n beside the zero of a flat direction: only the first goes."""
    points = torch.tensor([[1.0, 2.0, 2.0, 0.3]], dtype=F64)

    def score(x):
        return x[:, :3].square().sum(-1)

    found = principal_curvatures(score, points)
    H = torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0], dtype=F64))
    slope = 2 * points[0] * torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=F64)
    n = slope / slope.norm()
    P = torch.eye(4, dtype=F64) - torch.outer(n, n)
    slow = torch.linalg.eigvalsh(P @ H @ P / slope.norm()).sort(descending=True).values
    torch.testing.assert_close(found[0], torch.tensor([1 / 3, 1 / 3, 0.0], dtype=F64))
    torch.testing.assert_close(slow[:3], found[0])


def test_curvatures_and_boundary_of_a_network_agree_with_the_slow_way():
    torch.manual_seed(4)
    network = nn.Sequential(
        nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 1)
    )
    starts = torch.randn(12, 4, dtype=F64)
    found = boundary_points(network, starts)
    assert found.is_found.sum() >= 6
    points = found.points[found.is_found]
    exact = network.double()
    slopes = torch.stack(
        [torch.autograd.functional.jacobian(lambda y: exact(y)[0], p) for p in points]
    )
    assert (exact(points).squeeze(-1).abs() / slopes.norm(dim=-1)).max() < 1e-10
    curvatures = principal_curvatures(network, points)
    for point, slope, got in zip(points, slopes, curvatures, strict=True):
        H = torch.autograd.functional.hessian(lambda y: exact(y)[0], point)
        n = slope / slope.norm()
        P = torch.eye(4, dtype=F64) - torch.outer(n, n)
        values, vectors = torch.linalg.eigh(P @ H @ P / slope.norm())
        along_n = (vectors.T @ n).abs().argmax()
        keep = [i for i in range(4) if i != along_n]
        torch.testing.assert_close(got, values[keep].flip(0), rtol=1e-9, atol=1e-10)


def test_poole_boundary_of_a_deep_random_network_is_curved_more_with_depth():
    """Fig. 4: the largest curvatures of β·h^D(x) = 0 grow with depth for χ_1 > 1."""
    N, g = 60, torch.Generator().manual_seed(5)
    W = torch.randn(8, N, N, dtype=F64, generator=g) * (4 / math.sqrt(N))
    b = torch.randn(8, N, dtype=F64, generator=g) * 0.3
    beta = torch.randn(N, dtype=F64, generator=g) / math.sqrt(N)
    starts = torch.randn(8, N, dtype=F64, generator=g) * math.sqrt(fixed_point(4.0, 0.3))

    def score(x, depth):
        for W_l, b_l in zip(W[:depth], b[:depth], strict=True):
            x = torch.tanh(x) @ W_l.T + b_l
        return x @ beta

    largest = []
    for depth in (2, 5, 8):
        found = boundary_points(lambda x, d=depth: score(x, d), starts)
        points = found.points[found.is_found]
        assert len(points) >= 4
        curvatures = principal_curvatures(lambda x, d=depth: score(x, d), points)
        assert curvatures.shape == (len(points), N - 1)
        largest.append(float(curvatures[:, 0].log().mean()))
    assert largest[0] + 0.3 < largest[1]
    assert largest[1] + 0.3 < largest[2]


def test_boundary_of_an_ellipse_and_starts_that_cannot_reach_one():
    def score(x):
        return x[:, 0] ** 2 / 4 + x[:, 1] ** 2 - 1

    starts = torch.tensor([[3.0, 3.0], [0.1, 0.0], [2.0, 0.0], [math.nan, 0.0]], dtype=F64)
    found = boundary_points(score, starts)
    assert found.is_found.tolist() == [True, True, True, False]
    assert score(found.points[:3]).abs().max() < 1e-10
    assert found.distances[2] == 0
    torch.testing.assert_close(found.points[1], torch.tensor([2.0, 0.0], dtype=F64))
    nowhere = boundary_points(lambda x: x.square().sum(-1) + 1, starts[:2])
    assert nowhere.is_found.tolist() == [False, False]


def test_steps_are_damped_where_newton_would_run_away():
    """arctan from |x| > 1.39: undamped, every step lands farther out."""
    starts = torch.tensor([[3.0, 1.0], [-40.0, 2.0], [0.5, 0.0]], dtype=F64)
    found = boundary_points(lambda x: torch.atan(x[:, 0]), starts)
    assert found.is_found.all()
    torch.testing.assert_close(found.points[:, 0], torch.zeros(3, dtype=F64), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.points[:, 1], starts[:, 1])


def test_populations_of_ours_as_they_are():
    configs = [MLP.Config(width=12, depth=2, init_scale=2.0) for _ in range(2)]
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    network = MLP(configs, input_size=2, output_size=1, generators=generators)
    circle, t, h = great_circle(torch.eye(2)), angles(5), 1e-5
    found, after, before = (
        curve_geometry(circle, t + shift, through=network) for shift in (0.0, h, -h)
    )
    assert found.points.shape == (2, 5, 1)
    slope = (after.points - before.points) / (2 * h)
    torch.testing.assert_close(found.velocity, slope, atol=1e-8, rtol=0)
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_one_bad_point_does_not_take_the_others_with_it():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [math.nan, 1.0]], dtype=F64)
    found = principal_curvatures(lambda x: x.square().sum(-1) - 1, points)
    assert torch.isnan(found[:, 0]).tolist() == [True, False, True]
    assert float(found[1, 0]) == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize(
    ("layer", "message"),
    [(nn.Dropout(0.5), "Dropout"), (nn.BatchNorm1d(3), "BatchNorm1d")],
)
def test_modules_that_are_no_function_of_a_row_are_refused(layer, message):
    network = nn.Sequential(nn.Linear(3, 3), layer)
    circle = great_circle(orthonormal_plane(3))
    with pytest.raises(ValueError, match=f"'1' \\({message}\\) is in training mode"):
        curve_geometry(circle, angles(5), through=network)
    assert curve_geometry(circle, angles(5), through=network.eval()).points.shape == (5, 3)


CIRCLE = great_circle(torch.eye(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curve_geometry(CIRCLE, torch.tensor([1.0, 0.5])), "increase"),
        (lambda: curve_geometry(CIRCLE, torch.zeros(2, 2)), "increase"),
        (lambda: curve_geometry(CIRCLE, angles(3), through=lambda x: x.float()), "float64"),
        (lambda: curve_geometry(CIRCLE, angles(3), through=lambda x: x.sum(-1)), "B = 3"),
        (lambda: curve_geometry(CIRCLE, angles(1)).euclidean_length(), "at least two"),
        (lambda: curve_geometry(CIRCLE, angles(5)).grassmann_length(1.0), "less than the period"),
        (lambda: great_circle(torch.ones(2, 2)), "orthonormal"),
        (lambda: great_circle(torch.eye(3)), "must be \\(2, D\\)"),
        (lambda: shallow_length_bound(0), "width must be"),
        (lambda: shallow_length_bound(3, span=0.0), "span positive"),
        (lambda: shallow_length_bound(3, sign_changes=-1), "sign_changes at least 0"),
        (lambda: pullback_metric(lambda x: x, torch.ones(3)), "points must be"),
        (lambda: principal_curvatures(lambda x: x, torch.ones(3, 2)), "one number a point"),
        (lambda: principal_curvatures(lambda x: x[:, 0], torch.ones(3, 1)), "D ≥ 2"),
        (lambda: boundary_points(lambda x: x[:, 0], torch.ones(1, 2), tolerance=0), "positive"),
    ],
)
def test_errors_name_the_law(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_run():
    result = doctest.testmod(geometry_module)
    assert result.attempted > 0
    assert result.failed == 0
