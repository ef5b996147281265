"""Verdicts of the studies on the circle, from made-up tables."""

import numpy as np
import pandas as pd
import pytest

from analysis.studies.storm_crossover import StormCrossover, _means
from analysis.studies.storm_density import StormDensity
from analysis.studies.storm_fields import StormFields
from analysis.studies.storm_random_weights import StormRandomWeights
from analysis.studies.storm_self_organisation import WHEN, StormSelfOrganisation
from tasks.base import seed_for

SEEDS = 5


def scatter(*parts):
    """Small deviations of five networks, other ones in each case, with mean 0."""
    found = np.random.default_rng(seed_for(*parts)).normal(0, 0.05, SEEDS)
    return found - found.mean()


def heights(boundary, centre, widths=(5, 10, 50), depths=(2, 4, 8), **columns):
    """Networks whose L λ is given by width and depth."""
    rows = []
    for N in widths:
        for L in depths:
            for n in range(SEEDS):
                rows.append(
                    {
                        "network": len(rows),
                        "width": N,
                        "depth": L,
                        "boundary_nats": boundary(N, L) + scatter("b", N, L)[n],
                        "centre_nats": centre(N, L) + scatter("c", N, L)[n],
                        "alignment": 0.99,
                        "test_accuracy": 0.99,
                        **columns,
                    }
                )
    return pd.DataFrame(rows)


def verdicts(study, tables):
    findings = study.judge(tables)
    assert [f.claim for f in findings] == [c.key for c in study.claims]
    assert all(f.found.endswith(".") for f in findings)
    return {f.claim: f.verdict for f in findings}


def test_fields_as_published_and_the_other_way_round():
    study = StormFields(StormFields.Config())
    published = heights(
        lambda N, L: 2 + 0.2 * L, lambda N, L: 0.7 * np.log(N) - 0.6 * L, widths=(10, 50)
    )
    assert set(verdicts(study, {"heights": published}).values()) == {"reproduced"}
    turned = published.assign(
        boundary_nats=published["centre_nats"],
        centre_nats=published["boundary_nats"],
        alignment=0.6 + 0.01 * published.index % 0.05,
        test_accuracy=0.9,
    )
    found = verdicts(study, {"heights": turned})
    assert found.pop("accuracy") == "not reproduced"
    assert set(found.values()) == {"reversed"}


def test_a_boundary_that_was_not_found_reproduces_nothing():
    study = StormFields(StormFields.Config())
    table = heights(lambda N, L: np.nan, lambda N, L: -1.0)
    found = verdicts(study, {"heights": table})
    assert found["ridge"] == found["depth"] == found["width"] == "not reproduced"
    assert found["background"] == "reproduced"


def test_crossover_as_published_and_not():
    study = StormCrossover(StormCrossover.Config())
    published = heights(lambda N, L: 1 + 0.25 * L, lambda N, L: np.log(N) - 0.3 * L)
    assert set(verdicts(study, {"heights": published}).values()) == {"reproduced"}
    other = heights(lambda N, L: np.log(N) - 0.3 * L, lambda N, L: 1 + 0.25 * L)
    found = verdicts(study, {"heights": other})
    assert found.pop("crossover") == "reversed"
    assert set(found.values()) == {"not reproduced"}


def test_density_as_published_and_the_other_way_round():
    study = StormDensity(StormDensity.Config())

    def tables(sign):
        parts = [
            heights(lambda N, L, n=n: sign * 0.3 * np.log(n), lambda N, L: 0.0, (10,), (8,)).assign(
                data_points=n
            )
            for n in (1000, 4000, 16000)
        ]
        layers = pd.DataFrame(
            [
                {
                    "network": n,
                    "layer": layer,
                    "log_first_nats": sign * 3 * (1 - np.exp(-layer / 2)) + 0.01 * n,
                    "log_second_nats": -sign * (0.5 + 0.01 * n) * layer,
                }
                for n in range(SEEDS)
                for layer in range(1, 9)
            ]
        )
        return {"heights": pd.concat(parts, ignore_index=True), "layers": layers}

    assert set(verdicts(study, tables(1)).values()) == {"reproduced"}
    assert set(verdicts(study, tables(-1)).values()) == {"reversed"}


def errors(**by_way):
    rows = [
        {"network": n, "width": width, "way": way, "test_error": error + 0.01 * scatter(way)[n]}
        for way, found in by_way.items()
        for width, error in zip((5, 20, 100), found, strict=True)
        for n in range(SEEDS)
    ]
    return {"errors": pd.DataFrame(rows)}


def test_random_weights_as_published_and_not():
    study = StormRandomWeights(StormRandomWeights.Config())
    published = errors(
        all=(0.02, 0.01, 0.01), output=(0.3, 0.1, 0.01), no_thresholds=(0.5, 0.49, 0.51)
    )
    assert set(verdicts(study, published).values()) == {"reproduced"}
    stays_high = errors(
        all=(0.02, 0.01, 0.01), output=(0.3, 0.2, 0.1), no_thresholds=(0.5, 0.3, 0.1)
    )
    assert verdicts(study, stays_high) == {
        "wide": "not reproduced",
        "narrow": "reproduced",
        "same": "reversed",
        "parity": "not reproduced",
    }


def means(before, after):
    rows = [
        {
            "network": 10 * place + n,
            "variance": variance,
            "when": when,
            "mean_nats": found[place] + scatter(variance, when)[n],
            "test_accuracy": 0.98,
        }
        for when, found in ((WHEN["start"], before), (WHEN["end"], after))
        for place, variance in enumerate((0.25, 1.0, 2.25, 4.0))
        for n in range(SEEDS)
    ]
    return {"means": pd.DataFrame(rows)}


def test_self_organisation_as_published_and_not():
    study = StormSelfOrganisation(StormSelfOrganisation.Config())
    published = means((-1.5, 0.1, 0.8, 1.3), (0.2, 0.2, 0.3, 1.4))
    assert set(verdicts(study, published).values()) == {"reproduced"}
    frozen = means((0.5, 1.5, 2.3, 2.8), (-1.5, 0.1, 0.8, -4.0))
    assert verdicts(study, frozen) == {
        "negative": "reversed",
        "independent": "reversed",
        "centred": "reversed",
        "too_large": "reversed",
    }


@pytest.mark.parametrize("depth", [2, 8])
def test_crossover_draws_what_was_not_found(depth):
    study = StormCrossover(StormCrossover.Config())
    table = heights(lambda N, L: np.nan if depth == L else 1.0, lambda N, L: -1.0)
    picture = study.draw({"means": _means(table)})
    assert len(picture.axes) == 1
    assert picture.axes[0].get_xlabel() == "width N"
