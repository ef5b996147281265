import math

import pytest
import torch

from tasks.delayed_recall import DelayedRecall


def make(**settings):
    return DelayedRecall(DelayedRecall.Config(**settings), seed=1, dtype=torch.float64)


def test_a_symbol_is_shown_once_and_noise_follows():
    task = make(validation_size=4000)
    batches = list(task.batches("validation"))
    inputs = torch.cat([b.inputs for b in batches])
    targets = torch.cat([b.targets for b in batches])
    assert inputs.shape == (4000, 30, 8)
    assert torch.equal(inputs[:, 0], torch.eye(8, dtype=torch.float64)[targets[:, 0]])
    noise = inputs[:, 1:]
    # Five standard errors of 928,000 draws.
    assert noise.mean().item() == pytest.approx(0, abs=5 * 0.3 / 963)
    assert noise.std().item() == pytest.approx(0.3, abs=5 * 0.3 / 963 / math.sqrt(2))
    # Which symbol was shown leaves no trace in the noise.
    of_shown = noise.gather(2, targets[:, :, None].expand(-1, 29, 1))
    assert of_shown.mean().item() == pytest.approx(0, abs=5 * 0.3 / 340)
    shares = torch.bincount(targets.flatten()) / 4000
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=5 * math.sqrt(7) / 8 / 63)


def test_without_noise_there_is_silence():
    batch = next(make(noise=0.0, symbols=2, steps=3).batches("test"))
    assert not batch.inputs[:, 1:].any()
    assert set(batch.targets.flatten().tolist()) == {0, 1}


def test_who_remembers_loses_nothing_and_who_does_not_loses_the_logarithm():
    task = make()
    batch = next(task.batches("validation"))
    known = torch.zeros(2, *batch.inputs.shape, dtype=torch.float64)
    known[0, :, -1] = 1000.0 * batch.inputs[:, 0]
    got = task.per_example(known, batch.targets)
    assert got["loss"].shape == (2, len(batch.inputs))
    assert got["loss"][0].abs().max() == 0
    assert got["accuracy"][0].min() == 1
    assert got["loss"][1].tolist() == pytest.approx([math.log(8)] * len(batch.inputs))
    assert task.chance_loss == math.log(8)
