"""What the increment test must find, and must not: rates over many made-up sweeps.

The slow part is the acceptance of the method: 200 sweeps of 150 trials of each kind, through
records, frame and features, whose truth is known.
"""

from dataclasses import dataclass
from statistics import mean

import numpy as np
import pytest

from analysis import evidence
from analysis import features as ft
from analysis.frame import SweepFrame
from analysis.increment import Increment, increment, normal_scores
from analysis.inputs import Group
from analysis.predictors.base import Predictor
from analysis.predictors.gaussian_process import GaussianProcess
from analysis.predictors.last_seen_loss import LastSeenLoss
from analysis.predictors.ridge import Ridge
from tests.analysis import synthetic

EPOCH = 2
ALL: tuple[Group, ...] = ("settings", "loss", "norms", "spectrum")
PREDICTORS: tuple[Predictor, ...] = (
    LastSeenLoss(LastSeenLoss.Config()),
    Ridge(Ridge.Config(groups=ALL)),
    GaussianProcess(GaussianProcess.Config(groups=ALL)),
)


@dataclass(frozen=True)
class Rates:
    """Over sweeps of one kind: rejections at 5 %, power stated, and coverage of 90 % intervals."""

    rejected: float
    stated: float
    covered: tuple[float, ...]
    gain: float


def found_in(frame: SweepFrame, seed: int) -> Increment:
    view, target = frame.early_view(EPOCH), normal_scores(frame.target_at(EPOCH))
    base, table = evidence.baseline(view, target.index), ft.features(view)
    names = [n for n in map(str, table) if ft.FEATURES[n].group == "spectrum"]
    return increment(
        target, base.table, table[names], num_paired=base.num_paired, num_permutations=199,
        num_folds=5, num_repeats=1, seed=seed,
    )  # fmt: skip


def covered_in(frame: SweepFrame) -> list[float]:
    """Share of held-out trials, a fifth, inside the 90 % interval, by predictor."""
    view, target = frame.early_view(EPOCH), ft.log_if_positive(frame.target)
    out = np.arange(len(target)) % 5 == 0
    shares = []
    for predictor in PREDICTORS:
        prediction = predictor.fit(view, target[~out]).predict(view, target.index[out])
        low, high = prediction.quantile(0.05), prediction.quantile(0.95)
        shares.append(float(((low <= target[out]) & (target[out] <= high)).mean()))
    return shares


def rates(
    effect: synthetic.Effect, n: int, num_sweeps: int, *, tails: synthetic.Tails = "normal",
    seed: int = 0,
) -> Rates:  # fmt: skip
    share = synthetic.explained_share(EPOCH)
    p, stated, covered, gains = [], [], [], []
    for number in range(num_sweeps):
        trials = synthetic.curved(effect, n, seed=seed + number, tails=tails)
        frame = SweepFrame.from_records(synthetic.info(num_trials=n), trials)
        found = found_in(frame, number)
        p.append(found.gain.p)
        gains.append(found.gain.value)
        stated.append(found.power_at(share))
        covered.append(covered_in(frame))
    return Rates(
        float((np.array(p) <= 0.05).mean()), mean(stated),
        tuple(np.mean(covered, axis=0).tolist()), mean(gains),
    )  # fmt: skip


NUM_SWEEPS = 200
BAND = (0.02, 0.085)  # of 200 rejections at 5 %, with 95 %
COVERAGE = (0.85, 0.94)


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["null", "confounded"])
def test_nothing_is_found_where_nothing_is(effect: synthetic.Effect) -> None:
    found = rates(effect, 150, NUM_SWEEPS)
    assert BAND[0] <= found.rejected <= BAND[1], found
    assert found.gain < 0.01
    assert all(COVERAGE[0] <= share <= COVERAGE[1] for share in found.covered), found


@pytest.mark.slow
def test_the_planted_effect_is_found_as_often_as_stated() -> None:
    found = rates("planted", 150, NUM_SWEEPS)
    # Four standard errors of 200 sweeps at a power of 0.8 are 0.11.
    assert abs(found.rejected - found.stated) < 0.11, found
    assert found.rejected > 0.6
    assert all(COVERAGE[0] <= share <= COVERAGE[1] for share in found.covered), found


def test_a_small_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.analysis.test_ground_truth.PREDICTORS", PREDICTORS[:2])
    nothing = [rates(effect, 60, 12) for effect in ("null", "confounded")]
    # Of 24 tests at 5 %, five or more reject once in 170 times.
    assert sum(found.rejected * 12 for found in nothing) <= 4
    strong = [
        SweepFrame.from_records(
            synthetic.info(num_trials=90), synthetic.curved("planted", 90, seed=seed, trait=0.5)
        )
        for seed in range(3)
    ]
    assert all(found_in(frame, 0).gain.p < 0.05 for frame in strong)
    assert all(0.75 < share < 0.98 for found in nothing for share in found.covered)
