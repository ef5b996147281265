"""Spectra of RNN and GRU populations: growth by autograd's Jacobians, company, order, cost.

Shapes: N members, B sequences, T steps, D state, K tangents.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.rnn import RNN

F64 = torch.float64
INPUTS, UNITS = 5, 6
KINDS = {
    "tanh": (RNN, {"activation": "tanh"}),
    "relu": (RNN, {"activation": "relu"}),
    "gru": (GRU, {}),
}
CELLS = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell, "gru": torch.gru_cell}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def population(kind, count, *, start=0, layers=1, init_scale=0.9):
    network_type, fixed = KINDS[kind]
    config = network_type.Config(units=UNITS, layers=layers, init_scale=init_scale, **fixed)
    return network_type(
        [config] * count,
        input_size=INPUTS,
        output_size=2,
        generators=[generator_for("spectra", n) for n in range(start, start + count)],
        dtype=F64,
    )


def sequences(num_sequences, num_steps, name="x"):
    shape = (num_sequences, num_steps, INPUTS)
    return torch.randn(shape, generator=generator_for("spectra", name), dtype=F64)


def jacobians_by_autograd(kind, network, x_BTI):
    """∂h_t/∂h_{t−1} (N, B, T, D, D) of all layers, through PyTorch's own cells."""
    weights = {name: value.detach() for name, value in network.named_parameters()}

    def step(flat_D, x_I, n):
        below, after = x_I, []
        for layer, h in enumerate(flat_D.chunk(network.num_layers)):
            W, U, b = (
                weights[f"{name}_{layer}"][n] for name in ("weight_in", "weight_rec", "bias")
            )
            beside_h = torch.zeros_like(b)
            if kind == "gru":
                beside_h[2 * UNITS :] = weights[f"bias_reset_{layer}"][n]
            below = CELLS[kind](below.unsqueeze(0), h.unsqueeze(0), W, U, b, beside_h)[0]
            after.append(below)
        return torch.cat(after)

    def along(n, x_TI):
        h, found = torch.zeros(UNITS * network.num_layers, dtype=F64), []
        for x in x_TI:
            found.append(torch.autograd.functional.jacobian(lambda s, x=x: step(s, x, n), h))
            h = step(h, x, n)
        return torch.stack(found)

    return torch.stack(
        [torch.stack([along(n, x) for x in x_BTI]) for n in range(network.num_members)]
    )


@every_kind
def test_growth_is_that_of_the_product_of_autograds_jacobians(kind):
    """J_T … J_1 in this order: transposed or reversed products grow otherwise.

    From the right singular vectors of the product, the QR along the way gives its σ.
    """
    network = population(kind, 2, layers=2, init_scale=1.2)
    x = sequences(2, 4)
    if kind == "relu":
        # Without negative weights no unit is dead.
        x = x.abs()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()
    product = torch.eye(2 * UNITS, dtype=F64)
    for J in jacobians_by_autograd(kind, network, x).unbind(2):
        product = J @ product
    _, sigma, Vh = torch.linalg.svd(product)
    spectrum = lyapunov_spectrum(network, x, warmup=0, t_on=1, tangents=Vh.mT[..., :4])
    expected = sigma[..., :4].log() / 4
    torch.testing.assert_close(spectrum.per_sequence, expected, atol=1e-9, rtol=0)


@every_kind
def test_a_step_costs_its_products_and_nothing_more(kind):
    """Gains are no diagonal matrices, whose products would cost H² each."""
    network = population(kind, 3, layers=2)
    B, k = 4, 5
    J = next(network.orbit(sequences(B, 1)).maps())
    Q = torch.ones(3, B, 2 * UNITS, k, dtype=F64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        J(Q)
    # U of both layers and W of the second, for each of three members.
    assert counter.get_total_flops() <= 2 * 3 * network.num_gates * UNITS**2 * B * k * 3


@settings(max_examples=12)
@given(
    # Not relu: where all units are dead a direction is lost, and what replaces it is nobody's.
    kind=st.sampled_from(["tanh", "gru"]),
    layers=st.integers(1, 3),
    batch=st.integers(1, 3),
    k=st.integers(1, 4),
    t_on=st.sampled_from([1, 3, "auto"]),
    single=st.booleans(),
    seed=st.integers(0, 50),
)
def test_spectra_do_not_depend_on_company_order_or_k(kind, layers, batch, k, t_on, single, seed):
    """A member alone, sequences in another order, more exponents: the numbers of each stay."""
    network = population(kind, 3, layers=layers)
    x = sequences(batch, 20, f"company {seed}")
    frame = torch.randn((UNITS * layers, 6), generator=generator_for("frame", seed), dtype=F64)
    options = {"t_on": t_on, "warmup": 3, "dtype": torch.float32 if single else F64}
    # Just above the floor of 100 ε, an R_ii has two digits left.
    tolerance = 2e-2 if single else 1e-7
    together = lyapunov_spectrum(network, x, tangents=frame, **options)

    def agrees(found, expected, flags):
        # At a floor a number is rounding noise, and flagged as such.
        fine = ~(flags | together.at_floor[..., : found.shape[-1]].unsqueeze(1))
        fine = fine.expand_as(found)
        torch.testing.assert_close(found[fine], expected[fine], atol=tolerance, rtol=0)

    order = torch.randperm(batch, generator=generator_for("order", seed))
    shuffled = lyapunov_spectrum(network, x[order], tangents=frame, **options)
    agrees(shuffled.per_sequence, together.per_sequence[:, order], shuffled.at_floor.unsqueeze(1))
    few = lyapunov_spectrum(network, x, tangents=frame[:, :k], **options)
    agrees(few.per_sequence, together.per_sequence[..., :k], few.at_floor.unsqueeze(1))
    member = seed % 3
    alone = population(kind, 1, start=member, layers=layers)
    by_itself = lyapunov_spectrum(alone, x, tangents=frame, **options)
    fine = ~(by_itself.at_floor[0] | together.at_floor[member]).expand(batch, -1)
    torch.testing.assert_close(
        by_itself.per_sequence[0][fine],
        together.per_sequence[member][fine],
        atol=tolerance,
        rtol=0,
    )
