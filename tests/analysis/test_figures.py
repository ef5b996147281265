from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis.figures import base, feature_against_loss
from analysis.figures.base import Figure, spread_out
from analysis.frame import SweepFrame
from pipeline import catalog
from tests.analysis import synthetic

NAMES = list(catalog.entries("figures"))


def figure(name: str) -> Figure:
    made: Figure = catalog.load("figures", name)()
    return made


def test_all_six_are_found() -> None:
    assert set(NAMES) >= {
        "spectra", "evolution", "feature_against_loss", "correlation_by_epoch", "design_check",
        "learning_curves",
    }  # fmt: skip


@pytest.mark.parametrize("sweep", ["planted", "mlp", "few"])
@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_its_table(name: str, sweep: str, frames: dict[str, SweepFrame]) -> None:
    made = figure(name)
    assert made.title
    assert made.caption
    settings = dict(matplotlib.rcParams)
    table = made.data(frames[sweep])
    assert not table.empty
    picture = made.png(table)
    image = imread(BytesIO(picture))
    assert image.shape[0] > 2 * base.DPI
    assert image.shape[1] > 4 * base.DPI
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert np.allclose(edges[:, :3], 1.0), "something is cut off at the edge"
    assert dict(matplotlib.rcParams) == settings
    if sweep == "few":
        # The table alone is enough: through Parquet and back gives the same picture.
        again = pd.read_parquet(BytesIO(table.to_parquet(index=False)))
        assert made.png(again) == picture


@pytest.mark.parametrize("name", NAMES)
def test_one_trial_is_drawn_or_refused(name: str) -> None:
    frame = SweepFrame.from_records(synthetic.info(), synthetic.sweep("null", 1))
    table = figure(name).data(frame)
    if not table.empty:
        assert figure(name).png(table).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_all_diverged_is_drawn_or_refused(name: str) -> None:
    frame = SweepFrame.from_records(synthetic.info(), synthetic.sweep("null", 6, diverged=6))
    table = figure(name).data(frame)
    if not table.empty:
        assert figure(name).png(table).startswith(b"\x89PNG")


def test_infinite_exponents_do_not_spoil_the_picture(frames: dict[str, SweepFrame]) -> None:
    made = figure("spectra")
    table = made.data(frames["few"])
    table.loc[table["position"] == table["position"].max(), "value"] = -np.inf
    assert made.png(table).startswith(b"\x89PNG")


def test_spread_out_keeps_the_ends() -> None:
    assert spread_out([0, 1, 2, 4, 6, 9], 3) == [0, 4, 9]
    assert spread_out([3], 4) == [3]


def test_of_many_trials_some_dots_are_drawn_and_rho_is_of_all(
    frames: dict[str, SweepFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = figure("feature_against_loss")
    table = made.data(frames["planted"])
    assert f"of more than {feature_against_loss.MAX_DOTS:,}" in made.caption
    drawn = []
    for most in (feature_against_loss.MAX_DOTS, 20):
        monkeypatch.setattr(feature_against_loss, "MAX_DOTS", most)
        ax = made.draw(table).axes[0]
        drawn.append((len(ax.collections[0].get_offsets()), ax.get_title()))
    assert drawn == [(len(frames["planted"].target), drawn[0][1]), (20, drawn[0][1])]
    assert "ρ" in drawn[0][1]
