import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.optim import Trainer
from pipeline.plan import Choice, Limits, TrialSpec, plan, shape_key
from tasks.base import per_member_fields, seed_for
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.planar import Planar

PLANAR = Choice("planar", Planar.Config(points=200))


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
