"""Updates on buffers that stay in place equal updates as they come, with CUDA and without.

Without a GPU the protocol of a recording is run by `Dry`, and what would break a recording (values
read back, tensors of the CPU, numbers that change) is looked for on torch's device without data.
"""

import dataclasses
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import catalog, populations, rung_rows
from pipeline.capture import WARMUP, CudaGraphs, Steps, tensors_in
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec
from tasks.base import Batch, seed_for

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
NETWORKS = {
    "lstm": {"units": 20, "layers": 2},
    "gru": {"units": 5, "layers": 2},
    "rnn": {"units": 5, "activation": "relu", "init_scale": 0.3},
    "mlp": {"width": 6, "depth": 3},
    "mlp of gelu": {"width": 6, "depth": 2, "activation": "gelu"},
}
OPTIMISERS = {
    "adam": {},
    "adamw": {"optimiser": "adamw", "weight_decay": 0.1},
    "sgd": {"optimiser": "sgd", "momentum": 0.9},
}
every_network = pytest.mark.parametrize("kind", sorted(NETWORKS))


class Dry:
    """Records by remembering what to call."""

    recorded = 0

    def aside(self):
        return nullcontext()

    def record(self, run):
        self.recorded += 1
        return run


class Refusing(Dry):
    def record(self, run):
        raise RuntimeError("operation not permitted when stream is capturing")


def choice(kind, name, **settings):
    return Choice(name, catalog.load(kind, name).Config(**settings))


def cohort(kind, members=4, device="cpu", dtype="float32", **trainer):
    """Members that differ in all they may; MLPs have a last batch of 32 where others are of 48."""
    network, settings = kind.split()[0], NETWORKS[kind]
    if network == "mlp":
        task = choice("tasks", "planar", points=400, batch_size=48)
    else:
        task = choice("tasks", "char_text", text="pydoc", batch_size=4, seq_len=12, characters=900)
    trials = [
        TrialSpec(
            n,
            seed_for(3, n),
            task,
            choice(
                "networks", network, **{"init_scale": 0.5 + 0.2 * n, "dropout": 0.1 * n} | settings
            ),
            Trainer(
                dtype=dtype,
                learning_rate=1e-3 * (n + 1),
                clip_norm=(1.0, None, 0.3)[n % 3],
                decay=0.8,
                decay_from=2,
                **trainer,
            ),
        )
        for n in range(members)
    ]
    return Cohort(sweep_seed=3, trials=tuple(trials), device=device)


def moving(population):
    """Everything that an update changes."""
    optimiser = population.optimiser
    return {
        "weights": optimiser.weights_NP,
        **optimiser.moments,
        "powers": optimiser._columns["beta1_power"],
        "rates": optimiser._columns["rate"],
        "dropout": population.dropout.position_N1,
        "alive": population.alive_N,
        "begun": population.begun_N,
        "died": population.died_at_N,
    }


def run(population, epochs):
    """Mean losses (epochs, N) and what is left, with a NaN member and members leaving on the way.

    Epochs as a sweep trains them, evaluation in between.
    """
    found = []
    for epoch in range(1, epochs + 1):
        if epoch == 3:
            population.optimiser.weights_NP[1, 3] = torch.nan
        found.append(populations.train_epoch(population, epoch).cpu())
        rung_rows.evaluate(population.network, population.task, "validation")
        if epoch == 5:
            population.keep([3, 0])
    assert population.update == epochs * population.task.num_updates
    return found, {name: value.cpu() for name, value in moving(population).items()}


def assert_equal(found, expected, tolerance=0.0):
    """Losses within `tolerance`; weights and moments, which add up, within a hundred times it."""
    for ours, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
    for name, value in expected[1].items():
        torch.testing.assert_close(
            found[1][name], value, rtol=0, atol=100 * tolerance, equal_nan=True, msg=name
        )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(kind, {}) for kind in sorted(NETWORKS)] + [("mlp", {"optimiser": "sgd", "momentum": 0.9})],
)
def test_updates_in_place_equal_updates_as_they_come_bit_for_bit(kind, settings):
    """A hundred updates: dropout, carried state, rates that fall, a NaN, members that leave."""
    whole = cohort(kind, **settings)
    recorder = Dry()
    plain, fixed = populations.build(whole), populations.build(whole, recorder=recorder)
    assert not plain.steps.is_recorded
    epochs = -(-100 // plain.task.num_updates)
    expected = run(plain, epochs)
    assert_equal(run(fixed, epochs), expected)
    assert fixed.steps.is_recorded
    assert recorder.recorded == 2  # once more after members have left
    assert expected[0][2][1].isnan()
    assert expected[0][5].shape == (2,)


@every_network
def test_losses_of_single_updates_are_the_same(kind):
    whole = cohort(kind)
    plain, fixed = populations.build(whole), populations.build(whole, recorder=Dry())
    state, replayed = None, 0
    for epoch in (1, 2, 3):
        for batch in plain.task.training_batches(epoch):
            expected, state = populations.update(plain, batch, None if batch.is_start else state)
            replayed += fixed.steps.is_recorded
            found = fixed.steps(fixed, batch)
            assert torch.equal(found, expected)
    assert replayed > 2 * plain.task.num_updates


class Counting:
    """A population of one whose update adds what it sees to its state; notes what it was given."""

    def __init__(self):
        self.seen = []

    def advance(self, inputs, targets, state):
        self.seen.append(inputs)
        h = inputs.sum((1, 2)) if state is None else state[0] + inputs.sum((1, 2))
        return h.sum().view(1), (h, [h.clone()])


def counted(batches, recorder):
    counting = Counting()
    steps = Steps(Counting.advance, recorder)
    return [steps(counting, batch).item() for batch in batches], counting, steps


def batch(value, B=2, T=3, is_start=False):
    return Batch(torch.full((B, T, 1), float(value)), torch.zeros(B), is_start)


SEQUENCES = {
    "carried": [batch(n, is_start=n == 0) for n in range(10)],
    "restarted": [batch(n, is_start=n in (0, 6, 8)) for n in range(10)],
    "shorter in between": [batch(n, T=2 if n in (7, 8) else 3, is_start=n == 0) for n in range(14)],
    "smaller at the end": [
        batch(n, B=1 if n % 7 == 6 else 2, is_start=n % 7 in (0, 6)) for n in range(21)
    ],
    "other shape for good": [batch(n, T=3 if n < 8 else 5, is_start=n == 0) for n in range(20)],
    "never twice the same": [batch(n, T=1 + n % 2, is_start=n == 0) for n in range(12)],
    "starts while it would be recorded": [batch(n, is_start=n == WARMUP) for n in range(8)],
}


@pytest.mark.parametrize("name", sorted(SEQUENCES))
def test_state_is_carried_and_cleared_as_it_would_be(name):
    batches = SEQUENCES[name]
    expected, _, _ = counted(batches, None)
    found, counting, steps = counted(batches, Dry())
    assert found == expected
    assert steps.is_recorded == (name != "never twice the same")
    fixed = {id(inputs) for inputs in counting.seen} - {id(b.inputs) for b in batches}
    recordings = {"never twice the same": 0, "other shape for good": 2}.get(name, 1)
    assert len(fixed) == recordings


def test_forgetting_starts_from_no_state():
    batches = [batch(1) for _ in range(WARMUP + 3)]
    _, counting, steps = counted(batches, Dry())
    assert steps.is_recorded
    steps.forget()
    assert steps(counting, batch(1)).item() == 6.0
    steps.restart()
    assert not steps.is_recorded
    assert steps(counting, batch(1)).item() == 6.0


def test_what_cannot_be_recorded_runs_as_it_comes_and_says_why():
    whole = cohort("gru")
    plain, refused = populations.build(whole), populations.build(whole, recorder=Refusing())
    expected = run(plain, 6)
    with pytest.warns(RuntimeWarning, match=r"kernel by kernel.*not permitted when stream is cap"):
        found = run(refused, 6)
    assert_equal(found, expected)
    assert not refused.steps.is_recorded


def test_a_state_of_unknown_kind_is_not_recorded():
    class Box:
        pass

    def advance(trained, inputs, targets, state):
        return inputs.sum().view(1), Box()

    steps = Steps(advance, Dry())
    with pytest.warns(RuntimeWarning, match="got a Box"):
        assert [steps(None, batch(1)).item() for _ in range(6)] == [6.0] * 6


def test_a_recording_keeps_the_memory_it_writes_to():
    """A larger batch from elsewhere takes new memory; the old must not be given back."""
    fixed = populations.build(cohort("gru"), recorder=Dry())
    populations.train_epoch(fixed, 1)
    held = {tensor.data_ptr() for tensor in fixed.steps._recording._held}
    blocks = fixed.network._memory()._blocks
    assert {block.data_ptr() for block in blocks.values()} <= held
    for name in ("weights_NP", "moments", "_columns"):
        tensors = tensors_in(getattr(fixed.optimiser, name))
        assert {tensor.data_ptr() for tensor in tensors} <= held


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@every_network
def test_an_update_leaves_every_tensor_where_it_was(kind, optimiser):
    """A recording goes on writing to where a tensor was; one that takes its place is not seen."""
    population = populations.build(cohort(kind, **OPTIMISERS[optimiser]))
    (first, second, *_) = population.task.training_batches(1)
    _, state = populations.update(population, first, None)
    before = tensors_in(population)
    populations.update(population, second, state)
    population.optimiser.start_epoch(2)
    rung_rows.evaluate(population.network, population.task, "validation")
    after = tensors_in(population)
    assert [id(tensor) for tensor in after] == [id(tensor) for tensor in before]
    assert [t.data_ptr() for t in after] == [t.data_ptr() for t in before]
    assert len(before) > 20


class Watch(TorchDispatchMode):
    """Notes every operation with its numbers, and tensors that are not of the device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.called, self.strangers = device, [], []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = op(*args, **kwargs)
        everything = (args, sorted(kwargs.items()), found)
        for tensor in tensors_in(everything):
            if tensor.device.type != self.device:
                self.strangers.append((str(op), tensor))
        self.called.append((str(op), numbers_in(everything)))
        return found


def numbers_in(value):
    """Numbers and shapes, tensors left out."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(numbers_in(part) for part in value)
    return repr(value)


@pytest.mark.parametrize("optimiser", sorted(OPTIMISERS))
@every_network
def test_an_update_asks_nothing_of_the_device_and_knows_no_number_that_changes(kind, optimiser):
    """On `meta` a value that is read raises, and all but the CPU take the ways of a GPU."""
    whole = cohort(kind, **OPTIMISERS[optimiser])
    task = populations.load_task(whole)
    population = populations.build(dataclasses.replace(whole, device="meta"), task)
    (first, *_), state = task.training_batches(1), None
    first = Batch(first.inputs.to("meta"), first.targets.to("meta"))
    watches = []
    for epoch in (1, 2, 5):
        population.optimiser.start_epoch(epoch)
        for _ in range(2):
            with Watch("meta") as watch:
                _, state = populations.update(population, first, state)
            watches.append(watch)
    assert not any(watch.strangers for watch in watches), watches[0].strangers
    # The first starts from no state and takes its memory.
    for watch in watches[2:]:
        assert watch.called == watches[1].called
    assert len(watches[1].called) > 50


def test_the_watch_sees_what_would_break_a_recording():
    count = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError), Watch("meta"):
        count.sum().item()
    watches = []
    for number in (1.5, 2.5):
        with Watch("meta") as watch:
            torch.where(count > 0, number, count)
            count.add_(number)
        watches.append(watch)
    assert watches[0].called != watches[1].called
    with Watch("meta") as watch:
        count.add(torch.tensor(1.0))
    assert watch.strangers


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_network
def test_cuda_graphs_give_the_losses_of_single_kernels(kind, dtype):
    whole = cohort(kind, device="cuda", dtype=dtype)
    plain, recorded = populations.build(whole, recorder=None), populations.build(whole)
    epochs = -(-100 // plain.task.num_updates)
    expected = run(plain, epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = run(recorded, epochs)
    assert recorded.steps.is_recorded
    assert_equal(found, expected, {"float32": 1e-5, "float64": 1e-10}[dtype])


@needs_cuda
@every_network
def test_cuda_gives_the_losses_of_the_cpu(kind):
    losses = []
    for device in ("cpu", "cuda"):
        population = populations.build(cohort(kind, device=device, dtype="float64"))
        losses.append(
            torch.stack(
                [populations.train_epoch(population, epoch).cpu() for epoch in range(1, 10)]
            )
        )
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-9)


@needs_cuda
@every_network
def test_a_replay_does_not_wait_for_the_device(kind):
    population = populations.build(cohort(kind, device="cuda"))
    populations.train_epoch(population, 1)
    assert population.steps.is_recorded
    (first, *_) = population.task.training_batches(2)
    population.steps(population, first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            population.steps(population, first)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@every_network
def test_a_nan_leaves_the_others_bits_alone_in_cuda_graphs(kind):
    whole = cohort(kind, device="cuda")
    healthy, poisoned = populations.build(whole), populations.build(whole)
    for epoch in (1, 2, 3):
        if epoch == 2:
            poisoned.optimiser.weights_NP[1, 3] = torch.nan
        found = [populations.train_epoch(population, epoch) for population in (healthy, poisoned)]
        assert torch.equal(found[0][[0, 2, 3]], found[1][[0, 2, 3]])
    assert poisoned.steps.is_recorded
    assert poisoned.died_at_N.tolist() == [0, 1 + poisoned.task.num_updates, 0, 0]


@needs_cuda
def test_what_no_graph_can_hold_falls_back():
    def advance(trained, inputs, targets, state):
        return inputs.sum().view(1) * (1.0 if inputs.sum().item() > 0 else -1.0), None

    steps = Steps(advance, CudaGraphs("cuda"))
    on_gpu = Batch(torch.ones(2, 3, 1, device="cuda"), torch.zeros(2, device="cuda"))
    with pytest.warns(RuntimeWarning, match="kernel by kernel"):
        assert [steps(None, on_gpu).item() for _ in range(6)] == [6.0] * 6
