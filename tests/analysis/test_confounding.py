import pandas as pd
import pytest

from analysis import confounding
from analysis import verdict as vd
from analysis.frame import SweepFrame


def test_the_setting_is_named_where_nothing_is_left(frames: dict[str, SweepFrame]) -> None:
    table = confounding.traced(frames["confounded"])
    line = table[(table["feature"] == "lyapunov.max")].iloc[0]
    assert line["setting"] == "trainer.learning_rate"
    assert line["tie"] > 0.9
    assert line["left"] == "nothing"
    found = vd.verdict(frames["confounded"])
    (named,) = [s for s in found.evidence if "follows" in s]
    assert named.startswith("The plain correlation of the largest exponent λ₁")
    assert "follows trainer.learning_rate (ρ = +0.9" in named
    assert "no sign of its own" in named
    assert found.headline.endswith("drive both, most of all trainer.learning_rate.")


def test_a_sign_that_turns_is_called_so(frames: dict[str, SweepFrame]) -> None:
    (named,) = confounding.named(frames["reversed"])
    assert "within strata of trainer.learning_rate its sign turns" in named
    assert "Simpson" in named


@pytest.mark.parametrize("sweep", ["planted", "null"])
def test_nothing_is_named_where_no_setting_stands_behind(
    sweep: str, frames: dict[str, SweepFrame]
) -> None:
    table = confounding.traced(frames[sweep])
    assert (
        confounding.named(frames[sweep]) == ()
        or "largest exponent" not in (confounding.named(frames[sweep])[0])
    )
    if len(table):
        kept = table[table["feature"] == "lyapunov.max"]
        assert (kept["left"] == "remains").all()


@pytest.fixture
def line() -> pd.Series:
    return pd.Series(
        {
            "label": "λ₁", "epoch": 4, "setting": "lr", "measure": "eta", "tie": 0.8,
            "spearman": -0.46, "spearman_low": -0.61, "spearman_high": -0.27,
            "given_settings": 0.3, "given_settings_low": 0.1, "given_settings_high": 0.5,
            "reverses": False, "left": "turns",
        }
    )  # fmt: skip


def test_words(line: pd.Series) -> None:
    assert confounding.sentence(line) == (
        "The plain correlation of the λ₁ after epoch 4 with the final loss (ρ = −0.46 [−0.61, "
        "−0.27]) follows lr (η = 0.80 with it): with the settings held fixed its sign turns to "
        "+0.30 [+0.10, +0.50]."
    )
    assert confounding._left(line) == "turns"
    line["given_settings_low"] = -0.1
    assert confounding._left(line) == "nothing"
    line["given_settings"], line["given_settings_low"], line["given_settings_high"] = (
        -0.3,
        -0.5,
        -0.1,
    )
    assert confounding._left(line) == "remains"
