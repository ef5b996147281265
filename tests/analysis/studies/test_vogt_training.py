import numpy as np
import pandas as pd
import pytest

from analysis.studies.vogt_training import VogtTraining

EPOCHS = (0, 1, 2, 4, 8, 15)


def spectra(square, off, largest):
    """Three seeds of three start scales; each argument a function of (epoch, scale)."""
    return {
        "spectra": pd.DataFrame(
            {
                "network": 3 * place + seed,
                "seed": seed,
                "start scale p": scale,
                "epoch": epoch,
                "largest exponent [nats/step]": largest(epoch, scale),
                "mean difference from the last spectrum [nats/step]": off(epoch, scale)
                + 0.001 * seed,
                "mean square difference from the last spectrum [nats²/step²]": square(epoch, scale)
                * (1 + 0.01 * seed),
            }
            for place, scale in enumerate((0.1, 0.5, 2.0))
            for seed in range(3)
            for epoch in EPOCHS
        )
    }


def judge(tables):
    return {f.claim: f for f in VogtTraining(VogtTraining.Config()).judge(tables)}


def test_what_the_paper_says_is_found_where_it_is_so():
    found = judge(
        spectra(
            lambda epoch, scale: scale / max(epoch, 0.3),
            lambda epoch, scale: -scale,
            lambda epoch, scale: scale / (1 + epoch),
        )
    )
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert found["power"].effect == pytest.approx(-1)
    # Epoch 4 of 15 is the paper's own share of training.
    assert found["early"].effect == pytest.approx(0.3 / 4)
    assert found["start"].effect == pytest.approx(1 / 16)


def test_and_not_where_it_is_not():
    found = judge(
        spectra(
            lambda epoch, scale: 2.0 - epoch / 15,
            lambda epoch, scale: scale,
            lambda epoch, scale: scale * (1 + epoch),
        )
    )
    assert found["early"].verdict == "reversed"
    assert found["power"].verdict == "not reproduced"
    assert found["below"].verdict == "reversed"
    assert found["start"].verdict == "reversed"
    assert np.isfinite([f.effect for f in found.values()]).all()
