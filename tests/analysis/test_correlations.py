import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import features as ft
from analysis.correlations import correlations, covariates, design, divergence
from analysis.evidence import increments
from analysis.frame import SweepFrame
from analysis.statistics import holm, partial_correlation
from tests.analysis import synthetic


def test_the_table_is_scipys(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    table = correlations(frame).set_index(["epoch", "feature"])
    target = frame.target
    for epoch in frame.measured_epochs:
        known = ft.features(frame.early_view(epoch)).loc[target.index]
        for name in ft.primary(known):
            if ft.FEATURES[name].group == "loss" and epoch == frame.final_epoch:
                continue
            line = table.loc[(epoch, name)]
            assert line["n"] == len(target) == 52
            reference = stats.spearmanr(known[name], target)
            assert line["spearman"] == pytest.approx(reference.statistic, abs=1e-12)
            assert line["spearman_p"] == pytest.approx(reference.pvalue, rel=1e-6)
            assert line["pearson"] == pytest.approx(stats.pearsonr(known[name], target)[0])
            assert line["spearman_low"] <= line["spearman"] <= line["spearman_high"]


def test_holm_spans_all_epochs_but_not_the_bar(frames: dict[str, SweepFrame]) -> None:
    table = correlations(frames["null"])
    tested = table["group"] != "loss"
    for column in ("spearman", "given_settings", "given_settings_and_loss"):
        expected = holm(table.loc[tested, f"{column}_p"].to_numpy(float))
        np.testing.assert_allclose(table.loc[tested, f"{column}_p_holm"], expected)
        assert table.loc[~tested, f"{column}_p_holm"].isna().all()


def test_partial_correlation_by_regression_of_ranks(frames: dict[str, SweepFrame]) -> None:
    frame = frames["confounded"]
    target = frame.target
    view = frame.early_view(1)
    Z = covariates(ft.hyperparameters(view)).Z.loc[target.index].to_numpy()
    X = np.column_stack([np.ones(len(target)), Z])
    ranks = [stats.rankdata(v) for v in (ft.features(view)["lyapunov.max"], target)]
    rest = [r - X @ np.linalg.lstsq(X, r, rcond=None)[0] for r in ranks]
    table = correlations(frame).set_index(["epoch", "feature"])
    line = table.loc[(1, "lyapunov.max")]
    assert line["given_settings"] == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-9)
    assert line["num_covariates"] == Z.shape[1] == 12  # 60 trials: ranks to cubes and products


def test_confounding_goes_when_settings_are_held_fixed(frames: dict[str, SweepFrame]) -> None:
    line = (
        correlations(frames["confounded"]).set_index(["epoch", "feature"]).loc[(1, "lyapunov.max")]
    )
    assert line["spearman_high"] < -0.6
    assert line["given_settings_low"] < 0 < line["given_settings_high"]
    assert line["strata_by"] == "trainer.learning_rate"


def test_a_planted_effect_stays(frames: dict[str, SweepFrame]) -> None:
    line = correlations(frames["planted"]).set_index(["epoch", "feature"]).loc[(1, "lyapunov.max")]
    assert line["given_settings_and_loss_high"] < -0.4
    assert line["given_settings_and_loss_p_holm"] < 1e-4


def test_the_final_loss_is_no_bar(frames: dict[str, SweepFrame]) -> None:
    table = correlations(frames["null"]).set_index(["epoch", "feature"])
    line = table.loc[(6, "lyapunov.max")]
    assert line["given_settings_and_loss_problem"] == (
        "not computable: the loss seen is the final loss"
    )
    assert ft.LOSS_SEEN in table.loc[4].index
    assert not (table.loc[6]["group"] == "loss").any()


def test_covariates_say_what_they_lack() -> None:
    rng = np.random.default_rng(0)
    few = covariates(pd.DataFrame(rng.normal(size=(24, 3)), columns=list("abc")))
    assert few.Z.shape[1] == 3
    assert few.lacks == "squares, cubes, products"
    many = covariates(pd.DataFrame(rng.normal(size=(150, 3)), columns=list("abc")))
    assert many.lacks == ""
    assert many.Z.shape[1] == 3 * 5 + 3
    binary = covariates(pd.DataFrame({"a": np.arange(100.0), "b": np.arange(100) % 2}))
    assert "b^2" not in binary.Z


def test_a_curved_confounder_leaves_nothing_behind() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        z = rng.uniform(-1, 1, 160)
        x = (z - 0.3) ** 2 + 0.1 * rng.normal(size=160)
        y = z**2 - 0.5 * z + 0.1 * rng.normal(size=160)
        held = covariates(pd.DataFrame({"z": z})).Z.to_numpy()
        ranks = stats.rankdata(z)[:, None]
        found.append([partial_correlation(x, y, Z, "spearman").p < 0.05 for Z in (held, ranks)])
    with_powers, with_ranks = np.mean(found, axis=0)
    assert with_ranks == 1.0
    assert with_powers <= 0.2


def test_design_table(frames: dict[str, SweepFrame]) -> None:
    frame = frames["confounded"]
    table = design(frame).set_index(["epoch", "row", "setting"])
    rate = frame.params.loc[frame.target.index, "trainer.learning_rate"]
    found = table.loc[(-1, "final loss", "trainer.learning_rate"), "value"]
    assert found == pytest.approx(stats.spearmanr(rate, frame.target).statistic)
    assert table.loc[(1, "lyapunov.max", "trainer.learning_rate"), "value"] > 0.9
    assert (-1, "network.dropout", "network.dropout") not in table.index


def test_divergence_is_foretold_only_by_trials_that_have_not_diverged(
    frames: dict[str, SweepFrame],
) -> None:
    table = divergence(frames["planted"]).set_index(["epoch", "feature"])
    line = table.loc[(1, "lyapunov.max")]
    assert (line["num_diverged"], line["num_finite"]) == (7, 52)
    assert line["auc"] > 0.9
    assert line["auc_p_holm"] < 0.05
    late = table.loc[(4, "lyapunov.max")]
    assert late["num_diverged"] == 0
    assert late["auc_problem"].startswith("not computable")


def test_trials_that_have_ended_do_not_count() -> None:
    trials = synthetic.sweep("null", 30)
    trials[:8] = [synthetic.ended_at(t, 2) for t in trials[:8]]
    frame = SweepFrame.from_records(synthetic.info(num_trials=30), trials)
    table = correlations(frame).set_index(["epoch", "feature"])
    for epoch, n in ((1, 30), (2, 22), (4, 22)):
        assert (table.loc[epoch, "n"] == n).all()
        assert (design(frame).query("epoch == @epoch")["n"] == n).all()
    # Else the loss seen would be their own final loss.
    late = frame.target_at(2)
    seen = ft.features(frame.early_view(2)).loc[late.index, ft.LOSS_SEEN]
    assert table.loc[(2, ft.LOSS_SEEN), "spearman"] == pytest.approx(
        stats.spearmanr(seen, late).statistic
    )
    tested = increments(frame).set_index("epoch")
    assert tested["n"].to_dict() == {0: 30, 1: 30, 2: 22, 4: 22}
