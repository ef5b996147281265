import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import catalog, practice
from pipeline.config import check
from pipeline.estimate import Driving, Known, Load, forecast, load_of, memory_of
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, Limits, TrialSpec, plan, shape_key
from pipeline.planning import describe, size, to_practise
from pipeline.populations import load_task
from pipeline.practice import pace_of
from pipeline.regularisers.flossing import Flossing
from pipeline.regularisers.smoothness import Smoothness
from pipeline.train import train
from tasks.base import per_member_fields, seed_for
from tasks.delayed_recall import DelayedRecall
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN
from tasks.planar import Planar

PLANAR = Choice("planar", Planar.Config(points=200))
SMOOTHNESS = Choice("smoothness", Smoothness.Config())


def spec(number, network=None, **trainer):
    network = network or MLP.Config()
    name = "lstm" if isinstance(network, LSTM.Config) else "mlp"
    return TrialSpec(
        number, seed_for("s", number), PLANAR, Choice(name, network), Trainer(**trainer)
    )


_SPECS = st.lists(
    st.tuples(
        st.sampled_from([4, 8]),
        st.sampled_from(["float32", "float64"]),
        st.floats(1e-4, 1e-1),
        st.floats(0.1, 3),
    ),
    max_size=40,
).map(
    lambda drawn: [
        spec(n, MLP.Config(width=width, init_scale=scale), dtype=dtype, learning_rate=rate)
        for n, (width, dtype, rate, scale) in enumerate(drawn)
    ]
)


@given(_SPECS, st.integers(1, 9))
def test_cohorts_hold_each_trial_once_in_even_parts_of_one_shape(specs, size):
    cohorts = plan(specs, Limits(size=size, sweep_seed=1))
    assert sorted(n for c in cohorts for n in c.numbers) == list(range(len(specs)))
    sizes = {}
    for cohort in cohorts:
        assert 1 <= len(cohort.trials) <= size
        assert list(cohort.numbers) == sorted(cohort.numbers)
        keys = {shape_key(t) for t in cohort.trials}
        assert len(keys) == 1
        sizes.setdefault(keys.pop(), []).append(len(cohort.trials))
    for found in sizes.values():
        assert max(found) - min(found) <= 1
        assert len(found) == -(-sum(found) // size)
    firsts = [c.numbers[0] for c in cohorts]
    assert firsts == sorted(firsts)
    assert plan(specs, Limits(size=size, sweep_seed=1)) == cohorts


def altered(value, kind):
    """Another value of the same kind."""
    if value is None:
        return 0.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if kind == "regularise":
        return (SMOOTHNESS,)
    others = {"adam": "sgd", "float32": "float64", "tanh": "relu", "gaussian": "uniform"}
    return others.get(value, "gaussian" if kind == "init" else value + "x")


def test_per_member_settings_never_split_a_cohort_and_all_others_do():
    reference = spec(0)
    checked = 0
    for holder in ("trainer", "network"):
        config = reference.trainer if holder == "trainer" else reference.network.config
        free = per_member_fields(type(config))
        for field in dataclasses.fields(config):
            if field.name == "momentum":
                continue  # Only valid with sgd; checked below.
            other = dataclasses.replace(
                config, **{field.name: altered(getattr(config, field.name), field.name)}
            )
            changed = (
                dataclasses.replace(reference, number=1, trainer=other)
                if holder == "trainer"
                else dataclasses.replace(reference, number=1, network=Choice("mlp", other))
            )
            together = len(plan([reference, changed], Limits(size=8, sweep_seed=0))) == 1
            assert together == (field.name in free), field.name
            checked += 1
    assert checked > 15
    for other, together in (
        (Smoothness.Config(weight=0.0), True),
        (Smoothness.Config(until=1), False),
        (Flossing.Config(), False),
    ):
        name = "flossing" if isinstance(other, Flossing.Config) else "smoothness"
        both = [
            spec(n, regularise=(one,)) for n, one in enumerate((SMOOTHNESS, Choice(name, other)))
        ]
        assert (len(plan(both, Limits(size=8, sweep_seed=0))) == 1) == together
    sgd = [spec(n, optimiser="sgd", momentum=m) for n, m in enumerate((0.0, 0.5))]
    assert len(plan(sgd, Limits(size=8, sweep_seed=0))) == 1


def test_tasks_and_networks_of_other_names_never_share_a_cohort():
    one = spec(0)
    tasks = [Choice("planar", Planar.Config(points=201)), Choice("other", PLANAR.config)]
    others = [dataclasses.replace(one, number=1, task=task) for task in tasks]
    others.append(dataclasses.replace(one, number=1, network=Choice("other", one.network.config)))
    for other in others:
        assert len(plan([one, other], Limits(size=8, sweep_seed=0))) == 2


def test_cohorts_carry_the_limits():
    limits = Limits(
        size=2, sweep_seed=9, measure=(Choice("x", PLANAR.config),), threads=3, keep_weights=True
    )
    (cohort,) = plan([spec(0), spec(1)], limits)
    for name in ("sweep_seed", "measure", "device", "threads", "keep_weights"):
        assert getattr(cohort, name) == getattr(limits, name)


def test_no_trials_make_no_cohorts():
    assert plan([], Limits(size=3, sweep_seed=0)) == []


def test_interleaved_shapes_keep_their_order():
    specs = [spec(n, MLP.Config(width=4 + n % 3)) for n in range(11)]
    cohorts = plan(specs, Limits(size=4, sweep_seed=0))
    assert sorted(itertools.chain(*(c.numbers for c in cohorts))) == list(range(11))
    assert [c.numbers for c in cohorts] == [(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8)]


# What `lyapsweep plan` foretells.


def load(members=1, training=1.0, measuring=0.0):
    return Load(members, training, measuring)


def test_cohorts_go_to_whoever_is_free_first():
    one_batch = [[load(training=t) for t in (4.0, 1.0, 2.0, 3.0)]]
    assert forecast(one_batch, Driving(), slots=1).total == 10.0
    # 4 on one worker; 1, 2 and 3 on the other.
    assert forecast(one_batch, Driving(), slots=2).total == 6.0
    assert forecast(one_batch, Driving(), slots=9).total == 4.0


def test_only_samplers_that_learn_wait_for_a_batch():
    batches = [[load(training=3.0), load(training=1.0)], [load(training=2.0)]]
    assert forecast(batches, Driving(), slots=2).total == 3.0
    assert forecast(batches, Driving(), slots=2, waits=True).total == 5.0


def test_a_worker_waits_while_its_cohort_is_recorded():
    batches = [[load(members=4, training=2.0), load(members=4, training=2.0)]]
    driving = Driving(start=5.0, ask=0.25, begin=0.1, follow=0.05, publish=0.5, end=1.0)
    alone = forecast(batches, driving, slots=1)
    # Eight are asked for; then each trains and is recorded; of beginning nothing is seen.
    assert alone.recording == pytest.approx(8 * 0.25 + 2 * 4 * 0.5)
    assert (alone.start, alone.training) == (6.0, 4.0)
    assert alone.total == pytest.approx(6 + 4 + 6)
    # Two end at once, and are recorded one after the other.
    assert forecast(batches, driving, slots=2).total == pytest.approx(6 + 2 + 6)
    # A driver that trains does nothing else meanwhile.
    inline = forecast(batches, driving, slots=1, is_inline=True)
    assert inline.total - alone.total == pytest.approx(8 * (0.1 + 0.05))


def test_a_driver_that_cannot_keep_up_sets_the_pace():
    batches = [[load(members=10, training=0.1) for _ in range(5)]]
    slow = forecast(batches, Driving(follow=0.2, publish=0.1), slots=2)
    assert slow.total == pytest.approx(5 * 10 * 0.3)


def test_measuring_is_what_the_sweep_ends_later_for_it():
    batches = [[load(training=2.0, measuring=1.0), load(training=5.0, measuring=0.5)]]
    found = forecast(batches, Driving(), slots=2)
    assert (found.training, found.measuring, found.working) == (5.0, 0.5, 8.5)


@given(
    st.lists(
        st.lists(
            st.builds(Load, st.integers(1, 9), st.floats(0, 9), st.floats(0, 9)),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_forecast_keeps_within_what_any_schedule_can(batches, slots, waits):
    driving = Driving(start=1.0, ask=0.1, begin=0.1, follow=0.1, publish=0.1, end=1.0)
    found = forecast(batches, driving, slots=slots, waits=waits)
    loads = [c.training + c.measuring for batch in batches for c in batch]
    assert found.working == pytest.approx(sum(loads))
    least = max(sum(loads) / slots, max(loads))
    num_trials = sum(c.members for batch in batches for c in batch)
    serial = 2.0 + sum(loads) + 0.4 * num_trials
    assert 2.0 + least - 1e-9 <= found.total <= serial + 1e-9


def test_loads_between_those_known_lie_on_lines():
    small = [Known("a", 10, Load(2, 1.0, 0.2)), Known("a", 10, Load(6, 2.0, 0.4))]
    assert load_of("a", 10, 4, small) == Load(4, pytest.approx(1.5), pytest.approx(0.3))
    # Of one size: half of it is overhead, half arithmetic.
    assert load_of("a", 10, 1, small[:1]).training == pytest.approx(0.75)
    other = [*small, Known("b", 30, Load(4, 3.5, 0.9))]
    between = load_of("c", 20, 4, other)
    assert between == Load(4, pytest.approx(2.5), pytest.approx(0.6))
    # No line is followed beyond what was timed.
    assert load_of("c", 1000, 4, other).training == pytest.approx(3.5)


def test_what_processes_share_counts_once():
    assert memory_of(300, [100, 100], 50) == 550
    assert (size(350e6), size(1.44e9)) == ("350 MB", "1.4 GB")


def test_few_shapes_are_practised_in_both_sizes_many_in_part():
    def cohorts_of(widths, sizes):
        numbers = itertools.count()
        return [
            Cohort(
                sweep_seed=0,
                trials=tuple(spec(next(numbers), MLP.Config(width=width)) for _ in range(n)),
            )
            for width in widths
            for n in sizes
        ]

    def chosen(widths, sizes):
        found = to_practise(cohorts_of(widths, sizes))
        return [(c.trials[0].network.config.width, len(c.trials)) for c in found]

    assert chosen([4, 8], [3, 2, 1, 3]) == [(4, 1), (4, 3), (8, 1), (8, 3)]
    assert chosen([4, 8, 16, 32], [2, 3]) == [(w, 3) for w in (4, 8, 16, 32)]
    many = chosen([32, *range(4, 24, 2)], [1])
    assert [many[0], many[-1]] == [(4, 1), (32, 1)]
    assert len(many) == 6


def test_a_practice_counts_up_to_the_whole():
    network = MLP.Config(depth=2, width=6)
    measure = (Choice("ftle", catalog.load("diagnostics", "ftle").Config(at=(0, 1), probes=20)),)
    cohort = Cohort(
        sweep_seed=0,
        measure=measure,
        trials=tuple(spec(n, network, epochs=12) for n in range(3)),
    )
    task = load_task(cohort)
    deepest = max(_seconds(cohort, task) for _ in range(2))
    pace = pace_of(cohort, task, 0.05)
    assert (pace.members, pace.num_parameters) == (3, 6 * 2 + 6 + 6 * 6 + 6 + 2 * 6 + 2)
    # It was to train for a twentieth of a second; machines are busy, hence the wide berth.
    assert deepest / 4 < pace.training + pace.measuring < 4 * deepest
    assert {"train_loss", "val_loss"} <= {row.quantity for row in pace.after}
    assert any(row.quantity.startswith("ftle") for row in pace.before)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gradient_alignment", {"sequences": 16}),
        ("gradient_norm", {"examples": 16}),
        ("input_ftle", {"sequences": 16}),
        ("lyapunov_spectrum", {"sequences": 16, "k": 4}),
    ],
)
def test_readings_too_dear_to_be_whole_are_tasted(name, settings, monkeypatch):
    # Measured on a part that their own bounds allow, as small as it may be: nothing is that cheap.
    monkeypatch.setattr(practice, "_CHEAP", 0.0)
    config = catalog.load("diagnostics", name).Config(at=(0, 1), **settings)
    trial = dataclasses.replace(
        spec(0, epochs=2),
        task=Choice("delayed_recall", DelayedRecall.Config(symbols=3, steps=8, updates=2)),
        network=Choice("rnn", RNN.Config(units=12)),
    )
    cohort = Cohort(sweep_seed=0, measure=(Choice(name, config),), trials=(trial,))
    assert pace_of(cohort, load_task(cohort), 1e-6).measuring > 0


def _seconds(cohort, task):
    started = time.perf_counter()
    for _ in train(cohort, task):
        pass
    return time.perf_counter() - started


def test_where_only_workers_have_gpus_settings_alone_are_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tree = {
        "trials": 4,
        "task": {"name": "planar", "points": 200},
        "network": {"name": "mlp", "depth": 2, "width": 6},
        "trainer": {"epochs": 2},
        "execution": {"executor": "ray", "device": "cuda", "cohort_size": 2, "workers": 1},
    }
    lines = list(describe(check(tree)))
    assert lines[0] == "task      planar"
    assert lines[-1] == "time      unknown: trials train on cuda, and this machine has none"


@pytest.mark.slow
def test_plan_foretells_a_sweep(tmp_path):
    """Start to end of real processes. The wide berth is for tests that run beside others."""
    tree = {
        "trials": 6,
        "task": {"name": "planar", "points": 200},
        "network": {"name": "mlp", "depth": 2, "width": 6},
        "trainer": {"epochs": 2},
        "execution": {"cohort_size": 3, "workers": 1, "threads": 1},
    }
    (tmp_path / "conf.yaml").write_text(json.dumps(tree))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LYAPSWEEP_")}
    environment |= {"LYAPSWEEP_STORE": f"folder:{tmp_path / 'store'}"}
    command = [str(Path(sys.executable).with_name("lyapsweep"))]

    def run(*words):
        started = time.perf_counter()
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, time.perf_counter() - started

    before = set(tmp_path.iterdir())
    told, _ = run("plan", "conf.yaml")
    assert set(tmp_path.iterdir()) == before
    lines = dict(line.split(maxsplit=1) for line in told.splitlines())
    form = r"about (\d+) s here \(start \d+ s, training \d+ s, measuring 0 s, recording \d+ s\)"
    seconds = int(re.fullmatch(form, lines["time"])[1])
    form = r"about (\d+) MB: driver (\d+) MB, 1 worker of (\d+) MB, libraries they share (\d+) MB"
    total, *parts = map(int, re.fullmatch(form, lines["memory"]).groups())
    assert abs(total - sum(parts)) <= 2
    assert all(30 < part < 2000 for part in parts)
    _, taken = run("sweep", "conf.yaml", "--name", "one")
    assert taken / 3 < seconds < 3 * taken + 1
