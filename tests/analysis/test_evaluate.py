import numpy as np
import pandas as pd
import pytest

from analysis import divergence, evaluate
from analysis.evidence import cost_in_epochs, increments
from analysis.frame import SweepFrame
from analysis.predictors.base import CannotPredictError
from analysis.predictors.curve_law import Law, extrapolate

EPOCHS = np.array([1.0, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(
    ("law", "curve"),
    [("power", lambda t: 0.4 + 2 * t**-0.8), ("exponential", lambda t: 0.4 + 2 * np.exp(-0.3 * t))],
)
def test_a_law_is_recovered_from_its_start(law: Law, curve) -> None:  # type: ignore[no-untyped-def]
    found = extrapolate(EPOCHS, curve(EPOCHS)[None], np.array([30.0]), law)
    # The grid of rates is coarse: the end is met to a few hundredths of the fall that was seen.
    assert found[0] == pytest.approx(curve(30.0), abs=0.08)
    assert found[0] < curve(EPOCHS[-1])


def test_a_rising_loss_is_not_carried_on() -> None:
    rising = np.array([[1.0, 1.1, 1.2, 1.3, 1.4, 1.5]])
    found = extrapolate(EPOCHS, rising, np.array([30.0]), "power")
    assert 1 < found[0] < 1.5


@pytest.mark.parametrize("values", [np.arange(20.0), np.repeat([1.0, 2, 4], 5), np.tile([0, 1], 6)])
def test_thirds_partition(values: np.ndarray) -> None:
    parts = list(evaluate.thirds(pd.Series(values)))
    assert (sum(part.astype(int) for part in parts) == 1).all()
    assert len(parts) == min(3, len(np.unique(values)))
    order = [values[part].max() for part in parts]
    assert order == sorted(order)


def test_recall_and_regret_by_hand() -> None:
    y = np.arange(20.0)
    foretold = np.stack([y, y[::-1]])
    found = evaluate._kept(foretold, y)
    assert found["recall_10"] == 0.5  # all found in one repeat, none in the other
    assert found["regret_10"] == pytest.approx((0 + 18) / 2)
    assert found["regret_25"] == pytest.approx((0 + 15) / 2)


def test_divergence_is_told_from_what_shows_it(frames: dict[str, SweepFrame]) -> None:
    table = evaluate.divergence_scores(frames["planted"]).set_index(["epoch", "groups"])
    with_spectrum = table.loc[(1, "settings + loss seen + norms + spectrum")]
    assert with_spectrum["num_diverged"] == 7
    assert with_spectrum["auc"] > 0.85
    assert table.loc[(1, "settings"), "auc"] < with_spectrum["auc"]
    # By epoch 4 those that diverge have done so.
    assert "not computable" in table.loc[(4, "settings"), "auc_problem"]


def test_too_few_divergences_are_said(frames: dict[str, SweepFrame]) -> None:
    view = frames["null"].early_view(1)
    none = pd.Series(False, index=view.trials)
    with pytest.raises(CannotPredictError, match="5 of each needed"):
        divergence.held_out(view, none, ("settings",), 5)


def test_increments_of_a_planted_effect_and_of_none(frames: dict[str, SweepFrame]) -> None:
    planted = increments(frames["planted"]).set_index("epoch")
    assert (planted.loc[[0, 1, 2], "p_holm"] < 0.05).all()
    assert (planted.loc[[0, 1, 2], "gain_low"] > 0).all()
    for name in ("null", "confounded"):
        assert (increments(frames[name])["p_holm"] > 0.05).all()
    assert (increments(frames["confounded"])["determined"] > 0.4).all()


def test_the_price_of_measuring(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    # 0.2 s for a spectrum, 2 s for an epoch.
    assert cost_in_epochs(frame, 1, "spectrum") == pytest.approx(0.1)
    table = increments(frame).set_index("epoch")
    assert list(table["against_epoch"]) == [1, 2, 3, 5]
    # An early spectrum shows the trait that one more epoch does not; a late one does not.
    assert (table.loc[[0, 1, 2], "against"] > 0).all()
    assert table.loc[4, "against"] < table.loc[0, "against"]
