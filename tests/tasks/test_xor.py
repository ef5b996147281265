import math

import pytest
import torch

from tasks.base import UnsuitableError
from tasks.xor import Xor


def make(**settings):
    return Xor(Xor.Config(**settings), seed=1, dtype=torch.float64)


def test_answers_compare_the_bits_of_one_and_of_two_delays_ago():
    inputs, answers = make(delay=3, steps=11).draw(20, torch.Generator().manual_seed(0))
    assert inputs.shape == (20, 11, 1)
    assert answers.shape == (20, 5)
    assert set(inputs.flatten().tolist()) == {-1.0, 1.0}
    for row, told in zip(inputs[:, :, 0].tolist(), answers.tolist(), strict=True):
        assert told == [int(row[t - 3] != row[t - 6]) for t in range(6, 11)]


def test_answers_are_fair_coins_that_the_latest_bits_do_not_tell():
    inputs, answers = make(delay=2, steps=204).draw(100, torch.Generator().manual_seed(0))
    # Five standard errors of 20,000 answers, whichever one bit is known.
    spread = 5 * 0.5 / math.sqrt(10_000)
    assert answers.double().mean().item() == pytest.approx(0.5, abs=spread)
    for lag in range(5):
        bit = inputs[:, 4 - lag : 204 - lag, 0]
        assert answers[bit > 0].double().mean().item() == pytest.approx(0.5, abs=spread), lag


def test_a_perfect_predictor_and_one_at_chance():
    task = make()
    assert (task.input_size, task.output_size, task.num_updates) == (1, 2, 100)
    batch = next(task.batches("validation"))
    assert batch.inputs.shape[1:] == (300, 1)
    assert batch.targets.shape[1] == 280
    x = batch.inputs[:, :, 0]
    outputs_N = torch.zeros(2, *x.shape, 2, dtype=torch.float64)
    outputs_N[0, :, 20:, 1] = -1000.0 * x[:, 10:-10] * x[:, :-20]
    got = task.per_example(outputs_N, batch.targets)
    assert got["loss"][0].max() == 0
    assert got["accuracy"][0].min() == 1
    assert got["loss"][1].mean().item() == pytest.approx(task.chance_loss, abs=1e-12)


def test_sequences_that_end_before_the_first_answer_are_refused():
    make(delay=10, steps=21)
    with pytest.raises(UnsuitableError, match="at least 21 for delay 10, got 20"):
        make(delay=10, steps=20)
