"""What the report shows of the predictors compared."""

import pandas as pd
import pytest

from analysis import evaluate
from analysis.frame import SweepFrame
from analysis.sections import predictors
from tests.analysis.conftest import all_variants


def test_those_shown_are_fixed_beforehand_and_exist() -> None:
    assert set(predictors.SHOWN) <= set(all_variants())


def test_few_are_shown_and_all_are_folded(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    content = predictors._content(frame)
    chosen, every = content["chosen"], content["predictors"]
    scores = evaluate.compare(frame).scores
    known = scores[scores["problem"] == ""]
    assert [row[0] for row in chosen.rows] == [
        name for name in predictors.SHOWN if name in set(known["predictor"])
    ]
    assert len(chosen.rows) >= 3
    assert len(every.rows) == len(known)
    assert len(chosen.columns) == 1 + known["epoch"].nunique()
    line = known[(known["predictor"] == "loss seen") & (known["epoch"] == 2)].iloc[0]
    (cells,) = (row for row in chosen.rows if row[0] == "loss seen")
    cell = cells[chosen.columns.index("After epoch 2")]
    rmse, rho = cell.rstrip(")").split(" (")
    assert float(rmse) == pytest.approx(line["rmse"], rel=0.01)
    assert float(rho.replace("−", "-")) == pytest.approx(line["spearman"], abs=0.006)
    # The head of the list is open, the list itself is folded.
    before, after = predictors._BODY.split("<details><summary>All predictors")
    assert "table(chosen)" in before
    assert "table(predictors)" in after.split("</details>")[0]


def test_the_best_of_each_kind_is_named_with_how_many_it_was_chosen_from(
    frames: dict[str, SweepFrame],
) -> None:
    frame = frames["planted"]
    scores = predictors._scores(frame)
    said = predictors._best(frame, scores)
    epoch = evaluate.compare(frame).region_epoch
    here = scores[scores["epoch"] == epoch].set_index("predictor")["rmse"]
    is_with = here.index.str.contains("spectrum")
    for part in (here[~is_with], here[is_with]):
        assert f"({part.idxmin()}; the best of {len(part)})" in said
    assert predictors._best(frame, scores[~scores["predictor"].str.contains("spectrum")]) == ""


def test_what_could_not_be_computed_is_one_sentence() -> None:
    table = pd.DataFrame({"problem": ["not computable: b", "", "not computable: a", "x: b"]})
    assert predictors._missing(table) == "Lines are missing for this: a; b; x: b."
    assert predictors._missing(pd.DataFrame()) == ""
