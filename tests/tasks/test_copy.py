import math

import pytest
import torch

from tasks.copy import Copy


def make(**settings):
    return Copy(Copy.Config(**settings), seed=1, dtype=torch.float64)


def test_inputs_are_symbols_blanks_a_delimiter_and_blanks():
    task = make(symbols=3, length=2, delay=4)
    inputs, told = task.draw(50, torch.Generator().manual_seed(0))
    blank, delimiter = 3, 4
    assert inputs.shape == (50, 8)
    assert set(inputs[:, :2].flatten().tolist()) == {0, 1, 2}
    tail = [blank, blank, blank, delimiter, blank, blank]
    assert inputs[:, 2:].tolist() == [tail] * 50
    assert torch.equal(told, inputs[:, :2])
    assert (task.input_size, task.output_size) == (5, 3)


def test_everywhere_asks_for_blanks_before():
    task = make(symbols=3, length=2, delay=4, loss_at="everywhere")
    inputs, told = task.draw(50, torch.Generator().manual_seed(0))
    assert told[:, :6].tolist() == [[3] * 6] * 50
    assert torch.equal(told[:, 6:], inputs[:, :2])
    assert (task.input_size, task.output_size) == (5, 4)


def test_published_sizes():
    task = make()
    assert next(task.batches("test")).inputs.shape[1] == 120
    assert (task.input_size, task.chance_loss) == (10, math.log(8))
    everywhere = make(loss_at="everywhere")
    assert everywhere.output_size == 9
    assert everywhere.chance_loss == pytest.approx(10 * math.log(8) / 120, abs=1e-12)


@pytest.mark.parametrize("loss_at", ["recall", "everywhere"])
def test_a_perfect_memory_and_none(loss_at):
    task = make(delay=7, length=3, symbols=5, loss_at=loss_at)
    batch = next(task.batches("validation"))
    outputs_N = torch.full((2, *batch.inputs.shape, task.output_size), -1e9, dtype=torch.float64)
    symbols = batch.inputs[:, :3]
    outputs_N[0, :, -3:].scatter_(2, symbols[:, :, None], 0.0)
    # Blank while blanks are due, then nothing but that it is a symbol.
    outputs_N[:, :, :-3, task.output_size - 1] = 0.0
    outputs_N[1, :, -3:, :5] = 0.0
    got = task.per_example(outputs_N, batch.targets)
    assert got["loss"][0].max() == 0
    assert got["accuracy"][0].min() == 1
    assert got["loss"][1].mean().item() == pytest.approx(task.chance_loss, abs=1e-12)
