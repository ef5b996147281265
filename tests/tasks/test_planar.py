import math

import pytest
import torch

from tasks.base import UnsuitableError, generator_for
from tasks.planar import Planar, draw_points

SHAPES = ["circle", "spiral", "donut", "squares"]


def make(seed=1, dtype=torch.float64, **settings):
    return Planar(Planar.Config(**settings), seed=seed, dtype=dtype)


def draw(**settings):
    return draw_points(Planar.Config(**settings), generator_for(0))


def everything(task):
    parts = [
        (b.inputs, b.targets) for s in ("train", "validation", "test") for b in task.batches(s)
    ]
    return torch.cat([p for p, _ in parts]), torch.cat([t for _, t in parts])


@pytest.mark.parametrize("shape", SHAPES)
def test_published_sizes_and_equal_classes(shape):
    points, classes = draw(shape=shape)
    assert len(points) == (40_000 if shape == "circle" else 1_000)
    # Five standard deviations of a fair coin.
    assert abs(classes.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(len(points))


def test_the_circle_halves_its_square():
    points, classes = draw(shape="circle", half_width=3.0)
    assert points.abs().max() <= 3
    assert points.abs().max() > 2.99
    inside = points.norm(dim=1) <= math.sqrt(2 / math.pi) * 3
    assert torch.equal(classes == 0, inside)
    assert 0.797 < points[inside].norm(dim=1).max() / 3 < 0.798


def test_squares_are_told_by_the_sign_of_x_y():
    points, classes = draw(shape="squares", noise=0.0)
    assert points.abs().max() <= 0.7
    assert torch.equal(classes == 1, points[:, 0] * points[:, 1] > 0)


def test_spiral_arms_are_half_a_turn_apart():
    points, classes = draw(shape="spiral", noise=0.0, points=200)
    radius = points.norm(dim=1)
    turn = (radius - 0.1) / 0.9 * (2 * math.pi - 0.1) + 0.1 + math.pi * classes.double()
    expected = torch.stack([radius * turn.cos(), radius * turn.sin()], 1)
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-12)
    assert radius.min().item() == pytest.approx(0.1)
    assert radius.max().item() == pytest.approx(1.0)


def test_the_donut_is_a_disc_in_a_ring():
    points, classes = draw(shape="donut", noise=0.0, points=40_000)
    radius = points.norm(dim=1)
    disc, ring = radius[classes == 1], radius[classes == 0]
    # Gaussian disc: <r^2> = 2 σ^2. Ring: <r> = 0.5 + σ^2 / 0.5. Errors are five standard errors.
    assert disc.square().mean().item() == pytest.approx(2 * 0.1**2, abs=5 * 0.02 / 141)
    assert ring.mean().item() == pytest.approx(0.52, abs=5 * 0.1 / 141)
    assert points.mean(0).norm() < 0.02


def test_the_donut_on_a_line_has_twice_as_many_points_outside():
    points, classes = draw(shape="donut1d", noise=0.0, points=30_000)
    assert points.shape == (30_000, 1)
    assert int(classes.sum()) == 10_000
    inside, outside = points[classes == 1, 0], points[classes == 0, 0]
    assert inside.std().item() == pytest.approx(0.1, rel=0.05)
    assert outside.abs().mean().item() == pytest.approx(0.5, abs=0.005)
    # Five standard deviations of a fair coin.
    assert abs((outside > 0).double().mean() - 0.5) < 5 * 0.5 / math.sqrt(20_000)
    assert make(shape="donut1d").input_size == 1


def test_chance_is_the_best_constant_where_classes_are_uneven():
    for loss in ("cross_entropy", "mse"):
        task = make(shape="donut1d", points=30_000, loss=loss, train=0.98, validation=0.01)
        batch = next(task.batches("train"))
        logits = torch.linspace(-2, 2, 401, dtype=torch.float64)
        outputs = logits[:, None, None].expand(-1, len(batch.targets), 1)
        if loss == "cross_entropy":
            outputs = torch.cat([torch.zeros_like(outputs), outputs], -1)
        best = task.losses(outputs, batch.targets).mean(1).min().item()
        # 1,024 points: five standard errors of a share of a third.
        assert task.chance_loss == pytest.approx(best, abs=0.04)
        assert task.chance_loss < (math.log(2) if loss == "cross_entropy" else 1) - 0.04


def test_noise_moves_points_but_not_their_class():
    still, classes = draw(shape="squares", noise=0.0, points=10_000)
    moved, same_classes = draw(shape="squares", noise=0.25, points=10_000)
    assert torch.equal(classes, same_classes)
    assert (moved - still).std().item() == pytest.approx(0.25, rel=0.03)


def test_the_seed_decides_the_points_and_nothing_else_does():
    first, _ = everything(make(seed=1, shape="donut"))
    same, _ = everything(make(seed=1, shape="donut", batch_size=7, loss="mse"))
    other, _ = everything(make(seed=2, shape="donut"))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert make(seed=1).fingerprint == make(seed=1).fingerprint != make(seed=2).fingerprint


def test_precisions_see_the_same_points():
    single, _ = everything(make(dtype=torch.float32))
    double, _ = everything(make(dtype=torch.float64))
    assert torch.equal(single, double.float())


def test_splits_share_no_point_and_leave_none_out():
    task = make(shape="donut", points=103, train=0.6, validation=0.25)
    sizes = [sum(len(b.inputs) for b in task.batches(s)) for s in ("train", "validation", "test")]
    assert sizes == [62, 26, 15]
    assert len(everything(task)[0].unique(dim=0)) == 103


def test_an_epoch_is_all_training_points_in_a_new_order():
    task = make(shape="squares", batch_size=64)
    stored = torch.cat([b.inputs for b in task.batches("train")])
    epochs = []
    for epoch in (1, 2, 1):
        batches = list(task.training_batches(epoch))
        assert len(batches) == task.num_updates == math.ceil(len(stored) / 64)
        epochs.append(torch.cat([b.inputs for b in batches]))
        assert torch.equal(epochs[-1].sort(dim=0).values, stored.sort(dim=0).values)
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_targets_stay_with_their_points():
    task = make(noise=0.0, batch_size=999)
    for batch in task.training_batches(3):
        outside = batch.inputs.norm(dim=1) > math.sqrt(2 / math.pi)
        assert torch.equal(batch.targets == 1, outside)


def test_cross_entropy_of_two_outputs():
    task = make(shape="squares", loss="cross_entropy")
    assert (task.input_size, task.output_size) == (2, 2)
    outputs_N = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]).double()
    got = task.per_example(outputs_N, torch.tensor([0, 0]))
    expected = [[math.log1p(math.exp(-2)), math.log1p(math.exp(1))], [task.chance_loss] * 2]
    assert got["loss"].tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert got["accuracy"][0].tolist() == [1, 0]


def test_squared_loss_of_one_output_under_tanh():
    task = make(shape="squares", loss="mse")
    targets = next(task.batches("test")).targets
    assert task.output_size == targets.shape[1] == 1
    assert set(targets.flatten().tolist()) == {-1.0, 1.0}
    outputs_N = torch.tensor([[[0.3], [0.3]], [[0.0], [0.0]]], dtype=torch.float64)
    got = task.per_example(outputs_N, torch.tensor([[1.0], [-1.0]]).double())
    right, wrong = (math.tanh(0.3) - 1) ** 2, (math.tanh(0.3) + 1) ** 2
    expected = [[right, wrong], [task.chance_loss] * 2]
    assert got["loss"].tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert got["accuracy"][0].tolist() == [1, 0]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_nan_outputs_have_neither_loss_nor_accuracy(loss):
    task = make(shape="squares", loss=loss)
    batch = next(task.batches("validation"))
    outputs_N = torch.ones(2, len(batch.inputs), task.output_size, dtype=torch.float64)
    outputs_N[0] = torch.nan
    got = task.per_example(outputs_N, batch.targets)
    for values in got.values():
        assert values.shape == (2, len(batch.inputs))
        assert values[0].isnan().all()
        assert values[1].isfinite().all()


def test_probes_are_different_validation_points():
    task = make(shape="donut")
    validation = {tuple(p) for b in task.batches("validation") for p in b.inputs.tolist()}
    batch = task.probe_inputs(60, 5, torch.Generator().manual_seed(0))
    drawn = {tuple(p) for p in batch.inputs.tolist()}
    assert len(drawn) == 60
    assert drawn <= validation
    with pytest.raises(UnsuitableError, match=r"at most 100 .*got 101"):
        task.probe_inputs(101, None, torch.Generator())


def test_shares_that_leave_a_split_empty_are_refused():
    with pytest.raises(UnsuitableError, match=r"train 0\.9 .*give 36000, 4000, 0"):
        make(train=0.9, validation=0.1)
