"""What every task, network and diagnostic must do; a new plug-in is tested once its file exists."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import catalog
from pipeline.diagnostics.base import Moment
from pipeline.rung_rows import evaluate
from tasks.base import (
    Config,
    MissingDataError,
    Task,
    UnsuitableError,
    generator_for,
    per_member_fields,
    seed_for,
)
from tasks.networks.base import Network
from tasks.networks.dropout import DropoutStreams

TASKS = sorted(catalog.entries("tasks"))
NETWORKS = sorted(catalog.entries("networks"))
DIAGNOSTICS = sorted(catalog.entries("diagnostics"))


def task_named(name: str, seed: int = 5) -> Task:
    loaded: type[Task] = catalog.load("tasks", name)
    try:
        return loaded(loaded.Config(), seed=seed, dtype=torch.float64)
    except MissingDataError as missing:
        pytest.skip(str(missing))


def task_for(network: type[Network]) -> Task:
    for name in TASKS:
        loaded: type[Task] = catalog.load("tasks", name)
        if loaded.input_kind in network.accepts:
            return task_named(name)
    pytest.fail(f"no task gives what {network.__name__} takes")


def population(name: str, members: list[int], task: Task, dtype: Any = torch.float64) -> Network:
    loaded: type[Network] = catalog.load("networks", name)
    rates = [0.1 + 0.05 * m for m in members]
    configs = [loaded.Config(dropout=rate) for rate in rates]
    return loaded(
        configs,
        input_size=task.input_size,
        output_size=task.output_size,
        generators=[generator_for(m, "init") for m in members],
        dtype=dtype,
    )


def dropout_of(members: list[int]) -> DropoutStreams:
    return DropoutStreams([seed_for(m, "dropout") for m in members])


def gradients(network: Network, task: Task, members: list[int]) -> list[Tensor]:
    batch = next(iter(task.training_batches(1)))
    outputs, _ = network(batch.inputs, dropout=dropout_of(members))
    losses = task.per_example(outputs, batch.targets)["loss"].mean(1)
    return list(torch.autograd.grad(losses.sum(), list(network.parameters())))


@pytest.mark.parametrize("kind", sorted(catalog.kinds()))
def test_every_plugin_says_what_it_is(kind: str) -> None:
    assert catalog.entries(kind)
    for entry in catalog.entries(kind).values():
        assert entry.summary.endswith((".", "?")), f"{entry.name}: a sentence, please"
        loaded = catalog.load(kind, entry.name)
        assert loaded.__name__ == entry.class_name
        config = getattr(loaded, "Config", None)
        if config is not None:
            assert issubclass(config, Config)
            assert config.__dataclass_params__.frozen


@pytest.mark.parametrize("name", TASKS)
def test_task_repeats_and_keeps_its_promises(name: str) -> None:
    task, again = task_named(name), task_named(name)
    assert task.fingerprint == again.fingerprint
    assert len(task.fingerprint) == 64
    assert 0 < task.chance_loss < float("inf")
    batches = list(task.training_batches(2))
    assert len(batches) == task.num_updates
    assert batches[0].is_start
    for one, two in itertools.islice(zip(batches, again.training_batches(2), strict=True), 5):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)
    outputs = torch.zeros(3, *task_outputs(task, batches[0].inputs), dtype=torch.float64)
    scored = task.per_example(outputs, batches[0].targets)
    assert "loss" in scored
    assert {v.shape for v in scored.values()} == {scored["loss"].shape}
    assert scored["loss"].shape[0] == 3
    summary = task.summarise({k: v.double().mean(1) for k, v in scored.items()})
    assert task.score_name in summary
    assert summary[task.score_name].shape == (3,)


def task_outputs(task: Task, inputs: Tensor) -> tuple[int, ...]:
    lengths = inputs.shape[:1] if task.input_kind == "vector" else inputs.shape[:2]
    return (*lengths, task.output_size)


@pytest.mark.parametrize("name", TASKS)
def test_task_probes_validation_only(name: str) -> None:
    task = task_named(name)
    # Real sequences in their own length, so that they can be found again among those of the split.
    steps = None if task.input_kind == "sequence" else 20
    probe = task.probe_inputs(8, steps, generator_for("probe"))
    same = task.probe_inputs(8, steps, generator_for("probe"))
    assert torch.equal(probe.inputs, same.inputs)
    assert len(probe.inputs) == len(probe.targets) == 8
    if task.input_kind != "tokens":
        validation = {row.numpy().tobytes() for b in task.batches("validation") for row in b.inputs}
        assert {row.numpy().tobytes() for row in probe.inputs} <= validation
    with pytest.raises(UnsuitableError):
        task.probe_inputs(10**9, 10**9, generator_for("probe"))


@pytest.mark.parametrize("name", NETWORKS)
def test_company_does_not_matter(name: str) -> None:
    loaded: type[Network] = catalog.load("networks", name)
    task = task_for(loaded)
    together = population(name, [0, 1, 2], task)
    alone = population(name, [1], task)
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a[1], b[0])
    in_company = gradients(together, task, [0, 1, 2])
    for a, b in zip(in_company, gradients(alone, task, [1]), strict=True):
        torch.testing.assert_close(a[1], b[0], rtol=1e-10, atol=1e-12)
    order = [2, 0, 1]
    shuffled = gradients(population(name, order, task), task, order)
    for a, b in zip(in_company, shuffled, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_poison_stays_where_it_is(name: str, dtype: torch.dtype) -> None:
    loaded: type[Network] = catalog.load("networks", name)
    task = task_for(loaded)
    healthy = population(name, [0, 1, 2], task, torch.float64)
    poisoned = population(name, [0, 1, 2], task, torch.float64)
    with torch.no_grad():
        for parameter in poisoned.parameters():
            parameter[1] = torch.nan
    for a, b in zip(
        gradients(healthy, task, [0, 1, 2]), gradients(poisoned, task, [0, 1, 2]), strict=True
    ):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert bool(b[1].isnan().any())


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_has_no_dropout_and_no_memory(name: str) -> None:
    loaded: type[Network] = catalog.load("networks", name)
    task = task_for(loaded)
    network = population(name, [0, 1], task)
    first = evaluate(network, task, "validation")
    second = evaluate(network, task, "validation")
    for key, values in first.items():
        assert torch.equal(values, second[key])
    assert "dropout" in per_member_fields(loaded.Config)


@pytest.mark.parametrize("name", NETWORKS)
def test_tangents_are_the_derivative(name: str) -> None:
    """J as a whole equals J column by column, and maps chain along the orbit."""
    loaded: type[Network] = catalog.load("networks", name)
    task = task_for(loaded)
    network = population(name, [0, 1], task)
    probe = task.probe_inputs(3, 4, generator_for("tangent"))
    orbit = network.orbit(probe.inputs)
    assert (orbit.num_members, orbit.num_sequences) == (2, 3)
    size = orbit.tangent_size
    maps = list(orbit.maps())
    assert len(maps) == orbit.num_steps
    identity = torch.eye(size, dtype=torch.float64).expand(2, 3, size, size)
    torch.testing.assert_close(maps[0](identity), maps[0].dense(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_regularisers_are_offered_is_the_network_itself(name: str) -> None:
    """Maps in the graph are those that are measured; a sequence of layers is of parameters."""
    loaded: type[Network] = catalog.load("networks", name)
    task = task_for(loaded)
    network = population(name, [0, 1], task)
    inputs = task.probe_inputs(3, 4, generator_for("tangent")).inputs
    learned = list(network.parameters())
    sequence = network.layer_sequence()
    if sequence is not None:
        for layers in sequence.roles:
            assert len(layers) > 1
            assert {layer.shape for layer in layers} == {(2, *layers[0].shape[1:])}
        total = sum(layer.square().sum() for role in sequence.roles for layer in role)
        slopes = torch.autograd.grad(total, learned, allow_unused=True)
        assert any(slope is not None and (slope != 0).any() for slope in slopes)
    orbit = network.differentiable_orbit(inputs)
    if orbit is None:
        return
    Q = torch.eye(orbit.tangent_size, 2, dtype=torch.float64).expand(2, 3, -1, -1)
    along, measured = Q, Q
    for ours, theirs in zip(orbit.maps(), network.orbit(inputs).maps(), strict=True):
        along, measured = ours(along), theirs(measured)
    torch.testing.assert_close(along, measured, rtol=1e-10, atol=1e-12)
    weights = [p for p in learned if p.ndim > 2]
    slopes = torch.autograd.grad(along.square().sum(), weights, allow_unused=True)
    assert any(slope is not None and (slope != 0).any() for slope in slopes)


def small_config(diagnostic: type[Any]) -> Any:
    wanted = {"at": (0, 1), "sequences": 2, "steps": 8, "warmup": 2, "k": 3, "probes": 6}
    names = {f.name for f in dataclasses.fields(diagnostic.Config)}
    return diagnostic.Config(**{k: v for k, v in wanted.items() if k in names})


def suits(diagnostic: Any, network: Network, task: Task) -> bool:
    try:
        diagnostic.check(network, task)
    except UnsuitableError:
        return False
    return True


@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostic_reads_and_touches_nothing(name: str, network_name: str) -> None:
    diagnostic_type = catalog.load("diagnostics", name)
    loaded: type[Network] = catalog.load("networks", network_name)
    task = task_for(loaded)
    network = population(network_name, [0, 1, 2], task)
    diagnostic = diagnostic_type(small_config(diagnostic_type))
    if not suits(diagnostic, network, task):
        with pytest.raises(UnsuitableError, match=name):
            diagnostic.check(network, task)
        return
    with torch.no_grad():
        next(iter(network.parameters()))[1] = torch.nan
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights = [p.detach().clone() for p in network.parameters()]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    network.train()
    readings = diagnostic.measure(network, task, Moment(1, 10, 99, (1, 2, 3)))
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=0, atol=0, equal_nan=True)
        assert bool((parameter.grad == 1).all())
    assert len({r.quantity for r in readings}) == len(readings)
    for reading in readings:
        assert reading.values_N.shape[0] == 3
        assert reading.values_N.dtype == torch.float64
        assert reading.values_N.dim() == 1 + len(reading.axes)
        for extra in (reading.error_N, reading.marks_N):
            assert extra is None or extra.shape == reading.values_N.shape
    alone = population(network_name, [0], task)
    for reading, single in zip(
        readings, diagnostic.measure(alone, task, Moment(1, 10, 99, (1,))), strict=True
    ):
        torch.testing.assert_close(
            reading.values_N[0], single.values_N[0], rtol=1e-9, atol=1e-12, equal_nan=True
        )
    poisoned = [r for r in readings if bool(r.values_N[1].isnan().any())]
    assert poisoned, "NaN weights must show"
    assert all(r.flags is not None and r.flags[1] for r in poisoned)
