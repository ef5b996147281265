import gzip
import math
import struct

import numpy as np
import pytest
import torch

from tasks.base import UnsuitableError
from tasks.datasets import CorruptDataError
from tasks.digits import Digits, load_mnist, parse_idx


def make(**settings):
    return Digits(Digits.Config(**settings), seed=1)


def idx(array, *, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_gives_back_the_array(pack):
    assert np.array_equal(parse_idx(pack(idx(ARRAY)), "x"), ARRAY)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "4 bytes of idx magic, holds 0"),
        (idx(ARRAY)[:3], "4 bytes of idx magic, holds 3"),
        (b"\x00\x01" + idx(ARRAY)[2:], "starts with 00 01 08 03"),
        (idx(ARRAY, kind=0x0D), "starts with 00 00 0d 03"),
        (b"\x00\x00\x08\x00", "starts with 00 00 08 00"),
        (idx(ARRAY)[:10], "3 axis lengths, ends before the last"),
        (idx(ARRAY)[:-1], "2 x 3 x 4 = 24 values, holds 23"),
        (idx(ARRAY) + b"\x00", "2 x 3 x 4 = 24 values, holds 25"),
        (gzip.compress(idx(ARRAY), mtime=0)[:-9], "damaged gzip file"),
    ],
)
def test_idx_that_is_not_whole_is_refused(data, complaint):
    with pytest.raises(CorruptDataError, match=f"file.idx.*{complaint}"):
        parse_idx(data, "file.idx")


def test_splits_are_cut_from_the_end():
    task = make(scaling="unit")
    sizes = {s: len(x) for s, x in task.examples.inputs.items()}
    assert sizes == {"train": 1293, "validation": 144, "test": 360}
    few = make(scaling="unit", train_size=100)
    assert torch.equal(few.examples.inputs["train"], task.examples.inputs["train"][:100])
    for split in ("validation", "test"):
        assert torch.equal(few.examples.inputs[split], task.examples.inputs[split])
    assert few.fingerprint != task.fingerprint
    assert (task.input_size, task.output_size, task.chance_loss) == (64, 10, math.log(10))


def test_scaling_is_by_the_training_split_in_use():
    unit, centred, standardised = (
        make(scaling=s, train_size=200).examples.inputs for s in ("unit", "centred", "standardised")
    )
    assert (unit["train"].min(), unit["train"].max()) == (0, 1)
    mean, deviation = unit["train"].mean(), unit["train"].std(correction=0)
    for split in ("train", "validation", "test"):
        torch.testing.assert_close(centred[split], unit[split] - mean)
        torch.testing.assert_close(standardised[split], (unit[split] - mean) / deviation)


def test_an_epoch_is_all_training_images_in_a_new_order():
    task = make(batch_size=100)
    first, again, second = (
        torch.cat([b.inputs for b in task.training_batches(epoch)]) for epoch in (1, 1, 2)
    )
    assert task.num_updates == 13 == len(list(task.training_batches(1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    stored = task.examples.inputs["train"]
    assert torch.equal(second.sort(dim=0).values, stored.sort(dim=0).values)


def test_labels_stay_with_their_images():
    task = make(batch_size=50)
    examples = task.examples
    stored = zip(examples.inputs["train"], examples.targets["train"], strict=True)
    label_of = {tuple(image.tolist()): int(label) for image, label in stored}
    for batch in task.training_batches(4):
        labels = [label_of[tuple(image)] for image in batch.inputs.tolist()]
        assert batch.targets.tolist() == labels


@pytest.mark.parametrize("scaling", ["unit", "standardised"])
def test_training_images_are_displaced_by_as_much_as_was_asked(scaling):
    plain, moved = (make(batch_size=50, scaling=scaling, shift=shift) for shift in (0, 2))
    background = float(plain.examples.inputs["train"].min())  # Zero pixels: there are some.
    seen = torch.zeros(5, 5)
    for before, after in zip(plain.training_batches(1), moved.training_batches(1), strict=True):
        assert torch.equal(after.targets, before.targets)
        assert after.inputs.shape == before.inputs.shape
        wide = torch.full((len(before.inputs), 12, 12), background)
        wide[:, 2:10, 2:10] = before.inputs.view(-1, 8, 8)
        every = [wide[:, r : r + 8, c : c + 8].flatten(1) for r in range(5) for c in range(5)]
        gap = torch.stack([(one - after.inputs).abs().amax(1) for one in every])
        assert bool((gap.min(0).values < 1e-6).all())
        seen += torch.bincount(gap.argmin(0), minlength=25).view(5, 5)
    share = seen / seen.sum()
    assert bool(((share - 1 / 25).abs() < 0.02).all())


def test_displacements_are_of_the_epoch_and_of_training_alone():
    plain, task = make(), make(shift=1)
    first, again, second = (
        torch.cat([b.inputs for b in task.training_batches(epoch)]) for epoch in (1, 1, 2)
    )
    assert torch.equal(first, again)
    order = [torch.cat([b.inputs for b in plain.training_batches(epoch)]) for epoch in (1, 2)]
    assert not torch.equal(first, order[0])
    assert not torch.equal(second, order[1])
    for split in ("validation", "test"):
        for a, b in zip(task.batches(split), plain.batches(split), strict=True):
            assert torch.equal(a.inputs, b.inputs)
    assert task.fingerprint == plain.fingerprint


def test_loss_and_accuracy_follow_their_definitions():
    task = make()
    outputs_N = torch.zeros(2, 3, 10, dtype=torch.float64)
    outputs_N[0, :, 4] = 1.0
    got = task.per_example(outputs_N, torch.tensor([4, 4, 5]))
    total = math.log(9 + math.e)
    expected = [[total - 1, total - 1, total], [task.chance_loss] * 3]
    assert got["loss"].tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert got["accuracy"][0].tolist() == [1, 1, 0]


def test_nan_outputs_have_neither_loss_nor_accuracy():
    outputs_N = torch.zeros(2, 3, 10)
    outputs_N[0, 1, 7] = torch.nan
    got = make().per_example(outputs_N, torch.tensor([0, 0, 0]))
    assert got["loss"].isnan().tolist() == got["accuracy"].isnan().tolist()
    assert got["loss"].isnan().tolist() == [[False, True, False], [False] * 3]


def test_probes_are_validation_images():
    task = make()
    validation = {tuple(x) for x in task.examples.inputs["validation"].tolist()}
    batch = task.probe_inputs(30, None, torch.Generator().manual_seed(0))
    assert {tuple(x) for x in batch.inputs.tolist()} <= validation
    with pytest.raises(UnsuitableError, match="at most 144"):
        task.probe_inputs(145, None, torch.Generator())


def test_more_training_images_than_there_are_is_refused():
    with pytest.raises(UnsuitableError, match=r"train_size must be at most 1293 .*got 1294"):
        make(train_size=1294)


def test_a_validation_share_that_takes_all_is_refused():
    with pytest.raises(UnsuitableError, match=r"at least 1 of 1437 training images, got 0\.9999"):
        make(validation=0.9999)


def test_mnist_holds_what_its_authors_say(real_data):
    real_data("mnist")
    source = load_mnist()
    assert source.train[0].shape == (60_000, 28, 28)
    assert source.test[0].shape == (10_000, 28, 28)
    assert np.bincount(source.train[1]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(source.test[1]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert source.train[0].mean() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_mnist_is_cut_like_any_other(real_data):
    real_data("mnist")
    task = make(data="mnist", train_size=500)
    assert {s: len(x) for s, x in task.examples.inputs.items()} == {
        "train": 500,
        "validation": 6_000,
        "test": 10_000,
    }
    assert task.input_size == 784
    assert task.examples.inputs["train"].mean().item() == pytest.approx(0, abs=1e-5)
