"""Smaller resampling and coarser pictures for tests, and frames that several tests share."""

from collections.abc import Iterator
from io import BytesIO

import pytest
from matplotlib.figure import Figure as Picture

from analysis import correlations, evaluate, evidence
from analysis.figures import base
from analysis.frame import SweepFrame
from analysis.predictors.base import Predictor
from analysis.predictors.last_seen_loss import LastSeenLoss
from analysis.predictors.ridge import Ridge
from tests.analysis import synthetic

all_variants = evaluate.variants


def _quick_variants() -> dict[str, Predictor]:
    """Those that fit in milliseconds; the others have tests of their own."""
    return {
        words: predictor
        for words, predictor in all_variants().items()
        if not predictor.is_costly and isinstance(predictor, LastSeenLoss | Ridge)
    }


@pytest.fixture(scope="module", autouse=True)
def _small_resampling() -> Iterator[None]:
    """By module: other folders of tests want the real ones in the same process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correlations, "NUM_RESAMPLES", 200)
        patch.setattr(evaluate, "NUM_REPEATS", 1)
        patch.setattr(evaluate, "NUM_FOLDS", 5)
        patch.setattr(evaluate, "variants", _quick_variants)
        patch.setattr(evidence, "NUM_REPEATS", 1)
        patch.setattr(evidence, "NUM_FOLDS", 5)
        patch.setattr(evidence, "NUM_PERMUTATIONS", 199)
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
