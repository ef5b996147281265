import math

import numpy as np
import pandas as pd
import pytest

from analysis import evidence
from analysis import features as ft
from analysis.frame import SweepFrame
from analysis.mean_field import mean_field
from pipeline.dynamics import meanfield as mf


def networks(n: int = 3, **settings: object) -> pd.DataFrame:
    known = {
        "name": "mlp", "width": 12, "depth": [2, 4, 8], "activation": "tanh", "init": "gaussian",
        "init_scale": [0.8, 1.3, 2.5], "bias_scale": 0.3, **settings,
    }  # fmt: skip
    return pd.DataFrame({f"network.{k}": v for k, v in known.items()}, index=range(n))


def test_numbers_are_the_theorys() -> None:
    found = mean_field(networks())
    chi = np.log([mf.chi_1(s, 0.3) for s in (0.8, 1.3, 2.5)])
    np.testing.assert_allclose(found.table["meanfield.log_chi"], chi)
    np.testing.assert_allclose(found.table["meanfield.depth_over_xi"], -chi * [2, 4, 8])
    assert found.table["meanfield.length"][2] == pytest.approx(4.079124, abs=1e-5)
    assert found.omitted == ""


def test_uniform_weights_of_the_same_variance_say_the_same() -> None:
    bound = [s * math.sqrt(3 / 12) for s in (0.8, 1.3, 2.5)]
    found = mean_field(networks(init="uniform", init_scale=bound, bias_scale=0.3 * math.sqrt(3)))
    pd.testing.assert_frame_equal(found.table, mean_field(networks()).table)
    usual = mean_field(networks(init="uniform", init_scale=[None] * 3, bias_scale=0.0))
    plain = mf.chi_1(1 / math.sqrt(3), 0.0)
    np.testing.assert_allclose(usual.table["meanfield.log_chi"], math.log(plain))


def test_relu_has_a_growth_without_a_length() -> None:
    found = mean_field(networks(activation="relu"))
    np.testing.assert_allclose(
        found.table["meanfield.log_chi"], np.log(np.array([0.8, 1.3, 2.5]) ** 2 / 2)
    )
    assert "meanfield.length" not in found.table
    assert found.omitted == "q*: not finite for every trial"


def test_recurrent_networks() -> None:
    known = mean_field(networks(name="rnn", units=32))
    chi = [mf.chi_1(s, 0.0) for s in (0.8, 1.3, 2.5)]
    np.testing.assert_allclose(known.table["meanfield.log_chi"], np.log(chi))
    assert "meanfield.depth_over_xi" not in known.table
    gated = mean_field(networks(name="lstm"))
    assert len(gated.table.columns) == 0
    assert gated.omitted == "no formula for lstm"


def test_a_curve_stands_in_for_very_many() -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(np.log(0.5), np.log(3), 500))
    many = mean_field(networks(500, depth=3, init_scale=scales)).table["meanfield.log_chi"]
    few = mean_field(networks(20, depth=3, init_scale=scales[:20])).table["meanfield.log_chi"]
    # Straight lines between 33 points: their ranks, which are all that enters, are the same.
    np.testing.assert_allclose(many[:20], few, atol=5e-3)


def test_the_baseline_holds_them(frames: dict[str, SweepFrame]) -> None:
    view = ft.early_view(frames["mlp"], 1)
    trials = frames["mlp"].target.index
    named = view.params.assign(**{"network.width": 10})
    assert "meanfield.log_chi" in mean_field(named).table
    base = evidence.baseline(view, trials)
    assert not any(str(c).startswith("meanfield") for c in base.table)  # no width among settings
    view.params["network.width"] = 10
    base = evidence.baseline(view, trials)
    del view.params["network.width"]
    assert "meanfield.log_chi" in base.table
    assert "meanfield.log_chi" not in base.table.columns[: base.num_paired]
