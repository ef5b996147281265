"""Gradient flossing: verdicts on made-up tables, and the whole study at tiny settings."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from analysis.studies.flossing_recall import (
    ACCURACY,
    BOTH,
    DISTANCE,
    EPOCHS,
    FLOSSED,
    GAIN,
    LARGEST,
    LOST,
    NEITHER,
    OUTCOME,
    PLAIN,
    RESCUED,
    FlossingRecall,
    lower,
)
from analysis.studies.lab import Lab
from analysis.studies.settings import load
from pipeline import config
from pipeline.folder_store import FolderStore


def tables(*, rescued=10, lost=0, both=10, never=8, faster=2.0, sign=-1.0, nearer=0.4):
    """Networks by outcome; `sign` −1 gives the rescued the lower exponents."""
    outcomes = [RESCUED] * rescued + [LOST] * lost + [BOTH] * both + [NEITHER] * never
    wiggle = np.sin(np.arange(len(outcomes)))
    exponent = {RESCUED: 0.5 * sign, NEITHER: -0.5 * sign}
    solved = {PLAIN: (BOTH, LOST), FLOSSED: (BOTH, RESCUED)}
    table = pd.DataFrame({OUTCOME: outcomes}).rename_axis("network").reset_index()
    table[GAIN] = np.resize([0.5, 1.0, 1.5], len(table))
    table[LARGEST] = [exponent.get(o, 0.0) for o in outcomes] + 0.1 * wiggle
    for word in (PLAIN, FLOSSED):
        ended = table[OUTCOME].isin(solved[word])
        table[f"{ACCURACY}, {word}"] = np.where(ended, 0.99, 0.3)
        epochs = 6 + np.round(wiggle) + (faster if word == PLAIN else 0.0)
        table[f"{EPOCHS}, {word}"] = np.where(ended, epochs + 0.01 * wiggle, math.nan)
        table[f"{DISTANCE}, {word}"] = 0.1 + 0.01 * wiggle**2 + nearer * (word == PLAIN)
    table.loc[0, f"{EPOCHS}, {PLAIN}"] += 0.1
    epochs = pd.DataFrame(
        [
            {"training": word, "epoch": e, "networks": len(table), "share solved": e / 10}
            for word in (PLAIN, FLOSSED)
            for e in range(9)
        ]
    )
    return {"networks": table, "epochs": epochs}


def judged(**settings):
    study = FlossingRecall(FlossingRecall.Config())
    return {f.claim: f for f in study.judge(tables(**settings))}


def verdicts(**settings):
    return {claim: finding.verdict for claim, finding in judged(**settings).items()}


def test_verdicts_follow_the_numbers():
    assert set(verdicts().values()) == {"reproduced"}
    assert list(verdicts()) == [claim.key for claim in FlossingRecall.claims]
    turned = verdicts(rescued=0, lost=12, faster=-2.0, sign=1.0, nearer=-0.3)
    assert turned["success"] == turned["exponents"] == "reversed"
    assert turned["speed"] == "reversed"
    assert turned["foretold"] == "not reproduced"  # nobody is rescued
    assert verdicts(sign=1.0)["foretold"] == "reversed"
    assert verdicts(sign=0.0)["foretold"] == "not reproduced"
    assert verdicts(rescued=6, lost=6)["success"] == "not reproduced"
    assert verdicts(never=0)["foretold"] == "not reproduced"
    assert verdicts(both=0)["speed"] == "not reproduced"


def test_sentences_carry_their_numbers():
    found = judged(rescued=10, lost=2, both=9, never=7)
    assert found["success"].found.startswith(
        "11 of 28 networks solve it without and 19 with flossing (10 rescued, 2 lost)"
    )
    assert found["success"].effect == pytest.approx(8 / 28)
    assert "10 rescued, 7 never solved" in found["foretold"].found
    assert "in the 24 pairs of equal gain it is 1.00" in found["foretold"].found
    assert found["foretold"].effect == 1


def test_the_probability_of_order_and_its_interval():
    """By counting, and by how often the interval of Newcombe's method covers the truth."""
    assert lower([1, 3], [2, 4, 2, 3]).value == pytest.approx((4 + 1 + 0.5) / 8)
    assert all(math.isnan(part) for part in lower([], [1.0]))
    random = np.random.default_rng(0)
    truth, covered = 0.5 * (1 + math.erf(0.5)), 0  # of normals, one standard deviation apart
    for _ in range(300):
        found = lower(random.normal(size=15), random.normal(1.0, size=20))
        assert 0 <= found.low <= found.value <= found.high <= 1
        covered += found.low <= truth <= found.high
    assert 275 <= covered <= 297
    perfect = lower(np.arange(10), np.arange(10, 20))
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert 0.6 < perfect.low < 0.9


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_both_parts_differ_in_flossing_alone_and_stop_where_the_study_looks(scale):
    settings = load("flossing_recall", scale)
    plain, flossed = (settings.sweeps[part].tree for part in ("plain", "flossed"))
    regularise = flossed["trainer"].pop("regularise")
    assert plain == flossed
    until = settings.config.flossed_until
    assert regularise["flossing"]["until"] == until
    assert until in plain["measure"]["lyapunov_spectrum"]["at"]
    assert regularise["flossing"]["exponents"] == plain["measure"]["lyapunov_spectrum"]["k"]


def test_it_runs_from_end_to_end_at_tiny_settings(tmp_path):
    settings = load("flossing_recall", seeds=1)
    sweeps = {}
    for part, sweep in settings.sweeps.items():
        tree = sweep.tree | {"trials": 2, "execution": {"executor": "inline", "cohort_size": 2}}
        tree["execution"]["keep_weights"] = True
        tree["task"] = tree["task"] | {"steps": 4, "updates": 10, "validation_size": 60}
        tree["network"] = tree["network"] | {"init_scale": {"choice": [0.4, 1.9]}}
        tree["measure"] = {"lyapunov_spectrum": {"at": [0, 1], "k": 8, "steps": 20, "warmup": 4}}
        trainer = tree["trainer"] | {"epochs": 3}
        if "regularise" in trainer:
            own = trainer["regularise"]["flossing"] | {"until": 1, "steps": 4}
            trainer["regularise"] = {"flossing": own}
        sweeps[part] = config.check(tree | {"trainer": trainer})
    tiny = dataclasses.replace(
        settings, sweeps=sweeps, config=FlossingRecall.Config(flossed_until=1, solved=0.5)
    )
    study = tiny.study()
    found = study.measure(Lab(tiny, FolderStore(tmp_path)))
    networks, epochs = found["networks"], found["epochs"]
    assert networks[GAIN].tolist() == [0.4, 1.9]
    assert networks[LARGEST].is_monotonic_increasing
    by_word = [networks[f"{DISTANCE}, {word}"] for word in (PLAIN, FLOSSED)]
    assert (by_word[0] != by_word[1]).all()
    assert set(networks[OUTCOME]) <= {BOTH, RESCUED, LOST, NEITHER}
    assert len(epochs) == 2 * 4
    # Before training they are the same networks.
    start = epochs[epochs["epoch"] == 0]["share solved"]
    assert start.nunique() == 1
    assert [f.claim for f in study.judge(found)] == [c.key for c in study.claims]
    assert len(study.draw(found).axes) == 3


def test_the_picture_is_drawn_where_nobody_was_lost_or_rescued():
    study = FlossingRecall(FlossingRecall.Config())
    assert len(study.draw(tables(rescued=0, lost=0)).axes) == 3
