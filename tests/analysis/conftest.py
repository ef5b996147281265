"""Smaller resampling and coarser pictures for tests, and frames that several tests share."""

from collections.abc import Iterator
from io import BytesIO

import pytest
from matplotlib.figure import Figure as Picture

from analysis import correlations, evaluate
from analysis.figures import base
from analysis.frame import SweepFrame
from tests.analysis import synthetic


@pytest.fixture(scope="session", autouse=True)
def _small_resampling() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correlations, "NUM_RESAMPLES", 200)
        patch.setattr(evaluate, "NUM_REPEATS", 1)
        patch.setattr(evaluate, "NUM_FOLDS", 5)
        patch.setattr(base, "DPI", 60)
        yield


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small picture for all figures, where a test is not about them."""
    sink = BytesIO()
    Picture(figsize=(1, 1)).savefig(sink, format="png", dpi=10)
    monkeypatch.setattr(base.Figure, "png", lambda *_: sink.getvalue())


@pytest.fixture(scope="session")
def frames() -> dict[str, SweepFrame]:
    def frame(effect: synthetic.Effect, n: int, **settings: object) -> SweepFrame:
        trials = synthetic.sweep(effect, n, **settings)  # type: ignore[arg-type]
        return SweepFrame.from_records(synthetic.info(num_trials=n), trials)

    return {
        "planted": frame("planted", 60, diverged=7, failed=1),
        "confounded": frame("confounded", 60),
        "null": frame("null", 60),
        "reversed": frame("reversed", 80),
        "mlp": frame("planted", 40, family="mlp"),
        "few": frame("planted", 6),
    }
