"""The studies of Poole et al. (2016): tiny networks end to end, and verdicts that must turn."""

import numpy as np
import pandas as pd
import pytest

from analysis.figures.base import png
from analysis.studies import every_case
from analysis.studies.lab import Lab
from analysis.studies.settings import Settings
from pipeline import catalog
from pipeline.dynamics import meanfield as mf

SIGMAS = {"sigma_w": (1.3, 2.5, 4.0), "sigma_b": 0.3}
TINY = {
    "poole_lengths": {
        "width": 40, "depth": 4, "starts": (1.0, 4.0), "inputs": 2, "vanishing": (0.8, 1.25),
        "grid_sigma_w": (0.5, 2.0), "grid_sigma_b": (0.0, 1.0), **SIGMAS,
    },
    "poole_phases": {
        "width": 40, "depth": 4, "starts": (0.0, 0.9), "side_depth": 3, "side_sigma_b": (0.3,),
        "grid_sigma_w": (1.0, 4.0, 2), "grid_sigma_b": (0.0, 2.0, 2), **SIGMAS,
    },
    "poole_jacobian": {
        "width": 40, "depth": 4, "inputs": 2, "theory_sigma_w": (1.0, 4.0, 3),
        "largest_at": (1, 4), "largest_networks": 2, **SIGMAS,
    },
    "poole_circle": {"width": 40, "depth": 5, "angles": 16, **SIGMAS},
    "poole_autocorrelation": {"width": 40, "angles": 8, "layers": (2, 4), **SIGMAS},
    "poole_boundary": {
        "width": 12, "depth": 4, "points": 2, "sigma_w": (1.3, 4.0), "sigma_b": 0.3,
    },
    "poole_fourier": {
        "angles": 64, "periods": 8, "size": 6, "width": 30, "depths": (1, 3), "widths": (10, 40),
        "sigma_w": 4.0, "sigma_b": 0.3,
    },
    "poole_shallow": {
        "inputs": 10, "widths": (5, 20), "shallow_sigma_w": (4.0,), "angles": 200,
        "deep_width": 20, "depth": 3, "deep_sigma_w": (1.3, 4.0), "sigma_b": 0.3,
    },
    "poole_weights": {"width": 40, "depth": 3, "inputs": 2, "deltas": (0.1, 0.6), **SIGMAS},
}  # fmt: skip


def tiny(name):
    kind = catalog.load("studies", name)
    settings = Settings(name, "small", 3, kind.Config(**TINY[name]), {})
    return kind(settings.config), Lab(settings, None)


@pytest.fixture(scope="module")
def measured():
    """Tables of each study, measured once."""
    found = {}

    def tables(name):
        if name not in found:
            study, lab = tiny(name)
            found[name] = study.measure(lab)
        return {key: table.copy() for key, table in found[name].items()}

    return tables


def verdicts(name, tables):
    study, _ = tiny(name)
    findings = study.judge(tables)
    assert [f.claim for f in findings] == [c.key for c in study.claims]
    assert all(f.found[0].isupper() and f.found.endswith(".") for f in findings)
    return {f.claim: f.verdict for f in findings}


def test_none_is_left_out():
    assert {n for n in catalog.entries("studies") if n.startswith("poole_")} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_from_end_to_end(name, measured):
    tables = measured(name)
    study, lab = tiny(name)
    assert all(len(table) and table.columns.is_unique for table in tables.values())
    again = study.measure(lab)
    for key, table in tables.items():
        pd.testing.assert_frame_equal(table, again[key])
    verdicts(name, tables)
    assert png(lambda: study.draw(tables)).startswith(b"\x89PNG")


def exact(tables, name):
    """Networks that do what theory says, to three digits."""
    for key in ("layers", "autocorrelation", "growth", "exponents"):
        if key in tables and "theory" in tables[key]:
            theory = tables[key]["theory"]
            tables[key] = tables[key].assign(mean=theory, low=theory - 1e-3, high=theory + 1e-3)
    return tables


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("poole_lengths", ["recursion"]),
        ("poole_phases", ["recursion"]),
        ("poole_jacobian", ["growth", "phases"]),
        ("poole_circle", ["metric", "curvature"]),
        ("poole_autocorrelation", ["autocorrelation"]),
        ("poole_weights", ["drop", "follows"]),
    ],
)
def test_networks_as_in_theory_are_reproduced_and_others_are_not(name, claims, measured):
    tables = exact(measured(name), name)
    found = verdicts(name, tables)
    assert {found[claim] for claim in claims} == {"reproduced"}
    for key in ("layers", "autocorrelation", "exponents"):
        if key in tables:
            off = tables[key]["mean"] - 0.2 * (1 + tables[key]["mean"].abs())
            tables[key] = tables[key].assign(mean=off)
    found = verdicts(name, tables)
    wrong = [claim for claim in claims if claim != "phases"]
    assert {found[claim] for claim in wrong} == {"not reproduced"}


@pytest.mark.parametrize(
    ("name", "table", "rows", "claim"),
    [
        ("poole_lengths", "vanishing", {}, "vanishing"),
        ("poole_phases", "sides", {}, "line"),
        ("poole_jacobian", "exponents", {}, "phases"),
        ("poole_jacobian", "gaps", {}, "largest"),
        ("poole_circle", "difference", {}, "stays"),
        ("poole_autocorrelation", "spread", {}, "spreads"),
        ("poole_autocorrelation", "difference", {}, "stays"),
        ("poole_boundary", "growth", {"end": "largest"}, "grows"),
        ("poole_boundary", "growth", {"end": "smallest"}, "both_sides"),
        ("poole_boundary", "difference", {}, "only_chaos"),
        ("poole_fourier", "gains", {"precision": "single", "gain": "depth"}, "depth"),
        ("poole_fourier", "gains", {"precision": "single", "gain": "width"}, "width"),
        (
            "poole_fourier",
            "gains",
            {"precision": "single", "gain": "deep_beats_wide"},
            "deep_beats_wide",
        ),
        (
            "poole_fourier",
            "gains",
            {"precision": "double", "gain": "deep_beats_wide"},
            "in_principle",
        ),
        ("poole_shallow", "deepest", {}, "exceeded"),
        ("poole_shallow", "decline", {}, "only_chaos"),
        ("poole_weights", "change", {"sigma_w": 1.3}, "heals"),
        ("poole_weights", "change", {"sigma_w": 4.0}, "grows"),
    ],
)
def test_signs_decide(name, table, rows, claim, measured):
    """Intervals on the right side of 0 reproduce, around 0 do not, on the wrong side reverse."""
    tables = measured(name)
    found = set()
    for centre in (1.0, 0.0, -1.0):
        sign = signs(tables[table])
        for column, shift in (("mean", 0.0), ("low", -0.5), ("high", 0.5)):
            tables[table][column] = centre * sign + shift
        found.add(verdicts(name, tables)[claim])
        if centre == 1.0:
            assert found == {"reproduced"}
    assert found == {"reproduced", "not reproduced", "reversed"}


def signs(table):
    """Which sign of a row's mean is the one that a claim foretells."""
    if "change" in table or "delta" in table:
        return np.where(table["chi_1"] < 1, 1.0, -1.0)
    if "phase" in table:
        return np.where(table["phase"] == "order", 1.0, -1.0)
    if "theory" in table and "chi_1" in table:
        return np.where(table["chi_1"] < 1, -1.0, 1.0)
    if set(table["sigma_w"]) == {0.8, 1.25} if "sigma_w" in table else False:
        return np.where(table["sigma_w"] < 1, -1.0, 1.0)
    return np.ones(len(table))


def test_slow_starts_and_a_broken_bound_are_told(measured):
    tables = measured("poole_lengths")
    tables["applications"]["applications"] = 6
    assert verdicts("poole_lengths", tables)["few_layers"] == "reproduced"
    tables["applications"].loc[0, "applications"] = 7
    assert verdicts("poole_lengths", tables)["few_layers"] == "not reproduced"
    tables = measured("poole_shallow")
    assert verdicts("poole_shallow", tables)["bound"] == "reproduced"
    tables["shallow"].loc[0, "largest_share"] = 1.001
    assert verdicts("poole_shallow", tables)["bound"] == "not reproduced"


def test_order_chaos_and_relaxation_of_correlations(measured):
    tables = exact(measured("poole_phases"), "poole_phases")
    last = tables["layers"]["layer"] == tables["layers"]["layer"].max()
    chaotic = tables["layers"]["chi_1"] > 1
    limit = tables["layers"]["fixed_correlation"]
    tables["layers"].loc[last & chaotic, "mean"] = limit[last & chaotic] + 0.04
    assert verdicts("poole_phases", tables)["chaos"] == "reproduced"
    tables["layers"].loc[last & chaotic, "mean"] = limit[last & chaotic] - 0.06
    found = verdicts("poole_phases", tables)
    assert (found["chaos"], found["order"], found["slow"]) == (
        "not reproduced",
        "reproduced",
        "reproduced",
    )
    tables["layers"].loc[last & ~chaotic, ["mean", "low", "high"]] = -0.5
    tables["relaxation"]["length_layers"] = 100
    found = verdicts("poole_phases", tables)
    assert (found["order"], found["slow"]) == ("reversed", "not reproduced")


def test_mean_squared_singular_values_and_rates_of_the_circle(measured):
    tables = measured("poole_jacobian")
    tables["singular"]["mean"] = 1.04 * tables["singular"]["chi_1"]
    assert verdicts("poole_jacobian", tables)["singular"] == "reproduced"
    tables["singular"]["mean"] *= 1.02
    assert verdicts("poole_jacobian", tables)["singular"] == "not reproduced"
    tables = measured("poole_circle")
    growth, layers = tables["growth"], tables["layers"]
    growth["mean"] = growth["half_log_chi_1"]
    limits = layers["sigma_w"].map(growth.set_index("sigma_w")["curvature_limit"])
    tables["layers"] = layers.assign(mean=limits)
    found = verdicts("poole_circle", tables)
    assert (found["grows"], found["keeps_curvature"]) == ("reproduced", "reproduced")
    growth["mean"] *= 0.9
    tables["layers"] = layers.assign(mean=0.9 * limits)
    found = verdicts("poole_circle", tables)
    assert (found["grows"], found["keeps_curvature"]) == ("not reproduced", "not reproduced")


def test_theory_beside_the_networks_is_the_theory(measured):
    layers = measured("poole_lengths")["layers"].set_index(["sigma_w", "start", "layer"])["theory"]
    for sigma_w in SIGMAS["sigma_w"]:
        assert layers[sigma_w, 4.0, 2] == pytest.approx(float(mf.length_map(4.0, sigma_w, 0.3)))
    weights = measured("poole_weights")["layers"].set_index(["sigma_w", "delta", "layer"])
    q = mf.fixed_point(2.5, 0.3)
    dropped = (np.sqrt(1 - 0.36) * (q - 0.09) + 0.09) / q
    assert weights.loc[(2.5, 0.6, 1), "theory"] == pytest.approx(dropped)
    after = float(mf.correlation_map(dropped, 2.5, 0.3))
    assert weights.loc[(2.5, 0.6, 2), "theory"] == pytest.approx(after)
    turned = measured("poole_autocorrelation")["autocorrelation"]
    second = turned[turned["layer"].eq(2) & turned["sigma_w"].eq(4.0)]
    expected = mf.correlation_map(np.clip(np.cos(second["delta_theta"]), -1, 1), 4.0, 0.3)
    np.testing.assert_allclose(second["theory"], expected)


def test_a_subspace_expresses_what_it_holds(measured):
    """As many outputs as functions leave nothing; a random subspace is where one expects it."""
    errors = measured("poole_fourier")["errors"]
    assert errors["mean"].between(-1e-9, 1).all()
    assert errors["of_random_subspace"].unique() == pytest.approx(1 - np.sqrt(6 / 64))
    low = errors[errors["periods"].eq(0)]
    assert (low["mean"] < 0.2).all()


def test_cases_that_are_missing_are_not_reproduced():
    nothing = pd.DataFrame({"mean": [], "low": [], "high": []})
    assert every_case.all_above("x", nothing, "").verdict == "not reproduced"
    assert every_case.within("x", pd.Series([], dtype=float), 1.0, "y").verdict == "not reproduced"
    diverged = pd.DataFrame({"mean": [1.0, np.nan], "low": [0.5, np.nan], "high": [2.0, np.nan]})
    assert every_case.all_above("x", diverged, "at {mean}").verdict == "not reproduced"
    assert every_case.within("x", pd.Series([0.0, np.nan]), 1.0, "y").verdict == "not reproduced"
