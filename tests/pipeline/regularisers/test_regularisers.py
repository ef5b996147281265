"""What every regulariser must do in the training loop; a new one is tested once its file exists."""

from contextlib import nullcontext

import pytest
import torch

from pipeline import catalog, populations, snapshot
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from pipeline.spending import Spent
from tasks.base import UnsuitableError, seed_for

NAMES = sorted(catalog.entries("regularisers"))
every_regulariser = pytest.mark.parametrize("name", NAMES)

# Networks that each can be put on; a regulariser that is not named here meets all of them.
NETWORKS = {"mlp": {"width": 5, "depth": 3}, "rnn": {"units": 5}}
SUITED = {"flossing": ("rnn",), "ftle_suppression": ("mlp",), "smoothness": ("mlp",)}
TASKS = {
    "mlp": ("planar", {"points": 160, "batch_size": 24}),
    "rnn": ("delayed_recall", {"symbols": 3, "steps": 6, "batch_size": 8, "updates": 5}),
}
SETTINGS = {"flossing": {"exponents": 2, "steps": 5, "sequences": 3}}
WEIGHTS = (0.0, 0.3, 2.0)


def choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))


def trial(number, name, weight, *, network=None, poison=False, dtype="float64", **settings):
    """`weight` None: no regulariser. A poisoned member is given a step that leaves all range."""
    network = network or SUITED.get(name, ("mlp",))[0]
    task, of_task = TASKS[network]
    own = {} if weight is None else SETTINGS.get(name, {}) | {"weight": weight, **settings}
    return TrialSpec(
        number,
        seed_for(4, number),
        choice("tasks", task, **of_task),
        choice("networks", network, init_scale=1.0 + 0.4 * number, **NETWORKS[network]),
        Trainer(
            epochs=4,
            dtype=dtype,
            optimiser="sgd",
            learning_rate=1e200 if poison else 0.02,
            weight_decay=1e200 if poison else 0.0,
            clip_norm=None if poison else (None, 1.0, 0.5)[number % 3],
            regularise=() if weight is None else (choice("regularisers", name, **own),),
        ),
    )


def cohort(*trials, **options):
    return Cohort(sweep_seed=4, trials=trials, **options)


def trained(whole, epochs=2, *, recorder=None, leave=None):
    """Weights by trial after some epochs; `leave` says who goes after the first."""
    population = populations.build(whole, recorder=recorder)
    for epoch in range(1, epochs + 1):
        populations.train_epoch(population, epoch)
        if leave is not None and epoch == 1:
            population.keep([n for n, m in enumerate(population.numbers) if m != leave])
    weights = population.optimiser.weights_NP.clone()
    return dict(zip(population.numbers, weights, strict=True)), population


def company(name, **options):
    return cohort(*(trial(n, name, weight, **options) for n, weight in enumerate(WEIGHTS)))


@every_regulariser
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weight_zero_is_no_regulariser_to_the_last_bit_in_any_company(name, dtype):
    together, _ = trained(company(name, dtype=dtype))
    off = (trial(n, name, 0.0, dtype=dtype) for n in range(3))
    none = (trial(n, name, None, dtype=dtype) for n in range(3))
    switched_off, population = trained(cohort(*off))
    assert population.regularisers == []
    without, _ = trained(cohort(*none))
    for number in range(3):
        assert torch.equal(switched_off[number], without[number])
    assert torch.equal(together[0], without[0])
    for number in (1, 2):
        assert not torch.allclose(together[number], without[number], rtol=1e-3)


@every_regulariser
def test_company_does_not_matter(name):
    together, _ = trained(company(name))
    for number, weight in enumerate(WEIGHTS):
        alone, _ = trained(cohort(trial(number, name, weight)))
        torch.testing.assert_close(alone[number], together[number], rtol=1e-10, atol=1e-12)
    order = (2, 0, 1)
    shuffled, _ = trained(cohort(*(trial(n, name, WEIGHTS[n]) for n in order)))
    for number in order:
        torch.testing.assert_close(shuffled[number], together[number], rtol=1e-10, atol=1e-12)


@every_regulariser
def test_members_that_leave_change_nothing_for_those_that_stay(name):
    together, _ = trained(company(name), 3)
    for gone in range(3):
        left, population = trained(company(name), 3, leave=gone)
        assert sorted(left) == [n for n in range(3) if n != gone]
        for number, weights in left.items():
            torch.testing.assert_close(weights, together[number], rtol=1e-10, atol=1e-12)
    assert [regulariser.is_active for regulariser in population.regularisers] == [True]


@every_regulariser
def test_one_that_diverges_leaves_the_others_bits_alone(name):
    healthy, _ = trained(company(name))
    trials = [trial(n, name, weight) for n, weight in enumerate(WEIGHTS)]
    trials[1] = trial(1, name, WEIGHTS[1], poison=True)
    found, population = trained(cohort(*trials))
    assert set(population.diverged_at) == {1}
    assert torch.isfinite(found[1]).all()
    for number in (0, 2):
        assert torch.equal(found[number], healthy[number])


@every_regulariser
def test_a_penalty_that_is_no_number_makes_its_member_diverge(name, monkeypatch):
    kind = catalog.load("regularisers", name)
    penalty = kind.penalty

    def spoilt(self, network, inputs):
        found = penalty(self, network, inputs)
        return found * torch.tensor([1.0, torch.nan, torch.nan], dtype=found.dtype)

    healthy, _ = trained(company(name))
    monkeypatch.setattr(kind, "penalty", spoilt)
    weights = (0.3, 0.0, 2.0)  # with weight 0 it is nobody's affair what the penalty is
    whole = cohort(*(trial(n, name, weight) for n, weight in enumerate(weights)))
    found, population = trained(whole)
    assert population.diverged_at == {2: 1}
    without, _ = trained(cohort(trial(1, name, None)))
    torch.testing.assert_close(found[1], without[1], rtol=1e-10, atol=1e-12)
    assert torch.isfinite(found[0]).all()
    assert healthy.keys() == found.keys()


@every_regulariser
def test_the_gradient_is_that_of_the_penalty(name):
    """Against central differences, in 20 directions a member."""
    population = populations.build(company(name))
    (regulariser,) = population.regularisers
    inputs = next(iter(population.task.training_batches(1))).inputs
    weights_NP = population.optimiser.weights_NP
    weight_N1 = torch.tensor(WEIGHTS, dtype=torch.float64).unsqueeze(1)
    start = torch.full_like(weights_NP, 7.0)
    found = start.clone()
    regulariser.add(found, population.network, inputs)
    assert torch.equal(found[0], start[0])
    before, step = weights_NP.clone(), 1e-6
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(20):
            direction = torch.randn(before.shape, generator=generator, dtype=torch.float64)
            values = []
            for sign in (1, -1):
                weights_NP.copy_(before + sign * step * direction)
                values.append(regulariser.penalty(population.network, inputs))
            slope_N = weight_N1.squeeze(1) * (values[0] - values[1]) / (2 * step)
            along_N = ((found - start) * direction).sum(1)
            assert slope_N[1:].abs().max() > 1e-3
            torch.testing.assert_close(along_N, slope_N, rtol=1e-6, atol=1e-6)


@every_regulariser
def test_until_is_the_last_epoch_it_acts_in(name):
    one, two = (company(name, until=until) for until in (1, 2))
    first = [trained(whole, 1)[0] for whole in (one, two)]
    second = [trained(whole, 2)[0] for whole in (one, two)]
    for number in (1, 2):
        assert torch.equal(first[0][number], first[1][number])
        assert not torch.equal(second[0][number], second[1][number])
    # From then on a member is trained by the loss alone.
    population = populations.build(one)
    populations.train_epoch(population, 1)
    plain = populations.build(cohort(*(trial(n, name, None) for n in range(3))))
    populations.train_epoch(plain, 1)
    plain.optimiser.weights_NP.copy_(population.optimiser.weights_NP)
    for each in (population, plain):
        populations.train_epoch(each, 2)
    assert torch.equal(plain.optimiser.weights_NP, population.optimiser.weights_NP)


@every_regulariser
@pytest.mark.parametrize("until", [None, 2])
def test_a_resumed_cohort_equals_the_unbroken_one_bit_for_bit(name, until):
    whole = company(name, until=until)
    unbroken, _ = trained(whole, 4)
    for stop in (1, 2, 3):
        _, population = trained(whole, stop)
        losses = dict.fromkeys(population.numbers, 0.5)
        kept = snapshot.take(population, stop, losses, {}, Spent())
        resumed = populations.build(whole)
        snapshot.restore(resumed, kept)
        for epoch in range(stop + 1, 5):
            populations.train_epoch(resumed, epoch)
        for number, weights in zip(resumed.numbers, resumed.optimiser.weights_NP, strict=True):
            assert torch.equal(weights, unbroken[number])


class Dry:
    """Records by remembering what to call."""

    recorded = 0

    def aside(self):
        return nullcontext()

    def record(self, run):
        self.recorded += 1
        return run


@every_regulariser
def test_recorded_updates_equal_updates_as_they_come(name):
    """The recording is dropped where the penalty stops, or it would go on in the replay."""
    if not catalog.load("regularisers", name).is_recordable:
        pytest.skip("says that it cannot be recorded")
    whole = company(name, until=2)
    expected, _ = trained(whole, 4)
    recorder = Dry()
    found, population = trained(whole, 4, recorder=recorder)
    assert population.steps.is_recorded
    assert recorder.recorded == 2
    for number in range(3):
        assert torch.equal(found[number], expected[number])


@pytest.mark.parametrize("name", NAMES)
def test_only_what_can_be_recorded_is_recorded_on_a_gpu(name, monkeypatch):
    monkeypatch.setattr(populations, "CudaGraphs", lambda device: f"graphs on {device}")
    regularisers = populations.build(company(name)).regularisers
    assert regularisers
    is_recordable = catalog.load("regularisers", name).is_recordable
    found = populations.recorder_for("cuda:1", regularisers)
    assert found == ("graphs on cuda:1" if is_recordable else None)
    assert populations.recorder_for("cpu", regularisers) is None
    recorder = Dry()
    monkeypatch.setattr(populations, "recorder_for", lambda device, these: recorder)
    assert populations.build(company(name)).steps._recorder is recorder


MISFITS = {
    "flossing of an MLP": ("flossing", "mlp", {}, "flossing needs a recurrent network, got MLP"),
    "more exponents than state": (
        "flossing",
        "rnn",
        {"exponents": 6},
        r"flossing\.exponents must be at most 5, the size of the state, got 6",
    ),
    "suppression in an RNN": (
        "ftle_suppression",
        "rnn",
        {},
        "ftle_suppression needs a feed-forward network, got RNN",
    ),
    "more layers than there are": (
        "ftle_suppression",
        "mlp",
        {"layers": 4},
        r"ftle_suppression\.layers must be at most 3, the network's hidden layers, got 4",
    ),
    "an RNN has no layers that follow": (
        "smoothness",
        "rnn",
        {},
        "smoothness needs learned layers of one shape .* RNN as set up here has none",
    ),
}


@pytest.mark.parametrize("case", sorted(MISFITS))
def test_what_does_not_fit_is_refused_before_anything_starts(case):
    name, network, settings, message = MISFITS[case]
    with pytest.raises(UnsuitableError, match=message):
        populations.build(cohort(trial(0, name, 0.5, network=network, **settings)))
    # Nobody is asked for a penalty of weight 0.
    populations.build(cohort(trial(0, name, 0.0, network=network, **settings)))
