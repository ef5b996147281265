import collections
import itertools
import math
import random

import numpy as np
import optuna
import pytest
from optuna.trial import Trial
from scipy.stats import qmc as scipy_qmc

from pipeline import config, sampling
from pipeline.config import Sampler
from pipeline.space import parse_range

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = {
    path: parse_range(node)
    for path, node in {
        "network.init": {"choice": ["uniform", None, 3]},
        "network.width": {"log_int": [4, 4096]},
        "trainer.epochs": {"int": [1, 1000]},
        "trainer.learning_rate": {"log_uniform": [1e-4, 1e-1]},
        "trainer.weight_decay": {"uniform": [-1, 3]},
    }.items()
}
GRID = {
    "a": parse_range({"choice": ["x", None, 2]}),
    "b": parse_range({"uniform": [0, 1], "num": 3}),
    "c": parse_range({"int": [1, 4]}),
}
DESIGNS = ["qmc", "random", "grid"]


def space_of(name):
    return GRID if name == "grid" else SPACE


def reset(study, name, space, seed=5):
    study.sampler = sampling.make_sampler(
        Sampler(name=name), space, seed=seed, first_number=len(study.get_trials(deepcopy=False))
    )


def draw(name, count, seed=5, space=None):
    """The values of `count` trials, asked one after the other and told."""
    space = space_of(name) if space is None else space
    study = optuna.create_study()
    reset(study, name, space, seed)
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(sampling.suggest(trial, space))
        study.tell(trial, float(trial.number))
    return found


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_repeats_by_seed(name):
    assert draw(name, 20) == draw(name, 20)
    if name != "grid":
        assert draw(name, 20, seed=6) != draw(name, 20)


@pytest.mark.parametrize("name", ["qmc", "random"])
def test_no_two_trials_of_a_design_are_alike(name):
    rates = [values["trainer.learning_rate"] for values in draw(name, 64)]
    assert len(set(rates)) == 64


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_survives_interruption_at_any_trial(name, tmp_path):
    """Each driver reopens the database, with nothing told, and asks for a few more."""
    space, url = space_of(name), f"sqlite:///{tmp_path}/optuna.db"
    found = []
    for size in (1, 3, 2):
        study = optuna.create_study(storage=url, study_name="s", load_if_exists=True)
        reset(study, name, space)
        asked = [study.ask() for _ in range(size)]
        found += [sampling.suggest(trial, space) for trial in asked]
    assert found == draw(name, 6)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_trial_lost_in_the_middle_of_being_asked_keeps_its_point(name):
    space = space_of(name)
    study = optuna.create_study()
    reset(study, name, space)
    trials = [study.ask() for _ in range(5)]
    for trial in trials:
        half = dict(itertools.islice(space.items(), trial.number % 3))
        sampling.suggest(trial, half)
    reset(study, name, space)
    again = [Trial(study, trial._trial_id) for trial in trials]
    found = [sampling.suggest(trial, space) for trial in again]
    found += [sampling.suggest(study.ask(), space) for _ in range(3)]
    assert found == draw(name, 8)


def test_qmc_is_a_scrambled_sobol_sequence():
    """Point n of scipy's sequence, stretched over the ranges, is trial n."""
    space = {p: r for p, r in SPACE.items() if r.kind in ("uniform", "log_uniform")}
    found = draw("qmc", 32, space=space)
    seed = sampling.seed_for(5, "design") % 2**32
    points = scipy_qmc.Sobol(d=2, scramble=True, seed=seed).random(32)
    rates = np.exp(np.log(1e-4) + points[:, 0] * (np.log(1e-1) - np.log(1e-4)))
    decays = -1 + 4 * points[:, 1]
    assert [v["trainer.learning_rate"] for v in found] == pytest.approx(rates, rel=1e-12)
    assert [v["trainer.weight_decay"] for v in found] == pytest.approx(decays, rel=1e-12)


def test_qmc_points_are_those_of_plain_optuna():
    """Plain Optuna draws its first trial at random and starts the sequence at the second."""
    seed = sampling.seed_for(5, "design") % 2**32
    plain = optuna.create_study(
        sampler=optuna.samplers.QMCSampler(
            scramble=True, seed=seed, warn_independent_sampling=False
        )
    )
    expected = []
    for _ in range(17):
        trial = plain.ask()
        expected.append(sampling.suggest(trial, SPACE))
        plain.tell(trial, 0.0)
    assert draw("qmc", 16) == expected[1:]


def test_qmc_covers_more_evenly_than_random_points():
    def discrepancy(name, seed):
        space = {p: r for p, r in SPACE.items() if r.kind in ("uniform", "log_uniform")}
        unit = [
            (
                math.log10(v["trainer.learning_rate"] / 1e-4) / 3,
                (v["trainer.weight_decay"] + 1) / 4,
            )
            for v in draw(name, 64, seed=seed, space=space)
        ]
        return scipy_qmc.discrepancy(np.array(unit))

    for seed in range(3):
        assert discrepancy("qmc", seed) < 0.3 * discrepancy("random", seed)


@pytest.mark.parametrize("name", ["qmc", "random"])
def test_values_stay_in_their_ranges_and_use_them(name):
    found = draw(name, 256)
    choices = collections.Counter(values["network.init"] for values in found)
    assert set(choices) == {"uniform", None, 3}
    assert min(choices.values()) > 256 / 3 * 0.7
    for path, r in SPACE.items():
        if r.kind == "choice":
            continue
        values = np.array([v[path] for v in found])
        assert r.low <= values.min()
        assert values.max() <= r.high
        assert all(type(v[path]) is (int if r.is_whole else float) for v in found)
        middle = math.sqrt(r.low * r.high) if r.is_log else (r.low + r.high) / 2
        assert 0.4 < (values < middle).mean() < 0.6


def test_a_grid_is_its_product_each_point_once():
    size = 3 * 3 * 4
    points = [tuple(values.values()) for values in draw("grid", size)]
    assert points == list(itertools.product(["x", None, 2], [0.0, 0.5, 1.0], [1, 2, 3, 4]))


def adaptive_sweep(name, batch, order_seed, space, trials=24):
    """Asks in batches; the trials of a batch finish in an order that only `order_seed` knows."""
    study = optuna.create_study()
    found = []
    while len(found) < trials:
        reset(study, name, space)
        asked = [study.ask() for _ in range(batch)]
        values = [sampling.suggest(trial, space) for trial in asked]
        found += values
        done = list(zip(asked, values, strict=True))
        random.Random(order_seed).shuffle(done)
        for trial, value in done:
            study.tell(trial, (math.log10(value["rate"]) + 2) ** 2 + value["decay"])
    return found


@pytest.mark.parametrize("name", ["tpe", "cmaes", "gp"])
def test_adaptive_samplers_repeat_whatever_finishes_first(name):
    space = {
        "decay": parse_range({"uniform": [0, 1]}),
        "rate": parse_range({"log_uniform": [1e-4, 1]}),
    }
    runs = [adaptive_sweep(name, 6, order_seed, space, trials=18) for order_seed in (1, 2)]
    assert runs[0] == runs[1]
    assert len({values["rate"] for values in runs[0]}) == 18


def test_tpe_learns_from_earlier_batches():
    space = {
        "decay": parse_range({"uniform": [0, 1]}),
        "rate": parse_range({"log_uniform": [1e-4, 1]}),
    }
    found = adaptive_sweep("tpe", 8, 0, space, trials=64)
    miss = [abs(math.log10(v["rate"]) + 2) for v in found]
    assert np.mean(miss[-24:]) < 0.7  # Points drawn evenly miss by 1 on average.


HILL = {
    "a": parse_range({"uniform": [0, 1]}),
    "b": parse_range({"log_uniform": [1e-4, 1]}),
    "c": parse_range({"uniform": [-1, 1]}),
    "d": parse_range({"choice": ["x", "y", "z"]}),
}


def height(v):
    """Least 0, at b = 10^-2.3, a = 0.3, c = 0.06, d = y; 2.3 on average."""
    away = (math.log10(v["b"]) + 2.3) ** 2 / 4 + (v["a"] - 0.3) ** 2 * 4
    return away + (v["c"] - 0.2 * v["a"]) ** 2 * 3 + {"x": 0.3, "y": 0.0, "z": 0.6}[v["d"]]


def outcomes(name, batch, trials, seed):
    """Values of the trials in order, each batch told before the next is asked for."""
    study = optuna.create_study()
    found = []
    while len(found) < trials:
        reset(study, name, HILL, seed)
        asked = [study.ask() for _ in range(min(batch, trials - len(found)))]
        values = [sampling.suggest(trial, HILL) for trial in asked]
        for trial, value in zip(asked, values, strict=True):
            study.tell(trial, height(value))
            found.append(height(value))
    return found


def test_tpe_in_default_batches_beats_chance_and_loses_little_to_asking_one_by_one():
    trials, seeds = 64, range(6)
    tree = {"trials": trials, "task": {"name": "planar"}, "network": {"name": "mlp"}}
    execution = {"cohort_size": 32, "workers": 2}
    batch = config.check({**tree, "sampler": {"name": "tpe"}, "execution": execution}).batch_size
    assert batch == 10
    best, late = {}, {}
    for label, name, size in (("random", "random", 1), ("one", "tpe", 1), ("batch", "tpe", batch)):
        runs = [outcomes(name, size, trials, seed) for seed in seeds]
        best[label] = np.mean([min(run) for run in runs])
        late[label] = np.mean([run[-16:] for run in runs])
    assert best["batch"] < 0.5 * best["random"]
    assert late["batch"] < 0.25 * late["random"]
    # Of the way from chance to one by one, nine tenths at least are gone in batches.
    assert late["random"] - late["batch"] > 0.9 * (late["random"] - late["one"])


def test_all_trials_in_one_batch_make_tpe_a_random_search():
    """Why the default batch is bounded."""
    late = {
        size: np.mean([outcomes("tpe", size, 64, seed)[-16:] for seed in range(3)])
        for size in (8, 64)
    }
    assert late[64] > 4 * late[8]


def test_random_starts_are_as_many_as_asked_for():
    study = optuna.create_study()
    for number in range(6):
        sampler = sampling.make_sampler(
            Sampler(name="tpe", startup=4), HILL, seed=1, first_number=number
        )
        study.sampler = sampler
        trial = study.ask()
        sampling.suggest(trial, HILL)
        # Learnt values are drawn together, random ones each by itself.
        assert bool(trial.relative_params) == (number >= 4)
        study.tell(trial, float(number))


@pytest.mark.parametrize("name", ["qmc", "random", "grid", "tpe", "gp", "cmaes"])
def test_an_empty_space_gives_trials_without_values(name):
    assert draw(name, 3, space={}) == [{}, {}, {}]
