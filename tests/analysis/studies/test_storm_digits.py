"""Verdicts of the studies on digits, from made-up tables."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.studies.storm_adversarial import StormAdversarial
from analysis.studies.storm_digits import StormDigits
from analysis.studies.storm_inputs import certainty, examples
from analysis.studies.storm_widths import StormWidths
from tasks.base import generator_for
from tasks.digits import Digits
from tasks.networks.mlp import MLP

JITTER = 0.01 * np.array([-1.0, 0.5, 0.2, -0.4, 0.7])


def verdicts(study, tables):
    findings = study.judge(tables)
    assert [f.claim for f in findings] == [c.key for c in study.claims]
    assert all(f.found.endswith(".") for f in findings)
    return {f.claim: f.verdict for f in findings}


def networks(data="mnist", **columns):
    table = {name: value + JITTER for name, value in columns.items()}
    return {"networks": pd.DataFrame({"network": range(5), **table, "data": data})}


PUBLISHED = {
    "test_accuracy": 0.985,
    "nearest_is_own": 0.95,
    "exponent_near": 0.02,
    "exponent_far": 0.1,
    "error_small": 0.0,
    "error_large": 0.2,
    "entropy_correlation": 0.5,
    "auc_exponent": 0.9,
    "auc_margin": 0.8,
    "auc_largest": 0.7,
    "auc_gradient": 0.6,
}


def with_jitter(values):
    """Columns that are subtracted from each other keep some scatter."""
    tables = networks(**values)
    table = tables["networks"]
    table["exponent_far"] += JITTER[::-1]
    table["error_large"] += JITTER[::-1]
    table["auc_exponent"] += JITTER[::-1]
    return tables


def test_digits_as_published_and_the_other_way_round():
    study = StormDigits(StormDigits.Config())
    assert set(verdicts(study, with_jitter(PUBLISHED)).values()) == {"reproduced"}
    turned = {
        **PUBLISHED,
        "test_accuracy": 0.95,
        "nearest_is_own": 0.5,
        "exponent_far": -0.1,
        "error_large": -0.1,
        "entropy_correlation": -0.5,
        "auc_margin": 0.99,
    }
    found = verdicts(study, with_jitter(turned))
    assert found.pop("accuracy") == "not reproduced"
    assert set(found.values()) == {"reversed"}
    easier = networks("digits8x8", **{**PUBLISHED, "test_accuracy": 0.95})
    assert verdicts(study, easier)["accuracy"] == "reproduced"


def test_networks_that_never_err_leave_the_score_open():
    values = {**PUBLISHED, **{k: math.nan for k in PUBLISHED if k.startswith("auc")}}
    study = StormDigits(StormDigits.Config())
    found = verdicts(study, with_jitter(values))
    assert found["beyond_outputs"] == "not reproduced"


def test_bins_hold_every_image_once():
    study = StormDigits(StormDigits.Config(bin_width=0.1))
    images = pd.DataFrame(
        {
            "exponent": [-0.01, 0.0, 0.05, 0.31],
            "is_wrong": [False, False, True, True],
            "entropy_nats": [0.0, 0.2, 0.4, 1.0],
        }
    )
    table = study._binned(images)
    assert table["exponent"].tolist() == pytest.approx([-0.05, 0.05, 0.35])
    assert table["images"].tolist() == [1, 2, 1]
    assert table["error"].tolist() == [0.0, 0.5, 1.0]
    assert table["entropy_nats"].tolist() == pytest.approx([0.0, 0.3, 1.0])


def paths(crossing=20, maximum=21, rise=0.2, fall=0.1, alignment=0.9):
    rows = [
        {
            "network": n,
            "image": b,
            "crossing_step": crossing,
            "maximum_step": maximum if b % 10 else crossing,
            "exponent_start": 0.3 - rise + JITTER[n],
            "exponent_crossing": 0.3,
            "exponent_end": 0.3 - fall + JITTER[n],
            "alignment": alignment + JITTER[n],
        }
        for n in range(5)
        for b in range(20)
    ]
    each = pd.DataFrame({"network": range(5), "test_accuracy": 0.9, "paths": 20, "images": 25})
    return {"paths": pd.DataFrame(rows), "networks": each}


def test_adversarial_as_published_and_the_other_way_round():
    study = StormAdversarial(StormAdversarial.Config())
    assert set(verdicts(study, paths()).values()) == {"reproduced"}
    found = verdicts(study, paths(maximum=40, rise=-0.2, fall=-0.1, alignment=0.3))
    assert found == {"ridge": "reversed", "maximum": "reversed", "direction": "reversed"}
    half = verdicts(study, paths(fall=0.0))
    assert half["ridge"] == "not reproduced"


@pytest.mark.parametrize(("steps", "verdict"), [(15, "reproduced"), (14, "reversed")])
def test_a_quarter_of_the_crossing_is_near(steps, verdict):
    study = StormAdversarial(StormAdversarial.Config())
    assert verdicts(study, paths(crossing=20, maximum=steps))["maximum"] == verdict


def test_widths_as_published_and_the_other_way_round():
    study = StormWidths(StormWidths.Config())

    def tables(sign):
        rows = [
            {
                "network": len(JITTER) * place + n,
                "width": width,
                "mean_exponent": sign * 0.1 * np.log(width) + JITTER[n],
                "std_exponent": 0.4 - sign * 0.05 * np.log(width) + JITTER[n],
                "test_accuracy": 0.9,
            }
            for place, width in enumerate((10, 20, 50))
            for n in range(5)
        ]
        return {"networks": pd.DataFrame(rows)}

    assert set(verdicts(study, tables(1)).values()) == {"reproduced"}
    assert set(verdicts(study, tables(-1)).values()) == {"reversed"}
    flat = tables(1)
    flat["networks"]["mean_exponent"] = np.tile(JITTER, 3)
    assert verdicts(study, flat)["mean"] == "not reproduced"


def test_certainty_is_each_members_own():
    config = MLP.Config(width=6, depth=2)
    network = MLP(
        [config] * 2,
        input_size=64,
        output_size=10,
        generators=[generator_for(n) for n in range(2)],
        dtype=torch.float64,
    ).requires_grad_(False)
    x, y = examples(Digits(Digits.Config(), seed=0, dtype=torch.float64), ("validation", "test"), 7)
    assert x.shape == (7, 64)
    assert y.shape == (7,)
    found = certainty(lambda v: network(v)[0], x)
    top = network(x)[0].softmax(-1).sort(-1, descending=True).values
    torch.testing.assert_close(found.margin, top[..., 0] - top[..., 1])
    torch.testing.assert_close(found.largest, top[..., 0])
    # Along the gradient the logarithm changes by its norm; error of this difference about 1e-9.
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(network(leaf)[0][1].log_softmax(-1).amax(-1).sum(), leaf)
    step = 1e-6 * g / g.norm(dim=1, keepdim=True)
    ahead, behind = (network(x + s)[0][1].log_softmax(-1).amax(-1) for s in (step, -step))
    torch.testing.assert_close(found.gradient[1], (ahead - behind) / 2e-6, atol=1e-7, rtol=1e-6)
