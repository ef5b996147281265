"""A cohort taken up from a snapshot equals the unbroken one bit for bit, or the test notices."""

import dataclasses
import random
import re

import numpy as np
import pytest
import torch

from pipeline import catalog, populations, records, snapshot, spending, train
from pipeline.checkpoints import Checkpoints
from pipeline.diagnostics.base import Reading
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.spending import Spent
from tasks.base import seed_for
from tasks.char_text import CharText
from tasks.planar import Planar

EPOCHS = 4
PLANAR = Choice("planar", Planar.Config(points=100, batch_size=16))
TEXT = Choice("char_text", CharText.Config(text="pydoc", characters=700, batch_size=4, seq_len=10))
RATES = [1e-3, 3e-3, 1e-2, 2e-3]
NETWORKS = sorted(catalog.entries("networks"))
OPTIMISERS = ("adam", "adamw", "sgd")


def measurement(name, **settings):
    return Choice(name, catalog.load("diagnostics", name).Config(**settings))


def cohort(network, *, optimiser="adam", poison=None, **options):
    """Four members with everything random and everything that moves switched on."""
    kind = catalog.load("networks", network)
    task = TEXT if kind.is_recurrent else PLANAR
    size = {"units": 4} if kind.is_recurrent else {"width": 4}
    measure = [measurement("gradient_norm", examples=4, steps=8)]
    if kind.is_recurrent:
        measure.append(
            measurement("lyapunov_spectrum", k=2, sequences=2, steps=6, warmup=2, at=(0, 2, 4))
        )
    else:
        measure.append(measurement("ftle", probes=6, at=(0, 2, 4)))
    trials = []
    for n in range(4):
        trainer = Trainer(
            epochs=EPOCHS,
            optimiser=optimiser,
            learning_rate=2.5 if n == poison else RATES[n],
            # Members that have no momentum beside those that have.
            momentum=0.3 * (n % 3) if optimiser == "sgd" else 0.0,
            weight_decay=1.0 if n == poison else 0.01 * n,
            clip_norm=None if n == poison else (None, 0.5, 1.0, None)[n],
            decay=0.7,
            decay_from=2,
        )
        config = kind.Config(**size, dropout=0.2 * (n % 2) + 0.1)
        trials.append(TrialSpec(n, seed_for(7, n), task, Choice(network, config), trainer))
    defaults = {"sweep_seed": 7, "checkpoint": 1, "keep_weights": True, "measure": tuple(measure)}
    return Cohort(trials=tuple(trials), **(defaults | options))


def rungs_of(one, leave=(), start=None):
    """All rungs; `leave` says for each epoch which trials leave there."""
    leave, found, answer = dict(leave), [], None
    training = train.train(one, None, start)
    try:
        while True:
            found.append(training.send(answer))
            answer = leave.get(found[-1].epoch, ())
    except StopIteration:
        return found


def content(rung, *, with_rows=True):
    """Everything a rung says but times, so that equal means equal bits."""
    rows = {n: records.content_hash(records.to_table("s", n, r)) for n, r in rung.rows.items()}
    weights = {
        (n, name): (array.dtype.str, array.shape, array.tobytes())
        for n, arrays in rung.weights.items()
        for name, array in arrays.items()
    }
    losses = {n: np.float64(loss).tobytes() for n, loss in rung.val_loss.items()}
    found = [rung.epoch, rung.update, losses, rung.diverged_at, rung.is_last]
    return [*found, rows, weights] if with_rows else found


def contents(rungs):
    return [content(rung, with_rows=not rung.is_resumed) for rung in rungs]


def through_disk(tmp_path, one, rungs, epoch):
    """The snapshot of an epoch as it comes back from a file, with the rows that led there."""
    living = rungs[epoch].snapshot.numbers
    rows = {n: [row for g in rungs[: epoch + 1] for row in g.rows[n]] for n in living}
    kept = Checkpoints(tmp_path / str(epoch), "id")
    assert kept.keep(one, rungs[epoch].snapshot, rows, dict.fromkeys(living, 5))
    found = Checkpoints(tmp_path / str(epoch), "id").load(one, living)
    for n in living:
        tables = [records.to_table("s", n, part[n]).to_pylist() for part in (rows, found.rows)]
        assert str(tables[0]) == str(tables[1])  # where NaN equals NaN
    return found.snapshot


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_resumed_cohort_equals_the_unbroken_one_bit_for_bit(tmp_path, network, optimiser):
    one = cohort(network, optimiser=optimiser)
    leave = {1: (2,), 3: (0,)}
    unbroken = rungs_of(one, leave)
    assert [g.snapshot is not None for g in unbroken] == [False, True, True, True, False]
    # Nothing of it depends on what it costs to take snapshots.
    plain = rungs_of(dataclasses.replace(one, checkpoint=None), leave)
    assert contents(plain) == contents(unbroken)
    assert set(unbroken[-1].weights) == {1, 3}
    for epoch in (1, 2, 3):
        start = through_disk(tmp_path, one, unbroken, epoch)
        # What the process drew before is nothing to a cohort.
        torch.manual_seed(epoch)
        np.random.seed(epoch)
        random.seed(epoch)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        resumed = rungs_of(one, leave, start)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
        assert [g.is_resumed for g in resumed] == [True] + [False] * (EPOCHS - epoch)
        assert not any(resumed[0].rows.values())
        assert content(resumed[0], with_rows=False) == content(unbroken[epoch], with_rows=False)
        assert contents(resumed[1:]) == contents(unbroken[epoch + 1 :])


def steady_and_diverging():
    """Member 1 dies in epoch 2: each update takes it further than the last."""
    one = cohort("mlp", optimiser="sgd", poison=1)
    trials = tuple(
        dataclasses.replace(
            t,
            network=Choice("mlp", dataclasses.replace(t.network.config, activation="identity")),
            trainer=dataclasses.replace(t.trainer, momentum=0.0 if t.number == 1 else 0.5),
        )
        for t in one.trials
    )
    return dataclasses.replace(one, trials=trials)


def test_divergence_before_and_after_a_snapshot_is_told_the_same(tmp_path):
    one = steady_and_diverging()
    unbroken = rungs_of(one)
    died = next(g.epoch for g in unbroken if 1 in g.diverged_at)
    assert 1 < died < EPOCHS
    for epoch in range(1, EPOCHS):
        start = through_disk(tmp_path, one, unbroken, epoch)
        assert (1 in start.numbers) == (epoch < died)
        resumed = rungs_of(one, start=start)
        assert content(resumed[0], with_rows=False) == content(unbroken[epoch], with_rows=False)
        assert contents(resumed[1:]) == contents(unbroken[epoch + 1 :])


def fresh(one):
    """What a population is before anything was restored."""
    population = populations.build(one)
    losses = dict.fromkeys(one.numbers, 0.0)
    return snapshot.take(population, 0, losses, {}, Spent())


NORM = (measurement("gradient_norm", examples=4, steps=8),)

CONSTANT = {"rates"}
"""Last parts of the names of what training does not move."""


@pytest.mark.parametrize(
    ("one", "without"),
    [
        *(
            (cohort(network, measure=NORM), {"begun"})
            for network in sorted(catalog.entries("networks"))
        ),
        (cohort("mlp", optimiser="adamw", measure=NORM), {"begun"}),
        (cohort("lstm", optimiser="sgd", measure=NORM), {"begun"}),
        (steady_and_diverging(), set()),
    ],
    ids=lambda v: None if isinstance(v, set) else v.trials[0].network.name,
)
def test_whatever_a_snapshot_lacked_would_be_noticed(one, without):
    """Each part in turn is left as it is in a new population. `without`: what nobody there needs.

    How many updates a member has begun alive shows when it dies.
    """
    unbroken = rungs_of(one)
    whole, empty = unbroken[1].snapshot, fresh(one)
    assert contents(rungs_of(one, start=whole)[1:]) == contents(unbroken[2:])
    expected = contents([unbroken[1]])[0][:5], contents(unbroken[2:])

    def is_noticed(changed):
        found = rungs_of(one, start=changed)
        return (content(found[0], with_rows=False), contents(found[1:])) != expected

    names = {n for n in whole.arrays if n.rpartition(".")[2] not in CONSTANT}
    assert {"dropout.position", "begun", "val_loss"} < names
    assert {n for n in names if n.startswith("optimiser.")} == {
        "adam": {f"optimiser.{n}" for n in ("first", "second", "beta1_power", "beta2_power")},
        "adamw": {f"optimiser.{n}" for n in ("first", "second", "beta1_power", "beta2_power")},
        "sgd": {"optimiser.first"},
    }[one.trials[0].trainer.optimiser]
    for name in names:
        assert whole.arrays[name].tobytes() != empty.arrays[name].tobytes(), name
        arrays = {**whole.arrays, name: empty.arrays[name]}
        changed = dataclasses.replace(whole, arrays=arrays)
        assert is_noticed(changed) == (name not in without), name
    assert is_noticed(dataclasses.replace(whole, update=0))


def test_who_diverged_before_would_be_missed():
    one = steady_and_diverging()
    unbroken = rungs_of(one)
    whole = unbroken[3].snapshot
    assert set(whole.diverged_at) == {1}
    found = rungs_of(one, start=dataclasses.replace(whole, diverged_at={}))
    assert contents(found[1:]) != contents(unbroken[4:])


class Clock:
    """Stands in for `time`; every look takes half a second."""

    def __init__(self, now=0.0):
        self.now = now

    def perf_counter(self):
        self.now += 0.5
        return self.now

    def time_ns(self):
        return 0


BUDGETED = {"budget": 2.0, "sequences": 2, "steps": 6, "warmup": 2, "k": 3}


class Shrinking(catalog.load("diagnostics", "lyapunov_spectrum")):
    """Is cut to what a clock of the test's leaves, and says how."""

    def fit(self, network, task, moment, seconds):
        return self.fitted(dataclasses.replace(self.config, k=2, steps=5))

    def fitted(self, config):
        return Shrinking(config, self.config)

    def measure(self, network, task, moment):
        value = torch.full((network.num_members,), float(self.config.steps))
        return [Reading("dear.steps", value, details={"asked": self._asked.steps})]


@pytest.fixture
def clocked(monkeypatch):
    """Training and measuring by a clock of the test's."""

    def run(one, start=None):
        clock = Clock()
        for module in (train, spending):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(
            train, "diagnostics_of", lambda c, *_: [Shrinking(x.config) for x in c.measure]
        )
        return rungs_of(one, start=start)

    return run


def test_a_budget_goes_on_from_what_was_spent(clocked, tmp_path):
    """Which readings are skipped depends on seconds; by an even clock they are the same."""
    one = cohort("lstm", measure=(measurement("lyapunov_spectrum", **BUDGETED),))
    unbroken = clocked(one)
    taken = [any(r.quantity == "dear.steps" for r in g.rows[0]) for g in unbroken]
    assert taken == [True, True, True, False, False]
    assert {r.values.item() for g in unbroken for r in g.rows[0] if r.axes == ()} >= {5.0}
    for epoch in (1, 2, 3):
        start = through_disk(tmp_path, one, unbroken, epoch)
        assert start == dataclasses.replace(start, spent=unbroken[epoch].snapshot.spent)
        resumed = clocked(one, start)
        assert contents(resumed[1:]) == contents(unbroken[epoch + 1 :])
    # After epoch 2 nothing is measured any more, and how dear it would be decides on that.
    for name, epoch in (("training", 1), ("measuring", 1), ("fitted", 1), ("dearest", 2)):
        whole = unbroken[epoch].snapshot
        spent = dataclasses.replace(whole.spent, **{name: getattr(Spent(), name)})
        found = clocked(one, dataclasses.replace(whole, spent=spent))
        assert contents(found[1:]) != contents(unbroken[epoch + 1 :]), name


def test_what_fitting_took_is_charged_even_when_the_first_reading_comes_later(clocked):
    """A reading skipped leaves what its fitting took still to be charged."""
    settings = BUDGETED | {"budget": 0.01, "at": (1, 2, 4)}
    one = cohort("lstm", measure=(measurement("lyapunov_spectrum", **settings),))
    spent = clocked(one)[1].snapshot.spent
    assert set(spent.fitted) == {"lyapunov_spectrum"}
    again = spending.Spending(
        EPOCHS, spent, {"lyapunov_spectrum": Shrinking(one.measure[0].config)}
    )
    assert again.spent == spent


def test_auto_takes_a_snapshot_once_a_minute(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(train, "time", clock)
    one = cohort("mlp", checkpoint="auto", measure=())
    # Three looks an epoch (but for epoch 0) take 1.5 s.
    monkeypatch.setattr(train, "SECONDS_BETWEEN_SNAPSHOTS", 3.0)
    found = [g.epoch for g in rungs_of(one) if g.snapshot is not None]
    assert found == [2]
    monkeypatch.setattr(train, "SECONDS_BETWEEN_SNAPSHOTS", 60.0)
    assert not [g for g in rungs_of(one) if g.snapshot is not None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: {"arrays": {k: v for k, v in s.arrays.items() if k != "begun"}}, "lacks begun"),
        (lambda s: {"arrays": s.arrays | {"more": s.arrays["begun"]}}, "has more besides"),
        (lambda s: {"arrays": s.arrays | {"begun": s.arrays["begun"][:2]}}, "begun: must be int64"),
        (
            lambda s: {"arrays": s.arrays | {"begun": s.arrays["begun"].astype(np.float32)}},
            r"got float32 of shape \(4,\)",
        ),
        (lambda s: {"numbers": (0, 1, 3, 2)}, "in the cohort's order"),
        (lambda s: {"numbers": ()}, "in the cohort's order"),
        (lambda s: {"numbers": (0, 1, 2, 9)}, "trial 9 must be one of the cohort's"),
        (lambda s: {"epoch": EPOCHS}, "before the last, got 4"),
        (lambda s: {"epoch": 0}, "before the last, got 0"),
        (lambda s: {"spent": Spent(fitted={"gradient_norm": {"odd": 1}})}, "odd"),
        (lambda s: {"spent": Spent(fitted={"unknown": {}})}, "unknown"),
    ],
)
def test_a_snapshot_of_something_else_is_refused_and_training_starts_over(change, reason):
    one = cohort("mlp")
    unbroken = rungs_of(one)
    whole = unbroken[1].snapshot
    found = rungs_of(one, start=dataclasses.replace(whole, **change(whole)))
    assert re.search(reason, found[0].refused)
    assert not any(g.refused for g in found[1:])
    assert contents(found) == contents(unbroken)
