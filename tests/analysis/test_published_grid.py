"""The published grid of Vogt et al. 2022, imported and re-analysed, against two other computations.

`FULL` are the numbers of a re-analysis of all 110 networks (107 without those that diverge). The
public tables that may be distributed beside a checkout hold 55 of them, 54 without the one that
diverges: half of a finite population, so a rank correlation ρ of theirs differs from that of all
by a normal error of (1 − ρ²) √(1.06 · ½ / 55), and what is asked for is three of those. Where that
leaves room for either answer, the test is about the answer, and says so. Losses of the full
re-analysis were as published, ours are corrected by 33/32.

The same numbers are computed once more from the raw tables with scipy and scikit-learn alone, to
rounding.
"""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import RidgeCV

from analysis import published_grid
from analysis.frame import AnalysisError, SweepFrame
from analysis.published_grid import numbers
from analysis.verdict import verdict
from pipeline.external import mapping as mappings
from pipeline.external.sweep import import_sweep
from pipeline.external.tables import read
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from tests.analysis import synthetic

CORRECTION = 33 / 32
NUM_HERE = 55


@pytest.fixture(scope="module")
def files() -> tuple[Path, Path]:
    """The published tables, in $LYAPSWEEP_DATA or in shared/data beside the checkout."""
    folders = [Path(__file__).parents[3] / "shared" / "data"]
    if "LYAPSWEEP_DATA" in os.environ:
        folders.insert(0, Path(os.environ["LYAPSWEEP_DATA"]))
    for folder in folders:
        spectra, losses = (
            folder / f"vogt2022_public_{kind}.parquet" for kind in ("spectra", "losses")
        )
        if spectra.is_file() and losses.is_file():
            return spectra, losses
    pytest.skip(
        "no vogt2022_public_spectra.parquet and vogt2022_public_losses.parquet in $LYAPSWEEP_DATA"
    )


def imported(root: Path, files: tuple[Path, Path], *settings: str) -> SweepFrame:
    mapping = mappings.load(mappings.find("vogt2022"), settings)
    store = FolderStore(root / "store")
    store.prepare()
    home = Home.of("grid", str(root / "home"))
    import_sweep(read(mapping, *files), mapping, "grid", store, home)
    return SweepFrame.from_store(store, "grid")


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]) -> SweepFrame:
    """Without the network that diverges."""
    return imported(tmp_path_factory.mktemp("stable"), files)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]) -> SweepFrame:
    """All networks, taking the losses of the one that diverges for final."""
    return imported(tmp_path_factory.mktemp("whole"), files, "diverged_rise=null")


def values(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    keys = zip(table["section"], table["what"], strict=True)
    return dict(zip(keys, table["value"], strict=True))


@pytest.fixture(scope="module")
def table_of_stable(stable: SweepFrame) -> pd.DataFrame:
    return numbers(stable)


@pytest.fixture(scope="module")
def of_stable(table_of_stable: pd.DataFrame) -> dict[tuple[str, str], float]:
    return values(table_of_stable)


@pytest.fixture(scope="module")
def of_whole(whole: SweepFrame) -> dict[tuple[str, str], float]:
    return values(numbers(whole, regressions=False))


def allowed(rho: float) -> float:
    """Three errors of half a population, and half a unit of the last digit printed."""
    return 3 * (1 - rho**2) * math.sqrt(1.06 * 0.5 / NUM_HERE) + 0.005


MARGINAL = "spearman with final loss"
LINEAR, CURVED = "partial spearman", "partial spearman, squares of ranks too"

FULL_107 = {
    (MARGINAL, "max @4"): -0.523,
    (MARGINAL, "mean @4"): 0.583,
    (MARGINAL, "std @4"): -0.604,
    (MARGINAL, "above -3 @4"): 0.463,
    (MARGINAL, "top-10 mean @4"): -0.603,
    (MARGINAL, "gap @4"): -0.139,
    (MARGINAL, "max @15"): -0.563,
    (MARGINAL, "mean @15"): 0.562,
    (MARGINAL, "std @15"): -0.605,
    (MARGINAL, "above -3 @15"): 0.523,
    (MARGINAL, "top-10 mean @15"): -0.630,
    (MARGINAL, "gap @15"): -0.347,
    ("last-seen loss", "spearman val1"): 0.751,
    ("last-seen loss", "spearman val2"): 0.782,
    ("last-seen loss", "spearman val3"): 0.845,
    ("last-seen loss", "spearman val4"): 0.892,
    ("last-seen loss", "spearman val5"): 0.902,
    ("last-seen loss", "spearman val8"): 0.942,
    ("last-seen loss", "spearman val10"): 0.932,
    ("last-seen loss", "pearson val4"): 0.903,
    (LINEAR, "max @4 | val4"): 0.21,
    (LINEAR, "max @15 | val4"): 0.22,
    (LINEAR, "max @15 | rate, dropout"): 0.02,
    # Linear in ranks ours are −0.24 and +0.44; the full re-analysis is met where the settings
    # and the loss may act with a bend.
    (CURVED, "mean @4 | rate, dropout"): -0.53,
    (CURVED, "mean @4 | val4, rate, dropout"): -0.08,
    ("not monotone", "spearman max @4 above -0.4 bits"): 0.26,
    ("not monotone", "spearman max @4 above -0.3 bits"): 0.50,
}
FULL_110 = {
    (MARGINAL, "max @4"): -0.458,
    (MARGINAL, "mean @4"): 0.526,
    (MARGINAL, "std @4"): -0.545,
    (MARGINAL, "above -3 @4"): 0.420,
    (MARGINAL, "top-10 mean @4"): -0.510,
    (MARGINAL, "gap @4"): -0.121,
    (MARGINAL, "max @15"): -0.570,
    (MARGINAL, "mean @15"): 0.479,
    (MARGINAL, "std @15"): -0.518,
    (MARGINAL, "above -3 @15"): 0.442,
    (MARGINAL, "top-10 mean @15"): -0.623,
    (MARGINAL, "gap @15"): -0.317,
    ("last-seen loss", "spearman val1"): 0.669,
    ("last-seen loss", "spearman val2"): 0.705,
    ("last-seen loss", "spearman val3"): 0.769,
    ("last-seen loss", "spearman val4"): 0.818,
    ("last-seen loss", "spearman val5"): 0.882,
    ("last-seen loss", "spearman val8"): 0.919,
    ("last-seen loss", "spearman val10"): 0.914,
    ("confounding", "spearman learning rate, final loss"): -0.519,
    ("confounding", "spearman learning rate, mean @4"): -0.971,
    (LINEAR, "max @4 | rate"): 0.05,
    (LINEAR, "max @4 | rate, dropout"): -0.05,
    (LINEAR, "max @4 | val4"): 0.19,
    (LINEAR, "max @15 | rate"): -0.14,
    (LINEAR, "max @15 | rate, dropout"): -0.26,
    (LINEAR, "max @15 | val4"): -0.005,
}


@pytest.mark.parametrize("key", FULL_107, ids=lambda key: key[1])
def test_correlations_without_divergence_are_those_of_all_107(key, of_stable):
    assert of_stable[key] == pytest.approx(FULL_107[key], abs=allowed(FULL_107[key]))


@pytest.mark.parametrize("key", FULL_110, ids=lambda key: key[1])
def test_correlations_with_divergence_are_those_of_all_110(key, of_whole):
    assert of_whole[key] == pytest.approx(FULL_110[key], abs=allowed(FULL_110[key]))


def test_the_marginal_correlation_is_all_learning_rate(of_stable, of_whole):
    for found in (of_stable, of_whole):
        # The full re-analysis has +0.889 and +0.910. Among ours it is 0.95 and more: these
        # networks lie 0.05 from 1, where no normal error holds.
        assert found["confounding", "spearman learning rate, max @4"] > 0.85
        assert found["confounding", "spearman learning rate, max @15"] > 0.85
        assert found[MARGINAL, "max @4"] < -0.35
        assert abs(found[LINEAR, "max @4 | rate, dropout"]) < 0.15
        # Simpson's paradox: +0.41 (all ten positive) and +0.33 at a fixed rate in the full
        # re-analysis, −0.55 and −0.65 at a fixed dropout.
        within = "within strata"
        for epoch in (4, 15):
            fixed = f"max @{epoch} at a fixed"
            assert found[within, f"positive strata, {fixed} rate"] >= 8
            assert found[within, f"mean spearman {fixed} dropout"] < -0.45
            assert found[within, f"positive strata, {fixed} dropout"] <= 1
        assert found[within, "mean spearman max @4 at a fixed rate"] > 0.3
        assert found[within, "the sign turns, max @4 at a fixed rate"] == 1
        # Dropout is on during validation, and raises the loss at every rate: +0.44 to +0.95.
        for word, low in (("lowest", -0.2), ("highest", 0.9)):
            what = f"{word} spearman dropout, final loss at a fixed rate"
            assert found["confounding", what] > low


def test_the_mean_exponent_has_the_other_sign_once_the_settings_are_fixed(of_stable):
    assert of_stable[MARGINAL, "mean @4"] > 0.4
    assert of_stable[CURVED, "mean @4 | rate, dropout"] < -0.3


def test_it_is_not_monotone(of_stable):
    """Optima at −0.26 and −0.09 bits in the full re-analysis, inside the range of networks."""
    part = "not monotone"
    assert of_stable[part, "quadratic optimum of max @4"] == pytest.approx(-0.26, abs=0.05)
    assert of_stable[part, "quadratic optimum of max @15"] == pytest.approx(-0.09, abs=0.05)
    # Other networks are the best of 110 (−0.39, −0.09) than of ours.
    assert -0.45 < of_stable[part, "max @4 of the best network"] < -0.3
    assert -0.2 < of_stable[part, "max @15 of the best network"] < -0.05


def test_the_thresholds_are_visible(of_stable, of_whole):
    """Means of 1.377 and 1.434, 1.366 and 1.420 as published; ours are corrected by 33/32."""
    for what, full in (
        ("max @4 above -0.5 bits", 1.377),
        ("max @4 below -0.5 bits", 1.434),
        ("mean @4 below -4.0 bits", 1.366),
        ("mean @4 above -4.0 bits", 1.420),
    ):
        found = of_stable["thresholds", f"mean final loss, {what}"]
        assert found == pytest.approx(CORRECTION * full, abs=0.03), what
    assert of_stable["thresholds", "networks with max @15 below -0.5 bits"] == 0
    # 8 of 110 are above 0 at epoch 15; half of the networks, half of those give or take.
    assert 2 <= of_whole["thresholds", "networks with max @15 above 0"] <= 6


def test_the_best_tenth(of_stable, of_whole):
    """By the losses of epochs 4 and 5 recall is .64 and .91, by max and mean exponent 0 and .09.

    A tenth of ours is five networks: recall moves by steps of 0.2. By epoch 5 it is .6 here, not
    .91; that it beats the spectrum stands.
    """
    for found in (of_stable, of_whole):
        part = "top decile"
        for loss in ("val4", "val5"):
            assert found[part, f"recall {loss}"] >= 0.4
            assert found[part, f"regret {loss}"] == 0
            for exponent in ("max @4", "mean @4"):
                assert found[part, f"recall {exponent}"] <= 0.2 < found[part, f"recall {loss}"]
                assert 0.004 < found[part, f"regret {exponent}"] < 0.04


RIDGE = "ridge, 10-fold"
FULL_RMSE = {
    "val4": 156, "val1-4": 154, "HP": 135, "max4": 335, "LE4": 149, "val4+max4": 138,
    "val4+LE4": 123, "val1-7": 132,
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_RMSE)
def test_held_out_errors_are_those_of_all_107(name, of_stable):
    """An RMSE of 54 errors with long tails is known to about a tenth; three of those."""
    found = of_stable[RIDGE, f"{name}: RMSE × 10⁴"]
    assert found == pytest.approx(FULL_RMSE[name], rel=0.3)


def test_the_gain_over_a_linear_baseline_vanishes_over_a_cubic_one(table_of_stable, of_stable):
    """+26.5 %, −9.3 %, +3.9 % and +11.2 % over linear val4, cubic val4, cubic val4 + HP and HP.

    Of 54 networks: +12 %, −2 %, −11 %, −5 %. A dozen columns cost half of so few networks more
    than they tell, so that what the spectrum adds to the hyperparameters alone is not seen.
    """
    part = "gain of the epoch-4 spectrum"
    linear, cubic = (of_stable[part, f"over {form} val4"] for form in ("linear", "cubic"))
    assert linear > 0.05
    assert cubic < 0.05
    assert of_stable[part, "over cubic val4 + HP"] < 0.05
    # Because the final loss bends in the loss of epoch 4, not because the spectrum knows more.
    bend = of_stable[RIDGE, "cubic val4: RMSE × 10⁴"]
    assert bend < of_stable[RIDGE, "val4+LE4: RMSE × 10⁴"] < of_stable[RIDGE, "val4: RMSE × 10⁴"]
    p = table_of_stable[table_of_stable["section"] == part].set_index("what")["p"]
    assert p["over linear val4"] < 0.05
    for name in ("over cubic val4", "over cubic val4 + HP", "over HP"):
        assert p[name] > 0.05


def test_a_learning_rate_left_out_is_foretold_worse_with_the_spectrum(of_stable):
    """157 → 234 over cubic val4 in the full re-analysis, 239 → 254 of ours.

    Over a linear val4 the full one finds 247 → 168; ours 235 → 241, no gain.
    """
    part = "ridge, a learning rate left out"
    without, with_it = (
        of_stable[part, f"{name}: RMSE × 10⁴"] for name in ("cubic val4", "cubic val4+LE4")
    )
    assert with_it > without
    for name, full in (("val4", 247), ("HP", 264), ("LE4", 272)):
        assert of_stable[part, f"{name}: RMSE × 10⁴"] == pytest.approx(full, rel=0.3)


def test_one_more_epoch_is_worth_the_spectrum_of_epoch_4(of_stable):
    """By rank and by recall it is worth more; by squared error ours cannot tell the two apart."""
    val5 = of_stable["last-seen loss", "spearman val5"]
    for name in ("max", "mean", "std", "top-10 mean"):
        assert val5 > abs(of_stable[MARGINAL, f"{name} @4"]) + 0.2
    gains = [v for (part, _), v in of_stable.items() if part == "one more epoch instead"]
    assert len(gains) == 2
    assert min(gains) > -0.1
    assert of_stable[RIDGE, "val5: RMSE × 10⁴"] < of_stable[RIDGE, "LE4: RMSE × 10⁴"]


def test_processes_bend_by_themselves(of_stable):
    """115 and 129 in the full re-analysis, whose kernel is not known: hence 40 %."""
    part = "Gaussian process, 10-fold"
    assert of_stable[part, "val4: RMSE × 10⁴"] < of_stable[RIDGE, "val4: RMSE × 10⁴"]
    for name, full in (("val4", 115), ("val1-4", 112), ("LE4", 129), ("val4+LE4", 110)):
        assert of_stable[part, f"{name}: RMSE × 10⁴"] == pytest.approx(full, rel=0.4)


def test_numbers_equal_those_that_scipy_reads_off_the_raw_tables(files, of_stable, of_whole):
    spectra, losses = (pd.read_parquet(path) for path in files)
    curves = losses.pivot(index="network_id", columns="epoch", values="val_loss_nats_per_char")
    settings = losses.groupby("network_id")[["learning_rate", "dropout"]].first()
    diverged = (curves - curves.cummin(axis=1)).max(axis=1) > 0.3
    assert diverged.sum() == 1
    for found, kept in ((of_stable, curves.index[~diverged]), (of_whole, curves.index)):
        final = curves.loc[kept, 14]
        rate = settings.loc[kept, "learning_rate"]
        for epoch in (4, 15):
            at = spectra[spectra["epoch"] == epoch]
            bits = at.pivot(
                index="network_id", columns="exponent_index", values="mean_bits_per_step"
            )
            ordered = -np.sort(-bits.loc[kept].to_numpy(dtype=float), axis=1)
            features = {
                "max": ordered[:, 0],
                "mean": ordered.mean(axis=1),
                "std": ordered.std(axis=1),
                "above -3": (ordered > -3).sum(axis=1),
                "top-10 mean": ordered[:, :10].mean(axis=1),
                "gap": ordered[:, 0] - ordered[:, 1],
                "skewness": stats.skew(ordered, axis=1),
            }
            for name, x in features.items():
                what = f"{name} @{epoch}"
                rank = stats.spearmanr(x, final).statistic
                assert found[MARGINAL, what] == pytest.approx(rank, abs=1e-12)
                pearson = stats.pearsonr(x, final).statistic
                assert found["pearson with final loss", what] == pytest.approx(pearson, abs=1e-12)
            ranks = [stats.rankdata(v) for v in (features["max"], final, rate)]
            a, b, c = (np.corrcoef(ranks[i], ranks[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2)))
            partial = (a - b * c) / math.sqrt((1 - b**2) * (1 - c**2))
            assert found[LINEAR, f"max @{epoch} | rate"] == pytest.approx(partial, abs=1e-10)


def test_the_report_says_no_more_than_that(stable):
    found = verdict(stable)
    assert found.kind in ("confounded", "redundant")
    assert "nothing detectable" in found.headline
    (named,) = [s for s in found.evidence if "plain correlation of the largest exponent" in s]
    assert "follows trainer.learning_rate (ρ = +0.9" in named
    assert "its sign turns to +0." in named
    cautions = " ".join(found.cautions)
    assert "Simpson" in cautions
    assert "trainer.learning_rate" in cautions
    assert "1 diverged trial" in cautions


def test_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    Z, others = rng.normal(size=(40, 6)), rng.normal(size=(9, 6))
    y = Z @ rng.normal(size=6) + 3 + 2 * rng.normal(size=40)
    theirs = RidgeCV(alphas=published_grid._PENALTIES).fit(Z, y).predict(others)
    np.testing.assert_allclose(published_grid.ridge(Z, y, others), theirs, rtol=1e-9)


@pytest.mark.parametrize("change", ["no rate sampled", "too few epochs"])
def test_a_sweep_that_is_no_such_grid_is_refused(change):
    trials = synthetic.sweep("reversed", 60)
    if change == "no rate sampled":
        trials = [
            replace(t, header=replace(t.header, sampled=("network.dropout",))) for t in trials
        ]
    frame = SweepFrame.from_records(synthetic.info(num_trials=60), trials)
    with pytest.raises(AnalysisError, match=r"must be a grid over trainer\.learning_rate"):
        numbers(frame)
