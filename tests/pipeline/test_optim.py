"""Every member against torch.optim on that member alone, the slow obvious way."""

import math

import pytest
import torch

from pipeline.optim import Optimiser, Trainer
from tasks.base import generator_for

SHAPES = ((5, 3), (5,), (2, 5), ())
NUM_UPDATES, PER_EPOCH = 60, 10


def start(num_members, dtype):
    g = generator_for("start")
    whole = [torch.randn(num_members, *s, generator=g, dtype=torch.float64) for s in SHAPES]
    return [p.to(dtype) for p in whole]


def gradient(parameters, update, member):
    """A bowl that is pushed about: contracting, so that rounding is not amplified."""
    size = 30.0 if update % 7 == 0 else 1.0
    return [p * (0.5 + 0.1 * member) + size * math.sin(update + member) for p in parameters]


def parts_of(flat_NP):
    """(N, P) as (N, …) views of the shapes above."""
    sizes = [math.prod(shape) for shape in SHAPES]
    pieces = flat_NP.split(sizes, dim=1)
    return [piece.view(-1, *shape) for piece, shape in zip(pieces, SHAPES, strict=True)]


def flat(parts):
    return torch.cat([p.reshape(len(p), -1) for p in parts], dim=1)


def ours(trainers, dtype, updates=NUM_UPDATES, spoil=None):
    weights_NP = flat(start(len(trainers), dtype))
    optimiser = Optimiser(weights_NP, trainers)
    alive_N = torch.ones(len(trainers), dtype=torch.bool)
    for update in range(updates):
        if update % PER_EPOCH == 0:
            optimiser.start_epoch(1 + update // PER_EPOCH)
        alive_N = optimiser.step(gradients(weights_NP, update, spoil), alive_N)
    return optimiser, alive_N


def gradients(weights_NP, update, spoil=None, members=None):
    """Of all members, or of those whose numbers are given."""
    members = range(len(weights_NP)) if members is None else members
    rows = [parts_of(row.unsqueeze(0)) for row in weights_NP]
    each = [gradient([p[0] for p in row], update, n) for row, n in zip(rows, members, strict=True)]
    whole = [torch.stack(g) for g in zip(*each, strict=True)]
    if spoil is not None:
        spoil(update, whole)
    return flat(whole)


def torchs(trainer, member, num_members, dtype):
    parameters = [p[member].clone().requires_grad_() for p in start(num_members, dtype)]
    adams = {"lr": trainer.learning_rate, "weight_decay": trainer.weight_decay}
    adams |= {"betas": (trainer.beta1, trainer.beta2), "eps": trainer.epsilon}
    match trainer.optimiser:
        case "adam":
            optimiser = torch.optim.Adam(parameters, **adams)
        case "adamw":
            optimiser = torch.optim.AdamW(parameters, **adams)
        case "sgd":
            optimiser = torch.optim.SGD(
                parameters,
                lr=trainer.learning_rate,
                momentum=trainer.momentum,
                weight_decay=trainer.weight_decay,
            )
    for update in range(NUM_UPDATES):
        epoch = 1 + update // PER_EPOCH
        for p, g in zip(parameters, gradient(parameters, update, member), strict=True):
            p.grad = g.detach()
        if trainer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
        exponent = max(0, epoch - trainer.decay_from + 1)
        optimiser.param_groups[0]["lr"] = trainer.learning_rate * trainer.decay**exponent
        optimiser.step()
    return parameters


MIXED = [
    {"learning_rate": 1e-3},
    {"learning_rate": 3e-2, "weight_decay": 0.1},
    {"learning_rate": 1e-2, "clip_norm": 0.7},
    {"learning_rate": 2e-2, "decay": 0.6},
    {"learning_rate": 5e-3, "weight_decay": 0.01, "clip_norm": 5.0, "decay": 0.9},
]
ADAMS = [*MIXED, {"learning_rate": 1e-2, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}]
SGDS = [*MIXED, {"learning_rate": 1e-2, "momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize(
    ("optimiser", "settings"), [("adam", ADAMS), ("adamw", ADAMS), ("sgd", SGDS)]
)
def test_each_member_moves_as_torch_moves_it_alone(optimiser, settings, dtype, tolerance):
    trainers = [Trainer(optimiser=optimiser, decay_from=3, dtype=dtype, **s) for s in settings]
    torch_dtype = getattr(torch, dtype)
    ran, alive_N = ours(trainers, torch_dtype)
    assert alive_N.all()
    for n, trainer in enumerate(trainers):
        expected = torchs(trainer, n, len(trainers), torch_dtype)
        for p, q in zip(parts_of(ran.weights_NP), expected, strict=True):
            error = (p[n] - q.detach()).abs().max() / q.detach().abs().max().clamp(min=1)
            assert error <= tolerance, (n, trainer)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_a_member_does_not_see_its_company(optimiser):
    trainers = [Trainer(optimiser=optimiser, decay_from=3, **s) for s in MIXED]
    together, _ = ours(trainers, torch.float64)
    for n, trainer in enumerate(trainers):
        others = [Trainer(optimiser=optimiser, decay_from=3)] * len(trainers)
        among_others, _ = ours([*others[:n], trainer, *others[n + 1 :]], torch.float64)
        assert torch.equal(together.weights_NP[n], among_others.weights_NP[n])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("spoilt", [0, 1, 3])
def test_a_dead_member_stays_where_it_was_and_moves_no_other(optimiser, bad, spoilt):
    momentum = 0.9 if optimiser == "sgd" else 0.0
    trainers = [Trainer(optimiser=optimiser, momentum=momentum, **MIXED[n]) for n in range(4)]
    died_at = 13

    def spoil(update, gradients):
        if update == died_at:
            gradients[spoilt % 3][(spoilt, *[0] * (gradients[spoilt % 3].dim() - 1))] = bad
        if update > died_at:
            for g in gradients:
                g[spoilt] = bad

    healthy, _ = ours(trainers, torch.float32)
    until_death, _ = ours(trainers, torch.float32, updates=died_at)
    ran, alive_N = ours(trainers, torch.float32, spoil=spoil)
    assert alive_N.tolist() == [n != spoilt for n in range(4)]
    assert set(ran.moments) == ({"first"} if optimiser == "sgd" else {"first", "second"})
    for p, q, frozen in zip(*map(everything, (ran, healthy, until_death)), strict=True):
        assert torch.equal(p[alive_N], q[alive_N])
        assert torch.equal(p[spoilt], frozen[spoilt])
        assert torch.isfinite(p).all()


def everything(optimiser):
    return [optimiser.weights_NP, *optimiser.moments.values()]


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_members_that_are_kept_go_on_as_if_the_others_had_stayed(optimiser):
    momentum = 0.9 if optimiser == "sgd" else 0.0
    trainers = [Trainer(optimiser=optimiser, momentum=momentum, **one) for one in MIXED]
    stayed, _ = ours(trainers, torch.float64)
    ran, alive_N = ours(trainers, torch.float64, updates=20)
    kept = [3, 1, 4]
    ran.select(kept, ran.weights_NP[kept])
    alive_N = alive_N[kept]
    for update in range(20, NUM_UPDATES):
        if update % PER_EPOCH == 0:
            ran.start_epoch(1 + update // PER_EPOCH)
        alive_N = ran.step(gradients(ran.weights_NP, update, members=kept), alive_N)
    for p, q in zip(everything(ran), everything(stayed), strict=True):
        assert torch.equal(p, q[kept])


def test_a_gradient_too_large_to_square_in_float32_is_still_clipped():
    trainers = [Trainer(optimiser="sgd", learning_rate=1.0, clip_norm=1.0)]
    p = torch.zeros(1, 2)
    alive_N = Optimiser(p, trainers).step(torch.tensor([[3e30, 4e30]]), torch.tensor([True]))
    assert alive_N.all()
    assert p[0].tolist() == pytest.approx([-0.6, -0.8], rel=1e-6)


def test_momentum_is_refused_where_it_would_be_ignored():
    with pytest.raises(ValueError, match="momentum is of sgd; adam has its own"):
        Trainer(momentum=0.5)


@pytest.mark.parametrize("settings", [{"optimiser": "sgd"}, {"optimiser": "adamw"}])
def test_weights_that_overflow_in_an_update_die_before_it(settings):
    """The gradient is finite throughout; decay alone multiplies weights by -999 a step."""
    trainers = [Trainer(**settings), Trainer(learning_rate=1e3, weight_decay=1.0, **settings)]
    optimiser = Optimiser(torch.ones(2, 6), trainers)
    alive_N = torch.tensor([True, True])
    for _ in range(20):
        before = [t.clone() for t in everything(optimiser)]
        was_alive_N = alive_N
        alive_N = optimiser.step(torch.ones(2, 6), alive_N)
        if not alive_N[1]:
            assert all(
                torch.equal(t[1], b[1]) for t, b in zip(everything(optimiser), before, strict=True)
            )
        assert was_alive_N[1] or not alive_N[1]
    assert alive_N.tolist() == [True, False]
    assert torch.isfinite(optimiser.weights_NP).all()
    assert optimiser.weights_NP[1].abs().max() > 1e35
