"""Prints the table of docs/engine.md: one LSTM, and what other ways of computing return for it.

    python tests/bench/conventions.py

Each row changes one thing. The LSTM has 16 units with gaussian weights of gain 2 and forget bias
1, driven by random characters; eight sequences of 1000 steps after 100 of warm-up.
"""

import math

import torch
from torch import Tensor

from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.lstm import LSTM

UNITS, ALPHABET, SEQUENCES, STEPS, WARMUP = 16, 20, 8, 1000, 100


def network() -> LSTM:
    """The example."""
    config = LSTM.Config(units=UNITS, init="gaussian", init_scale=2.0, forget_bias=1.0)
    return LSTM(
        [config],
        input_size=ALPHABET,
        output_size=ALPHABET,
        generators=[generator_for("example")],
        dtype=torch.float64,
    )


def jacobians(lstm: LSTM, inputs: Tensor, state: str) -> Tensor:
    """Explicit J along the orbits, (B, T, D, D), warm-up included."""
    maps = lstm.orbit(inputs, state=state).maps()
    return torch.stack([step.dense()[0] for step in maps], 1)


def plain_qr(
    J: Tensor, *, counted: slice, order: str = "J", t_on: int = 1, clamp: float = 0.0
) -> Tensor:
    """The loop as one writes it down, with the variations that are found in published code."""
    B, T, D, _ = J.shape
    Q = torch.eye(D, dtype=J.dtype).expand(B, D, D)
    logs, steps = torch.zeros(B, D, dtype=J.dtype), 0
    for t in range(T):
        Q = (J[:, t].mT if order == "transposed" else J[:, t]) @ Q
        if (t + 1) % t_on == 0:
            Q, R = torch.linalg.qr(Q)
            if t in range(*counted.indices(T)):
                logs += R.diagonal(dim1=-2, dim2=-1).abs().clamp(min=clamp).log()
        steps += t in range(*counted.indices(T))
    return (logs / steps).mean(0)


def rows() -> list[tuple[str, Tensor, str]]:
    """(way, exponents in nats/step, why it differs)."""
    lstm = network()
    generator = generator_for("inputs")
    inputs = torch.randint(ALPHABET, (SEQUENCES, WARMUP + STEPS), generator=generator)
    full, hidden = (jacobians(lstm, inputs, s) for s in ("full", "hidden"))
    counted = slice(WARMUP, None)
    ours = lyapunov_spectrum(lstm, inputs, warmup=WARMUP)
    ours_hidden = lyapunov_spectrum(lstm, inputs, state="hidden", warmup=WARMUP)
    f32 = full.float()
    return [
        (
            "full state, as here",
            ours.exponents[0],
            f"standard error {ours.standard_error.max():.3f}",
        ),
        ("the same, J written out", plain_qr(full, counted=counted), "other start frame"),
        (
            "hidden state, cells held fixed",
            ours_hidden.exponents[0],
            "a block of the Jacobian: products of it are the derivative of nothing",
        ),
        (
            "transposed J, forward in time",
            plain_qr(full, counted=counted, order="transposed"),
            "the transpose needs reversed time; the sum stays right",
        ),
        (
            "hidden and transposed",
            plain_qr(hidden, counted=counted, order="transposed"),
            "both, as in Vogt et al. (2022)",
        ),
        (
            "float32, QR every 10 steps",
            plain_qr(f32, counted=counted, t_on=10).double(),
            "the tail is rounding: a plateau",
        ),
        (
            "|R| clamped at 1e-2",
            plain_qr(full, counted=counted, clamp=1e-2),
            "a floor that is not the network's",
        ),
        (
            "no warm-up, identity frame",
            plain_qr(full[:, :STEPS], counted=slice(0, STEPS)),
            "transients of state and frame are averaged in",
        ),
        ("in bits", ours.exponents[0] / math.log(2), "logarithms to base 2"),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| way | λ₁ | λ₂ | λ₈ | last | sum | why |\n| --- | --- | --- | --- | --- | --- | --- |")
    for way, exponents, why in rows():
        numbers = [exponents[0], exponents[1], exponents[7], exponents[-1], exponents.sum()]
        print(f"| {way} | {' | '.join(f'{float(x):+.3f}' for x in numbers)} | {why} |")
