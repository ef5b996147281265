"""Hamiltonian networks: symplectic maps, exponents in pairs, and the counter-example (S3.4)."""

import pytest
import torch

from pipeline.dynamics.ftle import max_ftle
from pipeline.dynamics.structure import symplectic_defect
from tasks.base import UnsuitableError, generator_for
from tasks.networks.hamiltonian import Hamiltonian

F64 = torch.float64
SYMPLECTIC = ["symplectic_euler", "leapfrog"]


def network(integrator, field="pairwise", *, width=4, depth=12, step=0.3, **extra):
    config = Hamiltonian.Config(
        width=width, depth=depth, step=step, field=field, integrator=integrator,
        lift="pad", readout="none", init_scale=1.5, bias_scale=0.5, **extra,
    )  # fmt: skip
    generators = [generator_for(n, "init") for n in range(3)]
    return Hamiltonian(
        [config] * 3, input_size=width, output_size=2, generators=generators, dtype=F64
    )


def points(width=4, count=5):
    return torch.randn((count, width), generator=generator_for("x"), dtype=F64)


def whole_map(net, x):
    J = torch.eye(net.width, dtype=F64).expand(3, len(x), -1, -1)
    for step in net.orbit(x).maps():
        J = step(J)
    return J


@pytest.mark.parametrize("field", ["pairwise", "second_order"])
@pytest.mark.parametrize("integrator", SYMPLECTIC)
def test_maps_are_symplectic(integrator, field):
    net, x = network(integrator, field), points()
    for step in net.orbit(x).maps():
        assert symplectic_defect(step.dense()).max() < 1e-12
    J = whole_map(net, x)
    size = torch.linalg.matrix_norm(J).square()
    assert (symplectic_defect(J) / size).max() < 1e-14


@pytest.mark.parametrize("field", ["pairwise", "second_order"])
@pytest.mark.parametrize("integrator", SYMPLECTIC)
@pytest.mark.parametrize("width", [2, 4, 6])
def test_exponents_come_in_pairs(integrator, field, width):
    net, x = network(integrator, field, width=width), points(width)
    exponents = torch.linalg.svdvals(whole_map(net, x)).log() / net.depth
    assert (exponents + exponents.flip(-1)).abs().max() < 1e-12
    assert exponents[..., 0].min() > 0.01
    torch.testing.assert_close(exponents[..., 0], max_ftle(net, x, net.depth), rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", ["pairwise", "second_order"])
def test_explicit_euler_of_the_same_field_is_not_symplectic(field):
    net, x = network("explicit_euler", field), points()
    exponents = torch.linalg.svdvals(whole_map(net, x)).log() / net.depth
    # det(I + h Df) = det(I + h² ∇²T ∇²V), with both Hessians ≥ 0.
    assert exponents.sum(-1).min() > 1e-3
    assert (exponents + exponents.flip(-1)).abs().amax(-1).min() > 1e-3
    assert symplectic_defect(next(net.orbit(x).maps()).dense()).min() > 1e-4


@pytest.mark.parametrize(("integrator", "order"), [("symplectic_euler", 1), ("leapfrog", 2)])
def test_integrators_converge_at_their_order(integrator, order):
    def last(steps):
        net = network(integrator, depth=steps, step=1 / steps)
        source = network(integrator, depth=1)
        with torch.no_grad():
            for name in net.block_names:
                one = source.get_parameter(name)
                net.get_parameter(name).copy_(one.expand(-1, steps, *one.shape[2:]))
        return list(net.orbit(points()).states())[-1]

    exact = last(1024)
    errors = [(last(steps) - exact).abs().max().item() for steps in (16, 32)]
    measured = torch.tensor(errors[0] / errors[1]).log2().item()
    assert measured == pytest.approx(order, abs=0.3)  # the next order still shows at h = 1/16


def test_the_second_order_field_is_newtons():
    """Leapfrog of z̈ = −Aᵀ tanh(A z + b), written out for one block."""
    net = network("leapfrog", "second_order", depth=1, step=0.2)
    z, p = points().chunk(2, 1)
    for n in range(3):
        A, b = net.weight_z[n, 0], net.bias_z[n, 0]

        def force(q, A=A, b=b):
            return -(q @ A.T + b).tanh() @ A

        half = p + 0.1 * force(z)
        moved = z + 0.2 * half
        expected = torch.cat([moved, half + 0.1 * force(moved)], 1)
        found = list(net.orbit(points()).states())[-1][n]
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_momenta_start_at_rest_where_inputs_are_padded():
    config = Hamiltonian.Config(width=4, lift="pad")
    net = Hamiltonian(
        [config], input_size=2, output_size=1, generators=[generator_for(0)], dtype=F64
    )
    start = next(net.orbit(points(2)).states())
    assert torch.equal(start[0, :, :2], points(2))
    assert (start[0, :, 2:] == 0).all()


def test_an_odd_width_is_refused():
    with pytest.raises(UnsuitableError, match="width must be even"):
        network("leapfrog", width=5)
