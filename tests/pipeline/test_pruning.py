"""Pruners against Optuna's, and what the referee lets them know."""

import dataclasses
import math
import random

import numpy as np
import optuna
import pytest

from pipeline import pruning
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.pruning import (
    Hyperband,
    Median,
    Percentile,
    Pruner,
    Referee,
    SuccessiveHalving,
    Trace,
)
from pipeline.rows import Row
from tasks.networks.mlp import MLP
from tasks.planar import Planar

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make(kind, epochs=20, seed=0, **settings):
    return kind(kind.Config(**settings), epochs=epochs, seed=seed)


def curves(count, epochs, seed):
    """Losses by epoch, from epoch 0, of trials that do not all keep their places."""
    rng = np.random.default_rng(seed)
    ends, rates = rng.uniform(0.1, 2, count), rng.uniform(0.05, 1, count)
    steps = np.arange(epochs + 1)
    losses = (
        ends[:, None] + np.exp(-rates[:, None] * steps) + rng.normal(0, 0.05, (count, len(steps)))
    )
    return [dict(enumerate(map(float, row))) for row in losses]


def traces(losses, first=0, state=None):
    return [Trace(first + n, {}, dict(one), state=state) for n, one in enumerate(losses)]


def until(losses, epoch):
    return [{e: v for e, v in one.items() if e <= epoch} for one in losses]


@pytest.mark.parametrize(
    "settings", [{}, {"n_warmup_steps": 3}, {"interval_steps": 4}, {"at": (2, 9)}]
)
@pytest.mark.parametrize("percentile", [25.0, 50.0, 80.0])
def test_percentiles_decide_as_optunas_pruner(percentile, settings):
    epochs = 12
    at = settings.get("at")
    mine = make(Percentile, epochs, percentile=percentile, **settings)
    if percentile == 50:
        median = make(Median, epochs, **settings)
        assert median.rungs == mine.rungs
    options = {"n_warmup_steps": max(1, settings.get("n_warmup_steps", 0))}
    options |= {"interval_steps": settings.get("interval_steps", 1)}
    theirs = optuna.pruners.PercentilePruner(percentile, **options)
    study = optuna.create_study(pruner=theirs)
    ended = curves(9, epochs, seed=1)
    for one in ended:
        trial = study.ask()
        for epoch in range(1, epochs + 1):
            trial.report(one[epoch], epoch)
        study.tell(trial, one[epochs])
    standing = curves(30, epochs, seed=2)
    found, expected = set(), set()
    for n, one in enumerate(standing):
        trial = study.ask()
        for epoch in range(1, epochs):
            trial.report(one[epoch], epoch)
            if trial.should_prune() and (at is None or epoch in at):
                expected.add((n, epoch))
    for epoch in mine.rungs:
        known = traces(until(standing, epoch))
        leaving = mine.decide(epoch, known, traces(ended, 100, "complete"))
        found |= {(n, epoch) for n in leaving}
        if percentile == 50:
            assert median.decide(epoch, known, traces(ended, 100, "complete")) == leaving
    assert found == expected
    assert 0 < len(found) < 30 * len(mine.rungs)


def test_percentiles_wait_for_complete_trials():
    losses = curves(20, 5, seed=0)
    mine = make(Median, 5, n_startup_trials=4)
    standing = traces(until(losses[10:], 2), 10)
    assert mine.decide(2, standing, traces(losses[:3], 0, "complete")) == frozenset()
    assert mine.decide(2, standing, traces(losses[:9], 0, "pruned")) == frozenset()
    assert mine.decide(2, standing, traces(losses[:9], 0, "complete"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_resource": 2, "reduction_factor": 3},
        {"min_early_stopping_rate": 1, "reduction_factor": 2},
        {"bootstrap_count": 6},
        {"bootstrap_count": 3, "reduction_factor": 5},
    ],
)
def test_halving_judges_the_last_of_a_cohort_as_optuna_would(settings):
    """Optuna judges one after the other; whoever comes last, it judges by all."""
    epochs, checked = 20, set()
    full = {"min_resource": 1, "reduction_factor": 4, "min_early_stopping_rate": 0, **settings}
    for seed in range(12):
        losses = curves(11, epochs, seed)
        mine = make(SuccessiveHalving, epochs, **settings)
        study = optuna.create_study(
            pruner=optuna.pruners.SuccessiveHalvingPruner(**{"bootstrap_count": 0, **full})
        )
        standing = set(range(len(losses)))
        trials = {n: study.ask() for n in standing}
        for epoch in range(1, epochs):
            for n in sorted(standing):
                trials[n].report(losses[n][epoch], epoch)
            verdicts = {n: trials[n].should_prune() for n in sorted(standing)}
            if epoch not in mine.rungs:
                assert not any(verdicts.values())
                continue
            known = traces(until(losses, epoch))
            leaving = mine.decide(epoch, [t for t in known if t.number in standing], ())
            last = max(standing)
            assert (last in leaving) == verdicts[last]
            checked.add(last in leaving)
            standing -= {n for n in standing if verdicts[n]} | leaving
            if not standing:
                break
    assert checked == {True, False}


def test_of_a_cohort_one_in_so_many_stays_whatever_its_place():
    losses = [{0: 1.0, 1: float(v)} for v in (3, 1, 4, 1.5, 9, 2, 6, 5)]
    for seed in range(5):
        order = random.Random(seed).sample(range(8), 8)
        mine = make(SuccessiveHalving, 20)
        standing = [Trace(n, {}, losses[n]) for n in order]
        assert mine.decide(1, standing, ()) == frozenset(range(8)) - {1, 3}


def test_halving_counts_those_who_came_as_far_in_earlier_cohorts():
    mine = make(SuccessiveHalving, 20)
    ended = traces([{0: 1.0, 1: v} for v in (0.1, 0.2, 0.3, math.nan)], 10, "pruned")
    standing = traces([{0: 1.0, 1: v} for v in (0.15, 0.5)])
    assert mine.decide(1, standing, ()) == {1}
    assert mine.decide(1, standing, ended) == {0, 1}
    ended += traces([{0: 1.0, 1: 5.0}] * 3, 20, "complete")
    assert mine.decide(1, standing, ended) == {1}


def test_rungs_of_halving_grow_by_the_factor_and_move_on_to_epochs_given():
    assert make(SuccessiveHalving, 100).rungs == {1, 4, 16, 64}
    assert make(SuccessiveHalving, 64).rungs == {1, 4, 16}
    assert make(
        SuccessiveHalving, 100, min_resource=3, reduction_factor=2, at=(5, 7, 50)
    ).rungs == {*(5, 7, 50)}
    assert make(SuccessiveHalving, 10, min_early_stopping_rate=3).rungs == frozenset()
    assert make(SuccessiveHalving, 1).rungs == frozenset()


@pytest.mark.parametrize(("epochs", "factor"), [(27, 3), (81, 3), (10, 3), (16, 2), (243, 3)])
def test_hyperband_has_the_brackets_of_optuna_in_the_shares_of_optuna(epochs, factor):
    mine = make(Hyperband, epochs, reduction_factor=factor)
    theirs = optuna.pruners.HyperbandPruner(1, epochs, factor)
    theirs._try_initialization(optuna.create_study())
    # Optuna takes a logarithm, which for 3^5 is a little less than 5.
    exact = round(math.log(epochs, factor), 9)
    assert mine.num_brackets == math.floor(exact) + 1
    if mine.num_brackets == theirs._n_brackets:
        drawn = np.bincount([mine.bracket(n) for n in range(4000)], minlength=mine.num_brackets)
        budgets = np.array(theirs._trial_allocation_budgets)
        assert drawn / 4000 == pytest.approx(budgets / budgets.sum(), abs=0.03)
    else:
        assert epochs == 243


def test_hyperband_halves_within_brackets():
    mine = make(Hyperband, 27, seed=3)
    losses = curves(60, 27, seed=5)
    for epoch in mine.rungs:
        known = traces(until(losses, epoch))
        leaving = mine.decide(epoch, known, ())
        expected = set()
        for b in range(mine.num_brackets):
            halving = make(SuccessiveHalving, 27, reduction_factor=3, min_early_stopping_rate=b)
            if epoch in halving.rungs:
                members = [t for t in known if mine.bracket(t.number) == b]
                expected |= halving.decide(epoch, members, ())
        assert leaving == expected
    assert [mine.bracket(n) for n in range(9)] == [
        make(Hyperband, 27, seed=3).bracket(n) for n in range(9)
    ]


@pytest.mark.parametrize("name", [n for n in pruning.names() if n != "none"])
def test_the_future_is_invisible_and_order_does_not_count(name):
    epochs = 12
    kind = pruning.pruner_type(name)
    mine = make(kind, epochs)
    ended = traces(curves(9, epochs, seed=1), 50, "complete")
    for epoch in mine.rungs:
        losses = curves(16, epochs, seed=2)
        leaving = mine.decide(epoch, traces(until(losses, epoch)), ended)
        shuffled = random.Random(epoch).sample(traces(until(losses, epoch)), 16)
        assert mine.decide(epoch, shuffled, ended[::-1]) == leaving
        assert leaving <= set(range(16))
    assert mine.rungs
    assert max(mine.rungs) < epochs


class Spy(Pruner):
    """Lets nobody go and writes down what it is shown."""

    quantities = ("lyapunov",)

    def __init__(self, config, *, epochs=5, seed=0):
        super().__init__(config, epochs=epochs, seed=seed)
        self.seen, self.leaving = [], frozenset()

    def decide(self, epoch, standing, ended):
        self.seen.append((epoch, [dataclasses.replace(t) for t in standing], ended))
        return self.leaving


def cohort(*numbers):
    task, network = Choice("planar", Planar.Config()), Choice("mlp", MLP.Config())
    trials = tuple(TrialSpec(n, n, task, network, Trainer()) for n in numbers)
    return Cohort(sweep_seed=0, trials=trials)


def row(epoch, quantity):
    return Row(epoch, epoch, quantity, np.array(1.0))


def end_all(referee, cohort, state="complete"):
    for number in cohort.numbers:
        if number not in referee._traces:
            referee.begin(number, {})
        referee.end(number, state, 1.0)


def test_a_cohort_is_judged_by_cohorts_far_enough_before_it():
    spy = Spy(Pruner.Config())
    referee = Referee(spy, lag=2)
    planned = [cohort(0, 2), cohort(1), cohort(3, 4), cohort(5)]
    referee.add(planned)
    for one in planned:
        for number in one.numbers:
            referee.begin(number, {})
            referee.see(number, 0, 1.0, ())
            referee.see(number, 1, 1.0 + number, ())
    # The first two know nobody but themselves, and wait for nobody.
    assert referee.decide(planned[1], 1) == frozenset()
    assert spy.seen[-1][2] == ()
    # The third waits for the first, not for the second.
    assert referee.decide(planned[2], 1) is None
    referee.end(0, "pruned", 1.0)
    assert referee.decide(planned[2], 1) is None
    end_all(referee, planned[0])
    assert referee.decide(planned[2], 1) == frozenset()
    assert [t.number for t in spy.seen[-1][2]] == [0, 2]
    end_all(referee, planned[2])
    assert referee.decide(planned[3], 1) is None
    end_all(referee, planned[1])
    referee.decide(planned[3], 1)
    assert [t.number for t in spy.seen[-1][2]] == [0, 2, 1]
    # Asked again in another order, the same is known.
    referee.decide(planned[2], 1)
    assert [t.number for t in spy.seen[-1][2]] == [0, 2]


def test_what_is_shown_is_what_was_recorded_by_then_of_what_is_asked_for():
    spy = Spy(Pruner.Config())
    referee = Referee(spy, lag=1)
    one = cohort(0, 1, 2)
    referee.add([one])
    for number in one.numbers:
        referee.begin(number, {"x": number})
    rows = [row(1, "lyapunov.spectrum"), row(1, "val_loss"), row(1, "lyapunovish")]
    referee.see(0, 1, 0.5, rows)
    referee.see(1, 1, math.nan, rows)
    # Recorded by an earlier driver, whole; it left after epoch 2.
    whole = [row(1, "lyapunov.spectrum"), row(2, "lyapunov.spectrum")]
    referee.restore(Trace(2, {"x": 2}, {0: 1.0, 1: 0.4, 2: 0.3}, whole, "pruned", 0.3))
    spy.leaving = frozenset({0, 2})
    assert referee.decide(one, 1) == {0}
    _, standing, _ = spy.seen[-1]
    assert [(t.number, t.params, t.losses, t.state) for t in standing] == [
        (0, {"x": 0}, {1: 0.5}, None),
        (2, {"x": 2}, {0: 1.0, 1: 0.4}, None),
    ]
    assert [[r.quantity for r in t.rows] for t in standing] == [["lyapunov.spectrum"]] * 2
    assert [r.epoch for r in standing[1].rows] == [1]
    referee.see(0, 2, 0.2, ())
    spy.leaving = frozenset()
    # It left then, whatever the pruner would say today.
    assert referee.decide(one, 2) == {2}


def test_a_trial_that_is_trained_again_starts_from_nothing():
    spy = Spy(Pruner.Config())
    referee = Referee(spy, lag=1)
    one = cohort(0)
    referee.add([one])
    referee.begin(0, {})
    referee.see(0, 1, 0.5, [row(1, "lyapunov.max")])
    referee.begin(0, {})
    referee.see(0, 1, 0.7, [row(1, "lyapunov.max")])
    referee.decide(one, 1)
    (trace,) = spy.seen[-1][1]
    assert trace.losses == {1: 0.7}
    assert len(trace.rows) == 1


def test_names_are_those_of_the_conf_and_of_other_layers(monkeypatch):
    class Entry:
        name = "spy"

        def load(self):
            return Spy

    monkeypatch.setattr(pruning, "entry_points", lambda group: [Entry()])
    assert pruning.names() == [
        *("none", "median", "percentile", "successive_halving", "hyperband", "spy")
    ]
    assert pruning.pruner_type("spy") is Spy
    with pytest.raises(KeyError):
        pruning.pruner_type("nobody")
    assert pruning.make_pruner(Choice("none", Pruner.Config()), epochs=3, seed=0) is None
