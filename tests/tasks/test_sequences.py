"""What the tasks of sequences share, checked on a store whose values tell where they come from."""

import math

import pytest
import torch

from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.train import train
from tasks.adding import Adding
from tasks.base import UnsuitableError
from tasks.copy import Copy
from tasks.delayed_recall import DelayedRecall
from tasks.networks.lstm import LSTM
from tasks.sequences import ClassesAtTheEnd, Sequences, last_outputs
from tasks.xor import Xor

DRAWN = [
    (Adding, {"steps": 20}),
    (Copy, {"delay": 8}),
    (Copy, {"delay": 8, "loss_at": "everywhere"}),
    (DelayedRecall, {}),
    (Xor, {"delay": 4, "steps": 40}),
]
SPLITS = ("train", "validation", "test")


def make(task, settings, *, seed=1, dtype=torch.float64, **more):
    small = {"batch_size": 10, "updates": 5, "validation_size": 40, "test_size": 30}
    return task(task.Config(**small | settings | more), seed=seed, dtype=dtype)


def whole(batches):
    batches = list(batches)
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


def numbered(count, steps, asked):
    """Sequence b holds 100 b + t, and its targets say the same of its last steps."""
    values = 100 * torch.arange(count)[:, None] + torch.arange(steps)
    return Sequences(values, values[:, steps - asked :])


@pytest.mark.parametrize("steps", [None, 6])
def test_a_probe_of_whole_sequences_is_some_of_them(steps):
    probe = numbered(9, 6, 2).probe(9, steps, torch.Generator().manual_seed(0))
    assert probe.inputs.shape == (9, 6)
    assert sorted(probe.inputs[:, 0].tolist()) == [100 * b for b in range(9)]
    assert torch.equal(probe.targets, probe.inputs[:, 4:])


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        (5, [4]),  # steps 4 and 5 are asked for, and 4 is the last there is
        (4, [4, 5]),  # none is due by then
        (1, [4]),  # nor is there room for two answers
    ],
)
def test_a_short_probe_begins_at_the_start_and_is_asked_what_is_due(steps, due):
    probe = numbered(9, 6, 2).probe(3, steps, torch.Generator().manual_seed(0))
    own = probe.inputs[:, :1]
    assert torch.equal(probe.inputs, own + torch.arange(steps))
    assert torch.equal(probe.targets, own + torch.tensor(due))


def test_a_long_probe_is_sequences_end_to_end_and_ends_with_a_whole_one():
    probe = numbered(9, 6, 2).probe(3, 15, torch.Generator().manual_seed(0))
    assert probe.inputs.shape == (3, 15)
    assert torch.equal(probe.inputs % 100, ((torch.arange(15) + 3) % 6).expand(3, -1))
    runs = (probe.inputs // 100).tolist()
    used = [row[i] for row in runs for i in (0, 3, 9)]
    assert len(set(used)) == 9, "no sequence twice"
    assert all(row == [row[0]] * 3 + [row[3]] * 6 + [row[9]] * 6 for row in runs)
    assert torch.equal(probe.targets, probe.inputs[:, 13:])


@pytest.mark.parametrize(("count", "steps", "taken"), [(10, None, 10), (5, 7, 10), (1, 60, 10)])
def test_a_probe_beyond_the_split_is_refused(count, steps, taken):
    with pytest.raises(UnsuitableError, match=rf"at most 9 sequences.* take {taken} .*6 steps"):
        numbered(9, 6, 2).probe(count, steps, torch.Generator())


def test_long_splits_are_evaluated_in_parts():
    stored = Sequences(torch.arange(3 * 40_000).view(3, -1, 1).double(), torch.zeros(3, 1))
    batches = list(stored.in_order())
    assert [len(b.inputs) for b in batches] == [1, 1, 1]
    assert torch.equal(whole(batches)[0], stored.inputs)
    assert all(b.is_start for b in batches)


def test_cross_entropy_is_of_the_last_outputs():
    outputs_N = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    outputs_N[0, 0, 0, 0] = 50.0  # not among the last two: counts for nothing
    outputs_N[0, 0, 1, 3] = 1.0
    outputs_N[0, 0, 2, 1] = 2.0
    targets = torch.tensor([[3, 2]])
    assert torch.equal(last_outputs(outputs_N, targets), outputs_N[:, :, 1:])
    got = ClassesAtTheEnd().per_example(outputs_N, targets)
    expected = [[math.log(3 + math.e) - 1, math.log(3 + math.e**2)], [math.log(4)] * 2]
    assert got["loss"].tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert got["accuracy"][0].tolist() == [1, 0]


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_every_epoch_has_sequences_of_its_own_and_the_seed_decides_them(task, settings):
    one, again, other = (make(task, settings, seed=s) for s in (1, 1, 2))
    first = whole(one.training_batches(1))
    assert one.num_updates == len(list(one.training_batches(1))) == 5
    assert len(first[0]) == 50
    assert all(b.is_start for b in one.training_batches(1))
    for mine, same in zip(first, whole(again.training_batches(1)), strict=True):
        assert torch.equal(mine, same)
    assert not torch.equal(first[0], whole(one.training_batches(2))[0])
    assert not torch.equal(first[0], whole(other.training_batches(1))[0])
    assert one.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_splits_share_no_sequence(task, settings):
    made = make(task, settings)
    parts = [whole(made.batches(s))[0] for s in SPLITS] + [whole(made.training_batches(2))[0]]
    assert [len(p) for p in parts] == [50, 40, 30, 50]
    rows = torch.cat(parts).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_the_fixed_splits_do_not_depend_on_how_training_is_cut(task, settings):
    made = make(task, settings)
    otherwise = make(task, settings, batch_size=3, updates=2)
    for split in ("validation", "test"):
        assert torch.equal(whole(made.batches(split))[0], whole(otherwise.batches(split))[0])


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_precisions_see_the_same_sequences(task, settings):
    double, single = make(task, settings), make(task, settings, dtype=torch.float32)
    for split in SPLITS:
        for a, b in zip(whole(double.batches(split)), whole(single.batches(split)), strict=True):
            assert torch.equal(a.to(b.dtype), b)


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_probes_are_validation_sequences(task, settings):
    made = make(task, settings)
    validation = {tuple(row.flatten().tolist()) for row in whole(made.batches("validation"))[0]}
    probe = made.probe_inputs(30, None, torch.Generator().manual_seed(3))
    drawn = {tuple(row.flatten().tolist()) for row in probe.inputs}
    assert len(drawn) == 30
    assert drawn <= validation


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_nan_outputs_have_neither_loss_nor_accuracy(task, settings):
    made = make(task, settings)
    batch = next(made.batches("validation"))
    outputs_N = torch.zeros(2, *batch.inputs.shape[:2], made.output_size, dtype=torch.float64)
    outputs_N[0] = torch.nan
    for values in made.per_example(outputs_N, batch.targets).values():
        assert values[0].isnan().all()
        assert values[1].isfinite().all()


@pytest.mark.parametrize(("task", "settings"), DRAWN)
def test_training_sees_the_loss_that_is_scored(task, settings):
    made = make(task, settings)
    batch = next(made.batches("validation"))
    shape = (2, *batch.inputs.shape[:2], made.output_size)
    outputs_N = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    scored = made.per_example(outputs_N, batch.targets)["loss"]
    assert torch.equal(made.losses(outputs_N, batch.targets), scored)


def test_an_lstm_learns_a_short_recall():
    # From the chance loss, log 4 = 1.39, to next to nothing; the margin is over a hundredfold.
    task = DelayedRecall.Config(symbols=4, steps=6, updates=50, validation_size=200, test_size=50)
    trial = TrialSpec(
        number=0,
        seed=1,
        task=Choice("delayed_recall", task),
        network=Choice("lstm", LSTM.Config(units=16)),
        trainer=Trainer(epochs=4, learning_rate=0.03),
    )
    rungs = list(train(Cohort(sweep_seed=1, trials=(trial,))))
    losses = [rung.val_loss[0] for rung in rungs]
    assert losses[0] == pytest.approx(math.log(4), abs=0.2)
    assert losses[-1] < 0.1
    scores = {row.quantity: float(row.values) for row in rungs[-1].rows[0]}
    assert scores["test_accuracy"] > 0.98
