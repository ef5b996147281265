import math

import pytest
import torch

from tasks.base import UnsuitableError
from tasks.digits import Digits
from tasks.sequential_digits import SequentialDigits


def make(**settings):
    return SequentialDigits(SequentialDigits.Config(**settings), seed=1)


@pytest.mark.parametrize(("order", "shape"), [("pixel", (64, 1)), ("row", (8, 8))])
def test_an_image_is_read_from_its_top_left_corner(order, shape):
    task, flat = make(order=order), Digits(Digits.Config(), seed=1)
    assert (task.input_size, task.output_size, task.num_updates) == (shape[1], 10, flat.num_updates)
    for split in ("train", "validation", "test"):
        read = torch.cat([b.inputs for b in task.batches(split)])
        image = flat.examples.inputs[split].view(-1, 8, 8)
        assert read.shape[1:] == shape
        assert torch.equal(read.view(-1, 8, 8), image)
        labels = torch.cat([b.targets for b in task.batches(split)])
        assert torch.equal(labels[:, 0], flat.examples.targets[split])
    assert torch.equal(read[:, 1], image[:, 0, 1:2] if order == "pixel" else image[:, 1])


def test_training_is_in_the_order_of_digits():
    task, flat = make(order="row"), Digits(Digits.Config(), seed=1)
    for read, image in zip(task.training_batches(3), flat.training_batches(3), strict=True):
        assert torch.equal(read.inputs.flatten(1), image.inputs)
        assert torch.equal(read.targets[:, 0], image.targets)
        assert read.is_start


def test_the_fingerprint_knows_order_and_images():
    same, other, fewer = make(), make(order="row"), make(train_size=100)
    assert make().fingerprint == same.fingerprint
    assert len({same.fingerprint, other.fingerprint, fewer.fingerprint}) == 3


def test_the_class_is_asked_at_the_end():
    task = make(order="row")
    outputs_N = torch.zeros(2, 3, 8, 10, dtype=torch.float64)
    outputs_N[0, :, :-1, 7] = 90.0
    outputs_N[0, :, -1, 4] = 1.0
    got = task.per_example(outputs_N, torch.tensor([[4], [4], [5]]))
    total = math.log(9 + math.e)
    expected = [[total - 1, total - 1, total], [task.chance_loss] * 3]
    assert got["loss"].tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert got["accuracy"][0].tolist() == [1, 1, 0]


def test_probes_are_validation_images_end_to_end():
    task = make(order="row")
    validation = {tuple(x.flatten().tolist()) for b in task.batches("validation") for x in b.inputs}
    probe = task.probe_inputs(10, 20, torch.Generator().manual_seed(0))
    assert probe.inputs.shape == (10, 20, 8)
    whole = probe.inputs[:, 4:].reshape(20, 64)
    assert {tuple(x) for x in whole.tolist()} <= validation
    with pytest.raises(UnsuitableError, match="at most 144"):
        task.probe_inputs(49, 20, torch.Generator())


def test_mnist_has_one_pixel_a_step(real_data):
    real_data("mnist")
    task = make(data="mnist", train_size=500)
    batch = next(task.training_batches(1))
    assert batch.inputs.shape == (64, 784, 1)
    assert make(data="mnist", train_size=500, order="row").input_size == 28
