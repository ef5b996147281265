import pytest
import torch

from tasks.adding import Adding


def make(**settings):
    return Adding(Adding.Config(**settings), seed=1, dtype=torch.float64)


@pytest.mark.parametrize("steps", [2, 9, 100])
def test_one_mark_in_each_half_and_their_sum(steps):
    inputs, sums = make(steps=steps).draw(500, torch.Generator().manual_seed(0))
    numbers, marks = inputs.unbind(2)
    assert inputs.shape == (500, steps, 2)
    assert 0 <= numbers.min() <= numbers.max() < 1
    half = steps // 2
    assert marks[:, :half].sum(1).tolist() == [1.0] * 500
    assert marks[:, half:].sum(1).tolist() == [1.0] * 500
    if steps < 10:
        assert marks.any(0).all(), "every step is marked in some sequence"
    for row, mark, total in zip(numbers, marks, sums.flatten().tolist(), strict=True):
        first, second = mark.nonzero().flatten().tolist()
        assert total == pytest.approx(float(row[first] + row[second]), abs=1e-15)


def test_squared_error_and_what_counts_as_right():
    task = make(steps=3)
    outputs_N = torch.full((1, 3, 3, 1), 9.0, dtype=torch.float64)
    outputs_N[0, :, -1, 0] = torch.tensor([1.0, 0.57, 0.59], dtype=torch.float64)
    got = task.per_example(outputs_N, torch.tensor([1.0, 0.5, 0.5]).double()[:, None, None])
    assert got["loss"].tolist() == [pytest.approx([0, 0.0049, 0.0081], abs=1e-12)]
    assert got["accuracy"].tolist() == [[1, 1, 0]]


def test_always_saying_one_loses_the_variance_of_the_sum():
    task = make(validation_size=20_000)
    losses = [
        task.per_example(torch.ones(1, *b.inputs.shape[:2], 1).double(), b.targets)["loss"]
        for b in task.batches("validation")
    ]
    # The squared error has standard deviation sqrt(7/180): five standard errors.
    assert torch.cat(losses, 1).mean().item() == pytest.approx(task.chance_loss, abs=5 * 0.2 / 141)
