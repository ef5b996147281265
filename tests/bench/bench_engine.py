"""What spectra of an LSTM cost, beside the textbook way and beside their bare products.

One thread (or all three on LYAPSWEEP_BENCH_THREADS), float64, weights U(±1/√H), N(0, 1) inputs, no
warm-up. `textbook`: batched autograd Jacobians (torch.func.vmap over jacrev) and a Householder QR
at every step, which is what one writes with torch.func; the Jacobians are half of its time where k
is all. `bare`: the least products the tangents need and the factorisations that were made, at this
machine's rate in the same minutes, into memory at hand. Few tangents: one product with U for all
sequences a step. All: with one H × H block (hidden) or two (full) a sequence and step; right after
an elimination H rows of the frame make a triangle H × H, so that half of a product with H tangents
is counted, and otherwise the whole of one with all of them. The three are interleaved, the medians
of the rounds are shown, three times as many for few tangents, which take a second. Textbook is
timed over two steps and scaled to T, which is fair since every step costs the same.

Last, FTLEs of all layers with their directions on a grid in the plane, beside the forward pass of
the same inputs, for networks in both precisions; FTLEs are computed in float64 for both.

    LYAPSWEEP_BENCH_ROUNDS=3 python tests/bench/run_all.py engine
"""

import os
import statistics
import time

import torch
from textbook import jacobians, lstm_step

from pipeline.dynamics.ftle import ftle_field
from pipeline.dynamics.spectrum import exact_arithmetic, lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP

UNITS, SEQUENCES, STEPS, INPUTS = 512, 10, 100, 16
SLOW_STEPS = 2
WIDTH, DEPTH, GRID = 50, 8, 200
THREADS = int(os.environ.get("LYAPSWEEP_BENCH_THREADS", "1"))
ROUNDS = int(os.environ.get("LYAPSWEEP_BENCH_ROUNDS", "3"))
F64 = torch.float64


def cases():
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for state in ("full", "hidden"):
            yield from _compare(state, 16)
            yield from _compare(state, None)
        for dtype in (F64, torch.float32):
            yield from _field(dtype)
    finally:
        torch.set_num_threads(threads)


def _compare(state, k):
    """Seconds for SEQUENCES × STEPS, ours, textbook, bare, and their ratios."""
    generators = [generator_for("bench")]
    config = LSTM.Config(units=UNITS)
    network = LSTM([config], input_size=INPUTS, output_size=2, generators=generators, dtype=F64)
    x = torch.randn((SEQUENCES, STEPS, INPUTS), generator=generator_for("bench x"), dtype=F64)
    ours, textbook, bare = [], [], []
    size = (2 if state == "full" else 1) * UNITS
    columns = size if k is None else k
    t_on = 1
    lyapunov_spectrum(network, x[:, :2], k=k, state=state, warmup=0)
    for _ in range(ROUNDS if k is None else 3 * ROUNDS):
        started = time.perf_counter()
        spectrum = lyapunov_spectrum(network, x, k=k, state=state, warmup=0)
        ours.append(time.perf_counter() - started)
        t_on = spectrum.t_on[0]
        bare.append(STEPS * _bare(columns, size, t_on, spectrum.method))
        seconds = _textbook(network, x[:, : SLOW_STEPS + 1], columns, state)
        textbook.append(seconds / SLOW_STEPS * STEPS)
    name = f"{state}, k = {'all ' if k is None else ''}{columns}"
    yield f"{name}: ours (T_ON {t_on}, {spectrum.method})", statistics.median(ours), "s"
    yield f"{name}: textbook", statistics.median(textbook), "s"
    yield f"{name}: bare products and factorisations", statistics.median(bare), "s"
    yield f"{name}: textbook / ours", _ratio(textbook, ours), "×"
    yield f"{name}: ours / bare", _ratio(ours, bare), "×"


def _field(dtype):
    """Seconds of a field of FTLEs and of the bare forward pass, and their ratio."""
    config = MLP.Config(width=WIDTH, depth=DEPTH)
    generators = [generator_for("bench field")]
    network = MLP([config], input_size=2, output_size=2, generators=generators, dtype=dtype).eval()
    axis = torch.linspace(-1, 1, GRID, dtype=dtype)
    grid = torch.cartesian_prod(axis, axis)
    field, forward = [], []
    for _ in range(2 * ROUNDS + 1):
        field.append(_seconds(lambda: ftle_field(network, grid), 1))
        with torch.no_grad():
            forward.append(_seconds(lambda: network(grid), 5))
    name = f"{DEPTH} layers of {WIDTH}, {GRID} × {GRID} inputs, {str(dtype).removeprefix('torch.')}"
    yield f"{name}: FTLE field", statistics.median(field), "s"
    yield f"{name}: forward pass", statistics.median(forward), "s"
    yield f"{name}: field / forward", _ratio(field, forward), "×"


def _ratio(above, below):
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _bare(columns, size, t_on, method):
    """Seconds of one step of all sequences: products and its share of the factorisations."""
    H = UNITS
    if columns < size:
        frame = torch.randn(SEQUENCES * columns, H, dtype=F64)
        U = torch.randn(4 * H, H, dtype=F64)
        products = _seconds(lambda: frame @ U.mT, 10)
    else:
        block = torch.randn(size, H, dtype=F64)
        after, later = (_product_seconds(rows, block) for rows in (H, columns))
        products = SEQUENCES * (after / 2 + (t_on - 1) * later) / t_on
    V = torch.randn(columns, size, dtype=F64).mT
    if method == "lu":
        out = (torch.empty_like(V.mT).mT, torch.empty(columns, dtype=torch.int32))
        status = torch.empty((), dtype=torch.int32)
        factorisation = _seconds(lambda: torch.linalg.lu_factor_ex(V, out=(*out, status)), 3)
    else:
        factorisation = _seconds(lambda: torch.linalg.qr(V), 3)
    return products + SEQUENCES * factorisation / t_on


def _product_seconds(num_tangents, block):
    frame = torch.randn(num_tangents, block.shape[1], dtype=F64)
    out = torch.empty(num_tangents, len(block), dtype=F64)
    return _seconds(lambda: torch.mm(frame, block.mT, out=out), 5)


def _seconds(run, times):
    run()
    started = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - started) / times


def _textbook(network, x, columns, state):
    """Seconds of all steps but the first, which compiles."""
    H, step = UNITS, lstm_step(network, state)
    jacobian = jacobians(step)
    size = 2 * H if state == "full" else H
    B = len(x)
    s, c = torch.zeros(B, size, dtype=F64), torch.zeros(B, H, dtype=F64)
    Q = torch.linalg.qr(torch.randn(B, size, columns, dtype=F64)).Q
    logs = torch.zeros(B, columns, dtype=F64)
    started = time.perf_counter()
    for t, x_now in enumerate(x.unbind(1)):
        if t == 1:
            started = time.perf_counter()
        J = jacobian(s, c, x_now).detach()
        with exact_arithmetic():
            Q, R = torch.linalg.qr(J @ Q)
            logs += R.diagonal(dim1=-2, dim2=-1).abs().log()
            s, c = torch.func.vmap(step)(s, c, x_now)
    return time.perf_counter() - started
