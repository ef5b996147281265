"""The pruner that foretells: its rule, what it must not see, and whole sweeps with it."""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import inputs, spectrum_pruner
from analysis.frame import SweepFrame
from analysis.spectrum_pruner import SpectrumPruner, final_loss, view_of
from pipeline import config
from pipeline.accounting import Progress
from pipeline.catalog import UnknownNameError
from pipeline.faults import ConfigError
from pipeline.folder_store import FolderStore
from pipeline.pruning import Trace
from pipeline.rows import Row
from pipeline.store import NoSuchSweepError
from pipeline.sweep import Driver
from tasks.base import UnsuitableError
from tests.analysis import driven, synthetic

EPOCHS = synthetic.EPOCHS


def make(epochs: int = EPOCHS, **settings: Any) -> SpectrumPruner:
    return SpectrumPruner(SpectrumPruner.Config(**settings), epochs=epochs, seed=0)


def traces_of(effect: synthetic.Effect, count: int, **settings: Any) -> list[Trace]:
    found = synthetic.sweep(effect, count, **settings)
    frame = SweepFrame.from_records(synthetic.info(num_trials=count), found)
    return spectrum_pruner.traces(frame, make().quantities)


def until(traces: Sequence[Trace], epoch: int) -> list[Trace]:
    return [
        Trace(
            t.number, t.params, {e: v for e, v in t.losses.items() if e <= epoch},
            [r for r in t.rows if r.epoch <= epoch],
        )
        for t in traces
    ]  # fmt: skip


@pytest.fixture(scope="module")
def planted() -> list[Trace]:
    return traces_of("planted", 80)


def test_it_prunes_who_would_not_have_been_among_the_best(planted: list[Trace]) -> None:
    """At epoch 2 of 6 the loss says little; the spectrum says it."""
    ended, standing = planted[:50], until(planted[50:], 2)
    leaving = make().decide(2, standing, ended)
    final = {t.number: final_loss(t) for t in planted}
    assert len(leaving) >= 10
    limit = sorted(final.values())[8]
    assert all(final[n] > limit for n in leaving)
    blind = make(groups=("settings", "loss", "norms")).decide(2, standing, ended)
    assert len(blind) < len(leaving)


def test_the_rule_is_a_normal_tail_beyond_the_last_good_loss(planted: list[Trace]) -> None:
    """By hand, for the straight line through logarithms of losses."""
    ended, standing = planted[:40], until(planted[40:], 4)
    pruned = [replace(t, state="pruned") for t in planted[30:40]]
    settings: dict[str, Any] = {"share": 0.25, "confidence": 0.7, "predictor": "last_seen_loss"}
    leaving = make(**settings).decide(4, standing, [*ended[:30], *pruned])
    x, y = (np.log([t.losses[e] for t in ended[:30]]) for e in (4, EPOCHS))
    slope, offset = np.polyfit(x, y, 1)
    seen = np.log([t.losses[4] for t in standing])
    # Ten of the forty were pruned, and count as worse: of forty, ten are good.
    limit = np.sort(y)[9]
    line = inputs.spread(_left_out(x, y))
    is_good = stats.norm.cdf((limit - offset - slope * seen) / line)
    expected = {t.number for t, p in zip(standing, is_good, strict=True) if p < 0.3}
    assert leaving == expected
    assert 0 < len(leaving) < 40


def _left_out(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Errors of straight lines through all points but one."""
    errors = []
    for i in range(len(x)):
        slope, offset = np.polyfit(np.delete(x, i), np.delete(y, i), 1)
        errors.append(y[i] - offset - slope * x[i])
    return np.array(errors)


def test_it_keeps_all_while_few_have_ended_and_says_so_once(
    planted: list[Trace], caplog: pytest.LogCaptureFixture
) -> None:
    pruner = make()
    early = [*planted[:19], *(replace(t, state="pruned") for t in planted[19:30])]
    with caplog.at_level(logging.WARNING, "lyapsweep.pruner"):
        for epoch in (1, 2, 4):
            assert pruner.decide(epoch, until(planted[30:70], epoch), early) == frozenset()
    assert [r.getMessage() for r in caplog.records] == [
        "pruner spectrum keeps all for now: 19 trials have run to their end, 20 are needed"
    ]
    assert pruner.decide(2, until(planted[30:70], 2), [*early, planted[70]])


def test_it_decides_only_where_a_spectrum_was_measured(planted: list[Trace]) -> None:
    ended = planted[:50]
    for epoch in range(1, EPOCHS):
        leaving = make().decide(epoch, until(planted[50:], epoch), ended)
        assert bool(leaving) == (epoch in synthetic.MEASURED)
    blind = make(groups=("settings", "loss"))
    assert blind.decide(5, until(planted[50:], 5), ended)
    assert blind.quantities == ("train_loss",)
    assert "lyapunov" in make().quantities
    bare = [replace(t, rows=[]) for t in planted]
    assert make().decide(2, until(bare[50:], 2), bare[:50]) == frozenset()


def test_spectra_nobody_ended_with_are_not_relied_on(
    planted: list[Trace], caplog: pytest.LogCaptureFixture
) -> None:
    bare = [replace(t, rows=[]) for t in planted[:50]]
    assert make().decide(2, until(planted[50:], 2), bare) == frozenset()
    assert "no trial it learns from has a spectrum of epoch 2" in caplog.text


def test_the_future_is_invisible(planted: list[Trace]) -> None:
    """Of those who ended, what came after the rung counts by the final loss alone."""
    rng = np.random.default_rng(0)

    def scrambled(trace: Trace) -> Trace:
        losses = {
            e: v if e in (0, 1, 2, EPOCHS) else rng.uniform() for e, v in trace.losses.items()
        }
        rows = [
            r if r.epoch <= 2 else replace(r, values=rng.normal(size=r.values.shape))
            for r in trace.rows
        ]
        return replace(trace, losses=losses, rows=rows)

    standing, ended = until(planted[50:], 2), planted[:50]
    leaving = make().decide(2, standing, ended)
    assert make().decide(2, standing, [scrambled(t) for t in ended]) == leaving
    assert leaving


def test_neither_order_nor_company_in_a_view_counts(planted: list[Trace]) -> None:
    ended, standing = planted[:50], until(planted[50:60], 2)
    leaving = make().decide(2, standing, ended)
    assert leaving
    shuffled = [random.Random(3).sample(ts, len(ts)) for ts in (standing, ended)]
    assert make().decide(2, *shuffled) == leaving
    everyone = make()
    everyone.views = lambda epoch, _: view_of(epoch, planted)
    assert everyone.decide(2, standing, ended) == leaving
    alone = frozenset().union(*(make().decide(2, [one], ended) for one in standing))
    assert alone == leaving


def test_settings_are_the_same_in_memory_and_as_they_were_stored() -> None:
    losses = {0: 1.0, 1: 0.5}
    live = Trace(0, {"a.sizes": (1, 2), "a.rate": 0.1, "a.name": "x", "a.clip": None}, losses)
    kept = Trace(1, {"a.sizes": [1, 2], "a.rate": 0.2, "a.name": "y", "a.clip": 3.0}, losses)
    view = view_of(1, [live, kept])
    assert set(view.sampled) == {
        *("a.rate (log)", "a.name=x", "a.name=y", "a.clip=null", "a.clip=3.0")
    }
    assert view.latest["val_loss"].tolist() == [0.5, 0.5]
    # Nothing that a feature table would log once more.
    assert view.params["a.rate (log)"].tolist() == [100 + math.log(0.1), 100 + math.log(0.2)]


def test_diverged_and_failed_trials_are_not_learned_from(planted: list[Trace]) -> None:
    diverged = [t for t in traces_of("planted", 60, diverged=9, failed=1) if t.number >= 50]
    ended = [*planted[:40], *diverged]
    standing = until([replace(t, number=100 + t.number) for t in planted[50:]], 2)
    pruner = make()
    leaving = pruner.decide(2, standing, ended)
    assert leaving
    # A failed trial says nothing; a diverged one is worse than all who ended.
    assert pruner._limit(ended, is_log=False) == sorted(map(final_loss, planted[:40]))[3]


def stored(root: Path, name: str = "made-up", state: str = "complete") -> str:
    store = synthetic.stored(root, synthetic.sweep("planted", 60), name)
    store.set_state(name, state)
    return store.uri


def test_it_learns_from_another_sweep_before_any_of_its_own_ended(
    tmp_path: Path, planted: list[Trace], caplog: pytest.LogCaptureFixture
) -> None:
    pruner = make(from_sweep="made-up", from_store=stored(tmp_path))
    assert not pruner.needs_finished
    other = traces_of("planted", 40, seed=9)
    named = [replace(t, params={**t.params, "task.name": None}) for t in other]
    standing = until(other, 2)
    leaving = pruner.decide(2, standing, ())
    final = {t.number: final_loss(t) for t in other}
    assert len(leaving) >= 8
    best = sorted(final, key=final.__getitem__)[:3]
    assert not leaving.intersection(best)
    # Its own trials, once they have ended, are learned from as well.
    assert pruner.decide(2, until(other[30:], 2), other[:30])
    foreign = [replace(t, params={**t.params, "task.name": "digits"}) for t in named]
    assert pruner.decide(2, until(foreign, 2), ()) == frozenset()
    assert "sweep 'made-up' learns None, this one digits" in caplog.text


def test_another_sweep_must_be_there_and_done_and_as_long(tmp_path: Path) -> None:
    uri = stored(tmp_path)
    with pytest.raises(NoSuchSweepError, match=r"pruner.from_sweep: no sweep 'made-down'"):
        make(from_sweep="made-down", from_store=uri)
    with pytest.raises(UnsuitableError, match="have 6 and those of this sweep 9"):
        make(epochs=9, from_sweep="made-up", from_store=uri)
    running = stored(tmp_path / "running" / "..", "half", "interrupted")
    with pytest.raises(UnsuitableError, match="'half' is interrupted"):
        make(from_sweep="half", from_store=running)
    with pytest.raises(UnknownNameError, match="no predictor 'crystal_ball'"):
        make(predictor="crystal_ball")


def test_a_conf_names_it_and_bad_settings_are_refused() -> None:
    pruner: dict[str, Any] = {"name": "spectrum", "confidence": 0.9, "at": [1, 3]}
    checked = config.check({**driven.TREE, "pruner": pruner})
    assert isinstance(checked.judge, SpectrumPruner)
    assert checked.judge.rungs == {1, 3}
    assert config.check(checked.tree).hash == checked.hash
    with pytest.raises(ConfigError, match=r"pruner\.confidence: must be below 1, got 1"):
        config.check({**driven.TREE, "pruner": {**pruner, "confidence": 1.0}})
    with pytest.raises(ConfigError, match=r"pruner\.groups"):
        config.check({**driven.TREE, "pruner": {**pruner, "groups": ["entrails"]}})


SPECTRUM = {"name": "spectrum", "n_startup_trials": 8, "confidence": 0.8, "share": 0.2, "lag": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, int]:
    root = tmp_path_factory.mktemp("undisturbed")
    assert driven.run(root, "live", SPECTRUM).state == "complete"
    found = driven.pruned(root, "live")
    assert 3 <= len(found) <= 18
    return found


@pytest.mark.parametrize(("num_slots", "seed"), [(2, 1), (4, 2)])
def test_neither_workers_nor_their_order_change_who_leaves(
    tmp_path: Path, undisturbed: dict[int, int], num_slots: int, seed: int
) -> None:
    executor = driven.Shuffled(num_slots, seed)
    assert driven.run(tmp_path, "live", SPECTRUM, executor).state == "complete"
    assert driven.pruned(tmp_path, "live") == undisturbed


@pytest.mark.parametrize("after", [9, 15])
def test_an_interrupted_sweep_goes_on_to_the_same_decisions(
    tmp_path: Path, undisturbed: dict[int, int], after: int
) -> None:
    def stop(progress: Progress, driver: Driver) -> None:
        if progress.finished >= after and progress.running:
            driver.request_stop()

    first = driven.run(tmp_path, "live", SPECTRUM, driven.Shuffled(2, after), stop)
    assert first.state == "interrupted"
    states = FolderStore(tmp_path / "store").states("live")
    assert after <= sum(s in ("complete", "pruned") for s in states.values()) < 26
    assert driven.run(tmp_path, "live", SPECTRUM, driven.Shuffled(3, 0)).state == "complete"
    assert driven.pruned(tmp_path, "live") == undisturbed


def test_a_recurrent_sweep_learns_from_one_before(tmp_path: Path) -> None:
    recall: dict[str, Any] = {
        "trials": 10,
        "sampler": {"name": "qmc", "batch": 10},
        "task": {
            "name": "delayed_recall", "symbols": 3, "steps": 6, "batch_size": 16, "updates": 6,
        },
        "network": {"name": "rnn", "units": 6, "init_scale": {"uniform": [0.3, 2.2]}},
        "trainer": {"epochs": 3, "learning_rate": {"log_uniform": [1e-4, 3e-2]}},
        "measure": {
            "lyapunov_spectrum": {"sequences": 2, "steps": 12, "warmup": 2, "at": [1, 3]}
        },
    }  # fmt: skip
    assert driven.run(tmp_path, "before", {"name": "none"}, **recall).state == "complete"
    pruner = {
        "name": "spectrum", "n_startup_trials": 6, "confidence": 0.6, "from_sweep": "before",
        "from_store": f"folder:{tmp_path / 'store'}",
    }  # fmt: skip
    outcome = driven.run(tmp_path, "after", pruner, **{**recall, "seed": 8})
    assert outcome.state == "complete"
    headers = [r.header for r in FolderStore(tmp_path / "store").records("after")]
    pruned = [h for h in headers if h.state == "pruned"]
    assert {h.pruned_at for h in pruned} == {1}
    assert 1 <= len(pruned) < 10
    # The first cohort, too: the other sweep has ended.
    assert min(h.trial for h in pruned) < 4


def test_rows_are_those_of_the_quantities_asked_for(planted: list[Trace]) -> None:
    row = planted[0].rows[0]
    assert isinstance(row, Row)
    names = {r.quantity for t in planted for r in t.rows}
    assert "lyapunov.spectrum" in names
    assert "train_loss" in names
    assert not names & {"val_loss", "val_score"}
    assert [t.number for t in planted] == list(range(80))
    assert planted[3].state == "complete"
