"""The studies on structure-preserving networks: from training to picture, and their verdicts."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.studies import owren_eigenvalues as eigenvalues
from analysis.studies import owren_hamiltonian as hamiltonian
from analysis.studies import owren_nets as nets
from analysis.studies import owren_regularisation as regularisation
from analysis.studies import owren_stability as stability
from analysis.studies import owren_transitions as transitions
from analysis.studies import settings
from analysis.studies.outcome import carry_out
from analysis.studies.planar_accuracy import ABOVE, ACCURACY, BEST, best_rule
from pipeline import config
from pipeline.diagnostics.structure import Trajectories
from pipeline.store import open_store
from tasks.base import generator_for
from tasks.planar import Planar, draw_points

EPOCHS = 2
SEEDS = 2


def small(name, **own):
    """Two networks of every kind, of three layers, trained for a moment on few points."""
    found = settings.load(name, seeds=SEEDS)
    changed = dataclasses.replace(found.config, **own)
    sweeps = {part: _small(sweep.tree) for part, sweep in found.sweeps.items()}
    return dataclasses.replace(found, seeds=SEEDS, sweeps=sweeps, config=changed)


def _small(tree):
    measure = {
        kind: {**each, "at": [0, EPOCHS], "probes": 12} for kind, each in tree["measure"].items()
    }
    changed = {
        "task": {**tree["task"], "points": 160, "batch_size": 40},
        "network": {**tree["network"], "depth": 3},
        "trainer": {**tree["trainer"], "epochs": EPOCHS},
        "measure": measure,
        "execution": {**tree["execution"], "executor": "inline", "cohort_size": 32},
    }  # fmt: skip
    return config.check({**tree, **changed})


@pytest.mark.parametrize(
    ("name", "own", "tables"),
    [
        (
            "owren_transitions",
            {"points": 200, "drawn": 20, "batch": 10},
            {"accuracy", "gradients", "states", "lines"},
        ),
        ("owren_stability", {"draws": 40, "points": 200}, {"random", "training", "accuracy"}),
        (
            "owren_hamiltonian",
            {"points": 200, "trajectories": 20},
            {"accuracy", "structure", "exponents"},
        ),
        ("owren_regularisation", {"points": 200}, {"networks", "parameters"}),
        ("owren_eigenvalues", {"points": 20}, {"layers", "networks"}),
        ("owren_nets", {"points": 200}, {"networks", "steps", "effective"}),
    ],
)
def test_from_training_to_picture(name, own, tables, tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    done = carry_out(small(name, **own), open_store(f"folder:{tmp_path}/store"))
    assert done.tables.keys() == tables
    assert done.picture.startswith(b"\x89PNG")
    for finding in done.outcome.findings:
        assert "nan" not in finding.found.lower(), finding.found
        assert math.isfinite(finding.effect), finding
    # What is a theorem holds after two epochs as well.
    found = {f.claim: f.verdict for f in done.outcome.findings}
    for claim in ("adjoint", "rate", "never_expands", "kept_in_training", "pairs", "sum", "order"):
        assert found.get(claim, "reproduced") == "reproduced"


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", ["transitions", "stability", "hamiltonian"])
def test_networks_of_one_shape_train_together(name, scale):
    """All trials are asked for at once; a smaller batch would cut every cohort in pieces."""
    found = settings.load(f"owren_{name}", scale)
    sweep = found.sweeps["nets"]
    assert sweep.sampler.batch >= sweep.trials
    assert sweep.trials % found.seeds == 0


def verdicts(study, tables):
    return {f.claim: f for f in study(study.Config()).judge(tables)}


def accuracy(cases, values, columns):
    rows = []
    for case, above in zip(cases, values, strict=True):
        for seed, extra in enumerate((-0.5, 0.0, 0.5)):
            values = {ABOVE: above + extra, ACCURACY: 95 + above + extra, BEST: 95.0}
            rows.append({**dict(zip(columns, case, strict=True)), "network": seed, **values})
    return pd.DataFrame(rows)


CASES = [(s, m) for s in ("spiral", "squares") for m in transitions.METHODS]


def gradients(exact, plain):
    rows = [
        {"set": s, "method": m, "network": 0, "adjoint equation by": way, "relative error": error}
        for s, m in CASES
        for way, error in (("adjoint tableau", exact), ("weights alone", plain))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("worst", "verdict"),
    [(-2.0, "reproduced"), (-5.0, "not reproduced"), (-40.0, "not reproduced")],
)
def test_separation_is_judged_by_the_worst_case(worst, verdict):
    values = [-1.0] * (len(CASES) - 1) + [worst]
    tables = {
        "accuracy": accuracy(CASES, values, ("set", "method")),
        "gradients": gradients(1e-14, 0.2),
    }
    found = verdicts(transitions.OwrenTransitions, tables)
    assert found["separate"].verdict == verdict
    assert found["separate"].effect == pytest.approx(worst)
    all_far = {**tables, "accuracy": accuracy(CASES, [-40.0] * len(CASES), ("set", "method"))}
    reversed_ = verdicts(transitions.OwrenTransitions, all_far)["separate"]
    assert reversed_.verdict == "reversed"


@pytest.mark.parametrize(
    ("exact", "plain", "verdict"),
    [
        (1e-14, 0.2, "reproduced"),
        (1e-9, 0.2, "not reproduced"),
        (1e-14, 1e-4, "not reproduced"),
        (math.nan, 0.2, "not reproduced"),
    ],
)
def test_the_adjoint_is_judged_by_both_ways_back(exact, plain, verdict):
    tables = {
        "accuracy": accuracy(CASES, [-1.0] * len(CASES), ("set", "method")),
        "gradients": gradients(exact, plain),
    }
    assert verdicts(transitions.OwrenTransitions, tables)["adjoint"].verdict == verdict


def stability_tables(*, rate=-0.1, expanding=-0.1, trained=0.0, free=1.5):
    """`rate`, `trained`: excess of one case over its bound; `expanding`: an FTLE under limit 2."""
    random = pd.DataFrame(
        {
            "limit": ["rate", "rate", "non_expansive", "non_expansive", "none"],
            stability.FTLE: [-1.2, -1 + rate, -0.5, expanding, 3.0],
            stability.BOUND: [-1.0, -1.0, -1.0, -0.2, -1.0],
        }
    )
    rows = []
    for limit in ("rate", "non_expansive", "none"):
        for width in (2, 4):
            for network in range(3):
                ftle = free + 0.1 * network if limit == "none" else -0.2
                excess = trained if limit == "rate" else 0.3
                rows.append((limit, width, network, 2, ftle, -0.2, excess))
    columns = ["limit", "width", "network", "epoch", stability.FTLE, stability.BOUND]
    training = pd.DataFrame(rows, columns=[*columns, stability.EXCESS])
    cases = [(limit,) for limit in ("none", "non_expansive", "rate")]
    return {
        "random": random,
        "training": training,
        "accuracy": accuracy(cases, [-1.0, -2.0, -3.0], ("limit",)),
    }


def test_within_the_limits_no_exception_is_allowed():
    study = stability.OwrenStability
    found = verdicts(study, stability_tables())
    expected = {
        "rate": "reproduced",
        "rate_of_two": "not reproduced",
        "never_expands": "reproduced",
        "kept_in_training": "reproduced",
        "broken_by_training": "reproduced",
    }
    assert {claim: f.verdict for claim, f in found.items()} == expected
    assert "2 of 2 random draws exceed it" in found["rate_of_two"].found
    assert "no limit 94.0 %" in found["broken_by_training"].found


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({"rate": 1e-6}, "rate", "not reproduced"),
        ({"rate": 1e-11}, "rate", "reproduced"),
        ({"expanding": 1e-6}, "never_expands", "not reproduced"),
        ({"expanding": math.nan}, "never_expands", "not reproduced"),
        ({"trained": 1e-6}, "kept_in_training", "not reproduced"),
        ({"free": 0.0}, "broken_by_training", "not reproduced"),
        ({"free": -1.0}, "broken_by_training", "reversed"),
    ],
)
def test_stability_verdicts_turn_with_the_numbers(change, claim, verdict):
    assert verdicts(stability.OwrenStability, stability_tables(**change))[claim].verdict == verdict


def hamiltonian_tables(*, pair=1e-13, total=1e-15, explicit=0.1, above=-1.0):
    cases = [(f, i) for f in ("pairwise", "second_order") for i in hamiltonian._NAMES]
    rows = []
    for field, integrator in cases:
        is_explicit = integrator == "explicit_euler"
        for network in range(3):
            sums = explicit + 0.01 * network if is_explicit else total
            rows.append(
                {
                    "field": field,
                    "integrator": integrator,
                    "network": network,
                    hamiltonian.PAIR: 0.2 if is_explicit else pair,
                    hamiltonian.SUM: sums,
                    "largest size of the sum of all [nats/layer]": abs(sums),
                }
            )
    return {
        "structure": pd.DataFrame(rows),
        "accuracy": accuracy(cases, [above] * len(cases), ("field", "integrator")),
    }


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, "pairs", "reproduced"),
        ({}, "sum", "reproduced"),
        ({}, "explicit", "reproduced"),
        ({}, "accuracy", "reproduced"),
        ({"pair": 1e-9}, "pairs", "not reproduced"),
        ({"total": -1e-11}, "sum", "not reproduced"),
        ({"total": math.nan}, "sum", "not reproduced"),
        ({"explicit": -0.01}, "explicit", "not reproduced"),
        ({"explicit": -0.5}, "explicit", "reversed"),
        ({"above": -20.0}, "accuracy", "reversed"),
    ],
)
def test_hamiltonian_verdicts_turn_with_the_numbers(change, claim, verdict):
    tables = hamiltonian_tables(**change)
    assert verdicts(hamiltonian.OwrenHamiltonian, tables)[claim].verdict == verdict


def test_small_singular_values_keep_their_digits():
    """A product of shears that grows by e^30: its smallest exponent is minus the largest."""
    generator = generator_for("shears")
    maps = []
    for _ in range(40):
        S, T = (torch.randn(2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
        eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
        kick = torch.cat([torch.cat([eye, zero], 1), torch.cat([S + S.mT, eye], 1)])
        drift = torch.cat([torch.cat([eye, T + T.mT], 1), torch.cat([zero, eye], 1)])
        maps.append(drift @ kick)
    stacked = torch.stack(maps)[None, None]
    found = hamiltonian.exponents(Trajectories(stacked, stacked, torch.ones(1, 40)))[0, 0]
    assert found[0] > 0.75
    assert (found[0] + found[-1]).abs() < 1e-12
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    product = torch.linalg.multi_dot(maps[::-1])
    naive = torch.linalg.svdvals(product).log() / 40
    assert (naive[0] + naive[-1]).abs() > 1e-3


def penalties(variations, points):
    rows = []
    for size, variation, accuracy_ in zip((0.0, 0.1, 1.0), variations, points, strict=True):
        for network, factor in enumerate((0.9, 1.0, 1.1)):
            rows.append(
                {
                    regularisation.PENALTY: size,
                    "network": network,
                    regularisation.WEIGHTS: variation * factor,
                    ACCURACY: accuracy_ + factor - 1,
                }
            )
    return {"networks": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("variations", "points", "expected"),
    [
        ((24, 6, 2), (99, 99, 99), ("reproduced", "reproduced", "reproduced")),
        ((3, 2.9, 2), (99, 99, 96), ("reversed", "reproduced", "reversed")),
        ((9, 1, 2), (99, 99, 97.1), ("reproduced", "reversed", "not reproduced")),
    ],
)
def test_regularisation_verdicts_turn_with_the_numbers(variations, points, expected):
    found = verdicts(regularisation.OwrenRegularisation, penalties(variations, points))
    assert tuple(f.verdict for f in found.values()) == expected
    factor = variations[0] / variations[2]
    assert f"{factor:.3g}-fold" in found["smooth"].found


@pytest.mark.parametrize(
    ("gap", "least", "growth", "expected"),
    [
        (0.1, 1e-9, 0.5, ("reproduced", "reproduced", "reproduced")),
        (0.3, -1e-13, 0.5, ("reproduced", "not reproduced", "reproduced")),
        (0.6, -1e-6, 9.0, ("not reproduced", "reversed", "reversed")),
    ],
)
def test_eigenvalue_verdicts_turn_with_the_numbers(gap, least, growth, expected):
    rows = []
    for size, mean in ((0.0, 0.3), (1.0, gap)):
        for network, extra in enumerate((-0.01, 0.0, 0.01)):
            norm = 2.0 + extra
            rows.append(
                {
                    eigenvalues.PENALTY: size,
                    "network": network,
                    eigenvalues.NORM: norm,
                    eigenvalues.ABSCISSA: norm - mean - extra,
                    "gap [nats/time]": mean + extra,
                    eigenvalues.LEAST: least,
                    eigenvalues.FTLE: growth - extra,
                    eigenvalues.RIGHT: 90.0 - 10 * size,
                }
            )
    found = verdicts(eigenvalues.OwrenEigenvalues, {"networks": pd.DataFrame(rows)})
    assert tuple(f.verdict for f in found.values()) == expected
    assert f"gap {gap:.2f}, test accuracy 80 %" in found["usable"].found


def net_tables(*, resnet, ode_loss, steps):
    rows, learned = [], []
    for shape in ("spiral", "donut"):
        for kind, right, loss in (
            ("Net", 80.0, 0.5),
            ("ResNet", resnet, 0.1),
            ("ODENet", 95.0, ode_loss),
            ("ODENet + simplex", 95.0, 0.1),
        ):
            for network, factor in enumerate((0.98, 1.0, 1.02)):
                case = {"set": shape, "kind": kind, "network": network}
                values = {ACCURACY: right * factor, BEST: 98.0, ABOVE: right * factor - 98}
                rows.append({**case, **values, nets.LOSS: loss * factor})
                if kind.startswith("ODE"):
                    for layer, h in enumerate(steps, start=1):
                        learned.append({**case, "layer": layer, "step": h * factor})
    table = pd.DataFrame(learned)
    effective = nets._effective(table)
    # Networks with equal steps have no scatter, and no interval could be wrong.
    effective[nets.EFFECTIVE] += 0.01 * effective["network"]
    return {"networks": pd.DataFrame(rows), "steps": table, "effective": effective}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"resnet": 95.0, "ode_loss": 0.02, "steps": [0.7, 0.1, 0.1, 0.1]},
            ("reproduced", "reproduced", "reproduced"),
        ),
        (
            {"resnet": 60.0, "ode_loss": 0.4, "steps": [0.25] * 4},
            ("reversed", "reversed", "reversed"),
        ),
        (
            {"resnet": 81.0, "ode_loss": 0.1, "steps": [0.7, 0.1, 0.1, 0.1]},
            ("not reproduced", "not reproduced", "reproduced"),
        ),
    ],
)
def test_net_verdicts_turn_with_the_numbers(values, expected):
    found = verdicts(nets.OwrenNets, net_tables(**values))
    assert tuple(f.verdict for f in found.values()) == expected


def test_effective_layers_are_all_if_equal_and_one_if_alone():
    rows = [("spiral", "ODENet", n, k, h) for n, steps in enumerate(([0.2] * 5, [1, 0, 0, 0, 0],
            [0.5, -0.5, 0, 0, 0])) for k, h in enumerate(steps)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["set", "kind", "network", "layer", "step"])
    np.testing.assert_allclose(nets._effective(table)[nets.EFFECTIVE], [5, 1, 2])


def test_the_best_rule_knows_the_set():
    """Squares: a point moves across an axis with E Φ(−|x|/σ), x uniform in ±0.7."""
    for shape, expected in (("spiral", 0.999), ("squares", None)):
        settings_ = Planar.Config(shape=shape, points=4000)
        x, classes = draw_points(settings_, generator_for("new"))
        found = best_rule(settings_, x, generator_for("centres"))
        right = float((found == classes).double().mean())
        if expected is None:
            # The sign of x y is the best rule there, up to what lies outside of the square.
            signs = (x.prod(1) > 0).long()
            expected = float((signs == classes).double().mean())
            crossed = 0.1 / math.sqrt(2 * math.pi) / 0.7
            # Five standard errors of 4,000 points.
            assert expected == pytest.approx(1 - 2 * crossed * (1 - crossed), abs=0.025)
        assert right == pytest.approx(expected, abs=0.01)
