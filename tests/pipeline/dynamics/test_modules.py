"""Modules of torch.nn and plain functions: their tangents against autograd, their refusals."""

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.utils.flop_counter import FlopCounterMode

from pipeline.dynamics import modules
from pipeline.dynamics.modules import ModuleOrbit
from pipeline.dynamics.spectrum import lyapunov_spectrum
from pipeline.dynamics.steps import StepMap
from tasks.base import generator_for
from tasks.networks.lstm import LSTM

F64 = torch.float64


def module(kind, layers=1, bias=True, batch_first=False, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if kind.__name__.endswith("Cell"):
            made = kind(3, 4, bias=bias, dtype=F64, **settings)
        else:
            made = kind(3, 4, layers, bias=bias, batch_first=batch_first, dtype=F64, **settings)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(2.0)
    return made


def inputs(num_sequences=2, num_steps=6):
    g = generator_for("module inputs")
    return torch.randn((num_sequences, num_steps, 3), generator=g, dtype=F64)


def step_by_torch(made, x_BI, state_BD):
    """One step of a module, states as h, c of all layers, by the module's own forward."""
    with torch.no_grad():
        if isinstance(made, nn.LSTMCell):
            return torch.cat(made(x_BI, tuple(state_BD.chunk(2, -1))), -1)
        if isinstance(made, nn.RNNCell | nn.GRUCell):
            return made(x_BI, state_BD)
        parts = torch.stack(state_BD.split(4, -1))
        one = x_BI.unsqueeze(1 if made.batch_first else 0)
        if isinstance(made, nn.LSTM):
            _, (h, c) = made(one, (parts[::2].contiguous(), parts[1::2].contiguous()))
            return torch.cat([p for pair in zip(h, c, strict=True) for p in pair], -1)
        return torch.cat(list(made(one, parts)[1]), -1)


def by_differences(made, x_BI, state_BD):
    """∂step/∂state (B, D, D) by central differences."""
    D, size = state_BD.shape[-1], 1e-6
    columns = []
    for e in torch.eye(D, dtype=F64):
        ahead = step_by_torch(made, x_BI, state_BD + size * e)
        columns.append((ahead - step_by_torch(made, x_BI, state_BD - size * e)) / (2 * size))
    return torch.stack(columns, -1)


STACKED = [(nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.GRU, {}), (nn.LSTM, {})]
CELLS = [(nn.RNNCell, {}), (nn.GRUCell, {}), (nn.LSTMCell, {})]


@pytest.mark.parametrize(
    ("kind", "settings", "layers"),
    [(k, s, n) for k, s in STACKED for n in (1, 3)] + [(k, s, 1) for k, s in CELLS],
)
@pytest.mark.parametrize("bias", [True, False])
def test_tangents_are_those_of_the_module(kind, settings, layers, bias, monkeypatch):
    made, x = module(kind, layers, bias, **settings), inputs()
    D = (8 if "LSTM" in kind.__name__ else 4) * layers
    start = 0.3 * torch.randn((2, D), generator=generator_for("start"), dtype=F64)
    state = start
    orbit = ModuleOrbit(made, x, state="full", dtype=F64, start=start)
    assert orbit.tangent_size == D
    for t, J in enumerate(orbit.maps()):
        dense = J.dense()[0]
        # Central differences are good to 1e-9; autograd below to rounding.
        torch.testing.assert_close(dense, by_differences(made, x[:, t], state), atol=1e-8, rtol=0)
        Q = torch.randn((1, 2, D, 5), generator=generator_for(t), dtype=F64)
        torch.testing.assert_close(J(Q)[0], dense @ Q[0], atol=1e-12, rtol=0)
        exact = torch.stack([J.autodiff(q.expand(1, 2, D))[0] for q in torch.eye(D).double()], -1)
        torch.testing.assert_close(dense, exact, atol=1e-12, rtol=0)
        monkeypatch.setattr(modules, "BLOCKS_FROM", 1)
        torch.testing.assert_close(J(Q)[0], dense @ Q[0], atol=1e-12, rtol=0)
        monkeypatch.undo()
        state = step_by_torch(made, x[:, t], state)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("kind", "parts"), [(nn.RNN, 1), (nn.GRU, 1), (nn.LSTM, 2)])
def test_the_state_is_that_of_all_layers_and_no_more(kind, parts, layers):
    """Two layers of an RNN are neither one of them nor the (h, c) of an LSTM."""
    made, x = module(kind, layers), inputs(2, 30)
    full = lyapunov_spectrum(made, x)
    hidden = lyapunov_spectrum(made, x, state="hidden")
    assert full.exponents.shape == (4 * layers * parts,)
    assert hidden.exponents.shape == (4 * layers,)
    if parts == 1:
        assert torch.equal(full.exponents, hidden.exponents)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_hidden_state_of_an_lstm_holds_its_cells(layers):
    made, x = module(nn.LSTM, layers), inputs()
    whole = ModuleOrbit(made, x, state="full", dtype=F64)
    hidden = ModuleOrbit(made, x, state="hidden", dtype=F64)
    assert hidden.tangent_size == 4 * layers
    for full, J in zip(whole.maps(), hidden.maps(), strict=True):
        dense = J.dense()[0]
        blocks = full.dense()[0].reshape(2, layers, 2, 4, layers, 2, 4)
        expected = blocks[:, :, 0, :, :, 0].reshape(2, 4 * layers, 4 * layers)
        torch.testing.assert_close(dense, expected, atol=1e-14, rtol=0)
        q = torch.randn((1, 2, 4 * layers), generator=generator_for("q"), dtype=F64)
        moved = (dense @ q[0].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(J.autodiff(q)[0], moved, atol=1e-13, rtol=0)


@pytest.mark.parametrize("state", ["full", "hidden"])
@pytest.mark.parametrize("k", [2, None])
def test_our_lstm_and_that_of_torch_have_one_spectrum(state, k):
    ours = LSTM(
        [LSTM.Config(units=4, layers=2)],
        input_size=3,
        output_size=2,
        generators=[generator_for("twin")],
        dtype=F64,
    )
    theirs = nn.LSTM(3, 4, 2, batch_first=True, dtype=F64)
    with torch.no_grad():
        for n in range(2):
            getattr(theirs, f"weight_ih_l{n}").copy_(ours.get_parameter(f"weight_in_{n}")[0])
            getattr(theirs, f"weight_hh_l{n}").copy_(ours.get_parameter(f"weight_rec_{n}")[0])
            getattr(theirs, f"bias_ih_l{n}").copy_(ours.get_parameter(f"bias_{n}")[0])
            getattr(theirs, f"bias_hh_l{n}").zero_()
    options = {"state": state, "k": k, "warmup": 10, "t_on": 1}
    a = lyapunov_spectrum(ours, inputs(2, 60), **options)
    b = lyapunov_spectrum(theirs, inputs(2, 60), **options)
    assert b.exponents.shape == a.exponents.shape[1:]
    torch.testing.assert_close(b.exponents, a.exponents[0], atol=1e-10, rtol=0)
    assert b.self_check_passed
    names = {"autodiff"} if k else {"autodiff", "log_det"}
    assert names <= set(b.self_check)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_saturated_units_keep_their_tiny_derivative(kind):
    """1 − tanh² is exactly 0 from |x| = 19 on, sech² is not."""
    made = module(kind)
    with torch.no_grad():
        made.weight_ih_l0.fill_(10.0)
    *_, J = ModuleOrbit(made, torch.ones(1, 2, 3), state="full", dtype=F64).maps()
    by_h = J.dense()[0, 0, :, :4]
    assert torch.isfinite(by_h).all()
    assert (by_h != 0).all()


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_a_step_costs_its_products_and_nothing_more(kind, gates):
    """Gains are no diagonal matrices, whose products would cost H² each."""
    H, B, k = 16, 3, 5
    orbit = ModuleOrbit(kind(2, H, 2), torch.zeros(B, 1, 2), state="full", dtype=F64)
    J = next(orbit.maps())
    Q = torch.ones(1, B, orbit.tangent_size, k, dtype=F64)
    with FlopCounterMode(display=False) as counter:
        J(Q)
    # U of both layers and W of the second.
    assert counter.get_total_flops() <= 2 * 3 * gates * H * H * B * k


def test_layout_and_mode_of_a_module_make_no_difference():
    first = module(nn.GRU, 2, batch_first=True)
    second = module(nn.GRU, 2, batch_first=False, dropout=0.5).train()
    a, b = (lyapunov_spectrum(m, inputs(2, 40)).exponents for m in (first, second))
    assert torch.equal(a, b)
    assert second.training


def test_modules_without_a_map_are_refused():
    x = inputs()
    with pytest.raises(ValueError, match="backward half runs against time"):
        lyapunov_spectrum(nn.LSTM(3, 4, bidirectional=True), x)
    with pytest.raises(ValueError, match="proj_size"):
        lyapunov_spectrum(nn.LSTM(3, 4, proj_size=2), x)
    with pytest.raises(ValueError, match="float16 carries too few digits"):
        lyapunov_spectrum(nn.GRU(3, 4).half(), x)
    with pytest.raises(ValueError, match=r"real inputs \(B, T, 3\)"):
        lyapunov_spectrum(nn.GRU(3, 4), x[..., :2])
    with pytest.raises(ValueError, match="has no readout"):
        lyapunov_spectrum(nn.GRU(3, 4), x, loop="closed", steps=5)
    with pytest.raises(ValueError, match="start must be"):
        lyapunov_spectrum(nn.GRU(3, 4), x, start=torch.zeros(7))


def henon(s):
    return torch.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1)


def test_functions_of_the_state():
    spectrum = lyapunov_spectrum(henon, torch.zeros(3, 2), steps=300)
    assert (spectrum.steps, spectrum.warmup, spectrum.loop) == (300, 75, "autonomous")
    assert spectrum.exponents.shape == (2,)
    assert spectrum.self_check["autodiff"] < 1e-14
    explicit = lyapunov_spectrum(henon, start=torch.zeros(2), steps=300, warmup=75, t_on=1)
    torch.testing.assert_close(explicit.exponents.sum(), torch.tensor(0.3, dtype=F64).log())


def test_functions_of_state_and_input_equal_the_module_they_are():
    cell, x = module(nn.GRUCell), inputs(2, 50)
    a = lyapunov_spectrum(cell, x, warmup=10)
    b = lyapunov_spectrum(lambda s, x: cell(x, s), x, start=torch.zeros(4), warmup=10)
    # ε^¾, what T_ON leaves of the digits.
    torch.testing.assert_close(a.exponents, b.exponents, atol=2e-12, rtol=0)
    assert b.loop == "open"


def test_a_function_with_a_readout_runs_closed():
    cell, x = module(nn.GRUCell), inputs(2, 5)
    V = torch.randn((4, 3), generator=generator_for("V"), dtype=F64)

    def step(s, x):
        return cell(x, s)

    step.readout = lambda s: s @ V
    closed = lyapunov_spectrum(step, x, start=torch.zeros(4), loop="closed", steps=40, warmup=10)
    s = torch.zeros(2, 4, dtype=F64)
    for x_now in x.unbind(1):
        s = step(s, x_now).detach()
    by_hand = lyapunov_spectrum(lambda s: cell(s @ V, s), s, steps=40, warmup=10)
    torch.testing.assert_close(closed.exponents, by_hand.exponents, atol=1e-12, rtol=0)
    assert closed.loop == "closed"


def test_operations_without_forward_derivative_fall_back_to_reverse():
    class Cubed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s):
            ctx.save_for_backward(s)
            return s**3

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

    s = torch.tensor([[0.5, 2.0]], dtype=F64)
    J = StepMap(Cubed.apply, s)
    expected = jacrev(lambda v: v**3)(s[0])
    identity = torch.eye(2, dtype=F64).expand(1, 1, 2, 2)
    torch.testing.assert_close(J(identity)[0, 0], expected)
    torch.testing.assert_close(StepMap(lambda v: v**3, s)(identity)[0, 0], expected)


def test_functions_that_are_no_maps_are_refused():
    drop = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double().train()
    quiet = lyapunov_spectrum(drop, torch.ones(3), steps=20)
    assert quiet.self_check_passed
    assert drop[1].training
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="must not be random"):
        lyapunov_spectrum(lambda s: nn.functional.dropout(s), torch.ones(60), steps=20)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="pass `steps`"):
        lyapunov_spectrum(henon, torch.zeros(2))
    with pytest.raises(ValueError, match="needs its `start` state"):
        lyapunov_spectrum(henon, steps=5)
    with pytest.raises(ValueError, match="returned"):
        lyapunov_spectrum(lambda s: s[:, :1], torch.zeros(2), steps=5)
    with pytest.raises(ValueError, match=r"step\.readout"):
        lyapunov_spectrum(lambda s, x: s, inputs(), start=torch.zeros(4), loop="closed", steps=5)


def test_streams_of_matrices_and_of_functions():
    g = generator_for("stream")
    matrices = [torch.randn((2, 3, 3), generator=g, dtype=F64) for _ in range(40)]
    whole = lyapunov_spectrum(torch.stack(matrices), warmup=5)
    listed = lyapunov_spectrum(matrices, warmup=5)
    streamed = lyapunov_spectrum(iter(matrices), warmup=5, steps=35)
    assert torch.equal(whole.exponents, listed.exponents)
    assert torch.equal(whole.exponents, streamed.exponents)
    assert whole.per_sequence.shape == (2, 3)
    frame = torch.eye(3, dtype=F64).expand(1, 2, 3, 3)
    functions = [lambda Q, A=A: A @ Q for A in matrices]
    by_function = lyapunov_spectrum(functions, warmup=5, tangents=frame)
    given = lyapunov_spectrum(matrices, warmup=5, tangents=frame)
    torch.testing.assert_close(by_function.exponents, given.exponents, atol=1e-13, rtol=0)
    with pytest.raises(ValueError, match="pass `tangents`"):
        lyapunov_spectrum(functions)
    with pytest.raises(ValueError, match="there are 40 maps"):
        lyapunov_spectrum(iter(matrices), warmup=5, steps=36)
    with pytest.raises(ValueError, match="float16 carries"):
        lyapunov_spectrum(torch.eye(2).half().expand(4, 2, 2))
