"""Decisions on made-up networks whose best choice is known, and the study at tiny settings."""

import numpy as np
import pandas as pd
import pytest

from analysis.studies.input_scores import ADJOINT, GRADIENT, RANDOM
from analysis.studies.lab import Lab
from analysis.studies.settings import Settings, load
from analysis.studies.subspaces_usefulness import (
    ALIGNMENT,
    CHANCE,
    EXPONENT,
    LOSS,
    REACH,
    SubspacesUsefulness,
    _saved,
    both,
    decided,
)
from pipeline.folder_store import FolderStore
from tests.analysis.studies.shrunk import digits_and_recall

PARTS = ("digits", "recall")


def networks(number=60, *, known_by=None, hidden=1.0):
    """Final losses of two parts: one that the early loss shows, one that a diagnostic does."""
    rng = np.random.default_rng(1)
    seen, unseen = rng.normal(size=(2, number))
    table = pd.DataFrame(
        {
            "network": range(number),
            "early_loss": seen,
            ALIGNMENT: rng.normal(size=number),
            EXPONENT: rng.normal(size=number),
            REACH: rng.normal(size=number),
            "final_loss": seen + hidden * unseen,
        }
    )
    if known_by == ALIGNMENT:
        table[ALIGNMENT] = -unseen  # the larger, the better
    elif known_by is not None:
        # The closer to 0, the better, on either side of it.
        table[known_by] = np.exp(unseen) * rng.choice([-1, 1], size=number)
    return table


def rows(table, resamples=300):
    return decided(table, resamples, np.random.default_rng(0)).set_index("rule")


@pytest.mark.parametrize("diagnostic", [ALIGNMENT, EXPONENT, REACH])
def test_a_diagnostic_that_tells_what_the_loss_does_not_gains(diagnostic):
    found = rows(networks(known_by=diagnostic))
    assert found.loc[both(diagnostic), "low"] > 0
    others = {ALIGNMENT, EXPONENT, REACH} - {diagnostic}
    assert all(found.loc[both(other), "low"] < 0 for other in others)
    assert found.loc[LOSS, "gain"] == 0
    assert found.loc[CHANCE, "high"] < 0
    assert found.loc[LOSS, "kept_loss"] - found.loc[both(diagnostic), "kept_loss"] == pytest.approx(
        found.loc[both(diagnostic), "gain"]
    )


def test_where_the_loss_tells_all_nothing_gains():
    found = rows(networks(hidden=0.0))
    assert (found.drop(LOSS)["high"] < 0).all()


def test_half_is_kept():
    table = networks(4, hidden=0.0).assign(early_loss=[3.0, 1.0, 2.0, 4.0])
    table["final_loss"] = [30.0, 10.0, 20.0, 40.0]
    table[ALIGNMENT] = [1.0, 0.0, 0.5, 2.0]
    found = rows(table)
    assert found["kept_loss"][[LOSS, ALIGNMENT, CHANCE]].tolist() == [15.0, 35.0, 25.0]


def test_networks_without_a_reading_are_kept_last():
    table = networks(4).assign(**{ALIGNMENT: [np.nan, 1.0, 2.0, np.nan]})
    table["final_loss"] = [1.0, 2.0, 3.0, 4.0]
    assert rows(table).loc[ALIGNMENT, "kept_loss"] == 2.5


def made(*, gain, exponent, chance, gradient):
    """Tables as `measure` leaves them."""
    rules = [LOSS, CHANCE, ALIGNMENT, EXPONENT, REACH, *map(both, (ALIGNMENT, EXPONENT, REACH))]
    decisions = pd.DataFrame(
        [
            {
                "data": part,
                "rule": rule,
                "networks": 48,
                "kept_loss": 1.0,
                "gain": gain,
                "low": gain - 0.1,
                "high": gain + 0.1,
            }
            for part in PARTS
            for rule in rules
        ]
    )
    masks = pd.DataFrame(
        [
            {
                "data": part,
                "network": number,
                "choice": choice,
                "share": share,
                "steps": round(40 * share),
                "loss_increase": level * share + 0.001 * np.sin(number),
            }
            for part in PARTS
            for number in range(8)
            for share in (0.125, 0.25, 0.5)
            for choice, level in ((ADJOINT, exponent), (RANDOM, chance), (GRADIENT, gradient))
        ]
    )
    masks["loss_increase"] *= 1 + 0.05 * np.cos(masks["network"])
    return {
        "networks": networks(),
        "decisions": decisions,
        "masks": masks,
        "costs": _saved(masks[masks["share"] == 0.25]),
    }


def test_verdicts():
    study = SubspacesUsefulness(SubspacesUsefulness.Config())
    found = study.judge(made(gain=0.3, exponent=0.1, chance=0.5, gradient=0.05))
    assert [f.claim for f in found] == [c.key for c in study.claims]
    verdicts = {f.claim: f.verdict for f in found}
    assert verdicts["alignment_recall"] == verdicts["reach_digits"] == "reproduced"
    assert verdicts["random_digits"] == "reproduced"
    assert verdicts["gradient_digits"] == "reversed"
    assert "the 10 steps of smallest exponent raises the loss by 0.02" in found[-1].found
    for gain, verdict in ((0.05, "not reproduced"), (-0.3, "reversed")):
        found = study.judge(made(gain=gain, exponent=0.1, chance=0.5, gradient=0.05))
        assert {f.verdict for f in found[:6]} == {verdict}
    assert len(study.draw(made(gain=0.3, exponent=0.1, chance=0.5, gradient=0.05)).axes) == 4


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_settings_are_read(scale):
    settings = load("subspaces_usefulness", scale)
    assert set(settings.sweeps) == set(PARTS)
    for sweep in settings.sweeps.values():
        for choice in sweep.measure:
            assert choice.config.at == (settings.config.early,)


def test_runs_at_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    tree = {
        "sampler": {"name": "qmc"},
        "seed": 0,
        "trials": 4,
        "network": {"name": "rnn", "units": 8, "init_scale": {"uniform": [0.3, 2.0]}},
        "trainer": {"epochs": 2},
        "measure": {
            "gradient_alignment": {"at": [1], "sequences": 4, "ranks": [1, 5]},
            "lyapunov_spectrum": {"at": [1], "sequences": 4, "steps": 8, "warmup": 2, "k": 1},
            "input_ftle": {"at": [1], "sequences": 4},
        },
        "execution": {"cohort_size": 4, "executor": "inline", "keep_weights": True},
    }
    own = SubspacesUsefulness.Config(early=1, resamples=100, sequences=6)
    settings = Settings("subspaces_usefulness", "small", 1, own, digits_and_recall(tree))
    study = settings.study()
    found = study.measure(Lab(settings, FolderStore(tmp_path / "store")))
    assert len(found["networks"]) == 8
    assert found["networks"].notna().all().all()
    assert len(found["masks"]) == 2 * 2 * 3 * 3
    assert found["masks"].groupby("share")["steps"].min().tolist() == [1, 2, 4]
    assert len(study.judge(found)) == 10
    assert len(study.draw(found).axes) == 4
