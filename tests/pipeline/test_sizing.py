"""How large cohorts become: what is measured, and what is made of it."""

import dataclasses

import pytest
import torch

from pipeline import config, sizing
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, Limits, TrialSpec, plan
from pipeline.populations import build
from tasks.base import seed_for
from tasks.networks.mlp import MLP
from tasks.planar import Planar

TREE = {
    "trials": 64,
    "task": {"name": "planar", "points": 400, "batch_size": 64},
    "network": {"name": "mlp", "width": 8, "depth": 3},
    "trainer": {"epochs": 2, "learning_rate": {"log_uniform": [1e-4, 1e-1]}},
    "execution": {"executor": "inline"},
}
# Overhead alone, arithmetic alone, and something of both.
OVERHEAD, ARITHMETIC = {1: 1.0, 64: 1.0}, {1: 1.0, 64: 64.0}
BOTH = {1: 1.0, 16: 1.6, 64: 7.0}


@pytest.mark.parametrize(
    ("counts", "seconds", "workers", "most", "size"),
    [
        ([64], OVERHEAD, 1, 999, 64),
        ([64], OVERHEAD, 2, 999, 32),
        ([64], OVERHEAD, 2, 10, 8),
        ([64], OVERHEAD, 2, 11, 11),
        ([64], ARITHMETIC, 2, 999, 1),
        ([7], OVERHEAD, 3, 999, 3),
        ([16, 16], OVERHEAD, 2, 999, 16),
        ([1, 1, 1], OVERHEAD, 2, 999, 1),
        ([1], OVERHEAD, 4, 999, 1),
        # Noise: a clock that says so cannot be right, and must not lead to times below zero.
        ([64], {1: 9.0, 4: 3.0, 16: 1.0}, 1, 64, 64),
        ([8], {1: 9.0, 4: 1.0}, 1, 999, 8),
    ],
)
def test_the_smallest_size_is_taken_that_ends_as_soon_as_any(counts, seconds, workers, most, size):
    assert sizing.best_size(counts, seconds, workers=workers, most=most) == size


def test_no_size_would_end_sooner():
    """Against the obvious way: plan every size and let workers take turns."""
    spec = TrialSpec(
        0, 0, Choice("planar", Planar.Config()), Choice("mlp", MLP.Config()), Trainer()
    )

    def end(size, count, workers):
        specs = [dataclasses.replace(spec, number=n) for n in range(count)]
        busy = [0.0] * workers
        for one in plan(specs, Limits(size=size, sweep_seed=0)):
            busy[busy.index(min(busy))] += sizing._interpolated(len(one.trials), BOTH)
        return max(busy)

    for count in (5, 64, 150):
        for workers in (1, 2, 3):
            found = sizing.best_size([count], BOTH, workers=workers, most=100)
            best = min(end(size, count, workers) for size in range(1, min(100, count) + 1))
            assert end(found, count, workers) <= 1.03 * best


def test_times_in_between_and_beyond_lie_on_lines():
    assert sizing._interpolated(1, BOTH) == 1.0
    assert sizing._interpolated(4, BOTH) == pytest.approx(1 + 3 * 0.6 / 15)
    assert sizing._interpolated(112, BOTH) == pytest.approx(7 + 48 * 5.4 / 48)
    assert sizing._interpolated(3, {1: 2.0}) == 6.0


def test_auto_measures_and_its_result_is_its_own_resolution():
    checked = config.check(TREE)
    done = sizing.settled(checked)
    assert done.is_settled
    assert 1 <= done.limits.size <= 64
    assert done.batch_size == 8 * done.limits.size
    assert sizing.settled(done) is done
    assert config.check(done.tree).tree == done.tree


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the clock: an update is overhead alone; a member takes a mebibyte."""
    asked = []

    def measure(spec, shared, *, most):
        asked.append((spec.network.config, most))
        return {1: 1.0, 64: 1.0}, sizing.Footprint(2**20, 0)

    monkeypatch.setattr(sizing, "measure", measure)
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 2**40)
    return asked


def size_of(**sections):
    return sizing.settled(config.check({**TREE, **sections})).limits.size


def test_every_worker_gets_work(measured):
    for workers in (1, 2, 3, 5):
        execution = {"executor": "process", "workers": workers}
        assert size_of(execution=execution) == -(-64 // workers)


def test_memory_bounds_the_size(measured, monkeypatch):
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 40 * 2**20)
    assert size_of() == 16
    assert size_of(execution={"executor": "process", "workers": 2}) == 8
    monkeypatch.setattr(sizing, "free_bytes", lambda device: 2**10)
    assert size_of() == 1
    monkeypatch.setattr(sizing, "free_bytes", lambda device: None)
    assert size_of() == 64


def test_a_pruner_that_learns_from_finished_trials_gets_some_early(measured):
    assert size_of(pruner={"name": "median"}) == 16
    assert size_of(pruner={"name": "hyperband"}) == 64


def test_an_adaptive_sampler_is_asked_in_batches_that_all_workers_share(measured):
    tree = {**TREE, "sampler": {"name": "tpe"}, "execution": {"executor": "process", "workers": 2}}
    done = sizing.settled(config.check(tree))
    assert (done.limits.size, done.batch_size) == (5, 10)


def test_the_most_frequent_shape_is_measured_and_all_are_planned(measured):
    network = {"name": "mlp", "width": {"choice": [3, 4, 5, 6]}}
    assert size_of(network=network) <= 20
    assert measured[-1][0].width in (3, 4, 5, 6)
    assert measured[-1][1] <= 20
    size_of(network={"name": "mlp", "width": 3, "init_scale": {"uniform": [1, 2]}})
    assert measured[-1][1] == 64


def population(num, width, dtype="float64", batch_size=50):
    task = Choice("planar", Planar.Config(points=400, batch_size=batch_size))
    network = Choice("mlp", MLP.Config(width=width, depth=4))
    trials = [TrialSpec(n, seed_for(n), task, network, Trainer(dtype=dtype)) for n in range(num)]
    return build(Cohort(sweep_seed=0, trials=tuple(trials)))


def test_a_footprint_is_of_one_member_and_counts_all_that_an_update_needs():
    """Float64, Adam, four hidden layers of 20."""
    small, many = population(1, 20), population(8, 20)
    weights = sum(p.numel() * p.element_size() for p in small.network.parameters())
    one, each = sizing.footprint_of(small), sizing.footprint_of(many)
    assert one.lasting == each.lasting == 3 * weights
    # A gradient and a (B, width) tensor a hidden layer, at the very least.
    assert one.passing >= weights + 4 * 50 * 20 * 8
    # Batches are shared, so that one of many needs a little less than one alone.
    assert 0.5 * one.passing <= each.passing <= 1.1 * one.passing
    assert sizing.footprint_of(population(1, 20, "float32")).passing < 0.75 * one.passing
    assert sizing.footprint_of(population(1, 20, batch_size=200)).passing > 2 * one.passing
    assert one.total == one.lasting + one.passing


def test_what_lives_at_a_time_is_counted_not_what_is_made():
    size = 8 * 1000
    with sizing._Allocations([]) as seen:
        for _ in range(50):
            torch.zeros(1000, dtype=torch.float64).add_(1)
    assert size <= seen.peak <= 2 * size
    kept, known = [], torch.zeros(1000)
    with sizing._Allocations([known]) as seen:
        for _ in range(50):
            kept.append(torch.zeros(1000, dtype=torch.float64))
            kept.append(kept[-1].view(10, 100))
            known.mul_(2)
    assert 44 * size <= seen.peak <= 50 * size


def test_measuring_stops_at_what_is_asked_for_and_leaves_no_trace():
    checked = config.check(TREE)
    spec = checked.spec(0, {"trainer.learning_rate": 0.01})
    before = torch.random.get_rng_state()
    found, _ = sizing.measure(spec, checked.limits_of(1), most=20)
    assert set(found) <= {1, 4, 16}
    assert 1 in found
    assert all(0 < s < 1 for s in found.values())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_free_memory_is_the_lesser_of_machine_and_group(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  9 kB\nMemAvailable:    7 kB\n")
    assert sizing._meminfo(info) == 7 * 1024
    assert sizing._meminfo(tmp_path / "none") is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert sizing._cgroup(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert sizing._cgroup(tmp_path) is None
    assert sizing.free_bytes("cpu") > 2**20
