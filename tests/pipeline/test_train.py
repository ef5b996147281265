import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import catalog, populations, records, rung_rows, spending, train
from pipeline.diagnostics.base import Reading
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from tasks.base import seed_for
from tasks.char_text import CharText
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.planar import Planar

PLANAR = Choice("planar", Planar.Config(points=400, batch_size=32))
TEXT = Choice("char_text", CharText.Config(text="pydoc", characters=6000, batch_size=4, seq_len=20))
RATES = [1e-3, 3e-3, 1e-2, 3e-2, 2e-3, 5e-3, 8e-3, 2e-2]


def mlp(n, **settings):
    return Choice(
        "mlp", MLP.Config(width=6, init_scale=0.5 + 0.1 * n, dropout=0.05 * n, **settings)
    )


def lstm(n, **settings):
    config = LSTM.Config(units=6, init_scale=0.1 + 0.1 * n, dropout=0.05 * n, **settings)
    return Choice("lstm", config)


def spec(n, task=PLANAR, network=None, **trainer):
    trainer = {"epochs": 2, "learning_rate": RATES[n], "weight_decay": 0.01 * n, **trainer}
    network = network or (mlp(n) if task is PLANAR else lstm(n))
    return TrialSpec(n, seed_for(7, n), task, network, Trainer(**trainer))


def run(specs, measure=(), **options):
    """Rungs, and all rows by trial number."""
    cohort = Cohort(sweep_seed=7, trials=tuple(specs), measure=tuple(measure), **options)
    rungs = list(train.train(cohort))
    rows = {s.number: [row for g in rungs for row in g.rows[s.number]] for s in specs}
    return rungs, rows


def table(rows, number):
    return records.to_table("s", number, rows[number])


def values(rows, number):
    return {(r.epoch, r.quantity): r.values for r in rows[number]}


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("task", [PLANAR, TEXT], ids=lambda t: t.name)
def test_a_trial_alone_equals_the_same_trial_in_company(task, dtype, tolerance):
    clips = [None, 1.0, 0.5, None, 2.0, 0.1, None, 1.0]
    specs = [spec(n, task, dtype=dtype, clip_norm=clips[n]) for n in range(8)]
    measure = [Choice("gradient_norm", catalog.load("diagnostics", "gradient_norm").Config())]
    _, together = run(specs, measure)
    for n in (0, 3, 7):
        _, alone = run([specs[n]], measure)
        assert_same(values(alone, n), values(together, n), tolerance)
        for a, b in zip(alone[n], together[n], strict=True):
            assert (a.update, a.flags, a.axes, a.unit) == (b.update, b.flags, b.axes, b.unit)


@pytest.mark.parametrize("task", [PLANAR, TEXT], ids=lambda t: t.name)
def test_reordering_members_reorders_results_bit_for_bit(task):
    specs = [spec(n, task) for n in range(4)]
    _, forwards = run(specs)
    _, backwards = run(specs[::-1])
    for n in range(4):
        assert hashed(forwards, n) == hashed(backwards, n)


def hashed(rows, number):
    return records.content_hash(table(rows, number))


def with_network(one, **settings):
    config = dataclasses.replace(one.network.config, **settings)
    return dataclasses.replace(one, network=dataclasses.replace(one.network, config=config))


def with_trainer(one, **settings):
    return dataclasses.replace(one, trainer=dataclasses.replace(one.trainer, **settings))


def too_fast(one):
    """Each update multiplies the weights by about -999, until the loss overflows."""
    return with_trainer(one, learning_rate=1e3, weight_decay=1.0)


def too_large(one):
    """Two relu layers of weights of 1e200 overflow in the first forward pass."""
    return with_network(one, init_scale=1e200)


@pytest.mark.parametrize(
    ("task", "poison"),
    [(PLANAR, too_fast), (PLANAR, too_large), (TEXT, too_fast)],
    ids=["planar too fast", "planar too large", "text too fast"],
)
def test_a_diverging_member_leaves_the_others_bits_alone(task, poison):
    options = {"epochs": 3, "optimiser": "sgd"}
    if poison is too_large:
        options["dtype"] = "float64"
    network = (lambda n: mlp(n, activation="relu")) if task is PLANAR else lstm
    healthy = [spec(n, task, network(n), **options) for n in range(4)]
    poisoned = [poison(one) if one.number == 1 else one for one in healthy]
    rungs, rows = run(poisoned, keep_weights=True)
    _, expected = run(healthy)
    assert set(rungs[-1].diverged_at) == {1}
    for n in (0, 2, 3):
        assert hashed(rows, n) == hashed(expected, n)
    (at,) = [g for g in rungs if 1 in g.weights]
    assert 1 in at.diverged_at
    assert all(np.isfinite(w).all() for w in at.weights[1].values())
    assert set(rungs[-1].weights) == {0, 2, 3}


def steady(n):
    return spec(n, PLANAR, mlp(n, activation="identity"), epochs=4, optimiser="sgd")


def diverging(n):
    return too_fast(steady(n))


def test_divergence_is_flagged_once_and_nothing_follows():
    measure = [Choice("gradient_norm", catalog.load("diagnostics", "gradient_norm").Config())]
    rungs, rows = run([steady(0), diverging(1)], measure)
    assert [g.epoch for g in rungs] == [0, 1, 2, 3, 4]
    at = rungs[-1].diverged_at[1]
    epoch = next(g.epoch for g in rungs if 1 in g.diverged_at)
    assert epoch >= 1
    flagged = [r for r in rows[1] if "diverged" in r.flags]
    assert {r.epoch for r in flagged} == {epoch}
    assert {r.update for r in flagged} == {at}
    assert len({r.quantity for r in flagged}) == len(flagged)
    assert "val_loss" in {r.quantity for r in flagged}
    assert all(np.isnan(r.values).all() for r in flagged)
    assert max(r.epoch for r in rows[1]) == epoch
    assert all(np.isfinite(r.values).all() for r in rows[1] if not r.flags)
    assert not [r for r in rows[0] if r.flags]
    for g in rungs:
        assert math.isnan(g.val_loss[1]) == (g.epoch >= epoch)


def test_a_diverged_trial_has_the_same_records_alone_and_in_company():
    alone_rungs, alone = run([diverging(1)])
    _, together = run([steady(0), diverging(1), steady(2)])
    assert alone_rungs[-1].is_last
    assert alone_rungs[-1].epoch < 4
    assert [(r.epoch, r.update, r.quantity, r.flags) for r in alone[1]] == [
        (r.epoch, r.update, r.quantity, r.flags) for r in together[1]
    ]


def test_rungs_come_in_order_and_the_last_brings_test_scores_and_weights():
    rungs, rows = run([spec(0), spec(1)], keep_weights=True)
    assert [g.epoch for g in rungs] == [0, 1, 2]
    assert [g.is_last for g in rungs] == [False, False, True]
    updates = 320 // 32
    assert [g.update for g in rungs] == [0, updates, 2 * updates]
    quantities = [{r.quantity for r in g.rows[0]} for g in rungs]
    evaluation = {"val_loss", "val_accuracy", "val_score"}
    test = {name.replace("val", "test") for name in evaluation}
    assert quantities == [
        evaluation,
        evaluation | {"train_loss"},
        evaluation | test | {"train_loss"},
    ]
    assert [bool(g.weights) for g in rungs] == [False, False, True]
    assert set(rungs[-1].weights) == {0, 1}
    assert all(r.time_ms > 0 for r in rows[0])
    seconds = [r.seconds for r in rows[0] if r.quantity == "train_loss"]
    assert all(s > 0 for s in seconds)


def test_a_caller_may_stop_at_any_rung():
    cohort = Cohort(sweep_seed=7, trials=(spec(0, epochs=50),))
    rungs = train.train(cohort)
    assert [next(rungs).epoch for _ in range(3)] == [0, 1, 2]
    rungs.close()


@pytest.mark.parametrize("split", ["validation", "test", "train"])
@pytest.mark.parametrize("kind", ["planar", "char_text"])
def test_evaluation_equals_a_hand_computation(kind, split):
    task = {"planar": PLANAR, "char_text": TEXT}[kind]
    population = populations.build(
        Cohort(sweep_seed=7, trials=tuple(spec(n, task, dtype="float64") for n in range(2)))
    )
    found = rung_rows.evaluate(population.network, population.task, split)
    losses, state = [], None
    with torch.no_grad():
        for batch in population.task.batches(split):
            assert batch.is_start == (state is None or kind == "planar")
            outputs, state = population.network(batch.inputs, state)
            log_p = outputs.log_softmax(-1)
            targets = batch.targets.expand(2, *batch.targets.shape)
            losses.append(-log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1).flatten(1))
            state = state if kind == "char_text" else None
    expected = torch.cat(losses, 1).mean(1)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-12, atol=1e-12)
    if kind == "char_text":
        torch.testing.assert_close(found["perplexity"], expected.exp(), rtol=1e-12, atol=0)


def test_training_loss_is_that_of_torch_by_hand():
    """One plain torch network, one optimiser: the loop everyone would write."""
    one = spec(2, PLANAR, mlp(0), dtype="float64", clip_norm=0.5)
    rungs, rows = run([one])
    population = populations.build(Cohort(sweep_seed=7, trials=(one,)))
    network, task = population.network, population.task
    optimiser = torch.optim.Adam(
        network.parameters(), lr=one.trainer.learning_rate, weight_decay=one.trainer.weight_decay
    )
    for epoch in (1, 2):
        losses = []
        for batch in task.training_batches(epoch):
            outputs, _ = network(batch.inputs)
            loss = torch.nn.functional.cross_entropy(outputs[0], batch.targets)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimiser.step()
            losses.append(loss.item())
        assert values(rows, 2)[epoch, "train_loss"] == pytest.approx(np.mean(losses), rel=1e-11)
    final = rung_rows.evaluate(network, task, "validation")["loss"]
    assert rungs[-1].val_loss[2] == pytest.approx(float(final), rel=1e-11)


_FRESH = """
import json, sys
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
import importlib.util
spec = importlib.util.spec_from_file_location("again", {file!r})
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
print(json.dumps(again.fingerprints()))
"""


def fingerprints():
    """Content hashes of a few trials with everything random in them."""
    measure = [Choice("gradient_norm", catalog.load("diagnostics", "gradient_norm").Config())]
    found = {}
    for task in (PLANAR, TEXT):
        _, rows = run([spec(n, task) for n in range(3)], measure)
        found |= {f"{task.name} {n}": hashed(rows, n) for n in range(3)}
    return found


def test_a_fresh_process_repeats_every_bit():
    code = _FRESH.format(path=[p for p in sys.path if p], file=__file__)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == fingerprints()
    assert len(set(fingerprints().values())) == 6


class Dear:
    """A measurement that takes as long as it is told, by a clock of the test's."""

    def __init__(self, clock, seconds, config):
        self.clock, self.seconds, self.config = clock, seconds, config

    def check(self, network, task):
        pass

    def measure(self, network, task, moment):
        self.clock.now += self.seconds
        return [Reading("dear.value", torch.full((network.num_members,), float(moment.epoch)))]


class Clock:
    """Stands in for `time` in the training loop; every look takes half a second."""

    now = 0.0

    def perf_counter(self):
        self.now += 0.5
        return self.now

    def time_ns(self):
        return 0


def test_a_measurement_over_budget_is_skipped_and_recorded_as_skipped(monkeypatch):
    clock = Clock()
    config = dataclasses.replace(catalog.load("diagnostics", "gradient_norm").Config(), budget=1.0)
    for module in (train, spending):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(train, "diagnostics_of", lambda *_: [Dear(clock, 1.0, config)])
    _, rows = run([spec(n, epochs=5) for n in range(2)], [Choice("dear", config)])
    # Training takes 0.5 s an epoch and is expected to take 2.5 s, a reading 1.5 s: one fits.
    for n in (0, 1):
        taken = [r for r in rows[n] if r.quantity == "dear.value"]
        skipped = [r for r in rows[n] if r.quantity == "dear"]
        assert [r.epoch for r in taken] == [0]
        assert taken[0].seconds == 0.75
        assert [r.epoch for r in skipped] == [1, 2, 3, 4, 5]
        assert all(r.flags == ("skipped_over_budget",) for r in skipped)
        assert all(np.isnan(r.values) for r in skipped)
        assert skipped[0].details == {"budget": 1.0, "would_be_share": 3.0 / 2.5}


def test_a_measurement_that_can_shrink_is_cut_to_its_budget_from_the_start(monkeypatch):
    clock = Clock()
    asked = []

    class Shrinking(Dear):
        can_shrink = True

        def fit(self, network, task, moment, seconds):
            asked.append((moment.epoch, seconds))
            return Dear(self.clock, 0.0, self.config)

    config = dataclasses.replace(
        catalog.load("diagnostics", "gradient_norm").Config(), budget=4.0, at=(0, 2, 4)
    )
    for module in (train, spending):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(train, "diagnostics_of", lambda *_: [Shrinking(clock, 9.0, config)])
    _, rows = run([spec(0, epochs=5)], [Choice("dear", config)])
    # Ten batches of 0.5 s an epoch by the rehearsal, five epochs, three readings.
    assert asked == [(0, 4.0 * 5 * 10 * 0.5 / 3)]
    taken = [r for r in rows[0] if r.quantity == "dear.value"]
    assert [r.epoch for r in taken] == [0, 2, 4]


def test_a_budget_changes_no_training():
    choice = catalog.load("diagnostics", "lyapunov_spectrum").Config(
        budget=0.01, at=(0, 1), sequences=2, steps=10, warmup=2
    )
    specs = [spec(n, TEXT) for n in range(2)]
    _, plain = run(specs)
    _, measured = run(specs, [Choice("lyapunov_spectrum", choice)])
    for n in (0, 1):
        found = {k: v for k, v in values(measured, n).items() if "lyapunov" not in k[1]}
        assert_same(found, values(plain, n), 0)
        assert any("lyapunov.spectrum" in k for k in values(measured, n))


def test_measurements_are_taken_at_their_epochs_only():
    config = dataclasses.replace(catalog.load("diagnostics", "gradient_norm").Config(), at=(0, 2))
    _, rows = run([spec(0, epochs=3)], [Choice("gradient_norm", config)])
    assert [r.epoch for r in rows[0] if r.quantity == "gradient_norm"] == [0, 2]


def test_measuring_changes_no_result():
    measure = [Choice("gradient_norm", catalog.load("diagnostics", "gradient_norm").Config())]
    for task in (PLANAR, TEXT):
        specs = [spec(n, task) for n in range(2)]
        _, plain = run(specs)
        _, measured = run(specs, measure)
        for n in range(2):
            kept = {k: v for k, v in values(measured, n).items() if "norm" not in k[1]}
            assert kept == values(plain, n)


def go(specs, leave, measure=(), **options):
    """As `run`, where `leave` says for each epoch which trials leave there."""
    cohort = Cohort(sweep_seed=7, trials=tuple(specs), measure=tuple(measure), **options)
    rungs, training = [], train.train(cohort)
    answer = None
    try:
        while True:
            rungs.append(training.send(answer))
            answer = leave.get(rungs[-1].epoch, ())
    except StopIteration:
        pass
    rows = {s.number: [row for g in rungs for row in g.rows[s.number]] for s in specs}
    return rungs, rows


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("task", [PLANAR, TEXT], ids=lambda t: t.name)
def test_who_leaves_changes_nobody_who_stays(task, dtype, tolerance):
    clips = [None, 1.0, 0.5, None, 2.0, 0.1, None, 1.0]
    options = {"dtype": dtype, "epochs": 4, "decay": 0.7, "decay_from": 2}
    specs = [spec(n, task, clip_norm=clips[n], **options) for n in range(8)]
    measure = [Choice("gradient_norm", catalog.load("diagnostics", "gradient_norm").Config())]
    _, whole = run(specs, measure, keep_weights=True)
    rungs, rows = go(specs, {0: (6,), 1: (0, 3), 3: (7, 2)}, measure, keep_weights=True)
    last = {0: 1, 1: 4, 2: 3, 3: 1, 4: 4, 5: 4, 6: 0, 7: 3}
    for n, epoch in last.items():
        by_then = {k: v for k, v in values(whole, n).items() if k[0] <= epoch}
        if epoch < 4:
            assert not any("test" in k[1] for k in by_then)
        assert_same(values(rows, n), by_then, tolerance)
    assert [set(g.weights) for g in rungs] == [set(), set(), set(), set(), {1, 4, 5}]
    for g in rungs:
        standing = {n for n, epoch in last.items() if g.epoch <= epoch}
        assert {n for n, loss in g.val_loss.items() if not math.isnan(loss)} == standing
        assert {n for n, found in g.rows.items() if found} == standing
        assert set(g.rows) == set(range(8))


def test_members_that_diverge_leave_and_others_still_may():
    rungs, rows = go([steady(0), diverging(1), steady(2), steady(3)], {2: (2,)})
    _, alone = run([steady(3)])
    assert rungs[-1].epoch == 4
    assert set(rungs[-1].diverged_at) == {1}
    assert_same(values(rows, 3), values(alone, 3), 1e-5)
    assert max(r.epoch for r in rows[2]) == 2


def test_training_ends_where_nobody_stays():
    rungs, _ = go([spec(0, epochs=9), spec(1, epochs=9)], {1: (0,), 3: (1,)})
    assert [g.epoch for g in rungs] == [0, 1, 2, 3]
    assert not rungs[-1].is_last
