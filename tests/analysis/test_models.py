import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import features as ft
from analysis.forecaster import Fit, Forecast, Forecaster, ModelError
from analysis.frame import SweepFrame
from analysis.models import load, save
from analysis.predict import Standing, forecaster
from analysis.predictors.ridge import Ridge
from analysis.trial_table import seen_of, view_of
from pipeline import catalog
from pipeline.records import TrialRecord
from tests.analysis import synthetic
from tests.analysis.synthetic import Family

AT = 2


def frame_of(trials: list[TrialRecord]) -> SweepFrame:
    return SweepFrame.from_records(synthetic.info(num_trials=len(trials)), trials)


@pytest.fixture(scope="module")
def fitted_on() -> SweepFrame:
    return frame_of(synthetic.sweep("planted", 70, diverged=8, seed=4))


@pytest.fixture(scope="module")
def newcomers() -> pd.DataFrame:
    return seen_of(frame_of(synthetic.sweep("planted", 12, seed=5)).early_view(AT))


@pytest.fixture(scope="module")
def saved(fitted_on: SweepFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "ridge"
    save(forecaster(fitted_on, AT), folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("family", ["lstm", "mlp"])
def test_a_view_survives_the_table(family: Family) -> None:
    view = frame_of(synthetic.sweep("planted", 12, family=family)).early_view(AT)
    again = view_of(seen_of(view), AT, view.sampled)
    pd.testing.assert_frame_equal(ft.features(again), ft.features(view), check_exact=True)
    pd.testing.assert_frame_equal(ft.hyperparameters(again), ft.hyperparameters(view))
    places = ft.sorted_spectra(view, 8)
    pd.testing.assert_frame_equal(ft.sorted_spectra(again, 8), places, check_index_type=False)


def test_leading_exponents_keep_the_size_of_their_state() -> None:
    trials = [synthetic.described_as(t, state_size=40) for t in synthetic.sweep("planted", 6)]
    view = frame_of(trials).early_view(AT)
    assert set(view_of(seen_of(view), AT, view.sampled).state_sizes.values()) == {40}


def test_it_foretells_what_the_predictor_does(fitted_on: SweepFrame) -> None:
    """The straight way: fit and predict in one view of one sweep."""
    standing = Standing.of(fitted_on, AT)
    rest, out = standing.outcome.iloc[:50], standing.outcome.index[50:]
    direct = Fit.on(standing.view, rest, Ridge(Ridge.Config())).foretell(standing.view, out)
    made = Forecaster.of("s", standing.view, rest, "ridge", Ridge(Ridge.Config()))
    found = made.foretell(seen_of(standing.view).loc[out])
    # Settings beyond those fitted on count as at their edge: the others must agree.
    params = standing.view.params[list(made.sampled)]
    low, high = params.loc[rest.index].min(), params.loc[rest.index].max()
    inside = ((params.loc[out] >= low) & (params.loc[out] <= high)).all(axis=1).to_numpy()
    assert inside.sum() > 10
    for one, two in zip(_columns(found), _columns(direct), strict=True):
        np.testing.assert_allclose(one[inside], two[inside], rtol=1e-9)


def test_company_does_not_matter(fitted_on: SweepFrame, newcomers: pd.DataFrame) -> None:
    made = forecaster(fitted_on, AT)
    odd = newcomers.iloc[:3].copy()
    # One below 0 would take the logarithm away from the learning rates of all.
    odd["trainer.learning_rate"] = [-1.0, 1e9, np.nan]
    odd.loc[odd.index[1], f"val_loss@{AT}"] = -1.0
    together = made.foretell(pd.concat([odd, newcomers.iloc[3:]]))
    for trial in newcomers.index[3:]:
        alone = made.foretell(newcomers.loc[[trial]])
        for one, two in zip(_columns(alone), _columns(together), strict=True):
            # Matrix products of other shapes round otherwise, in the last digits.
            assert one[0] == pytest.approx(two[together.mean.index.get_loc(trial)], rel=1e-10)
    # Beyond the range: as at its edge. Loss below 0 or no setting: not foretold.
    assert together.mean.isna().tolist()[:3] == [False, True, True]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["ridge", "random_forest", "loss_spline"], id="some"),
        pytest.param(list(catalog.entries("predictors")), id="all", marks=pytest.mark.slow),
    ],
)
def test_saved_predictors_foretell_the_same_in_a_fresh_process(
    names: list[str], tmp_path: Path
) -> None:
    at, frame = 4, frame_of(synthetic.sweep("planted", 36, seed=4))
    seen = seen_of(frame_of(synthetic.sweep("planted", 12, seed=5)).early_view(at))
    path = tmp_path / "seen.json"
    path.write_text(json.dumps(seen.rename_axis("trial").reset_index().to_dict("records")))
    made = {name: forecaster(frame, at, name) for name in names}
    for name in names:
        save(made[name], tmp_path / name)
    code = f"""
import json, sys, pandas as pd
from pathlib import Path
import mlflow.pyfunc
assert not [m for m in sys.modules if m.split(".")[0] == "analysis"]
folder = Path({str(tmp_path)!r})
seen = pd.DataFrame(json.loads((folder / "seen.json").read_text()))
found = {{}}
for name in {names!r}:
    table = mlflow.pyfunc.load_model(str(folder / name)).predict(seen)
    found[name] = {{c: [float(v).hex() for v in table[c]] for c in table}}
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for name in names:
        forecast = made[name].foretell(seen)
        columns = {"final_loss": forecast.quantile(0.5), "low": forecast.quantile(0.05),
                   "high": forecast.quantile(0.95), "diverges": forecast.diverges}  # fmt: skip
        for column, values in columns.items():
            assert found[name][column] == [float(v).hex() for v in values], (name, column)
        assert np.isfinite(forecast.mean).all(), name
    assert not list(tmp_path.glob("*.db")), "loading must leave nothing in the working folder"


def test_the_signature_is_enforced(saved: Path, newcomers: pd.DataFrame) -> None:
    import mlflow.exceptions
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(saved))
    names = {column.name for column in model.metadata.signature.inputs}
    assert {"trainer.learning_rate", f"val_loss@{AT}", f"lyapunov.spectrum@{AT}"} <= names
    assert not any(name.endswith(f"@{AT + 1}") for name in names)
    table = newcomers.rename_axis("trial").reset_index()
    found = model.predict(table)
    assert list(found["trial"]) == list(newcomers.index)
    assert found["best_tenth"].between(0, 1).all()
    with pytest.raises(mlflow.exceptions.MlflowException, match=f"val_loss@{AT}"):
        model.predict(table.drop(columns=f"val_loss@{AT}"))
    # What a measurement would have told may be missing.
    bare = model.predict(table.drop(columns=f"lyapunov.spectrum@{AT}"))
    assert np.isfinite(bare["final_loss"]).all()


def test_nothing_saved_is_a_pickle_or_code(saved: Path) -> None:
    files = {str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()}
    assert files == {
        "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt",
        "data/predictor/predictor.json", "data/predictor/training.parquet",
    }  # fmt: skip
    assert "loader_module: analysis.models" in (saved / "MLmodel").read_text()
    assert not [p for p in saved.parent.iterdir() if p != saved], "no scaffolding is left"


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_planted_pickle_does_nothing(
    copied: Path, tmp_path: Path, newcomers: pd.DataFrame
) -> None:
    import mlflow.pyfunc

    mark = tmp_path / "exploded"
    bomb = pickle.dumps(_Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists(), "the bomb works"
    mark.unlink()

    data = copied / "data" / "predictor"
    for place in (copied, copied / "data", data):
        for name in ("python_model.pkl", "model.pkl", "predictor.pkl", "training.pkl"):
            (place / name).write_bytes(bomb)
    expected = load(copied).foretell(newcomers)
    served = mlflow.pyfunc.load_model(str(copied)).predict(newcomers.reset_index())
    np.testing.assert_array_equal(served["final_loss"], expected.quantile(0.5))

    for name in ("MLmodel", "requirements.txt"):
        (copied / name).write_bytes(bomb)
    load(copied)
    (data / "training.parquet").write_bytes(bomb)
    with pytest.raises(ModelError, match="sha256 is not the one"):
        load(copied)
    text = json.loads((data / "predictor.json").read_text())
    text["sha256"] = hashlib.sha256(bomb).hexdigest()
    (data / "predictor.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="not a saved predictor"):
        load(copied)
    (data / "predictor.json").write_bytes(bomb)
    with pytest.raises(ModelError, match="not a saved predictor"):
        load(copied)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 is newer than this program reads"),
        ({"sampled": None}, "not a saved predictor"),
        ({"epoch": "two"}, "not a saved predictor"),
    ],
)
def test_a_description_that_is_none(copied: Path, change: dict[str, Any], message: str) -> None:
    path = copied / "data" / "predictor" / "predictor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        load(copied)


def test_names_and_settings_are_checked(copied: Path, newcomers: pd.DataFrame) -> None:
    made = load(copied)
    with pytest.raises(catalog.UnknownNameError, match="no predictor 'os'"):
        replace(made, name="os").foretell(newcomers)
    with pytest.raises(ModelError, match=r"predictor 'ridge' groups\.0"):
        replace(made, config={"groups": ["everything"]}).foretell(newcomers)


def test_a_missing_file_is_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(ModelError, match=r"predictor\.json: no such file"):
        load(tmp_path)
    with pytest.raises(ModelError, match="exists already"):
        save(load(saved), saved)


def test_settings_that_are_not_there(fitted_on: SweepFrame, newcomers: pd.DataFrame) -> None:
    made = forecaster(fitted_on, AT)
    with pytest.raises(ModelError, match=r"have no trainer\.learning_rate"):
        made.foretell(newcomers.drop(columns="trainer.learning_rate"))


def test_a_word_never_seen_is_not_foretold() -> None:
    trials = []
    for trial in synthetic.sweep("planted", 40):
        word = "gaussian" if trial.header.trial % 2 else "uniform"
        header = replace(
            trial.header,
            params={**trial.header.params, "network.init": word},
            sampled=(*trial.header.sampled, "network.init"),
        )
        trials.append(TrialRecord(header, trial.table))
    made = forecaster(frame_of(trials), AT)
    new = made.seen.iloc[:4].copy()
    new["network.init"] = ["gaussian", "orthogonal", "uniform", "uniform"]
    assert made.foretell(new).mean.isna().tolist() == [False, True, False, False]


def test_forecast_is_one_distribution() -> None:
    index = pd.Index([3, 5])
    found = Forecast(
        pd.Series([0.0, 1.0], index),
        pd.Series([0.5, 0.1], index),
        pd.Series([0.2, 0.0], index),
        True,
    )
    np.testing.assert_allclose(found.quantile(0.5), np.exp([0, 1]))
    for level in (0.05, 0.5, 0.9):
        reached = [found.below(float(found.quantile(level)[t]))[t] for t in index]
        np.testing.assert_allclose(reached, [0.8 * level, level])
    assert found.below(0.0).tolist() == [0, 0]
    assert found.below(1e9).tolist() == [0.8, 1]


def _columns(forecast: Forecast) -> list[np.ndarray]:
    return [c.to_numpy(float) for c in (forecast.mean, forecast.sd, forecast.diverges)]
