import numpy as np
import pandas as pd
import pytest
import torch

from analysis.studies.driven_networks import driven_networks, white_noise
from analysis.studies.forgetting import forgetting_rate
from analysis.studies.over_seeds import mean
from analysis.studies.vogt_discussion import VogtDiscussion
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.lstm import LSTM


def tables(*, grows=0.0, falls=0.5, hidden=1.0, full=0.01):
    places = {n: (np.arange(n) + 0.5) / n for n in (50, 100)}
    spectra = pd.concat(
        pd.DataFrame(
            {"units N": n, "network": m, "i/N": x, "exponent [nats/step]": -x * (1 + grows * n)}
        )
        for n, x in places.items()
        for m in range(3)
    )
    strengths = pd.DataFrame(
        {
            "strength of the input": s,
            "network": m,
            "largest exponent [nats/step]": 0.4 - falls * s + 0.01 * m,
            "mean-field theory [nats/step]": 0.4 - 0.5 * s,
        }
        for s in (0.5, 1.0, 2.0)
        for m in range(3)
    )
    forgetting = pd.DataFrame(
        {
            "network": m,
            "rate at which copies approach [nats/step]": -0.2,
            "largest exponent, hidden state [nats/step]": -0.2 - hidden - 0.01 * m,
            "largest exponent, full state [nats/step]": -0.2 + full,
        }
        for m in range(3)
    )
    return {"spectra": spectra, "input": strengths, "forgetting": forgetting}


def judge(found):
    return {f.claim: f for f in VogtDiscussion(VogtDiscussion.Config()).judge(found)}


def test_claims_that_hold():
    found = judge(tables())
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert found["input"].effect == pytest.approx(0.75)
    assert found["full"].effect == pytest.approx(1.0)


def test_claims_that_do_not():
    found = judge(tables(grows=0.01, falls=-0.5, hidden=0.001, full=0.5))
    assert found["extensive"].verdict == "reversed"
    assert found["input"].verdict == "not reproduced"
    assert found["crossing"].verdict == "not reproduced"
    assert found["full"].verdict == "reversed"


def test_copies_forget_at_the_rate_of_the_largest_exponent_of_the_full_state():
    """Found without derivatives."""
    generators = [generator_for("forgetting", m) for m in range(2)]
    network = LSTM(
        [LSTM.Config(units=8, init_scale=0.6)] * 2,
        input_size=3, output_size=3, generators=generators, dtype=torch.float64,
    ).eval()  # fmt: skip
    inputs = torch.randn(4, 800, 3, generator=generator_for("x"), dtype=torch.float64)
    rates = forgetting_rate(network, inputs, 50, generator_for("offset"))
    exact = lyapunov_spectrum(network, inputs, k=1, warmup=50).exponents[:, 0]
    other = lyapunov_spectrum(network, inputs, k=1, warmup=50, state="hidden").exponents[:, 0]
    # Copies and tangent start in different directions: a factor that counts once in 750 steps.
    assert rates == pytest.approx(exact.tolist(), abs=2e-3)
    assert (other - exact).abs().min() > 0.05


def test_white_noise_drives_every_unit_by_itself():
    network = driven_networks(30, [0.5, 0.5], "gaussian", [generator_for(m) for m in range(2)])
    inputs = white_noise(2, 3, 30, 2.0, generator_for("x"))
    with torch.no_grad():
        _, state = network(inputs[:, :1])
    torch.testing.assert_close(state[0][0][1], inputs[:, 0].tanh())
    weights = network.get_parameter("weight_rec_0")
    # N(0, g²/N): five standard errors of the variance of 900 draws.
    assert weights[0].var().item() * 30 == pytest.approx(0.25, abs=5 * 0.25 * (2 / 900) ** 0.5)


def test_a_mean_says_how_sure_it_is():
    found = mean([1.0, 2.0, 3.0])
    assert found == pytest.approx((2, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert np.isnan(mean([1.0]).low)
